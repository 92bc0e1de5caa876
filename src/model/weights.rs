//! In which format the matrices of a model are held.

use crate::{Error, Format, Result};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::str::FromStr;

/// The format in which the matrices of a model are held: in memory, and on the device. Vectors are f32.
///
/// ```
/// use mixlora::Format;
/// use mixlora::model::Weights;
/// let weights: Weights = "q4_k".parse()?;
/// assert_eq!(weights, Weights::As(Format::Q4_K));
/// // Blocks of 256 do not fit rows of 576: llama.cpp takes q5_0 for them too.
/// assert_eq!(weights.of(Format::Bf16, 576), Format::Q5_0);
/// assert_eq!(Weights::File.of(Format::Bf16, 576), Format::Bf16);
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Weights {
    /// That of the file; for training on a CPU f32, which is faster there, where it fits twice.
    #[default]
    Auto,
    /// That of the file, whatever it is.
    File,
    /// This one: quantised, or turned back into numbers, while they are loaded.
    As(Format),
}

impl Weights {
    /// Values of 32 bits: the most memory.
    pub const F32: Weights = Weights::As(Format::F32);

    /// The format of a matrix with rows of so many columns, by that which it has in the file.
    pub const fn of(self, file: Format, cols: usize) -> Format {
        match self {
            Weights::Auto | Weights::File => file,
            Weights::As(format) => format.for_columns(cols),
        }
    }

    /// What options and settings may say.
    pub const NAMES: [&'static str; Format::ALL.len() + 2] = {
        let mut names = ["auto"; Format::ALL.len() + 2];
        names[1] = "file";
        let mut i = 0;
        while i < Format::ALL.len() {
            names[i + 2] = Format::ALL[i].name();
            i += 1;
        }
        names
    };
}

impl From<Format> for Weights {
    fn from(format: Format) -> Self {
        Weights::As(format)
    }
}

impl fmt::Display for Weights {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Weights::Auto => "auto",
            Weights::File => "file",
            Weights::As(format) => format.name(),
        })
    }
}

impl FromStr for Weights {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "auto" => return Ok(Weights::Auto),
            "file" => return Ok(Weights::File),
            _ => {}
        }
        let format = Format::ALL.into_iter().find(|format| format.name() == text);
        let names = || format!("one of {}", Weights::NAMES.join(", "));
        format.map(Weights::As).ok_or_else(|| Error::config("weights", text, names()))
    }
}

impl Serialize for Weights {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Weights {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}
