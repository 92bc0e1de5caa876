//! The roof of a CPU, on all threads of the device.

use super::ROUNDS;
use crate::Result;
use crate::device::Cpu;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// Values of each side of the copy: beyond any last-level cache.
const COPIED: usize = 32 << 20;
/// Values that one task copies.
const CHUNK: usize = 1 << 20;
/// Independent chains: enough for two units of four cycles each, and few enough for sixteen registers.
const CHAINS: usize = 12;
/// Links of each chain in one sample.
const STEPS: usize = 4_000_000;

/// A kernel's values per register, and a run of `STEPS` links.
type Kernel = (usize, fn() -> f32);

/// Work and samples in seconds of the copy (bytes) and of the multiply-adds (FLOP).
pub(super) fn measure(cpu: &Cpu) -> Result<[(f64, Vec<f64>); 2]> {
    let x = vec![1.0f32; COPIED];
    let mut y = vec![0.0f32; COPIED];
    let copy = cpu.install(|| {
        let mut copy = || {
            let started = Instant::now();
            y.par_chunks_mut(CHUNK).zip(x.par_chunks(CHUNK)).for_each(|(y, x)| y.copy_from_slice(x));
            black_box(&mut y);
            started.elapsed().as_secs_f64()
        };
        copy();
        (0..ROUNDS).map(|_| copy()).collect()
    });
    let threads = cpu.threads();
    let fused = cpu.install(|| {
        let runs = kernels().into_iter().map(|(lanes, kernel)| {
            let run = || {
                let started = Instant::now();
                black_box(rayon::broadcast(|_| kernel()));
                started.elapsed().as_secs_f64()
            };
            run();
            let flops = (2 * lanes * CHAINS * STEPS * threads) as f64;
            (flops, (0..ROUNDS).map(|_| run()).collect::<Vec<_>>())
        });
        let speed = |(flops, samples): &(f64, Vec<f64>)| flops / super::quantile(samples, 0.0);
        runs.max_by(|a, b| speed(a).total_cmp(&speed(b))).unwrap_or_default()
    });
    Ok([(8.0 * COPIED as f64, copy), fused])
}

/// What this processor can run; the fastest counts.
fn kernels() -> Vec<Kernel> {
    #[cfg(target_arch = "x86_64")]
    {
        let mut all: Vec<Kernel> = Vec::new();
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions.
            all.push((16, || unsafe { avx512() }));
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            // SAFETY: the processor has the instructions.
            all.push((8, || unsafe { avx2() }));
        }
        if !all.is_empty() {
            return all;
        }
    }
    #[cfg(target_arch = "aarch64")]
    if std::arch::is_aarch64_feature_detected!("neon") {
        // SAFETY: the processor has the instructions.
        return vec![(4, || unsafe { neon() })];
    }
    vec![(1, portable)]
}

/// Factors close to 1, so that values neither vanish nor overflow; hidden from the compiler.
fn factors() -> (f32, f32) {
    black_box((0.999_999, 1e-6))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512() -> f32 {
    use std::arch::x86_64::*;
    let (a, b) = factors();
    let a = _mm512_set1_ps(a);
    let b = _mm512_set1_ps(b);
    let mut c = [b; CHAINS];
    for _ in 0..STEPS {
        for c in &mut c {
            *c = _mm512_fmadd_ps(*c, a, b);
        }
    }
    c.iter().map(|c| _mm512_reduce_add_ps(*c)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2() -> f32 {
    use std::arch::x86_64::*;
    let (a, b) = factors();
    let a = _mm256_set1_ps(a);
    let b = _mm256_set1_ps(b);
    let mut c = [b; CHAINS];
    for _ in 0..STEPS {
        for c in &mut c {
            *c = _mm256_fmadd_ps(*c, a, b);
        }
    }
    c.iter().map(|c| _mm256_cvtss_f32(*c)).sum()
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon() -> f32 {
    use std::arch::aarch64::*;
    let (a, b) = factors();
    let a = vdupq_n_f32(a);
    let b = vdupq_n_f32(b);
    let mut c = [b; CHAINS];
    for _ in 0..STEPS {
        for c in &mut c {
            *c = vfmaq_f32(b, *c, a);
        }
    }
    c.iter().map(|c| vaddvq_f32(*c)).sum()
}

/// Without an instruction for both, a product and a sum.
fn portable() -> f32 {
    let (a, b) = factors();
    let mut c = [b; CHAINS];
    for _ in 0..STEPS {
        for c in &mut c {
            *c = *c * a + b;
        }
    }
    c.iter().sum()
}
