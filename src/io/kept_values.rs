//! Arrays that a folder keeps for the next run, in files of [`ValueFile`].

use super::{MappedValues, ValueFile, ValueWriter};
use crate::{Error, Result};
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// A file is ended behind so many bytes: what is whole is found again when a run is stopped.
const FILE: usize = 256 << 20;

/// What is kept, for names of files and for messages.
#[derive(Debug, Clone, Copy)]
pub struct KeptKind {
    /// What the arrays are, and how names of their files end.
    pub name: &'static str,
    /// What can be done where they cannot be written.
    pub hint: &'static str,
}

/// Arrays by key, all made of one thing, in a folder of their own.
pub struct KeptValues {
    kind: KeptKind,
    dir: PathBuf,
    /// All that decides what the values are, besides the key.
    about: Value,
    files: Vec<ValueFile>,
    /// File and array by key.
    found: HashMap<String, [usize; 2]>,
    writer: Option<ValueWriter>,
    /// What was odd about the files.
    pub notes: Vec<String>,
}

impl KeptValues {
    /// Those in the folder `NAME-CHECKSUM` of a cache folder, by the checksum of what they are about. Damaged files are
    /// removed, and files of other kinds are left alone; both are noted.
    ///
    /// # Errors
    /// The folder is none, or cannot be read.
    pub fn open(cache: &Path, name: &str, about: Value, kind: KeptKind) -> Result<Self> {
        let dir = cache.join(format!("{name}-{:08x}", crc32fast::hash(about.to_string().as_bytes())));
        let unread = |error: std::io::Error| Error::file(&dir, format!("cannot be read: {error}"));
        let mut all = KeptValues {
            kind,
            about,
            files: Vec::new(),
            found: HashMap::new(),
            writer: None,
            notes: Vec::new(),
            dir: dir.clone(),
        };
        let entries = match fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(all),
            Err(error) => return Err(unread(error)),
        };
        let mut paths = Vec::new();
        for entry in entries {
            paths.push(entry.map_err(unread)?.path());
        }
        paths.retain(|path| path.extension().is_some_and(|end| end == kind.name));
        paths.sort();
        for path in paths {
            if !ValueFile::is_one(&path) {
                all.notes.push(format!("{} is no file of {}, and is left alone", path.display(), kind.name));
                continue;
            }
            match ValueFile::open(&path) {
                Ok(file) if *file.about() == all.about => all.take(file),
                Ok(_) => all.notes.push(format!("{} has other {}", path.display(), kind.name)),
                Err(error) => all.drop_damaged(&path, &error),
            }
        }
        Ok(all)
    }

    fn take(&mut self, file: ValueFile) {
        let number = self.files.len();
        let arrays = file.arrays().iter().enumerate();
        self.found.extend(arrays.map(|(at, array)| (array.key.clone(), [number, at])));
        self.files.push(file);
    }

    fn drop_damaged(&mut self, path: &Path, error: &Error) {
        // Where it cannot be removed it is passed over again.
        let _ = fs::remove_file(path);
        self.notes.push(format!("{error}; its {} are computed again", self.kind.name));
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// An array by its key, with its axes; none where it is not there, or is damaged.
    pub fn get(&mut self, key: &str) -> Option<([usize; 3], MappedValues)> {
        let [number, array] = *self.found.get(key)?;
        let file = &self.files[number];
        let array = &file.arrays()[array];
        match file.values(array) {
            Ok(values) => Some((array.dims, values)),
            Err(error) => {
                let path = file.path().to_path_buf();
                // Nothing of it is believed any more.
                self.found.retain(|_, place| place[0] != number);
                self.drop_damaged(&path, &error);
                None
            }
        }
    }

    /// Writes an array.
    ///
    /// # Errors
    /// It cannot be written; files that are whole stay.
    pub fn put(&mut self, key: &str, dims: [usize; 3], values: &[f32]) -> Result<()> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                let created = ValueWriter::create(&self.dir, self.kind.name, self.about.clone());
                self.writer.insert(created.map_err(|error| hint(self.kind, error))?)
            }
        };
        writer.push(key, dims, values).map_err(|error| hint(self.kind, error))?;
        if writer.len() >= FILE { self.finish() } else { Ok(()) }
    }

    /// Ends the file that is being written.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.take() {
            let finished = writer.finish();
            self.take(finished.map_err(|error| hint(self.kind, error))?);
        }
        Ok(())
    }
}

/// The error with what can be done where a file cannot be written.
fn hint(kind: KeptKind, error: Error) -> Error {
    match error {
        Error::File { path, what } => Error::file(path, format!("{what}; {}", kind.hint)),
        error => error,
    }
}
