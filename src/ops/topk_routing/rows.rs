//! Routing of rows that are their own units, by their products with a router.

use super::backward::Backward;
use super::{Extra, NAME, Routing, route};
use crate::ops::factor_expand::expand_into;
use crate::ops::factor_scatter::scatter;
use crate::ops::{Selection, Units, run};
use crate::tape::{Node, recording};
use crate::{Error, Result, Tensor, no_grad};

/// [`route`] of rows `x [T, d]`, on one side, with the logits `x router^T`, `router [L * E, d]`.
///
/// Gates depend on the chosen logits alone, and so does their gradient: it is never spread over all factors, but goes
/// through the chosen rows of the router, as that of a mixture goes through the chosen rows of its pool.
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
) -> Result<Selection> {
    if routing.sides != 1 || linears == 0 {
        let what = format!("{} sides and {linears} linears: rows are routed on one side", routing.sides);
        return Err(Error::shape(NAME, what));
    }
    let (xd, router_d, units) = (x.detach(), router.detach(), Units::tokens(x.shape().rows()));
    let z = xd.matmul_nt(&router_d)?;
    let z = z.reshape(&[units.count(), linears, 1, z.shape().last() / linears])?;
    let s = no_grad(|| route(&z, bias, None, forced, routing, &units, 1))?;
    let Some(gates) = s.gates().filter(|_| recording(&[x, router])).cloned() else { return Ok(s) };
    let (need_x, need_router) = (x.requires_grad(), router.requires_grad());
    let (of, routing, bias) = (s.clone(), routing.clone(), bias.map(Tensor::detach));
    let gates = Node::record(NAME, &[x, router], gates, move |dg| {
        let extra = Extra { bias: bias.as_ref(), ..Extra::default() };
        let op = Backward { routing: &routing, extra, idx: of.idx(), sparse: true };
        let dz = run(&op, &[&z, &dg])?.swap_remove(0);
        let dx = need_x.then(|| {
            let mut dx = Tensor::zeros(xd.device(), xd.dims())?;
            expand_into(&mut dx, &dz, &router_d, &of, 1.0).map(|()| dx)
        });
        let drouter = need_router.then(|| scatter(&dz, &xd, &of.slots_a(), &of, 1.0, None));
        Ok(vec![dx.transpose()?, drouter.transpose()?])
    });
    Ok(s.with_gates(gates))
}
