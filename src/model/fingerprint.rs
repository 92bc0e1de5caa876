//! What tells a model from others of the same sizes, however its files store it: the weights of its norms.

use super::ModelFiles;
use crate::{Error, Format, Result};
use half::{bf16, f16};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// Means that a fingerprint has at most.
const MEANS: usize = 256;

/// The smallest positive f16: near it, errors are not relative.
const SMALLEST_F16: f32 = 1.0 / (1 << 24) as f32;

/// How precisely norms are known: values that all are numbers of a narrower type count as rounded to it, whatever the
/// type of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Precision {
    F32,
    F16,
    Bf16,
    Quantised,
}

impl Precision {
    const ALL: [Precision; 4] = [Precision::F32, Precision::F16, Precision::Bf16, Precision::Quantised];

    fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
            Precision::Quantised => "quantised",
        }
    }

    /// Largest error of a rounded value, relative to it: half a unit in the last place. Blocks of q8_0 err by a 254th of
    /// their largest value, which here may be four times a mean one.
    fn error(self) -> f32 {
        match self {
            Precision::F32 => 1.0 / (1 << 24) as f32,
            Precision::F16 => 1.0 / (1 << 11) as f32,
            Precision::Bf16 => 1.0 / (1 << 8) as f32,
            Precision::Quantised => 1.0 / (1 << 6) as f32,
        }
    }

    fn of(values: &[f32], formats: &[Format]) -> Self {
        if formats.iter().any(|f| !matches!(f, Format::F32 | Format::F16 | Format::Bf16)) {
            Precision::Quantised
        } else if values.iter().all(|&v| bf16::from_f32(v).to_f32() == v) {
            Precision::Bf16
        } else if values.iter().all(|&v| f16::from_f32(v).to_f32() == v) {
            Precision::F16
        } else {
            Precision::F32
        }
    }
}

/// A checksum of all norm weights, and mean sizes of stretches of them for comparison across precisions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Fingerprint {
    /// CRC-32 of the values rounded to bf16.
    checksum: u32,
    /// Absent in adapters of earlier versions.
    means: Option<(Precision, Vec<f32>)>,
}

impl Fingerprint {
    pub(super) fn of(files: &ModelFiles) -> Result<Self> {
        let mut values = Vec::new();
        let mut formats = Vec::new();
        for e in files.expected().iter().filter(|e| e.name.ends_with("norm.weight")) {
            values.extend(files.values(&e.name)?);
            formats.push(files.raw(&e.name)?.format);
        }
        Ok(Self::of_values(&values, &formats))
    }

    /// Of norms in these formats, in order.
    pub(super) fn of_values(values: &[f32], formats: &[Format]) -> Self {
        let mut hash = crc32fast::Hasher::new();
        values.iter().for_each(|&v| hash.update(&bf16::from_f32(v).to_le_bytes()));
        let stretch = values.len().div_ceil(MEANS).max(1);
        let mean = |v: &[f32]| (v.iter().map(|&v| v.abs() as f64).sum::<f64>() / v.len() as f64) as f32;
        let means = values.chunks(stretch).map(mean).collect();
        Fingerprint { checksum: hash.finalize(), means: Some((Precision::of(values, formats), means)) }
    }

    /// Whether both can be of one model: the same values, or values that differ by no more than their roundings.
    pub fn matches(&self, other: &Fingerprint) -> bool {
        if self.checksum == other.checksum {
            return true;
        }
        let (Some((ours, here)), Some((theirs, there))) = (&self.means, &other.means) else { return false };
        let error = ours.error() + theirs.error();
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= error * a.max(*b) + SMALLEST_F16;
        // The checksum of an f32 and a bf16 copy is the same. What went through another type was rounded twice.
        let twice = [ours, theirs].iter().any(|p| matches!(p, Precision::F16 | Precision::Quantised));
        let apart = ours != theirs || *ours == Precision::Quantised;
        twice && apart && here.len() == there.len() && here.iter().zip(there).all(near)
    }
}

/// The checksum, the precision, and the bits of the means.
impl fmt::Display for Fingerprint {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:08x}", self.checksum)?;
        let Some((precision, means)) = &self.means else { return Ok(()) };
        write!(formatter, " {} ", precision.name())?;
        means.iter().try_for_each(|v| write!(formatter, "{:08x}", v.to_bits()))
    }
}

impl FromStr for Fingerprint {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        let bad = || Error::refused("norms", "is no fingerprint");
        let bits = |digits: &str| u32::from_str_radix(digits, 16).map_err(|_| bad());
        let words: Vec<&str> = text.split(' ').collect();
        let means = match words[..] {
            [_] => None,
            [_, precision, digits] if digits.is_ascii() && digits.len() <= 8 * MEANS => {
                let precision = Precision::ALL.into_iter().find(|p| p.name() == precision).ok_or_else(bad)?;
                let mean = |at: usize| bits(&digits[at..digits.len().min(at + 8)]).map(f32::from_bits);
                Some((precision, (0..digits.len()).step_by(8).map(mean).collect::<Result<_>>()?))
            }
            _ => return Err(bad()),
        };
        Ok(Fingerprint { checksum: bits(words[0])?, means })
    }
}

impl TryFrom<String> for Fingerprint {
    type Error = Error;
    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<Fingerprint> for String {
    fn from(fingerprint: Fingerprint) -> String {
        fingerprint.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stream;

    /// Norms of a model, and what its f16, bf16 and q8_0 copies have in their place.
    fn copies(seed: u64) -> Vec<Fingerprint> {
        let values: Vec<f32> = Stream::new(seed).normal_vec(5000, 0.1).iter().map(|v| 1.0 + v).collect();
        let rounded = |f: &dyn Fn(f32) -> f32| values.iter().map(|&v| f(v)).collect::<Vec<f32>>();
        let blocks = |block: &[f32]| {
            let step = block.iter().fold(0f32, |m, v| m.max(v.abs())) / 127.0;
            block.iter().map(|v| (v / step).round() * step).collect::<Vec<f32>>()
        };
        let f16s = rounded(&|v| f16::from_f32(v).to_f32());
        let bf16s = rounded(&|v| bf16::from_f32(v).to_f32());
        let twice = rounded(&|v| bf16::from_f32(f16::from_f32(v).to_f32()).to_f32());
        assert_ne!(bf16s, twice, "rounding twice is not rounding once");
        let q8_0: Vec<f32> = values.chunks(32).flat_map(blocks).collect();
        vec![
            Fingerprint::of_values(&values, &[Format::F32]),
            // A GGUF file keeps them as f32 when the matrices are f16.
            Fingerprint::of_values(&f16s, &[Format::F32]),
            Fingerprint::of_values(&bf16s, &[Format::Bf16]),
            Fingerprint::of_values(&q8_0, &[Format::Q8_0]),
        ]
    }

    #[test]
    fn copies_match_and_other_models_do_not() {
        let one = copies(1);
        let other = copies(2);
        for a in &one {
            assert!(one.iter().all(|b| a.matches(b)), "{a}");
            assert!(!other.iter().any(|b| a.matches(b)), "{a}");
            assert_eq!(a.to_string().parse::<Fingerprint>().unwrap(), *a);
            // As adapters of earlier versions have it.
            let old: Fingerprint = a.to_string()[..8].parse().unwrap();
            assert!(a.matches(&old) && old.matches(a) && !old.matches(&other[0]));
        }
        for bad in ["", "x", "00000000 f32", "00000000 f64 00000000", "00000000 f32 zz", "00000000 f32 ü"] {
            assert!(bad.parse::<Fingerprint>().is_err(), "{bad}");
        }
    }

    #[test]
    fn one_changed_value_of_the_same_precision_is_seen() {
        let mut values = vec![1.25f32; 4096];
        let before = Fingerprint::of_values(&values, &[Format::F32]);
        values[7] += 0.01;
        assert!(!before.matches(&Fingerprint::of_values(&values, &[Format::F32])));
    }
}
