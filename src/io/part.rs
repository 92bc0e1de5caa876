//! Names of the parts of a split file: `model-00002-of-00003.gguf`.

use std::path::{Path, PathBuf};

/// The name of one part of a split file.
pub(crate) struct PartName {
    /// The name before the numbers.
    pub stem: String,
    /// The number of the part, from 1.
    pub number: usize,
    pub count: usize,
    ending: String,
}

impl PartName {
    /// Parses a file name; returns `None` if it is not the name of a part.
    pub fn parse(path: &Path) -> Option<Self> {
        let ending = path.extension()?.to_str()?.to_string();
        let (rest, count) = path.file_stem()?.to_str()?.rsplit_once("-of-")?;
        let (stem, number) = rest.rsplit_once('-')?;
        let number = number.parse().ok()?;
        let count = count.parse().ok()?;
        let possible = (1..=count).contains(&number);
        possible.then(|| PartName { stem: stem.to_string(), number, count, ending })
    }

    /// The paths of all parts in order, in the folder of `path`.
    pub fn all(&self, path: &Path) -> impl Iterator<Item = PathBuf> {
        let PartName { stem, count, ending, .. } = self;
        (1..=*count).map(move |part| path.with_file_name(format!("{stem}-{part:05}-of-{count:05}.{ending}")))
    }
}
