//! The roof of a CPU, on all threads of the device.

use super::ROUNDS;
use crate::Result;
use crate::device::Cpu;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Instant;

/// The number of copied values, which exceeds any last-level cache.
const COPIED: usize = 32 << 20;
/// The number of values that a task copies.
const CHUNK: usize = 1 << 20;
/// The number of independent chains: enough for two units of four cycles each, and few enough for sixteen registers.
const CHAINS: usize = 12;
/// The number of links of each chain in a sample.
const STEPS: usize = 4_000_000;

/// A kernel's values per register, and a run of `STEPS` links.
type Kernel = (usize, fn() -> f32);

/// Work and samples in seconds of the copy (bytes) and of the multiply-adds (FLOP).
pub(super) fn measure(cpu: &Cpu) -> Result<[(f64, Vec<f64>); 2]> {
    let source = vec![1.0f32; COPIED];
    let mut target = vec![0.0f32; COPIED];
    let copy = cpu.install(|| {
        let mut copy = || {
            let started = Instant::now();
            let chunks = target.par_chunks_mut(CHUNK).zip(source.par_chunks(CHUNK));
            chunks.for_each(|(target, source)| target.copy_from_slice(source));
            black_box(&mut target);
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
        runs.max_by(|one, other| speed(one).total_cmp(&speed(other))).unwrap_or_default()
    });
    Ok([(8.0 * COPIED as f64, copy), fused])
}

/// The kernels that this processor can run; the fastest counts.
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

/// A factor close to 1 and a summand for which values neither vanish nor overflow, hidden from the compiler.
fn factors() -> (f32, f32) {
    black_box((0.999_999, 1e-6))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512() -> f32 {
    use std::arch::x86_64::*;
    let (factor, summand) = factors();
    let factor = _mm512_set1_ps(factor);
    let summand = _mm512_set1_ps(summand);
    let mut chains = [summand; CHAINS];
    for _ in 0..STEPS {
        for chain in &mut chains {
            *chain = _mm512_fmadd_ps(*chain, factor, summand);
        }
    }
    chains.iter().map(|chain| _mm512_reduce_add_ps(*chain)).sum()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2() -> f32 {
    use std::arch::x86_64::*;
    let (factor, summand) = factors();
    let factor = _mm256_set1_ps(factor);
    let summand = _mm256_set1_ps(summand);
    let mut chains = [summand; CHAINS];
    for _ in 0..STEPS {
        for chain in &mut chains {
            *chain = _mm256_fmadd_ps(*chain, factor, summand);
        }
    }
    chains.iter().map(|chain| _mm256_cvtss_f32(*chain)).sum()
}

#[cfg(target_arch = "aarch64")]
#[target_feature(enable = "neon")]
fn neon() -> f32 {
    use std::arch::aarch64::*;
    let (factor, summand) = factors();
    let factor = vdupq_n_f32(factor);
    let summand = vdupq_n_f32(summand);
    let mut chains = [summand; CHAINS];
    for _ in 0..STEPS {
        for chain in &mut chains {
            *chain = vfmaq_f32(summand, *chain, factor);
        }
    }
    chains.iter().map(|chain| vaddvq_f32(*chain)).sum()
}

/// A product and a sum, for processors without a fused instruction.
fn portable() -> f32 {
    let (factor, summand) = factors();
    let mut chains = [summand; CHAINS];
    for _ in 0..STEPS {
        for chain in &mut chains {
            *chain = *chain * factor + summand;
        }
    }
    chains.iter().sum()
}
