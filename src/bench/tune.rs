//! Selection of the fastest kernel of a dense product for each class of shapes on this adapter.
//!
//! Every kernel is compared with the CPU's result first: a wrong one is never chosen. Software adapters always use the
//! built-in table.

use crate::device::CoopSize;
use crate::device::{AdapterClass, Gpu, Tuned};
use crate::engine::product::{CLASSES, TILINGS, Tiling, choose, class_of, cooperative};
use crate::ops::matmul::forced;
use crate::{Device, Error, Result, Stream, Tensor};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// The number of samples of each kernel, one per round; the median counts.
const ROUNDS: usize = 7;
/// The share of the built-in kernel's time below which another kernel replaces it.
const BETTER: f64 = 0.95;
/// The bound on the error relative to the largest value for sums of up to 64 terms; it grows with the square root of their
/// number.
const BOUND: f64 = 1e-5;

/// One kernel on one shape.
#[derive(Debug, Clone, PartialEq)]
pub struct Timing {
    /// The class of the shape.
    pub class: &'static str,
    /// `M x N x K`
    pub shape: [usize; 3],
    /// Name of the kernel.
    pub kernel: &'static str,
    /// Whether the built-in table chooses it.
    pub built_in: bool,
    /// Largest error relative to the largest value.
    pub error: f64,
    /// The median time; none if the result is wrong.
    pub microseconds: Option<f64>,
}

/// A kernel of dense products as it is dispatched: the constants of its prelude are its sizes.
#[derive(Debug, Clone, PartialEq)]
pub struct ProductKernel {
    /// The name that `tune` prints.
    pub name: &'static str,
    /// The WGSL function.
    pub entry: &'static str,
    /// Name and value.
    pub consts: [(&'static str, u32); 5],
}

/// All of them, cooperative matrices as four subgroups of 64 have them.
pub fn product_kernels() -> Vec<ProductKernel> {
    let coop = cooperative(CoopSize { side: 16, lanes: 256 });
    let all = TILINGS.into_iter().chain([coop]);
    all.map(|t| ProductKernel { name: t.name, entry: t.entry, consts: t.consts() }).collect()
}

/// One shape of each class.
pub fn shapes() -> Vec<[usize; 3]> {
    CLASSES.iter().map(|class| class.shape).collect()
}

/// Times every kernel on every shape; `progress` receives each shape.
///
/// # Errors
/// The device is no GPU, it failed, or a shape does not fit.
pub fn tune(device: &Device, shapes: &[[usize; 3]], progress: impl Fn(&str)) -> Result<Vec<Timing>> {
    let Device::Gpu(gpu) = device else {
        return Err(Error::refused("device", "only GPUs have kernels to choose from"));
    };
    let mut all = Vec::new();
    for &[m, n, k] in shapes {
        progress(&format!("{m}x{n}x{k}"));
        let values = |name: &str, len: usize| Stream::new(1).named(name).normal_vec(len, 1.0);
        let a = values("a", m * k);
        let b = values("b", n * k);
        let tensors = |device: &Device| {
            Ok::<_, Error>((Tensor::from_f32(device, &[m, k], &a)?, Tensor::from_f32(device, &[n, k], &b)?))
        };
        let (a_cpu, b_cpu) = tensors(&Device::cpu())?;
        let want = a_cpu.matmul_nt(&b_cpu)?.to_f32()?;
        let (a, b) = tensors(device)?;
        let bound = BOUND * (k as f64 / 64.0).max(1.0).sqrt();
        let mut errors = Vec::with_capacity(TILINGS.len());
        for &tiling in &TILINGS {
            errors.push(error(&forced(&a, &b, tiling)?.to_f32()?, &want));
        }
        let right: Vec<usize> = (0..TILINGS.len()).filter(|&tiling| errors[tiling] <= bound).collect();
        let mut samples = vec![Vec::new(); TILINGS.len()];
        for round in 0..ROUNDS {
            for place in 0..right.len() {
                let at = right[(place + round) % right.len()];
                samples[at].push(time(gpu, &a, &b, TILINGS[at])?);
            }
        }
        let built_in = choose(gpu.class(), &Tuned::new(), m, n, k);
        let class = class_of(m, n, k).name;
        all.extend(TILINGS.iter().zip(errors).zip(samples).map(|((tiling, error), mut seconds)| {
            seconds.sort_by(f64::total_cmp);
            let microseconds = seconds.get(ROUNDS / 2).map(|median| median * 1e6);
            Timing {
                class,
                shape: [m, n, k],
                kernel: tiling.name,
                built_in: tiling.name == built_in.name,
                error,
                microseconds,
            }
        }));
    }
    Ok(all)
}

/// The largest error relative to the largest value; infinite if a value is not finite.
fn error(got: &[f32], want: &[f32]) -> f64 {
    let largest = want.iter().fold(f32::MIN_POSITIVE, |largest, value| largest.max(value.abs())) as f64;
    let worst = |worst: f64, (g, w): (&f32, &f32)| {
        if g.is_finite() { worst.max((*g as f64 - *w as f64).abs()) } else { f64::INFINITY }
    };
    got.iter().zip(want).fold(0.0, worst) / largest
}

/// The seconds of one product, by the device's clock if it has one.
fn time(gpu: &Arc<Gpu>, a: &Tensor, b: &Tensor, tiling: Tiling) -> Result<f64> {
    gpu.sync()?;
    let stamps = gpu.start_profile()?;
    let started = Instant::now();
    let done = forced(a, b, tiling);
    if stamps {
        let launches = gpu.take_profile()?;
        done?;
        return Ok(launches.iter().map(|launch| launch.nanoseconds).sum::<f64>() * 1e-9);
    }
    done?;
    gpu.sync()?;
    Ok(started.elapsed().as_secs_f64())
}

/// The kernels that are better than the built-in ones, by class. For several shapes of a class, the mean ratio to the
/// built-in kernel's time counts.
pub fn winners(timings: &[Timing]) -> Vec<(&'static str, &'static str)> {
    let built_in = |timing: &Timing| {
        let same = timings.iter().find(|other| other.built_in && other.shape == timing.shape);
        same.and_then(|other| other.microseconds)
    };
    let share = |class: &str, kernel: &str| -> Option<f64> {
        let own = timings.iter().filter(|timing| timing.class == class && timing.kernel == kernel);
        let shares: Option<Vec<f64>> =
            own.map(|timing| Some(timing.microseconds? / built_in(timing)?)).collect();
        shares
            .filter(|shares| !shares.is_empty())
            .map(|shares| shares.iter().sum::<f64>() / shares.len() as f64)
    };
    let best = |class: &'static str| {
        let shares = TILINGS.iter().filter_map(|tiling| Some((tiling.name, share(class, tiling.name)?)));
        let best = shares.min_by(|one, other| one.1.total_cmp(&other.1))?;
        (best.1 < BETTER).then_some((class, best.0))
    };
    CLASSES.iter().filter_map(|class| best(class.name)).collect()
}

/// Stores the winners for devices of this adapter that are opened later, and returns the file. Software adapters are
/// refused.
///
/// # Errors
/// The device is no hardware GPU, was opened without a cache folder, or the folder cannot be written.
pub fn keep(device: &Device, timings: &[Timing]) -> Result<PathBuf> {
    match device {
        Device::Gpu(gpu) if gpu.class() != AdapterClass::Software => {
            let named = winners(timings).into_iter().map(|(class, kernel)| (class.into(), kernel.into()));
            gpu.keep_tuned(&named.collect())
        }
        _ => Err(Error::refused("device", "only hardware adapters have a measured table")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn timing(kernel: &'static str, built_in: bool, n: usize, microseconds: Option<f64>) -> Timing {
        Timing { class: "wide", shape: [512, n, 512], kernel, built_in, error: 0.0, microseconds }
    }

    #[test]
    fn the_fastest_right_kernel_wins_when_it_is_clearly_faster() {
        let tile = |n, time| timing("tile", true, n, Some(time));
        let other = |n, time| timing("tile n64", false, n, time);
        assert_eq!(winners(&[tile(512, 10.0), other(512, Some(9.0))]), [("wide", "tile n64")]);
        assert_eq!(winners(&[tile(512, 10.0), other(512, Some(9.8))]), []);
        assert_eq!(winners(&[tile(512, 10.0), other(512, None)]), [], "a wrong one has no time");
        // A kernel that is slower over both shapes, or wrong for one of them, does not win.
        let both = [tile(512, 10.0), tile(256, 10.0), other(512, Some(5.0)), other(256, Some(20.0))];
        assert_eq!(winners(&both), []);
        assert_eq!(winners(&[tile(512, 10.0), tile(256, 1.0), other(512, Some(5.0)), other(256, None)]), []);
    }

    #[test]
    fn values_that_are_not_finite_are_wrong() {
        assert_eq!(error(&[1.0, 2.5], &[1.0, 2.0]), 0.25);
        assert_eq!(error(&[f32::NAN, 2.0], &[1.0, 2.0]), f64::INFINITY);
    }
}
