//! Rotary position embedding (Su et al. 2021, arXiv:2104.09864): pairs of a head's values turn by the angle of their position.

mod cases;
mod frequencies;

pub use frequencies::{Frequencies, Llama3, LongRope, RopeScaling, Yarn};

use super::gather_rows::check_indices;
use crate::device::{Entry, Gpu, Host, Shader, params};
use crate::engine::{Meta, Op, OpSpec, launch, operands, rows_in_parallel, run1};
use crate::tape::Node;
use crate::{DType, Device, Error, Result, Tensor};
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "rope",
    formula: "(x1, x2) -> (x1 cos a - x2 sin a, x2 cos a + x1 sin a)",
    shaders: &[&SHADER],
    cases: cases::cases,
    timed: cases::timed,
};

params! {
    struct Params {
        units: u32, heads: u32, head_dim: u32, half_dim: u32, rows: u32, apart: u32, within: u32, sign: f32,
    }
}

static SHADER: Shader = Shader {
    name: "rope",
    source: include_str!("../../../shaders/rope.wgsl"),
    params: Params::FIELDS,
    entries: &[Entry { name: "rotate", variants: launch::ELEMENTS }],
};

/// Which values of a head turn together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pairs {
    /// `k` and `k + dims / 2`, as in Hugging Face's Llama (`rotate_half`).
    #[default]
    Halves,
    /// `2k` and `2k + 1`, as in the paper, in Cohere 2 and GLM 4.
    Neighbours,
}

impl Pairs {
    /// How far pairs lie apart, and the two values of a pair.
    fn steps(self, half: usize) -> [usize; 2] {
        match self {
            Pairs::Halves => [1, half],
            Pairs::Neighbours => [2, 1],
        }
    }
}

/// Cosines and sines of every position and frequency, and which values they turn.
///
/// They are computed in f64 on the host: f32 angles of far positions have no digits left.
#[derive(Debug, Clone)]
pub struct Rope {
    cos: Tensor,
    sin: Tensor,
    pairs: Pairs,
}

impl Rope {
    /// The table of the paper: position t turns pair k by `t / base^(2k / dims)`.
    ///
    /// # Errors
    /// `dims` is odd or 0, `max_positions` is 0, or `base` is not a positive finite number.
    pub fn new(device: &Device, dims: usize, max_positions: usize, base: f64) -> Result<Self> {
        let frequencies = RopeScaling::Default.frequencies(dims, base, max_positions)?;
        Self::from_frequencies(device, &frequencies, max_positions)
    }

    /// A table for given frequencies, one per pair: position t turns pair k by `t * per_pair[k]` radians, and its values
    /// are multiplied by the amplitude. Scaled variants of the embedding differ from [`new`](Rope::new) in these alone.
    ///
    /// ```
    /// use mixlora::{Device, ops::rope::{Rope, RopeScaling, Yarn}};
    /// let yarn = RopeScaling::Yarn(Yarn::new(4.0, 32_768));
    /// let rope = Rope::from_frequencies(&Device::cpu(), &yarn.frequencies(128, 1e6, 256)?, 256)?;
    /// assert_eq!((rope.dims(), rope.max_positions()), (128, 256));
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// There are no frequencies or positions, or more table entries than a tensor can have.
    pub fn from_frequencies(
        device: &Device,
        frequencies: &Frequencies,
        max_positions: usize,
    ) -> Result<Self> {
        let Frequencies { per_pair, amplitude } = frequencies;
        if per_pair.is_empty() || max_positions == 0 {
            return Err(Error::refused("max_positions", "rotary embedding needs a position and a frequency"));
        }
        let dims = [max_positions, per_pair.len()];
        crate::Shape::new(&dims)?;
        let table = |f: fn(f64) -> f64| {
            let angles = (0..max_positions).flat_map(|t| per_pair.iter().map(move |w| t as f64 * w));
            Tensor::from_f64(device, &dims, &angles.map(|angle| amplitude * f(angle)).collect::<Vec<_>>())
        };
        Ok(Rope { cos: table(f64::cos)?, sin: table(f64::sin)?, pairs: Pairs::default() })
    }

    /// The same table for other pairs. Default: [`Pairs::Halves`].
    pub fn with_pairs(self, pairs: Pairs) -> Self {
        Rope { pairs, ..self }
    }

    /// Number of positions.
    pub fn max_positions(&self) -> usize {
        self.cos.shape().rows()
    }

    /// How many values of a head are rotated: the first ones.
    pub fn dims(&self) -> usize {
        2 * self.cos.shape().last()
    }

    /// Rotates by the angles of the positions, or back.
    fn rotate(&self, x: &Tensor, position: &Tensor, back: bool) -> Result<Tensor> {
        let op = Rotate { back, pairs: self.pairs };
        run1(&op, In { x, cos: &self.cos, sin: &self.sin, position })
    }
}

/// `(x, cos, sin, position) -> y`, by the angle or by minus the angle.
struct Rotate {
    back: bool,
    pairs: Pairs,
}

operands! {
    struct In { x, cos, sin, position }
}

/// Sizes of one call.
struct Dims {
    heads: usize,
    head_dim: usize,
    half: usize,
}

impl Dims {
    fn of(&In { x, cos, .. }: &In<'_>) -> Dims {
        Dims { heads: x.dims()[x.shape().rank() - 2], head_dim: x.shape().last(), half: cos.shape().last() }
    }
}

impl Op for Rotate {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        "rope"
    }

    fn infer(&self, &In { x, cos, position, .. }: &In<'_>) -> Result<[Meta; 1]> {
        x.require(self.name(), DType::F32)?;
        position.require(self.name(), DType::U32)?;
        let [outer @ .., _, head_dim] = x.dims() else {
            return Err(Error::shape(self.name(), "[.., heads, head_dim]", x.shape()));
        };
        let rotated = 2 * cos.shape().last();
        if *head_dim < rotated {
            return Err(Error::shape(
                self.name(),
                format!("heads of at least {rotated} values, which the table rotates"),
                x.shape(),
            ));
        }
        if position.dims() != outer {
            return Err(Error::shape(self.name(), format!("positions of {}", x.shape()), position.shape()));
        }
        check_indices(self.name(), position, cos.shape().rows())?;
        Ok([Meta::like(x)])
    }

    fn reference(&self, operands: &In<'_>, [y]: [&mut Host; 1]) {
        let Dims { heads, head_dim, half } = Dims::of(operands);
        let In { x, cos, sin, position } = *operands;
        let [apart, within] = self.pairs.steps(half);
        let x = x.f64();
        let cos = cos.f64();
        let sin = sin.f64();
        let position = position.u32();
        for (i, (y, x)) in y.f64_mut().chunks_mut(head_dim).zip(x.chunks(head_dim)).enumerate() {
            let row = position[i / heads] as usize * half;
            y[2 * half..].copy_from_slice(&x[2 * half..]);
            for k in 0..half {
                let c = cos[row + k];
                let s = if self.back { -sin[row + k] } else { sin[row + k] };
                let first = k * apart;
                let second = first + within;
                y[first] = x[first] * c - x[second] * s;
                y[second] = x[second] * c + x[first] * s;
            }
        }
    }

    fn cpu(&self, operands: &In<'_>, [y]: [&mut Host; 1]) {
        let Dims { heads, head_dim, half } = Dims::of(operands);
        let In { x, cos, sin, position } = *operands;
        let x = x.f32();
        let cos = cos.f32();
        let sin = sin.f32();
        let position = position.u32();
        let sign = if self.back { -1.0 } else { 1.0 };
        let halves = self.pairs == Pairs::Halves;
        rows_in_parallel(y.f32_mut(), head_dim, |i, y| {
            let row = position[i / heads] as usize * half;
            let cos = &cos[row..][..half];
            let sin = &sin[row..][..half];
            let (x, rest) = x[i * head_dim..][..head_dim].split_at(2 * half);
            let (y, y_rest) = y.split_at_mut(2 * half);
            y_rest.copy_from_slice(rest);
            if halves {
                let (x1, x2) = x.split_at(half);
                let (y1, y2) = y.split_at_mut(half);
                for k in 0..half {
                    let s = sign * sin[k];
                    y1[k] = x1[k] * cos[k] - x2[k] * s;
                    y2[k] = x2[k] * cos[k] + x1[k] * s;
                }
            } else {
                for (k, (y, x)) in y.as_chunks_mut::<2>().0.iter_mut().zip(x.as_chunks::<2>().0).enumerate() {
                    let s = sign * sin[k];
                    *y = [x[0] * cos[k] - x[1] * s, x[1] * cos[k] + x[0] * s];
                }
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let Dims { heads, head_dim, half } = Dims::of(x);
        // One invocation for each pair, and for each value that passes.
        let units = x.x.len() / head_dim * (head_dim - half);
        let [apart, within] = self.pairs.steps(half);
        let params = Params {
            units: units as u32,
            heads: heads as u32,
            head_dim: head_dim as u32,
            half_dim: half as u32,
            rows: x.cos.shape().rows() as u32,
            apart: apart as u32,
            within: within as u32,
            sign: if self.back { -1.0 } else { 1.0 },
        };
        let kernel = launch::Kernel { shader: &SHADER, entry: "rotate", variant: &launch::ELEMENTS[0] };
        kernel.run(gpu, &launch::binds(x, y), &params, units.div_ceil(launch::WG), 6 * units)
    }
}

impl Tensor {
    /// Rotary position embedding: each pair of the first [`dims`](Rope::dims) values of each head is turned by the angle of
    /// its position, `(x1, x2) -> (x1 cos a - x2 sin a, x2 cos a + x1 sin a)`; the rest of a head passes.
    ///
    /// `self` is `[.., H, D]`, for example `[batch, sequence, heads, head_dim]`; `positions` has the axes before
    /// the heads. Which values are a pair, the table says: see [`Pairs`].
    ///
    /// ```
    /// use mixlora::{Device, Tensor, ops::rope::Rope};
    /// let cpu = Device::cpu();
    /// let rope = Rope::new(&cpu, 2, 8, 10_000.0)?;
    /// let x = Tensor::from_f32(&cpu, &[1, 1, 1, 3], &[1.0, 0.0, 7.0])?;
    /// let y = x.rope(&rope, &Tensor::from_u32(&cpu, &[1, 1], &[3])?)?;
    /// assert_eq!(y.to_f32()?, [3f32.cos(), 3f32.sin(), 7.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The shapes do not fit, a head has fewer values than are rotated, or a position is beyond the table. Positions on a
    /// GPU are not read back to check them: there, larger ones count as the last.
    pub fn rope(&self, rope: &Rope, positions: &Tensor) -> Result<Tensor> {
        let y = rope.rotate(self, positions, false)?;
        let rope = rope.clone();
        let positions = positions.detach();
        Ok(Node::record("rope", &[self], y, move |dy| Ok(vec![Some(rope.rotate(&dy, &positions, true)?)])))
    }
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
        assert_eq!(error, "rope: expected indices of a table of 8 rows, found 8 at position 0");
        assert!(x.rope(&rope, &at(&[0, 0])).is_err());
        assert!(Tensor::zeros(&cpu, &[4]).unwrap().rope(&rope, &at(&[0])).is_err());
        let narrow = Tensor::zeros(&cpu, &[1, 2, 2]).unwrap().rope(&rope, &at(&[0])).unwrap_err().to_string();
        assert_eq!(
            narrow,
            "rope: expected heads of at least 4 values, which the table rotates, found [1, 2, 2]"
        );
    }
}
