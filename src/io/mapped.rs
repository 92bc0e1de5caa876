//! The bytes of a file, without reading all of it.

use crate::{Error, Result};
use std::fs::File;
use std::ops::Deref;
use std::path::Path;

/// A file mapped into memory, or bytes that were given.
pub(super) enum Bytes {
    Mapped(memmap2::Mmap),
    Owned(Vec<u8>),
}

impl Bytes {
    /// Maps a file that should be of this kind. Folders, empty files, Git-LFS pointers and pickle files are recognised.
    pub fn open(path: &Path, kind: &str) -> Result<Self> {
        let fail = |what: String| Err(Error::file(path, what));
        let opened = File::open(path).and_then(|f| Ok((f.metadata()?, f)));
        let (about, file) = match opened {
            Ok(pair) => pair,
            Err(e) => return fail(format!("cannot be read: {e}")),
        };
        if about.is_dir() {
            return fail(format!("is a folder, not a {kind} file"));
        }
        if about.len() == 0 {
            return fail(format!(
                "not a {kind} file (0 bytes); an interrupted download or Git-LFS checkout?"
            ));
        }
        // SAFETY: the map is read-only, and its bytes are plain integers, for which every bit pattern is valid. What
        // is left is the rule that nobody shortens or rewrites a model file while it is open: this crate replaces
        // files by renaming new ones into place, which leaves maps of the old ones intact.
        let map = unsafe { memmap2::Mmap::map(&file) };
        let bytes = match map {
            Ok(map) => Bytes::Mapped(map),
            // Some file systems cannot map.
            Err(_) => match std::fs::read(path) {
                Ok(bytes) => Bytes::Owned(bytes),
                Err(e) => return fail(format!("cannot be read: {e}")),
            },
        };
        refuse_pointer(path, &bytes)?;
        if is_pickle(&bytes) {
            return Err(pickle(path));
        }
        Ok(bytes)
    }
}

/// Refuses a Git-LFS pointer, which stands in a checkout where a file was not fetched.
pub(super) fn refuse_pointer(path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.starts_with(b"version https://git-lfs") {
        return Err(Error::file(path, "is a Git-LFS pointer, not the file itself; run `git lfs pull`"));
    }
    Ok(())
}

/// Whether a file begins as PyTorch's do: a zip, or a pickle of protocol 2 to 5. A safetensors file may begin with the
/// same two bytes, which are of a length there; its header follows at byte 8.
fn is_pickle(bytes: &[u8]) -> bool {
    let pickle = matches!(bytes, [0x80, 2..=5, ..]) && bytes.get(8) != Some(&b'{');
    pickle || bytes.starts_with(b"PK\x03\x04")
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
            Bytes::Mapped(m) => m,
            Bytes::Owned(v) => v,
        }
    }
}
