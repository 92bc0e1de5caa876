//! Pictures of samples: where each is, and where it stands in an example.

use crate::io::MappedValues;
use crate::model::vision::VisionModel;
use std::fmt;
use std::ops::{Deref, Range};
use std::path::PathBuf;
use std::sync::Arc;

#[cfg(feature = "images")]
use crate::Result;
#[cfg(feature = "images")]
use crate::picture::{Limits, PictureFile};

/// Where a picture of a sample is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum PictureSource {
    /// A file.
    Path(PathBuf),
    /// The bytes of a file, which the sample holds itself.
    Bytes(Arc<[u8]>),
    /// Nowhere: what the sample says, and why that is no picture's place. Opening it is the error.
    Nowhere { given: String, why: String },
}

impl PictureSource {
    /// Reads the file and looks at its header.
    ///
    /// # Errors
    /// There is no such file, or those of [`PictureFile::open`].
    #[cfg(feature = "images")]
    pub fn open(&self, limits: &Limits) -> Result<PictureFile> {
        match self {
            PictureSource::Path(path) => PictureFile::open(path, limits),
            PictureSource::Bytes(bytes) => {
                if bytes.len() as u64 > limits.bytes {
                    let what = format!("is above the {} that are read of a picture", limits.bytes);
                    return Err(crate::Error::file(self.to_string(), what));
                }
                PictureFile::from_bytes(self.to_string(), bytes.to_vec(), limits)
            }
            PictureSource::Nowhere { given, why } => Err(crate::Error::file(given, why)),
        }
    }
}

impl fmt::Display for PictureSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PictureSource::Path(path) => write!(f, "{}", path.display()),
            PictureSource::Bytes(bytes) => write!(f, "picture of {} bytes in the sample", bytes.len()),
            PictureSource::Nowhere { given, .. } => f.write_str(given),
        }
    }
}

/// Values of features, wherever they are.
#[derive(Clone)]
pub enum FeatureValues {
    Memory(Arc<[f32]>),
    /// In a mapped file.
    File(MappedValues),
}

impl Deref for FeatureValues {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        match self {
            FeatureValues::Memory(values) => values,
            FeatureValues::File(values) => values,
        }
    }
}

/// What the tower of a model makes of a picture.
#[derive(Clone)]
pub struct Features {
    pub vision: Arc<VisionModel>,
    /// Number of tiles, rows of each, values of a row.
    pub dims: [usize; 3],
    pub values: FeatureValues,
    /// CRC-32 of the picture's file.
    pub file: u32,
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({:?})", self.dims)
    }
}

impl PartialEq for Features {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.vision, &other.vision) && self.values[..] == other.values[..]
    }
}

/// A picture among the tokens of an example.
#[derive(Debug, Clone, PartialEq)]
pub struct PicturePlace {
    pub source: PictureSource,
    /// Its tokens: one for each row, and those between and around them.
    pub span: Range<usize>,
    /// Rows and columns of its tiles, behind which the whole picture stands; 0 where it is not cut.
    pub grid: [usize; 2],
    /// Height and width of a tile in pixels.
    pub tile: [usize; 2],
    /// What a tower makes of it, once one has looked.
    pub features: Option<Features>,
}

impl PicturePlace {
    /// The number of its tiles, the whole picture counted.
    pub fn tiles(&self) -> usize {
        self.grid[0] * self.grid[1] + 1
    }
}

/// A picture of a sample, with the tiles that it becomes.
#[cfg(feature = "tokenizer")]
pub(super) struct Shown {
    pub source: PictureSource,
    pub grid: [usize; 2],
    pub tile: [usize; 2],
}

/// What becomes of a sample with a picture that cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnBadImage {
    /// It is an error, with the sample's line.
    #[default]
    Error,
    /// The sample is left out and counted.
    Skip,
}
