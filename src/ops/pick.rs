//! Values of each row by index; the gradient of a value is a sum over where it was picked.

use crate::device::{Entry, Gpu, Host, Shader, params};
use crate::engine::launch::{ELEMENTS, Kernel, WG, binds};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Timed, TimedSizes, operands, rows_in_parallel, run1};
use crate::rng::Stream;
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};
use std::sync::Arc;

pub(super) static SPEC: OpSpec =
    OpSpec { name: NAME, formula: "y[m,j] = x[m,index[m,j]]", shaders: &[&SHADER], cases, timed };

const NAME: &str = "pick";

params! {
    struct Params { n: u32, e: u32, k: u32 }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/pick.wgsl"),
    params: Params::FIELDS,
    entries: &[Entry { name: "forward", variants: ELEMENTS }, Entry { name: "backward", variants: ELEMENTS }],
};

/// `(x [.., E], index [.., K]) -> y [.., K]`
struct Forward;

/// `(dy, index [.., K]) -> dx [.., E]`, with this many values in a row.
struct Backward {
    e: usize,
}

operands! {
    struct In { x, index }
}

impl Op for Forward {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, &In { x, index }: &In<'_>) -> Result<[Meta; 1]> {
        x.require(NAME, DType::F32)?;
        index.require(NAME, DType::U32)?;
        if x.shape().rank() == 0 || *index.shape() != x.shape().with_last(index.shape().last())? {
            let found = format!("{} by indices {}", x.shape(), index.shape());
            return Err(Error::shape(NAME, "the same axes but the last", found));
        }
        Ok([Meta::f32(index.dims())?])
    }

    fn reference(&self, &In { x, index }: &In<'_>, [y]: [&mut Host; 1]) {
        let e = x.shape().last();
        let k = index.shape().last();
        for (i, (y, &at)) in y.f64_mut().iter_mut().zip(index.u32()).enumerate() {
            let at = at as usize;
            *y = if at < e { x.f64()[i / k * e + at] } else { 0.0 };
        }
    }

    fn cpu(&self, &In { x, index }: &In<'_>, [y]: [&mut Host; 1]) {
        let e = x.shape().last();
        let k = index.shape().last();
        let x = x.f32();
        let index = index.u32();
        rows_in_parallel(y.f32_mut(), k, |m, y| {
            let row = &x[m * e..][..e];
            for (y, &at) in y.iter_mut().zip(&index[m * k..]) {
                *y = row.get(at as usize).copied().unwrap_or(0.0);
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let n = y[0].len();
        let params = Params { n: n as u32, e: x.x.shape().last() as u32, k: x.index.shape().last() as u32 };
        let kernel = Kernel { shader: &SHADER, entry: "forward", variant: &ELEMENTS[0] };
        kernel.run(gpu, &binds(x, y), &params, n.div_ceil(WG), n)
    }
}

operands! {
    struct BackwardIn { dy, index }
}

impl Op for Backward {
    type In<'a> = BackwardIn<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, &BackwardIn { dy, .. }: &BackwardIn<'_>) -> Result<[Meta; 1]> {
        Ok([Meta::f32(dy.shape().with_last(self.e)?.dims())?])
    }

    fn reference(&self, &BackwardIn { dy, index }: &BackwardIn<'_>, [dx]: [&mut Host; 1]) {
        let k = index.shape().last();
        let dx = dx.f64_mut();
        dx.fill(0.0);
        for (i, (dy, &at)) in dy.f64().iter().zip(index.u32()).enumerate() {
            if (at as usize) < self.e {
                dx[i / k * self.e + at as usize] += dy;
            }
        }
    }

    fn cpu(&self, &BackwardIn { dy, index }: &BackwardIn<'_>, [dx]: [&mut Host; 1]) {
        let k = index.shape().last();
        let dy = dy.f32();
        let index = index.u32();
        rows_in_parallel(dx.f32_mut(), self.e, |m, dx| {
            dx.fill(0.0);
            let row = m * k..(m + 1) * k;
            for (dy, &at) in dy[row.clone()].iter().zip(&index[row]) {
                if let Some(sum) = dx.get_mut(at as usize) {
                    *sum += dy;
                }
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &BackwardIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        let n = y[0].len();
        let k = x.index.shape().last();
        let params = Params { n: n as u32, e: self.e as u32, k: k as u32 };
        let kernel = Kernel { shader: &SHADER, entry: "backward", variant: &ELEMENTS[0] };
        kernel.run(gpu, &binds(x, y), &params, n.div_ceil(WG), n * k)
    }
}

impl Tensor {
    /// Values of each row by index: `y[m,j] = self[m,index[m,j]]`, `[.., E]` by `[.., K]` gives `[.., K]`. An index of E
    /// or more gives 0 and has no gradient, on every device.
    ///
    /// Derivative: `dx[m,e]` is the sum of `dy[m,j]` over all j with `index[m,j] = e`, in the order of j. On a GPU each
    /// value compares the K indices of its row: few values of many are what it is for, such as log-probabilities of
    /// labels.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let cpu = Device::cpu();
    /// let x = Tensor::from_f32(&cpu, &[2, 3], &[0.0, 1.0, 2.0, 10.0, 11.0, 12.0])?;
    /// let labels = Tensor::from_u32(&cpu, &[2, 1], &[2, 0])?;
    /// assert_eq!(x.pick(&labels)?.to_f32()?, [2.0, 10.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// Axes but the last differ, the tensor holds indices, or `index` holds none.
    pub fn pick(&self, index: &Tensor) -> Result<Tensor> {
        let y = run1(&Forward, In { x: self, index })?;
        let index = index.detach();
        let e = self.shape().last();
        Ok(Node::record(NAME, &[self], y, move |dy| {
            Ok(vec![Some(run1(&Backward { e }, BackwardIn { dy: &dy, index: &index })?)])
        }))
    }
}

fn cases() -> Vec<Case> {
    // Of values in a row, and indices in a row below so many; some lie beyond the values.
    let shapes: [(&[usize], usize, usize, usize); 8] = [
        (&[0], 4, 2, 4),
        (&[3], 4, 0, 4),
        (&[3], 0, 2, 4),
        (&[], 1, 1, 1),
        (&[2, 3], 5, 7, 7),
        (&[4], 300, 1, 300),
        (&[3], 6, 257, 2),
        (&[70_000], 3, 2, 4),
    ];
    let case = |(rows, e, k, below): (&[usize], usize, usize, usize)| {
        let dims = [rows, &[k]].concat();
        let n: usize = dims.iter().product();
        let bits = Stream::new(3);
        let index = (0..n as u32).map(|i| bits.bits(i) % below as u32).collect();
        let inputs = vec![Operand::normal("x", &[rows, &[e]].concat()), Operand::indices(&dims, index)];
        Case::new(format!("{rows:?} {k} of {e}"), inputs, |x| Ok(vec![x[0].pick(&x[1])?]))
            .sums(k)
            .cost(0, 12 * n)
    };
    shapes.into_iter().map(case).collect()
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, d] = sizes.plane();
    let index = (0..rows).map(|i| (i * 7 % d) as u32).collect();
    let inputs = vec![Operand::normal("x", &[rows, d]), Operand::indices(&[rows, 1], index)];
    let pick = Timed::plain(format!("1 of {rows}x{d}"), inputs, (0, 12 * rows), |x| x[0].pick(&x[1]));
    vec![pick.backward(0, 4 * rows * (d + 2))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn indices_beyond_a_row_give_nothing() {
        let mut devices = vec![Device::cpu(), Device::reference()];
        devices.extend(Device::gpu());
        for device in devices {
            let x = Tensor::from_f32(&device, &[2, 2], &[1.0, 2.0, 3.0, 4.0]).unwrap().leaf();
            let index = Tensor::from_u32(&device, &[2, 3], &[1, 2, 1, u32::MAX, 0, 2]).unwrap();
            let y = x.pick(&index).unwrap();
            assert_eq!(y.to_f32().unwrap(), [2.0, 0.0, 2.0, 0.0, 3.0, 0.0]);
            let grads = y.sum().unwrap().backward().unwrap();
            assert_eq!(grads.get(&x).unwrap().to_f32().unwrap(), [0.0, 2.0, 1.0, 0.0]);
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_errors() {
        let cpu = Device::cpu();
        let x = Tensor::zeros(&cpu, &[2, 3]).unwrap();
        let index = |dims: &[usize]| Tensor::from_u32(&cpu, dims, &vec![0; dims.iter().product()]).unwrap();
        let error = x.pick(&index(&[3, 1])).unwrap_err().to_string();
        assert_eq!(error, "pick: expected the same axes but the last, found [2, 3] by indices [3, 1]");
        assert!(x.pick(&index(&[2])).is_err());
        assert!(Tensor::zeros(&cpu, &[]).unwrap().pick(&index(&[])).is_err());
        assert!(matches!(x.pick(&x), Err(Error::DType { .. })));
        assert!(matches!(index(&[2, 1]).pick(&index(&[2, 1])), Err(Error::DType { .. })));
    }
}
