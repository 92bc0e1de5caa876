//! Gates of groups of neighbouring columns: one for each row and group.

use crate::device::{Entry, Gpu, Host, Shader, params};
use crate::engine::launch::{ELEMENTS, Kernel, WG, binds};
use crate::engine::{
    Case, Meta, Op, OpSpec, Operand, Operands, Timed, TimedSizes, cpu::math, operands, rows_in_parallel, run1,
};
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: NAME,
    formula: "y[m,j] = u[m,j] g[m,j/r]; dots[m,e] = sum over group e of u v",
    shaders: &[&SHADER],
    cases,
    timed,
};

const NAME: &str = "gate_groups";

params! {
    struct Params { n: u32, width: u32 }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/gate_groups.wgsl"),
    params: Params::FIELDS,
    entries: &[Entry { name: "gate", variants: ELEMENTS }, Entry { name: "dots", variants: ELEMENTS }],
};

/// `(u [.., N], gates [.., groups]) -> y [.., N]`
struct Gate;

/// `(u, v [.., N]) -> [.., groups]`
struct Dots {
    groups: usize,
}

/// `u [.., N]` with each group of columns times its gate, `gates [.., groups]`; nothing is recorded.
pub(crate) fn gate_groups(u: &Tensor, gates: &Tensor) -> Result<Tensor> {
    run1(&Gate, GateIn { u, gates })
}

/// Inner products of `u` and `v` `[.., N]` over each group of columns: `[.., groups]`; nothing is recorded. For
/// gradients of gates.
pub(crate) fn group_dots(u: &Tensor, v: &Tensor, groups: usize) -> Result<Tensor> {
    run1(&Dots { groups }, DotsIn { u, v })
}

/// Columns of one of so many groups of the columns of `u`.
fn width(u: &Tensor, groups: usize) -> Result<usize> {
    let columns = u.shape().last();
    if u.shape().rank() == 0 || groups == 0 || !columns.is_multiple_of(groups) {
        return Err(Error::shape(NAME, format!("a last axis in {groups} groups"), u.shape()));
    }
    Ok(columns / groups)
}

operands! {
    struct GateIn { u, gates }
}

impl Op for Gate {
    type In<'a> = GateIn<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &GateIn<'_>) -> Result<[Meta; 1]> {
        x.require(NAME, DType::F32)?;
        let groups = x.gates.shape().last();
        width(x.u, groups)?;
        if *x.gates.shape() != x.u.shape().with_last(groups)? {
            let found = format!("{} with gates {}", x.u.shape(), x.gates.shape());
            return Err(Error::shape(NAME, "the same axes but the last", found));
        }
        Ok([Meta::like(x.u)])
    }

    fn reference(&self, &GateIn { u, gates }: &GateIn<'_>, [y]: [&mut Host; 1]) {
        let r = u.shape().last() / gates.shape().last();
        for (i, (y, u)) in y.f64_mut().iter_mut().zip(u.f64()).enumerate() {
            *y = u * gates.f64()[i / r];
        }
    }

    fn cpu(&self, &GateIn { u, gates }: &GateIn<'_>, [y]: [&mut Host; 1]) {
        let columns = u.shape().last();
        let groups = gates.shape().last();
        let u = u.f32();
        let gates = gates.f32();
        rows_in_parallel(y.f32_mut(), columns, |m, y| {
            let r = columns / groups;
            let parts = y.chunks_mut(r).zip(u[m * columns..][..columns].chunks(r));
            for ((y, u), gate) in parts.zip(&gates[m * groups..][..groups]) {
                y.iter_mut().zip(u).for_each(|(y, u)| *y = u * gate);
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &GateIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch(gpu, "gate", x.u.shape().last() / x.gates.shape().last(), x, y)
    }
}

operands! {
    struct DotsIn { u, v }
}

impl Op for Dots {
    type In<'a> = DotsIn<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &DotsIn<'_>) -> Result<[Meta; 1]> {
        x.require(NAME, DType::F32)?;
        width(x.u, self.groups)?;
        if x.u.shape() != x.v.shape() {
            return Err(Error::shape(NAME, x.u.shape(), x.v.shape()));
        }
        Ok([Meta::f32(x.u.shape().with_last(self.groups)?.dims())?])
    }

    fn reference(&self, &DotsIn { u, v }: &DotsIn<'_>, [y]: [&mut Host; 1]) {
        let r = u.shape().last() / self.groups;
        for (i, y) in y.f64_mut().iter_mut().enumerate() {
            *y = (i * r..(i + 1) * r).map(|k| u.f64()[k] * v.f64()[k]).sum();
        }
    }

    fn cpu(&self, &DotsIn { u, v }: &DotsIn<'_>, [y]: [&mut Host; 1]) {
        let r = u.shape().last() / self.groups;
        let u = u.f32();
        let v = v.f32();
        rows_in_parallel(y.f32_mut(), self.groups, |m, y| {
            for (e, y) in y.iter_mut().enumerate() {
                let first = (m * self.groups + e) * r;
                *y = math::dot(&u[first..first + r], &v[first..first + r]);
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &DotsIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch(gpu, "dots", x.u.shape().last() / self.groups, x, y)
    }
}

fn launch<'a>(
    gpu: &Gpu,
    entry: &'static str,
    width: usize,
    x: &impl Operands<'a>,
    y: &'a [Tensor; 1],
) -> Result<()> {
    let n = y[0].len();
    let kernel = Kernel { shader: &SHADER, entry, variant: &ELEMENTS[0] };
    let params = Params { n: n as u32, width: width as u32 };
    kernel.run(gpu, &binds(x, y), &params, n.div_ceil(WG), 2 * x.all()[0].len())
}

impl Tensor {
    /// Every group of `r` neighbouring columns times a gate of its own: `y[m,j] = self[m,j] gates[m,j/r]`, `[.., N]`
    /// by `[.., N/r]` gives `[.., N]`.
    ///
    /// Derivatives: `du[m,j] = dy[m,j] gates[m,j/r]`, and `dgates[m,e]` is the sum of `u[m,j] dy[m,j]` over group e.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let cpu = Device::cpu();
    /// let u = Tensor::from_f32(&cpu, &[1, 4], &[1.0, 2.0, 3.0, 4.0])?;
    /// let gates = Tensor::from_f32(&cpu, &[1, 2], &[10.0, 0.5])?;
    /// assert_eq!(u.gate_groups(&gates)?.to_f32()?, [10.0, 20.0, 1.5, 2.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The gates of a row do not divide its columns, other axes differ, or either tensor holds indices.
    pub fn gate_groups(&self, gates: &Tensor) -> Result<Tensor> {
        let y = gate_groups(self, gates)?;
        let groups = gates.shape().last();
        let u = gates.requires_grad().then(|| self.detach());
        let g = self.requires_grad().then(|| gates.detach());
        Ok(Node::record(NAME, &[self, gates], y, move |dy| {
            let du = g.as_ref().map(|g| gate_groups(&dy, g)).transpose()?;
            let dg = u.as_ref().map(|u| group_dots(u, &dy, groups)).transpose()?;
            Ok(vec![du, dg])
        }))
    }
}

fn cases() -> Vec<Case> {
    let shapes: [(&[usize], usize); 8] = [
        (&[0, 6], 2),
        (&[3, 0], 2),
        (&[1, 1], 1),
        (&[5, 7], 7),
        (&[5, 7], 1),
        (&[2, 3, 12], 4),
        (&[3, 1028], 2),
        (&[33_000, 6], 3),
    ];
    let mut all = Vec::new();
    for (dims, groups) in shapes {
        let n: usize = dims.iter().product();
        let columns = dims[dims.len() - 1];
        let gate_dims = [&dims[..dims.len() - 1], &[groups]].concat();
        let bytes = 4 * (2 * n + gate_dims.iter().product::<usize>());
        let label = format!("{dims:?} in {groups}");
        let sums = columns / groups;
        let inputs = vec![Operand::normal("u", dims), Operand::normal("gates", &gate_dims)];
        let run = |x: &[Tensor]| Ok(vec![x[0].gate_groups(&x[1])?]);
        all.push(Case::new(label.clone(), inputs, run).sums(sums).cost(n, bytes));
        let inputs = ["u", "v"].map(|name| Operand::normal(name, dims).frozen()).into();
        let run = move |x: &[Tensor]| Ok(vec![group_dots(&x[0], &x[1], groups)?]);
        all.push(Case::new(format!("dots {label}"), inputs, run).sums(sums).cost(2 * n, bytes));
    }
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    const RANK: usize = 8;
    let [rows, d] = sizes.plane();
    let groups = d / RANK;
    let n = rows * groups * RANK;
    let bytes = 4 * (2 * n + rows * groups);
    let inputs =
        vec![Operand::normal("u", &[rows, groups * RANK]), Operand::normal("gates", &[rows, groups])];
    let label = format!("{rows}x{groups} of {RANK}");
    let gate = Timed::plain(label, inputs, (n, bytes), |x| x[0].gate_groups(&x[1]));
    vec![gate.sums(RANK).backward(3 * n, 2 * bytes)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn groups_that_do_not_fit_are_errors() {
        let cpu = Device::cpu();
        let zeros = |dims: &[usize]| Tensor::zeros(&cpu, dims).unwrap();
        let error = zeros(&[2, 6]).gate_groups(&zeros(&[2, 4])).unwrap_err().to_string();
        assert_eq!(error, "gate_groups: expected a last axis in 4 groups, found [2, 6]");
        let error = zeros(&[2, 6]).gate_groups(&zeros(&[3, 2])).unwrap_err().to_string();
        let what = "gate_groups: expected the same axes but the last, found [2, 6] with gates [3, 2]";
        assert_eq!(error, what);
        assert!(zeros(&[2, 6]).gate_groups(&zeros(&[2, 0])).is_err());
        assert!(zeros(&[]).gate_groups(&zeros(&[])).is_err());
        assert!(group_dots(&zeros(&[2, 6]), &zeros(&[2, 6]), 4).is_err());
        assert!(group_dots(&zeros(&[2, 6]), &zeros(&[3, 6]), 2).is_err());
        let index = Tensor::from_u32(&cpu, &[1, 1], &[1]).unwrap();
        assert!(matches!(zeros(&[1, 1]).gate_groups(&index), Err(Error::DType { .. })));
    }
}
