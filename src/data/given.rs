//! Pictures as the samples of other tools name them.

use super::PictureSource;
use super::base64::decode;
use serde_json::Value;
use std::path::{Component, Path, PathBuf};

/// What a sample says of a picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Given {
    /// A path, a data URL, or an address.
    Text(String),
    /// The bytes of a file in base64.
    Base64(String),
}

/// Keys of an object that is a picture.
const TEXTS: [&str; 4] = ["path", "url", "image", "image_url"];
const BYTES: [&str; 2] = ["bytes", "base64"];

impl Given {
    /// The picture that a value names; none where it names none.
    pub fn of(value: &Value) -> Result<Option<Given>, String> {
        match value {
            Value::Null => Ok(None),
            Value::String(text) => Ok(Some(Given::Text(text.clone()))),
            Value::Object(fields) => {
                let key = |names: &[&str]| names.iter().find_map(|n| fields.get(*n).filter(|v| !v.is_null()));
                if let Some(bytes) = key(&BYTES) {
                    let text = bytes.as_str().ok_or("has bytes that are no text in base64")?;
                    return Ok(Some(Given::Base64(text.to_string())));
                }
                key(&TEXTS).map_or(Ok(None), Given::of)
            }
            other => Err(format!("is {other}; a picture is a path or a data URL")),
        }
    }

    /// The pictures that the value of `images` or `image` names.
    pub fn list(value: &Value) -> Result<Vec<Given>, String> {
        let Value::Array(list) = value else { return Ok(Given::of(value)?.into_iter().collect()) };
        let one = |(at, value): (usize, &Value)| {
            let given = Given::of(value).map_err(|what| format!("[{at}] {what}"))?;
            given.ok_or_else(|| format!("[{at}] names no picture"))
        };
        list.iter().enumerate().map(one).collect()
    }

    /// Where the picture is. Relative paths are of `folder`, which they may not leave.
    pub fn source(self, folder: &Path) -> PictureSource {
        let (given, found) = match self {
            Given::Base64(text) => (shortened(&text), bytes(&text)),
            Given::Text(text) => (shortened(&text), place(&text, folder)),
        };
        found.unwrap_or_else(|why| PictureSource::Nowhere { given, why })
    }
}

fn place(text: &str, folder: &Path) -> Result<PictureSource, String> {
    if let Some(rest) = text.strip_prefix("data:") {
        let (kind, data) = rest.split_once(',').ok_or("is a data URL without data")?;
        if !kind.to_ascii_lowercase().ends_with(";base64") {
            return Err("is a data URL that is not in base64".into());
        }
        return bytes(data);
    }
    let path = text.strip_prefix("file://").unwrap_or(text);
    if path.contains("://") {
        let what = "is an address in the network; only files are read: download the picture first";
        return Err(what.into());
    }
    if path.trim().is_empty() {
        return Err("is an empty path".into());
    }
    within(folder, Path::new(path)).map(PictureSource::Path)
}

fn bytes(text: &str) -> Result<PictureSource, String> {
    decode(text).map(|bytes| PictureSource::Bytes(bytes.into()))
}

/// A path in a folder; absolute paths are taken as they are.
fn within(folder: &Path, path: &Path) -> Result<PathBuf, String> {
    if path.is_absolute() {
        return Ok(path.to_path_buf());
    }
    let mut depth = 0i32;
    for part in path.components() {
        depth += match part {
            Component::Normal(_) => 1,
            Component::ParentDir => -1,
            _ => 0,
        };
        if depth < 0 {
            let shown = if folder.as_os_str().is_empty() { Path::new(".") } else { folder };
            return Err(format!(
                "leaves the folder {}; give the folder of the pictures, or an absolute path",
                shown.display()
            ));
        }
    }
    Ok(folder.join(path))
}

/// A text for messages.
fn shortened(text: &str) -> String {
    const MOST: usize = 200;
    let short: String = text.chars().take(if text.starts_with("data:") { 40 } else { MOST }).collect();
    if short.len() < text.len() { short + "..." } else { short }
}
