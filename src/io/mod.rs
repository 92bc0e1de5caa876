//! Files in and out: safetensors, GGUF, JSON configurations, and folders that are written atomically.
//!
//! [`Checkpoint`] opens safetensors files, [`GgufFile`] opens GGUF files, [`PthFile`] old ones of PyTorch; all map the file
//! into memory and decode a tensor only when it is asked for. docs/FORMATS.md lists the limits.

pub mod cache;
pub mod folder;
pub mod gguf;
mod kept_values;
mod mapped;
mod outline;
mod part;
mod pth;
mod safetensors;
mod scan;
mod values;
mod write;

pub use self::gguf::GgufFile;
pub use self::kept_values::{KeptKind, KeptValues};
pub use self::pth::PthFile;
pub use self::safetensors::Checkpoint;
pub use self::scan::{RawTensor, Scan};
pub use self::values::{MappedValues, Stored, ValueFile, ValueWriter};
pub use self::write::{Named, safetensors_bytes};

#[cfg(feature = "images")]
pub(crate) use self::mapped::refuse_pointer;
pub(crate) use self::part::PartName;

use crate::Error;
use std::collections::BTreeSet;
use std::path::{Component, Path};

/// The largest number of names that a message lists.
const LISTED: usize = 20;
/// The largest number of present names that a message about missing ones lists.
const INSTEAD: usize = 3;
/// The largest configuration in bytes; its parsed form takes many times as much memory.
const MAX_JSON_BYTES: usize = 1 << 20;

/// Quotes the names; a long list ends with the number of names that it leaves out.
pub(crate) fn listed(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(LISTED).map(|name| format!("'{name}'")).collect();
    match names.len().saturating_sub(LISTED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// Reports wanted names that are absent as an error and returns names that are present but not wanted.
pub(crate) fn compare_names<'a, 'b>(
    path: &Path,
    have: impl Iterator<Item = &'a str>,
    wanted: impl IntoIterator<Item = &'b str>,
) -> crate::Result<Vec<String>> {
    let have: BTreeSet<&str> = have.collect();
    let wanted: BTreeSet<&str> = wanted.into_iter().collect();
    let absent: Vec<&str> = wanted.iter().filter(|name| !have.contains(**name)).copied().collect();
    if absent.is_empty() {
        return Ok(have
            .iter()
            .filter(|name| !wanted.contains(**name))
            .map(|name| name.to_string())
            .collect());
    }
    // If no name fits, the names in the file show why.
    let shown = if absent.len() == wanted.len() { INSTEAD } else { 0 };
    let there: Vec<&str> = have.into_iter().take(shown).collect();
    let instead =
        if there.is_empty() { String::new() } else { format!("; there are {}, ...", listed(&there)) };
    Err(Error::file(path, format!("{} tensors are missing: {}{instead}", absent.len(), listed(&absent))))
}

/// The error for an absent name; it mentions the most similar name.
fn missing<'a>(path: &Path, what: &str, name: &str, have: impl Iterator<Item = &'a str>) -> Error {
    let common = |one: &str, other: &str| one.bytes().zip(other.bytes()).take_while(|(a, b)| a == b).count();
    let likeness = |other: &str| {
        let reversed = |text: &str| text.chars().rev().collect::<String>();
        common(other, name) + common(&reversed(other), &reversed(name))
    };
    let near = have.filter(|other| 2 * likeness(other) > name.len()).max_by_key(|other| likeness(other));
    let hint = near.map_or(String::new(), |near| format!("; there is '{near}'"));
    Error::file(path, format!("{what} '{name}' is missing{hint}"))
}

/// Tests whether a name found in a file denotes a file of the same folder on every system.
fn is_file_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let single = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    single && !name.contains(['/', '\\', ':'])
}

/// Turns an error of the operating system into one that names the file.
pub(crate) fn cannot_read(path: &Path) -> impl Fn(std::io::Error) -> Error {
    move |error| Error::file(path, format!("cannot be read: {error}"))
}

/// Reads a text file. A Git-LFS pointer is recognised.
///
/// # Errors
/// The file cannot be read, is a pointer, or is not UTF-8.
///
/// ```
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("note.txt");
/// std::fs::write(&path, "hello")?;
/// assert_eq!(mixlora::io::read_text(&path)?, "hello");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn read_text(path: &Path) -> crate::Result<String> {
    let bytes = std::fs::read(path).map_err(cannot_read(path))?;
    mapped::refuse_pointer(path, &bytes)?;
    String::from_utf8(bytes).map_err(|error| {
        Error::file(path, format!("is not UTF-8 from its byte {} on", error.utf8_error().valid_up_to()))
    })
}

/// Reads a JSON configuration of at most 1 MiB into a value of type `T`.
///
/// # Errors
/// [`read_text`] fails, the text is too long or not JSON, or a value has another type: the error names its place in
/// the file.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> crate::Result<T> {
    let text = read_text(path)?;
    if text.len() > MAX_JSON_BYTES {
        return Err(Error::file(
            path,
            format!("has {} bytes, at most {MAX_JSON_BYTES} are read", text.len()),
        ));
    }
    let mut json = serde_json::Deserializer::from_str(&text);
    serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let place = error.path().to_string();
        let place = if place == "." { String::new() } else { format!("at '{place}': ") };
        Error::file(path, format!("{place}{}", error.into_inner()))
    })
}
