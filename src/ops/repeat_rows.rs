//! Rows repeated for the experts that they go to, and summed back.

use crate::device::{Entry, Gpu, Host, Shader, params};
use crate::engine::launch::ELEMENTS;
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Timed, TimedSizes, operands, rows_in_parallel, run1};
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};
use std::sync::Arc;

use crate::engine::launch::{Kernel, WG, binds};

pub(super) static SPEC: OpSpec = OpSpec {
    name: "repeat_rows",
    formula: "y[m k + j] = x[m]; y[m] = sum_j x[m k + j]",
    shaders: &[&SHADER],
    cases,
    timed,
};

const NAME: &str = "repeat_rows";

params! {
    struct Params { n: u32, d: u32, k: u32 }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/repeat_rows.wgsl"),
    params: Params::FIELDS,
    entries: &[Entry { name: "repeat", variants: ELEMENTS }, Entry { name: "group_sum", variants: ELEMENTS }],
};

/// `[M, D] -> [M k, D]`, or back by sums.
struct Rows {
    k: usize,
    sum: bool,
}

operands! {
    struct In { x }
}

impl Op for Rows {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, &In { x }: &In<'_>) -> Result<[Meta; 1]> {
        x.require(NAME, DType::F32)?;
        let rows = x.shape().rows();
        let d = x.shape().last();
        if self.k == 0 || (self.sum && !rows.is_multiple_of(self.k)) {
            return Err(Error::shape(NAME, format!("rows in groups of {}", self.k), format!("{rows} rows")));
        }
        Ok([Meta::f32(&[if self.sum { rows / self.k } else { rows * self.k }, d])?])
    }

    fn reference(&self, &In { x }: &In<'_>, [y]: [&mut Host; 1]) {
        let d = x.shape().last().max(1);
        for (i, y) in y.f64_mut().iter_mut().enumerate() {
            let m = i / d;
            let c = i % d;
            *y = if self.sum {
                (0..self.k).map(|j| x.f64()[(m * self.k + j) * d + c]).sum()
            } else {
                x.f64()[m / self.k * d + c]
            };
        }
    }

    fn cpu(&self, &In { x }: &In<'_>, [y]: [&mut Host; 1]) {
        let d = x.shape().last();
        let x = x.f32();
        rows_in_parallel(y.f32_mut(), d, |m, y| {
            if self.sum {
                y.fill(0.0);
                for row in x[m * self.k * d..].chunks(d).take(self.k) {
                    y.iter_mut().zip(row).for_each(|(y, v)| *y += v);
                }
            } else {
                y.copy_from_slice(&x[m / self.k * d..][..d])
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let n = y[0].len();
        let entry = if self.sum { "group_sum" } else { "repeat" };
        let params = Params { n: n as u32, d: x.x.shape().last() as u32, k: self.k as u32 };
        let kernel = Kernel { shader: &SHADER, entry, variant: &ELEMENTS[0] };
        kernel.run(gpu, &binds(x, y), &params, n.div_ceil(WG), n)
    }
}

impl Tensor {
    /// Every row `k` times in a row: `[M, D] -> [M k, D]`.
    pub fn repeat_rows(&self, k: usize) -> Result<Tensor> {
        let y = run1(&Rows { k, sum: false }, In { x: self })?;
        let dims = self.dims().to_vec();
        Ok(Node::record(NAME, &[self], y, move |dy| Ok(vec![Some(dy.sum_groups(k)?.reshape(&dims)?)])))
    }

    /// Sums of `k` neighbouring rows: `[M k, D] -> [M, D]`.
    pub fn sum_groups(&self, k: usize) -> Result<Tensor> {
        let y = run1(&Rows { k, sum: true }, In { x: self })?;
        let dims = self.dims().to_vec();
        Ok(Node::record(NAME, &[self], y, move |dy| Ok(vec![Some(dy.repeat_rows(k)?.reshape(&dims)?)])))
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (m, d, k) in [(0, 3, 2), (1, 1, 1), (4, 7, 3), (33_000, 2, 2)] {
        let label = format!("{m}x{d} by {k}");
        let bytes = 4 * m * d * (k + 1);
        let run = move |x: &[Tensor]| Ok(vec![x[0].repeat_rows(k)?, x[1].sum_groups(k)?]);
        let inputs = vec![Operand::normal("x", &[m, d]), Operand::normal("xs", &[m * k, d])];
        all.push(Case::new(label, inputs, run).sums(k).cost(m * d * k, bytes));
    }
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, d] = sizes.plane();
    let n = rows * d;
    let inputs = vec![Operand::normal("x", &[rows, d])];
    let repeat = Timed::plain(format!("{rows}x{d} 2 times"), inputs, (0, 12 * n), |x| x[0].repeat_rows(2));
    vec![repeat.backward(n, 12 * n)]
}
