//! Memory-mapped files.

use super::cannot_read;
use crate::{Error, Result};
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

/// How zip archives begin.
const ZIP: &[u8] = b"PK\x03\x04";

/// A file mapped into memory, or bytes in memory.
pub(super) enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a file; messages call its expected format `kind`. Folders, empty files, Git-LFS pointers and pickle files
    /// are refused.
    pub fn open(path: &Path, kind: &str) -> Result<Self> {
        let bytes = Self::map(path, kind)?;
        if is_pickle(&bytes) {
            return Err(pickle(path));
        }
        Ok(bytes)
    }

    /// The same for formats that begin with a pickle.
    pub fn map(path: &Path, kind: &str) -> Result<Self> {
        let refuse = |what: String| Err(Error::file(path, what));
        let opened = File::open(path).and_then(|file| Ok((file.metadata()?, file)));
        let (about, file) = match opened {
            Ok(pair) => pair,
            Err(error) => return Err(cannot_read(path)(error)),
        };
        if about.is_dir() {
            return refuse(format!("is a folder, not a {kind} file"));
        }
        if about.len() == 0 {
            return refuse(format!(
                "not a {kind} file (0 bytes); an interrupted download or Git-LFS checkout?"
            ));
        }
        // SAFETY: the map is read-only, and its bytes are plain integers, for which every bit pattern is valid. Model
        // files must not be shortened or rewritten while they are open: this crate replaces files by renaming new ones
        // into place, which leaves maps of the old ones intact.
        let map = unsafe { memmap2::Mmap::map(&file) };
        let bytes = match map {
            Ok(map) => Bytes::Mapped(map),
            // Some file systems cannot map.
            Err(_) => Bytes::Owned(std::fs::read(path).map_err(cannot_read(path))?),
        };
        refuse_pointer(path, &bytes)?;
        Ok(bytes)
    }
}

/// Refuses a Git-LFS pointer, the placeholder of a file that was not fetched.
pub(crate) fn refuse_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(Error::file(path, "is a Git-LFS pointer, not the file itself; run `git lfs pull`"));
    }
    Ok(())
}

/// Tests whether a file begins like those of PyTorch: with a zip archive or a pickle of protocol 2 to 5. The length at
/// the start of a safetensors file may have the same two bytes, but a header follows at byte 8.
fn is_pickle(bytes: &[u8]) -> bool {
    let pickle = matches!(bytes, [0x80, 2..=5, ..]) && bytes.get(8) != Some(&b'{');
    pickle || bytes.starts_with(ZIP)
}

/// Refuses a file as PyTorch has written them since version 1.6.
pub(super) fn refuse_zip(path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(ZIP) {
        let hint = "is a zip archive, as PyTorch writes since version 1.6, and only the files before it are read. Convert \
                    it: python -c 'import torch, safetensors.torch as s; s.save_file(torch.load(\"FILE\", \
                    weights_only=True), \"model.safetensors\")'";
        return Err(Error::file(path, hint));
    }
    Ok(())
}

/// The error for a pickle file.
pub(super) fn pickle(path: &Path) -> Error {
    let hint = "is a pickle file, which may run any code when it is loaded; it is not read. Convert it where it comes \
                from: model.save_pretrained(folder, safe_serialization=True)";
    Error::file(path, hint)
}

impl Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Owned(bytes) => bytes,
        }
    }
}
