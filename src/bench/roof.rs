//! The roof: how fast this device copies memory and multiplies and adds, measured once and kept.

mod cpu;
mod gpu;

use super::{Place, Row, Timer, Work, quantile};
use crate::atomic;
use crate::device::{Entry, PORTABLE, Shader, Variant, parts};
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

static SHADER: Shader = Shader {
    name: "roof",
    source: include_str!("../../shaders/roof.wgsl"),
    entries: &[Entry { name: "copy", variants: VARIANTS }, Entry { name: "fused", variants: VARIANTS }],
};

/// Shaders of the benchmarks, which belong to no op.
pub static SHADERS: &[&Shader] = &[&SHADER];

/// Samples of each figure; the best one counts: a roof is what can be reached, not what is usual.
const ROUNDS: usize = 10;

/// What a device can do at most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Roof {
    #[serde(flatten)]
    pub place: Place,
    pub timer: Timer,
    /// Bytes read and written by a copy, in GB (10^9) a second.
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
            Device::Cpu(c) => (Timer::Wall, cpu::measure(c)?),
            Device::Gpu(g) => gpu::measure(device, g)?,
            Device::Reference => {
                return Err(Error::config("device", "the reference is a specification: use cpu or a GPU"));
            }
        };
        let best = |(work, samples): &(f64, Vec<f64>)| work / quantile(samples, 0.0) * 1e-9;
        let copy_gbps = best(&runs[0]);
        let fma_gflops = best(&runs[1]);
        let [(bytes, copy), (flops, fused)] = runs;
        let place = Place::of(device);
        Ok(Roof { place, timer, copy_gbps, fma_gflops, samples: [copy, fused], work: [bytes, flops] })
    }

    /// The kept roof of this device with this driver and version of the crate; measured, and kept, where there is none
    /// or with `fresh`. Also says where it is kept, if it could be.
    ///
    /// # Errors
    /// It could not be measured. A cache that cannot be read or written is none.
    pub fn of(device: &Device, fresh: bool) -> Result<(Self, Option<PathBuf>)> {
        let place = Place::of(device);
        let file = cache::folder(None).ok().map(|dir| dir.join("roof").join(file_name(&place)));
        let kept = file.as_deref().filter(|_| !fresh).and_then(|f| std::fs::read(f).ok());
        if let Some(roof) = kept.and_then(|text| serde_json::from_slice::<Roof>(&text).ok()) {
            return Ok((roof, file));
        }
        let roof = Roof::measure(device)?;
        let text = serde_json::to_string_pretty(&roof).unwrap_or_default();
        let written = file.filter(|f| {
            let made = f.parent().is_some_and(|dir| std::fs::create_dir_all(dir).is_ok());
            made && atomic::write(f, text.as_bytes()).is_ok()
        });
        Ok((roof, written))
    }

    /// GFLOP/s that the roof allows at this many FLOP per byte.
    pub fn at(&self, intensity: f64) -> f64 {
        self.fma_gflops.min(intensity * self.copy_gbps)
    }

    /// Both figures as rows of a report. Their times are medians; the roof itself is the best sample.
    pub fn rows(&self) -> Vec<Row> {
        let row = |i: usize, op: &str| {
            let work = Work { bench: "roof".into(), op: op.into(), dtype: "f32".into(), ..Work::default() };
            Row::new(&self.place, work, self.timer, &self.samples[i])
        };
        let mut copy = row(0, "copy");
        let mut fused = row(1, "fma");
        (copy.gbps, fused.gflops) = (Some(self.copy_gbps), Some(self.fma_gflops));
        (copy.work.shape, fused.work.shape) =
            (format!("{} bytes", self.work[0]), format!("{} FLOP", self.work[1]));
        vec![copy, fused]
    }
}

/// A file for each device, driver and version of the crate.
fn file_name(place: &Place) -> String {
    let name = format!("{} {} {} {}", place.backend, place.adapter, place.driver, place.crate_version);
    let plain: String = name.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '-' }).collect();
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
