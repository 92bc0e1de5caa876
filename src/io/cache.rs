//! The cache folder: a place for files that can be made or fetched again.

use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// The cache folder: the given one, else `MIXLORA_CACHE`, else `mixlora` in the user's cache folder.
///
/// # Errors
/// No folder is given and the environment names none.
///
/// ```
/// use std::path::Path;
/// let folder = mixlora::io::cache::folder(Some(Path::new("/tmp/cache")))?;
/// assert_eq!(folder, Path::new("/tmp/cache"));
/// # Ok::<(), mixlora::Error>(())
/// ```
pub fn folder(given: Option<&Path>) -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let below_home = |path: &str| variable("HOME").map(|home| home.join(path));
    let of_user = if cfg!(windows) {
        variable("LOCALAPPDATA")
    } else if cfg!(target_os = "macos") {
        below_home("Library/Caches")
    } else {
        variable("XDG_CACHE_HOME").or_else(|| below_home(".cache"))
    };
    let found = given.map(PathBuf::from).or_else(|| variable("MIXLORA_CACHE"));
    found.or_else(|| of_user.map(|folder| folder.join("mixlora"))).ok_or_else(|| {
        Error::refused("cache", "there is no cache folder: set HOME, or give --cache or MIXLORA_CACHE")
    })
}
