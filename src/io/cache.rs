//! Where files are kept that can be made or fetched again.

use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// The given folder, else that of `MIXLORA_CACHE`, else `mixlora` in the user's cache folder.
///
/// # Errors
/// The environment names none.
pub fn folder(given: Option<&Path>) -> Result<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let home = |below: &str| var("HOME").map(|h| h.join(below));
    let own = if cfg!(windows) {
        var("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        home("Library/Caches")
    } else {
        var("XDG_CACHE_HOME").or_else(|| home(".cache"))
    };
    let found = given.map(PathBuf::from).or_else(|| var("MIXLORA_CACHE"));
    found.or_else(|| own.map(|d| d.join("mixlora"))).ok_or_else(|| {
        Error::config("cache", "there is no cache folder: set HOME, or give --cache or MIXLORA_CACHE")
    })
}
