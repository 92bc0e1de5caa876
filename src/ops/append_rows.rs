//! New positions behind old ones, sequence by sequence: what a key/value cache does.

use super::launch::ELEMENTS;
use super::{Case, Meta, Op, OpSpec, Operand, rows_in_parallel, run};
use crate::device::{Entry, Host, Shader};
use crate::{DType, Error, Result, Tensor};

pub(super) static SPEC: OpSpec = OpSpec {
    name: "append_rows",
    formula: "y[b] = a[b] then c[b], along the second axis",
    shaders: &[&SHADER],
    cases,
};

const NAME: &str = "append_rows";
static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/append_rows.wgsl"),
    entries: &[Entry { name: "forward", variants: ELEMENTS }],
};

/// `(a [B, T, ..], c [B, S, ..]) -> [B, T + S, ..]`
struct Append;

/// `(T, S, elements of a position)`
fn sizes(x: &[&Tensor]) -> (usize, usize, usize) {
    (x[0].dims()[1], x[1].dims()[1], x[0].dims()[2..].iter().product())
}

fn place(i: usize, (t, s, r): (usize, usize, usize)) -> (bool, usize) {
    let (batch, at) = (i / (t + s), i % (t + s));
    if at < t { (true, (batch * t + at) * r) } else { (false, (batch * s + at - t) * r) }
}

impl Op for Append {
    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        x.iter().try_for_each(|t| t.expect(NAME, DType::F32))?;
        let (a, c) = (x[0].dims(), x[1].dims());
        if a.len() < 2 || a.len() != c.len() || a[0] != c[0] || a[2..] != c[2..] {
            return Err(Error::shape(NAME, format!("{} behind {}", x[1].shape(), x[0].shape())));
        }
        let mut dims = a.to_vec();
        dims[1] += c[1];
        Ok(vec![Meta::f32(&dims)?])
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let (a, c, d) = (x[0].f64(), x[1].f64(), sizes(x));
        for (i, y) in y[0].f64_mut().chunks_mut(d.2.max(1)).enumerate() {
            let (old, at) = place(i, d);
            y.copy_from_slice(&(if old { a } else { c })[at..at + d.2]);
        }
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        let (a, c, d) = (x[0].f32(), x[1].f32(), sizes(x));
        rows_in_parallel(y[0].f32_mut(), d.2, |i, y| {
            let (old, at) = place(i, d);
            y.copy_from_slice(&(if old { a } else { c })[at..at + d.2]);
        });
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        use super::launch::{Kernel, WG, binds};
        let ((t, s, r), n) = (sizes(x), y[0].len());
        let kernel = Kernel { shader: &SHADER, entry: "forward", variant: &ELEMENTS[0] };
        kernel.run(gpu, &binds(x, y), &[n, t, s, r].map(|v| v as u32), n.div_ceil(WG), n)
    }
}

impl Tensor {
    /// The positions of `next` behind those of `self`: `[B, T, ..]`, `[B, S, ..]` -> `[B, T + S, ..]`. Not recorded:
    /// it serves key/value caches.
    ///
    /// # Errors
    /// The other axes differ.
    pub fn append_rows(&self, next: &Tensor) -> Result<Tensor> {
        Ok(run(&Append, &[self, next])?.swap_remove(0))
    }
}

fn cases() -> Vec<Case> {
    let shapes = [(1, 0, 1, 3), (2, 3, 1, 5), (2, 1, 4, 130), (1, 40_000, 26_000, 2), (0, 1, 1, 1)];
    shapes
        .into_iter()
        .map(|(b, t, s, r)| {
            let inputs =
                vec![Operand::normal("a", &[b, t, r]).frozen(), Operand::normal("c", &[b, s, r]).frozen()];
            let label = format!("{b}x{t}+{s}x{r}");
            Case::new(label, inputs, |x| Ok(vec![x[0].append_rows(&x[1])?])).cost(0, 8 * b * (t + s) * r)
        })
        .collect()
}
