//! Atomic folders: files are written under a temporary name, listed with sizes and checksums in a manifest, synced,
//! then renamed into place.

use super::cannot_read;
use crate::atomic::sync_parent;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

/// The name of the file that lists a folder's files.
pub const MANIFEST: &str = "MANIFEST.json";

#[derive(Serialize, Deserialize)]
struct Manifest {
    files: BTreeMap<String, Entry>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    bytes: u64,
    crc32: u32,
}

/// Writes a folder with these files. A crash at any moment leaves the old folder of this name, or the new one.
///
/// # Errors
/// The disk is full or the place cannot be written: nothing is left behind, and an old folder is intact.
///
/// ```
/// use mixlora::io::folder;
/// let place = tempfile::tempdir()?;
/// let dir = place.path().join("step-000001");
/// folder::write(&dir, &[("state.json".into(), b"{}".to_vec())])?;
/// folder::verify(&dir)?;
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write(dir: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    let name = dir.file_name().ok_or_else(|| Error::file(dir, "is not a folder name"))?.to_string_lossy();
    let temporary = dir.with_file_name(format!("{name}.tmp"));
    let old = dir.with_file_name(format!("{name}.old"));
    // A crash may have left these.
    put_back(dir);
    let _ = fs::remove_dir_all(&temporary);
    let _ = fs::remove_dir_all(&old);
    let done = fill(&temporary, files).and_then(|()| {
        let moved = if dir.exists() { fs::rename(dir, &old) } else { Ok(()) };
        moved
            .and_then(|()| fs::rename(&temporary, dir))
            .map_err(|error| Error::file(dir, format!("cannot be renamed into place: {error}")))
    });
    match done {
        Ok(()) => {
            let synced = sync_parent(dir);
            let _ = fs::remove_dir_all(&old);
            synced
        }
        Err(error) => {
            let _ = fs::remove_dir_all(&temporary);
            if !dir.exists() && old.exists() {
                let _ = fs::rename(&old, dir);
            }
            Err(error)
        }
    }
}

/// Restores a folder if a crash came between the two renames of a replacement, with the new files or else the old
/// ones.
pub fn put_back(dir: &Path) {
    let Some(name) = dir.file_name().filter(|_| !dir.exists()) else { return };
    let name = name.to_string_lossy();
    let remains = [".tmp", ".old"].map(|ending| dir.with_file_name(format!("{name}{ending}")));
    if let Some(whole) = remains.iter().find(|folder| verify(folder).is_ok()) {
        // A failed rename changes nothing.
        let _ = fs::rename(whole, dir);
    }
}

fn fill(dir: &Path, files: &[(String, Vec<u8>)]) -> Result<()> {
    fs::create_dir(dir).map_err(|error| Error::file(dir, format!("cannot be created: {error}")))?;
    let mut manifest = Manifest { files: BTreeMap::new() };
    for (name, bytes) in files {
        write_synced(&dir.join(name), bytes)?;
        let entry = Entry { bytes: bytes.len() as u64, crc32: crc32fast::hash(bytes) };
        manifest.files.insert(name.clone(), entry);
    }
    let text =
        serde_json::to_string_pretty(&manifest).map_err(|error| Error::file(dir, error.to_string()))?;
    write_synced(&dir.join(MANIFEST), text.as_bytes())?;
    sync_parent(&dir.join(MANIFEST))
}

fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let cannot_write = |error: std::io::Error| Error::file(path, format!("cannot be written: {error}"));
    let mut file = File::create_new(path).map_err(cannot_write)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(cannot_write)
}

/// Checks every file of a folder against its manifest.
///
/// # Errors
/// The manifest is missing, malformed or names a file of another folder, or a file differs from its entry: the error
/// names the file.
pub fn verify(dir: &Path) -> Result<()> {
    let list = dir.join(MANIFEST);
    let manifest: Manifest = super::read_json(&list)?;
    for (name, want) in &manifest.files {
        if !super::is_file_name(name) {
            let what = format!("names the file '{name}', which is not a file of the same folder");
            return Err(Error::file(list, what));
        }
        let path = dir.join(name);
        let (bytes, crc32) = checksum(&path)?;
        if bytes != want.bytes {
            return Err(Error::file(&path, format!("has {bytes} bytes, {} were written", want.bytes)));
        }
        if crc32 != want.crc32 {
            let what = format!("is damaged: its checksum is {crc32:08x}, {:08x} was written", want.crc32);
            return Err(Error::file(&path, what));
        }
    }
    Ok(())
}

/// The length in bytes and the CRC-32 of a file.
pub fn checksum(path: &Path) -> Result<(u64, u32)> {
    let mut file = File::open(path).map_err(cannot_read(path))?;
    let mut hash = crc32fast::Hasher::new();
    let mut bytes = 0;
    let mut block = vec![0; 1 << 16];
    loop {
        match file.read(&mut block).map_err(cannot_read(path))? {
            0 => return Ok((bytes, hash.finalize())),
            read => {
                hash.update(&block[..read]);
                bytes += read as u64;
            }
        }
    }
}

/// The largest number of bytes of a file that enter its fingerprint.
const SAMPLED: u64 = 8 << 20;
/// Bytes of one sampled block.
const BLOCK: u64 = 64 << 10;

/// A short text that differs if the files differ in length or in a sampled byte. Files of up to 8 MiB are sampled
/// completely, larger ones in 8 MiB of evenly spaced blocks. The fingerprint does not protect against forgery.
pub fn fingerprint(paths: &[PathBuf]) -> Result<String> {
    let mut hash = crc32fast::Hasher::new();
    let mut total = 0u64;
    for path in paths {
        let failure = cannot_read(path);
        let mut file = File::open(path).map_err(&failure)?;
        let bytes = file.metadata().map_err(&failure)?.len();
        total += bytes;
        hash.update(&bytes.to_le_bytes());
        let blocks = bytes.div_ceil(BLOCK).min(SAMPLED / BLOCK);
        for index in 0..blocks {
            // Block starts are evenly spaced; the last block ends with the file.
            let start = bytes.saturating_sub(BLOCK) * index / (blocks - 1).max(1);
            let mut block = Vec::new();
            file.seek(SeekFrom::Start(start)).map_err(&failure)?;
            (&mut file).take(BLOCK).read_to_end(&mut block).map_err(&failure)?;
            hash.update(&block);
        }
    }
    Ok(format!("{total}-{:08x}", hash.finalize()))
}

/// The folders in `dir` named `prefix` and a number, sorted by that number.
pub fn numbered(dir: &Path, prefix: &str) -> Vec<(u64, PathBuf)> {
    let entries = fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let mut found: Vec<(u64, PathBuf)> = entries
        .filter_map(|path| {
            let number = path.file_name()?.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            path.is_dir().then_some((number, path))
        })
        .collect();
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn two_files(text: &str) -> Vec<(String, Vec<u8>)> {
        vec![("a".into(), text.into()), ("b".into(), vec![7; 100_000])]
    }

    #[test]
    fn a_folder_is_replaced_whole_and_damage_is_found() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("step-000002");
        write(&dir, &two_files("one")).unwrap();
        write(&dir, &two_files("two")).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "two");
        verify(&dir).unwrap();
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1, "nothing else is left");
        assert_eq!(numbered(place.path(), "step-"), [(2, dir.clone())]);
        let mut bytes = fs::read(dir.join("b")).unwrap();
        bytes[50_000] ^= 4;
        fs::write(dir.join("b"), &bytes).unwrap();
        assert!(verify(&dir).unwrap_err().to_string().contains("b: is damaged"));
        fs::write(dir.join("b"), &bytes[1..]).unwrap();
        assert!(verify(&dir).unwrap_err().to_string().contains("99999 bytes"));
        fs::remove_file(dir.join(MANIFEST)).unwrap();
        assert!(verify(&dir).unwrap_err().to_string().contains(MANIFEST));
    }

    #[test]
    fn a_manifest_names_files_of_its_own_folder() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("step-000004");
        write(&dir, &two_files("one")).unwrap();
        let list = fs::read_to_string(dir.join(MANIFEST)).unwrap();
        fs::copy(dir.join("a"), place.path().join("a")).unwrap();
        // Devices and pipes have no end.
        for name in ["../a", "/dev/zero", "..", "c/a", "c:a", ""] {
            fs::write(dir.join(MANIFEST), list.replace("\"a\"", &format!("\"{name}\""))).unwrap();
            let error = verify(&dir).unwrap_err().to_string();
            assert!(error.contains(&format!("MANIFEST.json: names the file '{name}'")), "{error}");
        }
    }

    #[test]
    fn a_replacement_that_was_cut_short_is_put_back() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("step-000003");
        let [temporary, old] = ["step-000003.tmp", "step-000003.old"].map(|name| place.path().join(name));
        for (text, left) in [("two", [&old, &temporary]), ("one", [&temporary, &old])] {
            // The first one was not written to its end, or is that of before.
            write(left[0], &two_files("one")).unwrap();
            write(left[1], &two_files(text)).unwrap();
            if text == "one" {
                fs::remove_file(temporary.join(MANIFEST)).unwrap();
            }
            put_back(&dir);
            verify(&dir).unwrap();
            assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), text);
            fs::remove_dir_all(&dir).unwrap();
            let _ = fs::remove_dir_all(&temporary);
            let _ = fs::remove_dir_all(&old);
        }
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_folder() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("step-000001");
        write(&dir, &two_files("one")).unwrap();
        // A name that no file can have, after the first one was written.
        let bad = vec![("a".into(), b"two".to_vec()), ("no/such/folder".into(), vec![1])];
        assert!(write(&dir, &bad).unwrap_err().to_string().contains("no/such/folder"));
        verify(&dir).unwrap();
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "one");
        assert_eq!(fs::read_dir(place.path()).unwrap().count(), 1);
    }
}
