//! Files that are one of several, by their names: `model-00002-of-00003.gguf`.

use std::path::{Path, PathBuf};

/// One of several files.
pub(crate) struct PartName {
    /// What stands before the numbers.
    pub stem: String,
    /// From 1.
    pub number: usize,
    pub count: usize,
    ending: String,
}

impl PartName {
    /// The name of a part; none where a file's name says nothing of parts.
    pub fn of(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_string();
        let (rest, count) = path.file_stem()?.to_str()?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let number = number.parse().ok()?;
        let count = count.parse().ok()?;
        let possible = (1..=count).contains(&number);
        possible.then(|| PartName { stem: stem.to_string(), number, count, ending })
    }

    /// Every part, in order, beside `path`.
    pub fn all(&self, path: &Path) -> impl Iterator<Item = PathBuf> {
        let PartName { stem, count, ending, .. } = self;
        (1..=*count).map(move |i| path.with_file_name(format!("{stem}-{i:05}-of-{count:05}.{ending}")))
    }
}
