//! Files in and out.

pub mod cache;
pub mod folder;
pub mod gguf;
mod mapped;
mod outline;
mod part;
mod safetensors;
mod scan;
mod write;

pub use self::gguf::GgufFile;
pub use self::safetensors::Checkpoint;
pub use self::scan::{RawTensor, Scan};
pub use self::write::{Named, safetensors_bytes};

pub(crate) use self::part::PartName;

use crate::Error;
use std::collections::BTreeSet;
use std::path::{Component, Path};

/// Names that a message lists at most.
const LISTED: usize = 20;
/// Names that a message gives of what is there instead.
const INSTEAD: usize = 3;
/// Bytes of a configuration at most; parsed, it takes many times as many.
const MAX_JSON_BYTES: usize = 1 << 20;

/// The names in quotes; how many more there are, if they are many.
pub(crate) fn listed(names: &[&str]) -> String {
    let shown: Vec<String> = names.iter().take(LISTED).map(|n| format!("'{n}'")).collect();
    match names.len().saturating_sub(LISTED) {
        0 => shown.join(", "),
        more => format!("{} and {more} more", shown.join(", ")),
    }
}

/// What is wanted and absent is an error, what is there and unwanted is given back.
pub(crate) fn compare_names<'a, 'b>(
    path: &Path,
    have: impl Iterator<Item = &'a str>,
    wanted: impl IntoIterator<Item = &'b str>,
) -> crate::Result<Vec<String>> {
    let have: BTreeSet<&str> = have.collect();
    let wanted: BTreeSet<&str> = wanted.into_iter().collect();
    let absent: Vec<&str> = wanted.iter().filter(|n| !have.contains(**n)).copied().collect();
    if absent.is_empty() {
        return Ok(have.iter().filter(|n| !wanted.contains(**n)).map(|n| n.to_string()).collect());
    }
    // Where nothing fits, what is there tells why.
    let shown = if absent.len() == wanted.len() { INSTEAD } else { 0 };
    let there: Vec<&str> = have.into_iter().take(shown).collect();
    let instead =
        if there.is_empty() { String::new() } else { format!("; there are {}, ...", listed(&there)) };
    Err(Error::file(path, format!("{} tensors are missing: {}{instead}", absent.len(), listed(&absent))))
}

/// The error for an absent name, with one like it.
fn missing<'a>(path: &Path, what: &str, name: &str, have: impl Iterator<Item = &'a str>) -> Error {
    let common = |a: &str, b: &str| a.bytes().zip(b.bytes()).take_while(|(a, b)| a == b).count();
    let alike = |n: &str| {
        let reversed = |s: &str| s.chars().rev().collect::<String>();
        common(n, name) + common(&reversed(n), &reversed(name))
    };
    let near = have.filter(|n| 2 * alike(n) > name.len()).max_by_key(|n| alike(n));
    let hint = near.map_or(String::new(), |n| format!("; there is '{n}'"));
    Error::file(path, format!("{what} '{name}' is missing{hint}"))
}

/// Whether a name that a file gives is that of a file in the same folder, on every system.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    let one = matches!((parts.next(), parts.next()), (Some(Component::Normal(_)), None));
    one && !name.contains(['/', '\\', ':'])
}

/// The text of a file. A Git-LFS pointer is recognised.
///
/// # Errors
/// It cannot be read, is a pointer, or is not UTF-8.
pub fn read_text(path: &Path) -> crate::Result<String> {
    let bytes = std::fs::read(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    mapped::refuse_pointer(path, &bytes)?;
    String::from_utf8(bytes).map_err(|e| {
        Error::file(path, format!("is not UTF-8 from its byte {} on", e.utf8_error().valid_up_to()))
    })
}

/// A configuration in JSON as a value of this type.
///
/// # Errors
/// Those of [`read_text`]; it is not JSON, is longer than a configuration can be, or a value has another type: the
/// error names its place in the file.
pub fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> crate::Result<T> {
    let text = read_text(path)?;
    if text.len() > MAX_JSON_BYTES {
        return Err(Error::file(
            path,
            format!("has {} bytes, at most {MAX_JSON_BYTES} are read", text.len()),
        ));
    }
    let mut json = serde_json::Deserializer::from_str(&text);
    serde_path_to_error::deserialize(&mut json).map_err(|e| {
        let place = e.path().to_string();
        let place = if place == "." { String::new() } else { format!("at '{place}': ") };
        Error::file(path, format!("{place}{}", e.into_inner()))
    })
}
