//! Other names of keys and columns.

use crate::{Error, Result};

/// Keys of a sample that another name may stand for.
const KEYS: [&str; 16] = [
    "messages",
    "conversations",
    "prompt",
    "completion",
    "chosen",
    "rejected",
    "text",
    "instruction",
    "input",
    "output",
    "system",
    "history",
    "task",
    "condition",
    "image",
    "images",
];

/// Which keys of an object, or columns of a table, stand for keys of a sample.
///
/// ```
/// # #[cfg(feature = "tokenizer")] {
/// use mixlora::data::{Body, Columns, ReadOptions, read_samples_with};
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("train.csv");
/// std::fs::write(&path, "id,question,answer\n1,2 + 2 =,4\n")?;
/// let columns = Columns::new(&["question=prompt", "answer=completion"])?;
/// let samples = read_samples_with(&path, &ReadOptions { columns, ..ReadOptions::default() })?;
/// assert_eq!(samples[0].body, Body::Completion { prompt: "2 + 2 =".into(), completion: "4".into() });
/// assert_eq!(samples[0].unread, ["id"]);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Columns(Vec<(String, String)>);

impl Columns {
    /// From texts such as `question=prompt`.
    ///
    /// # Errors
    /// A text has no `=`, what is behind it is no key of a sample, or a name occurs twice on one side.
    pub fn new(names: &[impl AsRef<str>]) -> Result<Self> {
        let mut pairs: Vec<(String, String)> = Vec::new();
        for name in names {
            let name = name.as_ref();
            let wrong =
                || Error::config("columns", name, format!("NAME=KEY, with a key of {}", KEYS.join(", ")));
            let (from, to) = name.rsplit_once('=').ok_or_else(wrong)?;
            let (from, to) = (from.trim(), to.trim());
            if from.is_empty() || !KEYS.contains(&to) {
                return Err(wrong());
            }
            if pairs.iter().any(|pair| pair.0 == from || pair.1 == to) {
                return Err(Error::config("columns", name, "each name and each key once"));
            }
            pairs.push((from.into(), to.into()));
        }
        Ok(Columns(pairs))
    }
}

#[cfg(feature = "tokenizer")]
impl Columns {
    /// The key that a name stands for. A name that is itself a key which another one stands for has none.
    pub(super) fn key<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        match self.0.iter().find(|pair| pair.0 == name) {
            Some(pair) => Some(&pair.1),
            None if self.0.iter().any(|pair| pair.1 == name) => None,
            None => Some(name),
        }
    }

    /// The first name that is none of these.
    pub(super) fn absent(&self, names: &[&str]) -> Option<&str> {
        self.0.iter().map(|pair| pair.0.as_str()).find(|name| !names.contains(name))
    }
}
