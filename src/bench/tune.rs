//! Measuring which kernel of a dense product is best for each class of shapes on this adapter.
//!
//! Every kernel is compared with the CPU's result first: a wrong one is never chosen. Software adapters always use the
//! built-in table.

use crate::device::{AdapterClass, Gpu, Tuned};
use crate::engine::product::{CLASSES, TILINGS, Tiling, choose, class_of};
use crate::ops::matmul::forced;
use crate::{Device, Error, Result, Stream, Tensor};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

/// Samples of each kernel, one in each round; the median counts.
const ROUNDS: usize = 7;
/// A kernel takes the place of the built-in one when it takes less than this share of its time.
const BETTER: f64 = 0.95;
/// Largest error relative to the largest value, for sums of up to 64 terms; it grows with their square root.
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
    /// Median time; none where the result is wrong.
    pub microseconds: Option<f64>,
}

/// One shape for each class.
pub fn shapes() -> Vec<[usize; 3]> {
    CLASSES.iter().map(|c| c.shape).collect()
}

/// Times every kernel on every shape; `progress` hears of each shape.
///
/// # Errors
/// The device is no GPU, it failed, or a shape does not fit.
pub fn tune(device: &Device, shapes: &[[usize; 3]], progress: impl Fn(&str)) -> Result<Vec<Timing>> {
    let Device::Gpu(gpu) = device else {
        return Err(Error::config("device", "only GPUs have kernels to choose from"));
    };
    let mut all = Vec::new();
    for &[m, n, k] in shapes {
        progress(&format!("{m}x{n}x{k}"));
        let values = |name: &str, len: usize| Stream::new(1).named(name).normal_vec(len, 1.0);
        let a = values("a", m * k);
        let b = values("b", n * k);
        let on = |d: &Device| {
            Ok::<_, Error>((Tensor::from_f32(d, &[m, k], &a)?, Tensor::from_f32(d, &[n, k], &b)?))
        };
        let (a_cpu, b_cpu) = on(&Device::cpu())?;
        let want = a_cpu.matmul_nt(&b_cpu)?.to_f32()?;
        let (a, b) = on(device)?;
        let bound = BOUND * (k as f64 / 64.0).max(1.0).sqrt();
        let mut errors = Vec::with_capacity(TILINGS.len());
        for &tiling in &TILINGS {
            errors.push(error(&forced(&a, &b, tiling)?.to_f32()?, &want));
        }
        let right: Vec<usize> = (0..TILINGS.len()).filter(|&i| errors[i] <= bound).collect();
        let mut samples = vec![Vec::new(); TILINGS.len()];
        for round in 0..ROUNDS {
            for i in 0..right.len() {
                let at = right[(i + round) % right.len()];
                samples[at].push(time(gpu, &a, &b, TILINGS[at])?);
            }
        }
        let built_in = choose(gpu.class(), &Tuned::new(), m, n, k);
        let class = class_of(m, n, k).name;
        all.extend(TILINGS.iter().zip(errors).zip(samples).map(|((t, error), mut seconds)| {
            seconds.sort_by(f64::total_cmp);
            let microseconds = seconds.get(ROUNDS / 2).map(|s| s * 1e6);
            Timing {
                class,
                shape: [m, n, k],
                kernel: t.name,
                built_in: t.name == built_in.name,
                error,
                microseconds,
            }
        }));
    }
    Ok(all)
}

/// Infinite for anything that is no number.
fn error(got: &[f32], want: &[f32]) -> f64 {
    let largest = want.iter().fold(f32::MIN_POSITIVE, |m, v| m.max(v.abs())) as f64;
    let worst = |worst: f64, (g, w): (&f32, &f32)| {
        if g.is_finite() { worst.max((*g as f64 - *w as f64).abs()) } else { f64::INFINITY }
    };
    got.iter().zip(want).fold(0.0, worst) / largest
}

/// Seconds of one product, by the device's own clock where it has one.
fn time(gpu: &Arc<Gpu>, a: &Tensor, b: &Tensor, tiling: Tiling) -> Result<f64> {
    gpu.sync()?;
    let stamps = gpu.start_profile()?;
    let started = Instant::now();
    let done = forced(a, b, tiling);
    if stamps {
        let launches = gpu.take_profile()?;
        done?;
        return Ok(launches.iter().map(|l| l.nanoseconds).sum::<f64>() * 1e-9);
    }
    done?;
    gpu.sync()?;
    Ok(started.elapsed().as_secs_f64())
}

/// The kernels that are better than the built-in ones, by class. Where several shapes have a class, the sum of their
/// times over the built-in kernel's counts.
pub fn winners(timings: &[Timing]) -> Vec<(&'static str, &'static str)> {
    let built_in = |t: &Timing| {
        let same = timings.iter().find(|o| o.built_in && o.shape == t.shape);
        same.and_then(|o| o.microseconds)
    };
    let share = |class: &str, kernel: &str| -> Option<f64> {
        let own = timings.iter().filter(|t| t.class == class && t.kernel == kernel);
        let shares: Option<Vec<f64>> = own.map(|t| Some(t.microseconds? / built_in(t)?)).collect();
        shares.filter(|s| !s.is_empty()).map(|s| s.iter().sum::<f64>() / s.len() as f64)
    };
    let best = |class: &'static str| {
        let shares = TILINGS.iter().filter_map(|t| Some((t.name, share(class, t.name)?)));
        let best = shares.min_by(|a, b| a.1.total_cmp(&b.1))?;
        (best.1 < BETTER).then_some((class, best.0))
    };
    CLASSES.iter().filter_map(|c| best(c.name)).collect()
}

/// Keeps the winners for devices of this adapter that are opened later, and says where. A software adapter keeps none.
///
/// # Errors
/// The device is no hardware GPU, was opened without a cache folder, or the folder cannot be written.
pub fn keep(device: &Device, timings: &[Timing]) -> Result<PathBuf> {
    match device {
        Device::Gpu(gpu) if gpu.class() != AdapterClass::Software => {
            let named = winners(timings).into_iter().map(|(class, kernel)| (class.into(), kernel.into()));
            gpu.keep_tuned(&named.collect())
        }
        _ => Err(Error::config("device", "only hardware adapters have a measured table")),
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
        let tile = |n, t| timing("tile", true, n, Some(t));
        let other = |n, t| timing("tile n64", false, n, t);
        assert_eq!(winners(&[tile(512, 10.0), other(512, Some(9.0))]), [("wide", "tile n64")]);
        assert_eq!(winners(&[tile(512, 10.0), other(512, Some(9.8))]), []);
        assert_eq!(winners(&[tile(512, 10.0), other(512, None)]), [], "a wrong one has no time");
        // Over both shapes it is slower, and where it is wrong for one of them it is out.
        let both = [tile(512, 10.0), tile(256, 10.0), other(512, Some(5.0)), other(256, Some(20.0))];
        assert_eq!(winners(&both), []);
        assert_eq!(winners(&[tile(512, 10.0), tile(256, 1.0), other(512, Some(5.0)), other(256, None)]), []);
    }

    #[test]
    fn what_is_no_number_is_wrong() {
        assert_eq!(error(&[1.0, 2.5], &[1.0, 2.0]), 0.25);
        assert_eq!(error(&[f32::NAN, 2.0], &[1.0, 2.0]), f64::INFINITY);
    }
}
