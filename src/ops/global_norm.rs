//! The norm of a list of tensors, and the factor that clips it; both stay on the device.

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Operands, Timed, TimedSizes, launch, operands, run1};
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "global_norm",
    formula: "sqrt(sum x^2) over a list, min(1, max_norm / norm)",
    shaders: &[&SHADER],
    cases,
    timed,
};

static VARIANTS: &[Variant] = &[Variant {
    name: "wg256",
    consts: &[("WG", launch::WG as u32)],
    parts: &[parts::GRID, parts::SUM],
    backends: PORTABLE,
    workgroup_bytes: 4 * launch::WG as u32,
}];

params! {
    struct Params { n: u32, offset: u32, max_norm: f32 }
}

static SHADER: Shader = Shader {
    name: "global_norm",
    source: include_str!("../../shaders/global_norm.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "squares", variants: VARIANTS },
        Entry { name: "root", variants: VARIANTS },
        Entry { name: "clip", variants: VARIANTS },
    ],
};

/// Elements that one workgroup of `squares` sums.
const CHUNK: usize = 4096;

fn kernel(entry: &'static str) -> launch::Kernel {
    launch::Kernel { shader: &SHADER, entry, variant: &VARIANTS[0] }
}

/// `(x, ..) -> norm`
struct Norm;

/// `norm -> factor`
struct Clip {
    max_norm: f32,
}

impl Op for Norm {
    type In<'a> = &'a [&'a Tensor];

    fn name(&self) -> &'static str {
        "global_norm"
    }

    fn infer(&self, x: &&[&Tensor]) -> Result<[Meta; 1]> {
        x.require(self.name(), DType::F32)?;
        Ok([Meta::f32(&[])?])
    }

    fn reference(&self, x: &&[&Tensor], [y]: [&mut Host; 1]) {
        let sum: f64 = x.iter().flat_map(|t| t.f64()).map(|v| v * v).sum();
        y.f64_mut()[0] = sum.sqrt();
    }

    fn cpu(&self, x: &&[&Tensor], [y]: [&mut Host; 1]) {
        let square = |v: &[f32]| v.iter().map(|&v| v as f64 * v as f64).sum::<f64>();
        let mut sum = 0.0;
        for t in *x {
            let partial: Vec<f64> = t.f32().par_chunks(1 << 16).map(square).collect();
            sum += partial.iter().sum::<f64>();
        }
        y.f32_mut()[0] = sum.sqrt() as f32;
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &&[&Tensor], y: &[Tensor; 1]) -> Result<()> {
        use crate::device::Bind;
        let partial = gpu.alloc(x.iter().map(|t| t.len().div_ceil(CHUNK)).sum())?;
        let mut offset = 0;
        for t in *x {
            let n = t.len();
            let chunks = t.len().div_ceil(CHUNK);
            let bind = [Bind::Read(t.buffer()), Bind::Write(&partial)];
            let params = Params { n: n as u32, offset: offset as u32, ..Params::default() };
            kernel("squares").run(gpu, &bind, &params, chunks, 2 * n)?;
            offset += chunks;
        }
        let bind = [Bind::Read(&partial), Bind::Write(y[0].buffer())];
        let params = Params { n: offset as u32, ..Params::default() };
        kernel("root").run(gpu, &bind, &params, 1, offset)
    }
}

operands! {
    struct In { norm }
}

impl Op for Clip {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        "clip_factor"
    }

    fn infer(&self, &In { norm }: &In<'_>) -> Result<[Meta; 1]> {
        norm.require(self.name(), DType::F32)?;
        if norm.len() != 1 {
            return Err(Error::shape(self.name(), "a norm of one number", norm.shape()));
        }
        Ok([Meta::f32(&[])?])
    }

    fn reference(&self, &In { norm }: &In<'_>, [y]: [&mut Host; 1]) {
        let f = self.max_norm as f64 / (norm.f64()[0] + 1e-6);
        y.f64_mut()[0] = if f > 1.0 { 1.0 } else { f };
    }

    fn cpu(&self, &In { norm }: &In<'_>, [y]: [&mut Host; 1]) {
        let f = self.max_norm / (norm.f32()[0] + 1e-6);
        y.f32_mut()[0] = if f > 1.0 { 1.0 } else { f };
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let params = Params { n: 1, max_norm: self.max_norm, ..Params::default() };
        kernel("clip").run(gpu, &launch::binds(x, y), &params, 1, 1)
    }
}

/// `sqrt(sum x^2)` over all elements of all tensors: a scalar on their device, not read back.
///
/// The order of the sum is fixed: the same bits on every run. It is not recorded for the backward pass. Squares are
/// f32 on a GPU, so values above 1e19 give infinity.
///
/// ```
/// use mixlora::{Device, Tensor, ops::global_norm::global_norm};
/// let cpu = Device::cpu();
/// let a = Tensor::full(&cpu, &[3], 1.0)?;
/// let b = Tensor::full(&cpu, &[1], 1.0)?;
/// let norm = global_norm(&[&a, &b])?;
/// assert_eq!((norm.item()?, norm.clip_factor(8.0)?.item()?), (2.0, 1.0));
/// # Ok::<(), mixlora::Error>(())
/// ```
///
/// # Errors
/// The list is empty, or the tensors are on different devices.
pub fn global_norm(tensors: &[&Tensor]) -> Result<Tensor> {
    run1(&Norm, tensors)
}

impl Tensor {
    /// `min(1, max_norm / (self + 1e-6))` of a norm: the factor that clips gradients (Pascanu et al. 2012,
    /// arXiv:1211.5063), a scalar on the device for [`adamw`](crate::ops::adamw::adamw).
    ///
    /// A norm of NaN gives NaN, an infinite one gives 0. It is not recorded for the backward pass.
    ///
    /// # Errors
    /// `self` is not one number, or `max_norm` is not positive.
    pub fn clip_factor(&self, max_norm: f32) -> Result<Tensor> {
        if max_norm.is_nan() || max_norm <= 0.0 {
            return Err(Error::config("max_norm", max_norm, "positive"));
        }
        run1(&Clip { max_norm }, In { norm: self })
    }
}

fn cases() -> Vec<Case> {
    let lists: [&[&[usize]]; 5] = [
        &[&[0, 3]],
        &[&[]],
        &[&[3, 5], &[0], &[4097]],
        &[&[1], &[4096], &[8191], &[2, 3]],
        &[&[70_001, 3], &[5], &[1, 64, 64]],
    ];
    let case = |dims: &&[&[usize]]| {
        let inputs: Vec<_> = dims.iter().map(|d| Operand::normal("x", d).frozen()).collect();
        let n: usize = dims.iter().map(|d| d.iter().product::<usize>()).sum();
        Case::new(format!("{dims:?}"), inputs, |x| {
            let norm = global_norm(&x.iter().collect::<Vec<_>>())?;
            // One that clips, one that does not.
            let small = norm.clip_factor(0.01)?;
            let large = norm.clip_factor(1e9)?;
            Ok(vec![norm, small, large])
        })
        .sums(n)
        .cost(2 * n, 4 * n)
    };
    lists.iter().map(case).collect()
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, d] = sizes.plane();
    let n = rows * d;
    let inputs = vec![Operand::normal("x", &[rows, d]).frozen()];
    vec![Timed::plain(format!("{rows}x{d}"), inputs, (2 * n, 4 * n), |x| global_norm(&[&x[0]])).sums(n)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn nan_is_not_clipped_away() {
        #[allow(unused_mut)]
        let mut devices = vec![Device::reference(), Device::cpu()];
        devices.extend(Device::gpu());
        for d in devices {
            let factor = |v: f32| Tensor::full(&d, &[], v).unwrap().clip_factor(1.0).unwrap().item().unwrap();
            assert!(factor(f32::NAN).is_nan(), "{d:?}");
            assert_eq!(factor(f32::INFINITY), 0.0, "{d:?}");
        }
    }

    #[test]
    fn bad_arguments_are_errors() {
        let norm = Tensor::zeros(&Device::cpu(), &[2]).unwrap();
        assert!(global_norm(&[]).is_err() && norm.clip_factor(1.0).is_err());
        let one = Tensor::zeros(&Device::cpu(), &[]).unwrap();
        assert!(one.clip_factor(0.0).is_err() && one.clip_factor(f32::NAN).is_err());
    }
}
