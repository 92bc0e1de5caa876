//! The one operator: frozen linears that read the same input, each with a routed low-rank update.
//!
//! ```text
//! u[m,k] = a_{I[m,k]} . x[m]                                     (shrink: one launch for all linears)
//! y[m]   = W x[m] + bias + s sum_k g[m,k] u[m,k] b_{J[m,k]}      (expand: in the product's epilogue)
//! ```
//! Never a dense delta `B A`, never gathered weights per row: what is kept is `u`, of size rows x slots.

mod backward;
mod cases;

use super::factor_gather::shrink;
use super::fused_ba_matmul::{self, Expand, FusedBa};
use super::gate_groups::gate_groups;
use crate::engine::{OpSpec, run1};
use crate::routing::Dropout;
use crate::routing::Selection;
use crate::tape::{Node, recording};
use crate::{Error, Linear, Result, Tensor};
use backward::Backward;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "mixture_linears",
    formula: "y_l = x W_l^T + bias_l + s sum_k g u b_{J[k]},  u = a_{I[k]} . x",
    shaders: &[],
    cases: cases::cases,
    timed: cases::timed,
};

const NAME: &str = "mixture_linears";

/// Frozen linears with a routed low-rank update each: see the module's formula.
///
/// `x [.., d]`; `a [L * E * block, d]`, the pools of all linears in order, or of as many rows as the selection says for A;
/// `b[l] [E * block, out_l]`.
/// Gradients go to `x`, the pools, and the selection's gates, whether they are of choices or of rows.
///
/// # Errors
/// The shapes do not fit, or something is on another device.
pub fn mixture_linears(
    x: &Tensor,
    linears: &[Linear],
    a: &Tensor,
    b: &[Tensor],
    selection: &Selection,
    scale: f32,
    dropout: Option<Dropout>,
) -> Result<Vec<Tensor>> {
    check(x, linears, a, b, selection)?;
    let slots_a = selection.slots_a();
    let gates = selection.gates();
    let (u, mut gated) = shrink(x, a, gates, &slots_a, 1.0, dropout)?;
    let row_gates = selection.row_gates().map(flat).transpose()?;
    if let Some(gates) = &row_gates {
        gated = gate_groups(&u, gates)?;
    }
    let mut y = Vec::with_capacity(linears.len());
    for (l, (linear, b)) in linears.iter().zip(b).enumerate() {
        let slots = selection.slots_b(l);
        let expand = Expand { slots: &slots, scale, dropout: None };
        let op = FusedBa::forward(&linear.weight, linear.bias.as_ref(), Some(expand));
        y.push(run1(&op, fused_ba_matmul::In::update(x, &gated, b))?);
    }
    let mut inputs = vec![x, a];
    inputs.extend(b);
    inputs.extend(gates.or(row_gates.as_ref()));
    if !recording(&inputs) {
        return Ok(y);
    }
    let saved = Backward {
        x: x.saved(),
        a: a.detach(),
        b: b.iter().map(Tensor::detach).collect(),
        weights: linears.iter().map(|l| l.weight.clone()).collect(),
        selection: selection.clone(),
        u,
        gated,
        row_gates: row_gates.as_ref().map(Tensor::detach),
        scale,
        dropout,
        need: inputs.iter().map(|t| t.requires_grad()).collect(),
    };
    Ok(Node::record_many(NAME, &inputs, y, move |dy| saved.run(dy)))
}

/// Gates `[M, L, E]` as `[M, L * E]`, beside the products with the pools.
fn flat(gates: &Tensor) -> Result<Tensor> {
    let [rows, linears, entries] = *gates.dims() else { return Ok(gates.clone()) };
    gates.reshape(&[rows, linears * entries])
}

fn check(x: &Tensor, linears: &[Linear], a: &Tensor, b: &[Tensor], selection: &Selection) -> Result<()> {
    let n = selection.linears();
    if linears.len() != n || b.len() != n {
        return Err(Error::shape(
            NAME,
            format!("{n} linears and pools, as the selection has"),
            format!("{} linears and {} pools", linears.len(), b.len()),
        ));
    }
    let rows = n * selection.pool_rows_a();
    let d = x.shape().last();
    if a.dims() != [rows, d] {
        return Err(Error::shape(NAME, format!("pool a of [{rows}, {d}]"), a.shape()));
    }
    for (l, (linear, b)) in linears.iter().zip(b).enumerate() {
        let want = [selection.pool_rows(), linear.weight.rows()];
        if b.dims() != want {
            return Err(Error::shape(NAME, format!("pool b of linear {l} of {want:?}"), b.shape()));
        }
    }
    Ok(())
}
