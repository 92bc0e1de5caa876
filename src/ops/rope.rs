//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864), in the half-split layout of Llama models.

use super::gather_rows::check_indices;
use crate::device::{Entry, Gpu, Host, Shader};
use crate::engine::{
    Case, Computation, Meta, Op, OpSpec, Operand, Timed, TimedSizes, launch, operands, rows_in_parallel, run1,
};
use crate::rng::Stream;
use crate::tape::Node;
use crate::{DType, Device, Error, Result, Tensor};
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "rope",
    formula: "(x1, x2) -> (x1 cos a - x2 sin a, x2 cos a + x1 sin a)",
    shaders: &[&SHADER],
    cases,
    timed,
};

static SHADER: Shader = Shader {
    name: "rope",
    source: include_str!("../../shaders/rope.wgsl"),
    entries: &[Entry { name: "rotate", variants: launch::ELEMENTS }],
};

/// Cosines and sines of every position and frequency.
///
/// They are computed in f64 on the host: f32 angles of far positions have no digits left.
#[derive(Debug, Clone)]
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
}

impl Rope {
    /// The table of the paper: position t turns pair k by `t / base^(2k / head_dim)`.
    ///
    /// # Errors
    /// `head_dim` is odd or 0, `max_positions` is 0, or `base` is not a positive finite number.
    pub fn new(device: &Device, head_dim: usize, max_positions: usize, base: f64) -> Result<Self> {
        if head_dim == 0 || !head_dim.is_multiple_of(2) {
            return Err(Error::config(
                "head_dim",
                format!("rotary embedding needs an even number, got {head_dim}"),
            ));
        }
        if !(base.is_finite() && base > 0.0) {
            return Err(Error::config("rope base", format!("must be positive and finite, got {base}")));
        }
        let turn = |k: usize| base.powf(-2.0 * k as f64 / head_dim as f64);
        Self::from_frequencies(device, &(0..head_dim / 2).map(turn).collect::<Vec<_>>(), max_positions)
    }

    /// A table for given frequencies, one per pair: position t turns pair k by `t * frequencies[k]` radians.
    /// Scaled variants of the embedding differ from [`new`](Rope::new) in these alone.
    ///
    /// # Errors
    /// There are no frequencies or positions, or more table entries than a tensor can have.
    pub fn from_frequencies(device: &Device, frequencies: &[f64], max_positions: usize) -> Result<Self> {
        if frequencies.is_empty() || max_positions == 0 {
            return Err(Error::config("max_positions", "rotary embedding needs a position and a frequency"));
        }
        let dims = [max_positions, frequencies.len()];
        crate::Shape::new(&dims)?;
        let table = |f: fn(f64) -> f64| {
            let angles = (0..max_positions).flat_map(|t| frequencies.iter().map(move |w| t as f64 * w));
            Tensor::from_f64(device, &dims, &angles.map(f).collect::<Vec<_>>())
        };
        Ok(Rope { cos: table(f64::cos)?, sin: table(f64::sin)? })
    }

    /// Number of positions.
    pub fn max_positions(&self) -> usize {
        self.cos.shape().rows()
    }

    fn operands<'a>(&'a self, x: &'a Tensor, position: &'a Tensor) -> In<'a> {
        In { x, cos: &self.cos, sin: &self.sin, position }
    }

    /// Values of a head.
    pub fn head_dim(&self) -> usize {
        2 * self.cos.shape().last()
    }
}

/// `(x, cos, sin, position) -> y`, by the angle or by minus the angle.
struct Rotate {
    back: bool,
}

operands! {
    struct In { x, cos, sin, position }
}

impl Op for Rotate {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        "rope"
    }

    fn infer(&self, &In { x, cos, position, .. }: &In<'_>) -> Result<[Meta; 1]> {
        x.require(self.name(), DType::F32)?;
        position.require(self.name(), DType::U32)?;
        let [outer @ .., _, d] = x.dims() else {
            return Err(Error::shape(self.name(), format!("{} must be [.., heads, head_dim]", x.shape())));
        };
        let head_dim = 2 * cos.shape().last();
        if *d != head_dim {
            return Err(Error::shape(
                self.name(),
                format!("{} with a table for heads of {head_dim}", x.shape()),
            ));
        }
        if position.dims() != outer {
            return Err(Error::shape(
                self.name(),
                format!("{} at positions {}", x.shape(), position.shape()),
            ));
        }
        check_indices(self.name(), position, cos.shape().rows())?;
        Ok([Meta::like(x)])
    }

    fn reference(&self, &In { x, cos, sin, position }: &In<'_>, [y]: [&mut Host; 1]) {
        let heads = x.dims()[x.shape().rank() - 2];
        let half = cos.shape().last();
        let x = x.f64();
        let cos = cos.f64();
        let sin = sin.f64();
        let position = position.u32();
        for (i, (y, x)) in y.f64_mut().chunks_mut(2 * half).zip(x.chunks(2 * half)).enumerate() {
            let row = position[i / heads] as usize * half;
            for k in 0..half {
                let c = cos[row + k];
                let s = if self.back { -sin[row + k] } else { sin[row + k] };
                y[k] = x[k] * c - x[k + half] * s;
                y[k + half] = x[k + half] * c + x[k] * s;
            }
        }
    }

    fn cpu(&self, &In { x, cos, sin, position }: &In<'_>, [y]: [&mut Host; 1]) {
        let heads = x.dims()[x.shape().rank() - 2];
        let half = cos.shape().last();
        let x = x.f32();
        let cos = cos.f32();
        let sin = sin.f32();
        let position = position.u32();
        let sign = if self.back { -1.0 } else { 1.0 };
        rows_in_parallel(y.f32_mut(), 2 * half, |i, y| {
            let row = position[i / heads] as usize * half;
            let cos = &cos[row..][..half];
            let sin = &sin[row..][..half];
            let (x1, x2) = x[i * 2 * half..][..2 * half].split_at(half);
            let (y1, y2) = y.split_at_mut(half);
            for k in 0..half {
                let s = sign * sin[k];
                y1[k] = x1[k] * cos[k] - x2[k] * s;
                y2[k] = x2[k] * cos[k] + x1[k] * s;
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let heads = x.x.dims()[x.x.shape().rank() - 2];
        let half = x.cos.shape().last();
        let pairs = x.x.len() / 2;
        let rows = x.cos.shape().rows();
        let sign: f32 = if self.back { -1.0 } else { 1.0 };
        let params = [pairs as u32, heads as u32, half as u32, rows as u32, sign.to_bits()];
        let kernel = launch::Kernel { shader: &SHADER, entry: "rotate", variant: &launch::ELEMENTS[0] };
        kernel.run(gpu, &launch::binds(x, y), &params, pairs.div_ceil(launch::WG), 6 * pairs)
    }
}

impl Tensor {
    /// Rotary position embedding: pair `(x[k], x[k + D/2])` of each head is turned by the angle of its position.
    ///
    /// `self` is `[.., H, D]`, for example `[batch, sequence, heads, head_dim]`; `positions` has the axes before
    /// the heads. The halves of a head are paired as in Hugging Face's Llama (`rotate_half`), not neighbours.
    ///
    /// ```
    /// use mixlora::{Device, Tensor, ops::rope::Rope};
    /// let cpu = Device::cpu();
    /// let rope = Rope::new(&cpu, 2, 8, 10_000.0)?;
    /// let x = Tensor::from_f32(&cpu, &[1, 1, 1, 2], &[1.0, 0.0])?;
    /// let y = x.rope(&rope, &Tensor::from_u32(&cpu, &[1, 1], &[3])?)?;
    /// assert_eq!(y.to_f32()?, [3f32.cos(), 3f32.sin()]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The shapes do not fit, or a position is beyond the table. Positions on a GPU are not read back to check
    /// them: there, larger ones count as the last.
    pub fn rope(&self, rope: &Rope, positions: &Tensor) -> Result<Tensor> {
        let y = run1(&Rotate { back: false }, rope.operands(self, positions))?;
        let rope = rope.clone();
        let positions = positions.detach();
        Ok(Node::record("rope", &[self], y, move |dy| {
            Ok(vec![Some(run1(&Rotate { back: true }, rope.operands(&dy, &positions))?)])
        }))
    }
}

fn cases() -> Vec<Case> {
    let case = |outer: &'static [usize], heads: usize, d: usize, positions: usize| {
        let tokens = outer.iter().product::<usize>();
        let at = (0..tokens as u32).map(|i| Stream::new(4).bits(i) % positions as u32).collect();
        let dims = [outer, &[heads, d]].concat();
        let n: usize = dims.iter().product();
        let label = format!("{dims:?}, {positions} positions");
        let inputs = vec![Operand::normal("x", &dims), Operand::indices(outer, at)];
        Case::new(label, inputs, move |x| {
            let rope = Rope::new(x[0].device(), d, positions, 10_000.0)?;
            Ok(vec![x[0].rope(&rope, &x[1])?])
        })
        .cost(3 * n, 8 * n)
    };
    vec![
        case(&[0, 3], 2, 4, 5),
        case(&[2, 2], 0, 4, 5),
        case(&[1, 1], 1, 2, 1),
        case(&[], 3, 6, 4),
        // Differences would build this long table again for every sample.
        case(&[2, 7], 3, 10, 131_072).no_gradcheck(),
        case(&[3, 11], 9, 64, 2048),
        case(&[70_000], 1, 2, 100),
    ]
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [s, h, d] = [sizes.pick(33, 1024), 32, 64];
    let n = s * h * d;
    let position = Operand::indices(&[1, s], (0..s as u32).collect());
    let inputs = vec![Operand::normal("x", &[1, s, h, d]), position];
    let make = move |device: &Device| -> Result<Computation> {
        let rope = Rope::new(device, d, s, 10_000.0)?;
        Ok(Box::new(move |x| Ok(vec![x[0].rope(&rope, &x[1])?])))
    };
    vec![Timed::new(format!("1x{s}x{h}x{d}"), inputs, (3 * n, 8 * n), make).backward(3 * n, 8 * n)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_tables_and_positions_are_errors() {
        let cpu = Device::cpu();
        assert!(Rope::new(&cpu, 3, 8, 1e4).is_err() && Rope::new(&cpu, 0, 8, 1e4).is_err());
        assert!(Rope::new(&cpu, 4, 0, 1e4).is_err() && Rope::new(&cpu, 4, 8, f64::NAN).is_err());
        assert!(Rope::new(&cpu, 4, usize::MAX, 1e4).is_err());
        let rope = Rope::new(&cpu, 4, 8, 1e4).unwrap();
        let x = Tensor::zeros(&cpu, &[1, 2, 4]).unwrap();
        let at = |v: &[u32]| Tensor::from_u32(&cpu, &[v.len()], v).unwrap();
        assert!(x.rope(&rope, &at(&[7])).is_ok());
        let error = x.rope(&rope, &at(&[8])).unwrap_err().to_string();
        assert_eq!(error, "rope: index 8 at position 0 of a table of 8 rows");
        assert!(x.rope(&rope, &at(&[0, 0])).is_err());
        assert!(Tensor::zeros(&cpu, &[4]).unwrap().rope(&rope, &at(&[0])).is_err());
        assert!(Tensor::zeros(&cpu, &[1, 2, 6]).unwrap().rope(&rope, &at(&[0])).is_err());
    }
}
