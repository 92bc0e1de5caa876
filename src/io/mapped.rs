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
    /// Maps a file that should be of this kind. Folders, empty files and Git-LFS pointers are recognised.
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
        if bytes.starts_with(b"version https://git-lfs") {
            return fail("is a Git-LFS pointer, not the file itself; run `git lfs pull`".into());
        }
        Ok(bytes)
    }
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
