//! New positions in the room that an array has for them, sequence by sequence: what a key/value cache does.

use crate::device::{Entry, Gpu, Host, Shader, params};
use crate::engine::launch::ELEMENTS;
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Timed, TimedSizes, operands, run_in_place};
use crate::{DType, Error, Result, Shape, Tensor};
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "write_rows",
    formula: "y[b, at .. at + S] = c[b], along the second axis",
    shaders: &[&SHADER],
    cases,
    timed,
};

const NAME: &str = "write_rows";

params! {
    struct Params { n: u32, at: u32, s: u32, t: u32, r: u32 }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/write_rows.wgsl"),
    params: Params::FIELDS,
    entries: &[Entry { name: "forward", variants: ELEMENTS }],
};

/// In place: `y [B, T, ..]`, of `c [B, S, ..]`.
struct Write {
    at: usize,
    /// Shape of `y`.
    into: Shape,
}

impl Write {
    /// Copies every sequence of `c` into its place in `y`.
    fn copy<T: Copy>(&self, c: &Tensor, from: &[T], y: &mut [T]) {
        let s = c.dims()[1];
        let r = c.dims()[2..].iter().product::<usize>();
        if s * r == 0 {
            return;
        }
        for (from, y) in from.chunks(s * r).zip(y.chunks_mut(self.into.dims()[1] * r)) {
            y[self.at * r..][..s * r].copy_from_slice(from);
        }
    }
}

operands! {
    struct In { next }
}

impl Op for Write {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, &In { next }: &In<'_>) -> Result<[Meta; 1]> {
        next.require(NAME, DType::F32)?;
        let into = &self.into;
        let to = into.dims();
        let from = next.dims();
        if to.len() < 2 || to.len() != from.len() || to[0] != from[0] || to[2..] != from[2..] {
            return Err(Error::shape(NAME, format!("rows for {into}"), next.shape()));
        }
        if self.at.checked_add(from[1]).is_none_or(|end| end > to[1]) {
            return Err(Error::shape(
                NAME,
                format!("rows within {into}"),
                format!("{} rows from row {}", from[1], self.at),
            ));
        }
        Ok([Meta { shape: into.clone(), dtype: DType::F32 }])
    }

    fn reference(&self, &In { next }: &In<'_>, [y]: [&mut Host; 1]) {
        self.copy(next, next.f64(), y.f64_mut());
    }

    fn cpu(&self, &In { next }: &In<'_>, [y]: [&mut Host; 1]) {
        self.copy(next, next.f32(), y.f32_mut());
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        use crate::engine::launch::{Kernel, WG, binds};
        let n = x.next.len();
        let dims = x.next.dims();
        let row = dims[2..].iter().product::<usize>();
        let kernel = Kernel { shader: &SHADER, entry: "forward", variant: &ELEMENTS[0] };
        let params = Params {
            n: n as u32,
            at: self.at as u32,
            s: dims[1] as u32,
            t: self.into.dims()[1] as u32,
            r: row as u32,
        };
        kernel.run(gpu, &binds(x, y), &params, n.div_ceil(WG), n)
    }
}

impl Tensor {
    /// Puts the rows of `next` `[B, S, ..]` at rows `at .. at + S` of this `[B, T, ..]`, in place unless someone else
    /// holds the memory: then this becomes a changed copy. Not recorded: it serves key/value caches.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let cpu = Device::cpu();
    /// let mut cache = Tensor::zeros(&cpu, &[1, 3, 1])?;
    /// cache.write_rows(1, &Tensor::from_f32(&cpu, &[1, 2, 1], &[5.0, 6.0])?)?;
    /// assert_eq!(cache.to_f32()?, [0.0, 5.0, 6.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The rows do not fit, or other axes differ.
    pub fn write_rows(&mut self, at: usize, next: &Tensor) -> Result<()> {
        let into = self.shape().clone();
        run_in_place(&Write { at, into }, [self], In { next })
    }
}

fn cases() -> Vec<Case> {
    let shapes = [
        (1, 1, 0, 1, 3),
        (2, 4, 3, 1, 5),
        (2, 5, 1, 4, 130),
        (1, 66_000, 40_000, 26_000, 2),
        (0, 1, 0, 1, 1),
    ];
    shapes
        .into_iter()
        .map(|(b, t, at, s, r)| {
            let inputs =
                vec![Operand::normal("y", &[b, t, r]).frozen(), Operand::normal("c", &[b, s, r]).frozen()];
            Case::new(format!("{b}x{t}x{r}, {s} at {at}"), inputs, move |x| {
                let mut y = x[0].clone();
                y.write_rows(at, &x[1])?;
                Ok(vec![y])
            })
            .cost(0, 8 * b * s * r)
        })
        .collect()
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [t, d] = [sizes.pick(33, 2048), 192];
    let inputs = [("old", t), ("new", 1)].map(|(name, rows)| Operand::normal(name, &[4, rows, d]).frozen());
    // Someone else holds the rows: they are copied first.
    let write = |x: &[Tensor]| {
        let mut y = x[0].clone();
        y.write_rows(9, &x[1]).map(|()| y)
    };
    vec![Timed::plain(format!("4x{t}x{d}, 1 at 9"), inputs.into(), (0, 32 * (t + 1) * d), write)]
}
