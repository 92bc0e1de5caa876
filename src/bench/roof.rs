//! The roof of a device: its memory bandwidth and arithmetic speed, measured once and cached.

mod cpu;
mod gpu;

use super::{Place, Timer, quantile};
use crate::atomic;
use crate::device::{Entry, PORTABLE, Shader, Variant, params, parts};
use crate::io::cache;
use crate::{Device, Error, Result};
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

static VARIANTS: &[Variant] = &[Variant {
    name: "wg256",
    consts: &[("WG", 256)],
    parts: &[parts::GRID],
    backends: PORTABLE,
    workgroup_bytes: 0,
}];

params! {
    struct Params { n: u32, steps: u32 }
}

static SHADER: Shader = Shader {
    name: "roof",
    source: include_str!("../../shaders/roof.wgsl"),
    params: Params::FIELDS,
    entries: &[Entry { name: "copy", variants: VARIANTS }, Entry { name: "fused", variants: VARIANTS }],
};

/// Shaders of the benchmarks, which belong to no op.
pub static SHADERS: &[&Shader] = &[&SHADER];

/// The number of samples of each figure; the best one counts, because a roof is an upper bound.
const ROUNDS: usize = 10;

/// The largest measured speeds of a device.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Roof {
    #[serde(flatten)]
    pub place: Place,
    pub timer: Timer,
    /// The bytes read and written by a copy, in GB (10^9) per second.
    pub copy_gbps: f64,
    /// Fused multiply-adds of f32, each two FLOP.
    pub fma_gflops: f64,
    /// Samples of both, in seconds, and their work, for the report.
    pub(super) samples: [Vec<f64>; 2],
    pub(super) work: [f64; 2],
}

impl Roof {
    #[cfg(test)]
    /// A roof without figures.
    pub(super) fn unmeasured(device: &Device) -> Self {
        Roof {
            place: Place::of(device),
            timer: Timer::Wall,
            copy_gbps: 0.0,
            fma_gflops: 0.0,
            samples: Default::default(),
            work: [0.0; 2],
        }
    }

    /// Measures a device.
    ///
    /// # Errors
    /// It failed, or it is the reference, which has no roof.
    pub fn measure(device: &Device) -> Result<Self> {
        let (timer, runs) = match device {
            Device::Cpu(cpu) => (Timer::Wall, cpu::measure(cpu)?),
            Device::Gpu(gpu) => gpu::measure(device, gpu)?,
            Device::Reference => {
                return Err(Error::refused("device", "the reference is a specification: use cpu or a GPU"));
            }
        };
        let best = |(work, samples): &(f64, Vec<f64>)| work / quantile(samples, 0.0) * 1e-9;
        let copy_gbps = best(&runs[0]);
        let fma_gflops = best(&runs[1]);
        let [(bytes, copy), (flops, fused)] = runs;
        let place = Place::of(device);
        Ok(Roof { place, timer, copy_gbps, fma_gflops, samples: [copy, fused], work: [bytes, flops] })
    }

    /// Returns the cached roof of this device, driver and version of the crate. If there is none, or with `fresh`, the
    /// roof is measured and cached. Also returns the file of the cache, if it could be written.
    ///
    /// # Errors
    /// The roof cannot be measured. An unusable cache is ignored.
    pub fn of(device: &Device, fresh: bool) -> Result<(Self, Option<PathBuf>)> {
        let place = Place::of(device);
        let file = cache::folder(None).ok().map(|dir| dir.join("roof").join(file_name(&place)));
        let kept = file.as_deref().filter(|_| !fresh).and_then(|file| std::fs::read(file).ok());
        if let Some(roof) = kept.and_then(|text| serde_json::from_slice::<Roof>(&text).ok()) {
            return Ok((roof, file));
        }
        let roof = Roof::measure(device)?;
        let text = serde_json::to_string_pretty(&roof).unwrap_or_default();
        let written = file.filter(|file| {
            let made = file.parent().is_some_and(|dir| std::fs::create_dir_all(dir).is_ok());
            made && atomic::write(file, text.as_bytes()).is_ok()
        });
        Ok((roof, written))
    }

    /// The bound in GFLOP/s at an intensity in FLOP per byte.
    pub fn at(&self, intensity: f64) -> f64 {
        self.fma_gflops.min(intensity * self.copy_gbps)
    }
}

/// The name of the cached file, different for each device, driver and version of the crate.
fn file_name(place: &Place) -> String {
    let name = format!("{} {} {} {}", place.backend, place.adapter, place.driver, place.crate_version);
    let plain: String = name
        .chars()
        .map(|character| if character.is_ascii_alphanumeric() { character } else { '-' })
        .collect();
    format!("{}-{:08x}.json", &plain[..plain.len().min(80)], crc32fast::hash(name.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_roof_has_two_sides() {
        let roof = Roof { copy_gbps: 10.0, fma_gflops: 80.0, ..Roof::unmeasured(&Device::cpu()) };
        assert_eq!((roof.at(1.0), roof.at(8.0), roof.at(100.0)), (10.0, 80.0, 80.0));
        assert!(Roof::measure(&Device::reference()).is_err());
    }

    #[test]
    fn files_are_told_apart() {
        let place = Place::of(&Device::cpu());
        let other = Place { driver: "other".into(), ..place.clone() };
        assert_ne!(file_name(&place), file_name(&other));
        assert!(file_name(&place).chars().all(|c| c.is_ascii_alphanumeric() || "-.".contains(c)));
    }
}
