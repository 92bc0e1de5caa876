//! Features of pictures in files, where the next run finds them.

use crate::device::Place;
use crate::io::{MappedValues, ValueFile, ValueWriter};
use crate::text::Sight;
use crate::{Device, Error, Result};
use serde_json::{Value, json};
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};

/// How names of the files end.
const ENDING: &str = "features";
/// A file is ended behind so many bytes: what is whole is found again when a run is stopped.
const FILE: usize = 256 << 20;

/// The files of one tower and one preparation of pictures, in a folder of their own.
pub(super) struct FeatureFiles {
    dir: PathBuf,
    /// All that decides what the values are, besides the picture.
    about: Value,
    files: Vec<ValueFile>,
    /// File and array by the key of a picture.
    found: HashMap<String, [usize; 2]>,
    writer: Option<ValueWriter>,
    /// What was odd about the files.
    pub notes: Vec<String>,
}

/// All that decides what a tower makes of a picture.
fn about(sight: &Sight) -> Value {
    #[cfg(feature = "images")]
    let processor = json!(sight.processor.fields());
    #[cfg(not(feature = "images"))]
    let processor = Value::Null;
    let tower = sight.vision.tower();
    let Place { crate_version, backend, adapter, driver, .. } = Place::of(tower.device());
    // On a CPU this is the number of threads, on which nothing depends.
    let driver = if matches!(tower.device(), Device::Gpu(_)) { driver } else { String::new() };
    json!({
        "tower": sight.vision.identity().tower(), "weights": tower.format().name(), "processor": processor,
        "computed": [crate_version, backend, adapter, driver],
    })
}

impl FeatureFiles {
    /// Those of a vision part in a folder. Damaged ones are removed, and files of other kinds are left alone; both are noted.
    ///
    /// # Errors
    /// The folder is none, or cannot be read.
    pub fn open(cache: &Path, sight: &Sight) -> Result<Self> {
        let about = about(sight);
        let kind = sight.vision.tower().config().model_type();
        let dir = cache.join(format!("{kind}-{:08x}", crc32fast::hash(about.to_string().as_bytes())));
        let unread = |error: std::io::Error| Error::file(&dir, format!("cannot be read: {error}"));
        let mut all = FeatureFiles {
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
        paths.retain(|path| path.extension().is_some_and(|end| end == ENDING));
        paths.sort();
        for path in paths {
            if !ValueFile::is_one(&path) {
                all.notes.push(format!("{} is no file of features, and is left alone", path.display()));
                continue;
            }
            match ValueFile::open(&path) {
                Ok(file) if *file.about() == all.about => all.take(file),
                Ok(_) => all.notes.push(format!("{} has features of another tower", path.display())),
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
        self.notes.push(format!("{error}; its features are computed again"));
    }

    /// Where they are.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The features of a picture by its key; none where they are not there, or are damaged.
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

    /// Writes the features of a picture.
    ///
    /// # Errors
    /// They cannot be written; files that are whole stay.
    pub fn put(&mut self, key: &str, dims: [usize; 3], values: &[f32]) -> Result<()> {
        let writer = match &mut self.writer {
            Some(writer) => writer,
            None => {
                self.writer.insert(ValueWriter::create(&self.dir, ENDING, self.about.clone()).map_err(hint)?)
            }
        };
        writer.push(key, dims, values).map_err(hint)?;
        if writer.len() >= FILE { self.finish() } else { Ok(()) }
    }

    /// Ends the file that is being written.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn finish(&mut self) -> Result<()> {
        if let Some(writer) = self.writer.take() {
            self.take(writer.finish().map_err(hint)?);
        }
        Ok(())
    }
}

/// What can be done where features cannot be written.
fn hint(error: Error) -> Error {
    match error {
        Error::File { path, what } => Error::file(
            path,
            format!(
                "{what}; --feature-cache names another folder, and --feature-memory how much stays in memory"
            ),
        ),
        error => error,
    }
}
