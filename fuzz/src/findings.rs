//! Inputs that did what none may do, kept as files.

use crate::Result;
use crate::targets::Target;
use std::path::{Path, PathBuf};

/// A place for files that are soon gone: in memory where there is one.
pub fn scratch() -> PathBuf {
    let memory = Path::new("/dev/shm");
    if memory.is_dir() { memory.into() } else { std::env::temp_dir() }
}

/// Keeps an input and says where.
pub fn keep(target: &Target, seed: u64, number: u64, input: &[u8], what: &str) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("findings");
    std::fs::create_dir_all(&folder)?;
    let path = folder.join(format!("{}-{seed}-{number}", target.name));
    std::fs::write(&path, input)?;
    eprintln!("{}: seed {seed}, input {number}: {what}; kept as {}", target.name, path.display());
    Ok(())
}
