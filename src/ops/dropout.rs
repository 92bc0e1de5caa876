//! Dropout (Srivastava et al. 2014, JMLR 15) with a counter-based mask.

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Timed, TimedSizes, launch, operands, run1};
use crate::rng::Stream;
use crate::simd::vectorised;
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "dropout",
    formula: "y = x / (1 - p) with probability 1 - p, else 0",
    shaders: &[&SHADER],
    cases,
    timed,
};

static VARIANTS: &[Variant] = &[Variant {
    name: "wg256",
    consts: &[("WG", launch::WG as u32)],
    parts: &[parts::GRID, parts::RANDOM],
    backends: PORTABLE,
    workgroup_bytes: 0,
}];

params! {
    struct Params { n: u32, key0: u32, key1: u32, rate: f32, scale: f32 }
}

static SHADER: Shader = Shader {
    name: "dropout",
    source: include_str!("../../shaders/dropout.wgsl"),
    params: Params::FIELDS,
    entries: &[Entry { name: "forward", variants: VARIANTS }],
};

/// Elements of one parallel task.
const CHUNK: usize = 1 << 12;

/// `x -> y`: element i is kept where `stream.uniform(i) >= rate`.
struct Dropout {
    rate: f32,
    stream: Stream,
}

operands! {
    struct In { x }
}

impl Op for Dropout {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        "dropout"
    }

    fn infer(&self, &In { x }: &In<'_>) -> Result<[Meta; 1]> {
        x.require(self.name(), DType::F32)?;
        Ok([Meta::like(x)])
    }

    fn reference(&self, &In { x }: &In<'_>, [y]: [&mut Host; 1]) {
        for (i, (y, x)) in y.f64_mut().iter_mut().zip(x.f64()).enumerate() {
            let keep = self.stream.uniform(i as u32) >= self.rate;
            *y = if keep { x / (1.0 - self.rate as f64) } else { 0.0 };
        }
    }

    fn cpu(&self, &In { x }: &In<'_>, [y]: [&mut Host; 1]) {
        let scale = scale(self.rate);
        let parts = y.f32_mut().par_chunks_mut(CHUNK).zip(x.f32().par_chunks(CHUNK));
        parts.enumerate().for_each(|(c, (y, x))| {
            keep(self, (c * CHUNK) as u32, scale, x, y);
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let n = x.x.len();
        let [key0, key1] = self.stream.words();
        let params = Params { n: n as u32, key0, key1, rate: self.rate, scale: scale(self.rate) };
        let kernel = launch::Kernel { shader: &SHADER, entry: "forward", variant: &VARIANTS[0] };
        kernel.run(gpu, &launch::binds(x, y), &params, n.div_ceil(2).div_ceil(launch::WG), 60 * n)
    }
}

vectorised! {
    /// A part of the result, of which `first` is the first element.
    fn keep(op: &Dropout, first: u32, scale: f32, x: &[f32], y: &mut [f32]) {
        op.stream.uniforms(first, y);
        y.iter_mut().zip(x).for_each(|(y, x)| *y = if *y >= op.rate { scale * x } else { 0.0 });
    }
}

fn scale(rate: f32) -> f32 {
    (1.0 / (1.0 - rate as f64)) as f32
}

impl Tensor {
    /// Sets each element to 0 with probability `p` and multiplies the others by `1 / (1 - p)`.
    ///
    /// The mask depends on the stream and the element's index alone: the same on every device, and when a
    /// checkpointed layer computes again. The backward pass draws it again too, nothing is kept. Take a stream of
    /// its own for every use: `seed.fork(step).named(layer)`.
    ///
    /// ```
    /// use mixlora::{Device, Stream, Tensor};
    /// let x = Tensor::full(&Device::cpu(), &[1000], 1.0)?;
    /// let y = x.dropout(0.5, Stream::new(7))?.to_f32()?;
    /// assert!(y.iter().all(|&v| v == 0.0 || v == 2.0));
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// `p` is not in [0, 1).
    pub fn dropout(&self, p: f32, stream: Stream) -> Result<Tensor> {
        if !(0.0..1.0).contains(&p) {
            return Err(Error::config("dropout", p, "in [0, 1)"));
        }
        if p == 0.0 {
            return Ok(self.clone());
        }
        let op = Dropout { rate: p, stream };
        let y = run1(&op, In { x: self })?;
        Ok(Node::record("dropout", &[self], y, move |dy| Ok(vec![Some(run1(&op, In { x: &dy })?)])))
    }
}

fn cases() -> Vec<Case> {
    let case = |dims: &'static [usize], p: f32| {
        let n: usize = dims.iter().product();
        let stream = Stream::new(11).named("dropout");
        Case::new(format!("{dims:?} p {p}"), vec![Operand::normal("x", dims)], move |x| {
            Ok(vec![x[0].dropout(p, stream)?])
        })
        .cost(60 * n, 8 * n)
    };
    vec![
        case(&[0, 3], 0.1),
        case(&[1], 0.5),
        case(&[3, 5], 0.0),
        case(&[3, 5], 0.5),
        case(&[7, 301], 0.05),
        case(&[70_001, 3], 0.9),
    ]
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, d] = sizes.plane();
    let n = rows * d;
    let inputs = vec![Operand::normal("x", &[rows, d])];
    let drop = Timed::plain(format!("{rows}x{d}"), inputs, (n, 8 * n), |x| x[0].dropout(0.1, Stream::new(5)));
    vec![drop.backward(n, 8 * n)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn rate_is_met_and_masks_differ() {
        let x = Tensor::full(&Device::cpu(), &[40_000], 1.0).unwrap();
        let y = |s: u64| x.dropout(0.3, Stream::new(s)).unwrap().to_f32().unwrap();
        let a = y(1);
        let b = y(2);
        let rate = a.iter().filter(|&&v| v == 0.0).count() as f64 / 40_000.0;
        assert!((rate - 0.3).abs() < 0.01, "{rate}");
        assert_ne!(a, b);
        assert_eq!(a, y(1));
    }

    #[test]
    fn bad_rates_are_errors() {
        let x = Tensor::zeros(&Device::cpu(), &[2]).unwrap();
        for p in [-0.1, 1.0, f32::NAN] {
            assert!(matches!(x.dropout(p, Stream::new(1)), Err(Error::Config { .. })));
        }
    }
}
