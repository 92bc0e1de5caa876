//! Routing of rows that are their own units, by their products with a router.

use super::backward::{Backward, BackwardIn};
use super::{Extra, NAME, Routing, route};
use crate::engine::run;
use crate::ops::factor_expand::shrink_grads;
use crate::routing::{Selection, Units};
use crate::tape::{Node, recording};
use crate::{Error, Result, Tensor, no_grad};

/// [`route`] of rows `x [T, d]`, on one side, with the logits `x router^T`, `router [L * E, d]`, among entries of
/// `block` pool rows each.
///
/// Gates depend on the chosen logits alone, and so does their gradient: it is never spread over all factors, but goes
/// through the chosen rows of the router, as that of a mixture goes through the chosen rows of its pool.
///
/// ```
/// use mixlora::{Device, Tensor, mixture::{Routing, route_rows}};
/// let cpu = Device::cpu();
/// let x = Tensor::from_f32(&cpu, &[1, 2], &[1.0, 2.0])?;
/// // Three factors, with logits 1, 2 and 3.
/// let router = Tensor::from_f32(&cpu, &[3, 2], &[1.0, 0.0, 0.0, 1.0, 1.0, 1.0])?;
/// let mut routing = Routing::new(2);
/// routing.gated = true;
/// let chosen = route_rows(&x, &router, 1, None, None, &routing, 1)?;
/// assert_eq!(chosen.idx().to_u32()?, [2, 1]);
/// assert!((chosen.gates().unwrap().to_f32()?[0] - 0.7311).abs() < 1e-4);
/// # Ok::<(), mixlora::Error>(())
/// ```
///
/// # Errors
/// As [`route`]; there are two sides.
pub fn route_rows(
    x: &Tensor,
    router: &Tensor,
    linears: usize,
    bias: Option<&Tensor>,
    forced: Option<&Tensor>,
    routing: &Routing,
    block: usize,
) -> Result<Selection> {
    if routing.sides != 1 || linears == 0 {
        let found = format!("{} sides and {linears} linears", routing.sides);
        return Err(Error::shape(NAME, "one side of at least one linear", found));
    }
    let xd = x.detach();
    let router_d = router.detach();
    let units = Units::tokens(x.shape().rows());
    let z = xd.matmul_nt(&router_d)?;
    let z = z.reshape(&[units.count(), linears, 1, z.shape().last() / linears])?;
    let s = no_grad(|| route(&z, bias, None, forced, routing, &units, 1))?;
    let Some(gates) = s.gates().filter(|_| recording(&[x, router])).cloned() else {
        return Ok(s.with_block(block));
    };
    let need = [x, router].map(Tensor::requires_grad);
    let of = s.clone();
    let routing = routing.clone();
    let bias = bias.map(Tensor::detach);
    let gates = Node::record(NAME, &[x, router], gates, move |dg| {
        let extra = Extra { bias: bias.as_ref(), ..Extra::default() };
        let op = Backward { routing: &routing, extra, idx: of.idx(), sparse: true };
        let [dz, _] = run(&op, BackwardIn { z: &z, dgates: &dg })?;
        shrink_grads(&dz, &xd, &router_d, &of, need)
    });
    Ok(s.with_block(block).with_gates(gates))
}
