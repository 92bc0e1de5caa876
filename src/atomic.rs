//! Files that are either old or new, never half: temporary file beside the target, fsync, rename.

use crate::{Error, Result};
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

/// Replaces a file by these bytes. A crash at any moment leaves the old file or the new one.
///
/// # Errors
/// The folder cannot be written; the old file is intact then.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |file| {
        file.write_all(bytes).map_err(|error| Error::file(path, format!("cannot be written: {error}")))
    })
}

/// Replaces a file by what `fill` writes, which may be more than memory holds.
///
/// # Errors
/// Those of `fill`, or the folder cannot be written; the old file is intact then.
pub fn write_with(path: &Path, fill: impl FnOnce(&mut dyn Write) -> Result<()>) -> Result<()> {
    let fail = |what: &str, e: std::io::Error| Error::file(path, format!("{what}: {e}"));
    let name = path.file_name().ok_or_else(|| Error::file(path, "is not a file name"))?;
    // No two writers share a name, of any process.
    static WRITTEN: AtomicU32 = AtomicU32::new(0);
    let process = std::process::id();
    let count = WRITTEN.fetch_add(1, Relaxed);
    let temporary = path.with_file_name(format!(".{}.{process}-{count}.tmp", name.to_string_lossy()));
    let done = File::create(&temporary)
        .map_err(|error| fail("cannot be created", error))
        .and_then(|file| {
            let mut file = BufWriter::new(file);
            fill(&mut file)?;
            let file = file.into_inner().map_err(|error| fail("cannot be written", error.into_error()))?;
            file.sync_all().map_err(|error| fail("cannot be synced", error))
        })
        .and_then(|()| fs::rename(&temporary, path).map_err(|error| fail("cannot be renamed", error)));
    match done {
        Ok(()) => sync_parent(path),
        Err(e) => {
            // What matters is the first error; a left-over temporary file harms nobody.
            let _ = fs::remove_file(&temporary);
            Err(e)
        }
    }
}

/// Makes a rename in the folder of `path` durable. Not every system can sync a folder.
pub fn sync_parent(path: &Path) -> Result<()> {
    if cfg!(unix)
        && let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty())
    {
        let synced = File::open(dir).and_then(|d| d.sync_all());
        synced.map_err(|error| Error::file(dir, format!("cannot be synced: {error}")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replaces_whole_files_or_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        write(&path, b"one").unwrap();
        write(&path, b"two").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        let missing = dir.path().join("no").join("b.txt");
        assert!(write(&missing, b"x").unwrap_err().to_string().contains("b.txt"));
    }
}
