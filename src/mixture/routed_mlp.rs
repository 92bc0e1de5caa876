//! MLP blocks with a mixture of experts inside: one block for every router.
//!
//! `h_e = act(W_g x + s B_g A_g x) * (W_u x + s B_u A_u x)`, `out_e = W_d h_e + s B_d A_d h_e`, `y = sum over the
//! chosen experts of gate_e out_e`. The base products are computed once: gate and up per token, and down on the gated
//! sum of the experts' h, since it is linear. Tokens that no expert has room for keep their input.

use super::router::{Router, decide};
use super::site::part;
use super::{MethodOptions, MlpBuild, MlpSite, Selection, Units};
use crate::nn::{Mlp, MlpAdapter, Param, Pass};
use crate::ops::factor_expand::{expand_by, shrink_by};
use crate::{Result, Tensor};
use std::sync::Arc;

/// Pools of one projection: `a [E * r, in]`, `b [E * r, out]`.
struct Pools {
    a: Param,
    b: Param,
}

/// A gated MLP block whose experts a router chooses.
pub struct RoutedMlp<R> {
    site: MlpSite,
    router: R,
    gate: Pools,
    up: Pools,
    down: Pools,
    scale: f32,
    dropout: f32,
}

impl<R: Router + 'static> RoutedMlp<R> {
    /// A block of fresh experts around a router.
    ///
    /// # Errors
    /// The rank does not fit the block, or the device has no memory for the pools.
    pub fn adapter(options: &dyn MethodOptions, at: &MlpBuild<'_>, router: R) -> Result<Arc<dyn MlpAdapter>> {
        let MlpSite { hidden_size: d, intermediate_size: f, .. } = *at.site;
        let (experts, rank) = router.pool();
        at.site.fits("r", rank)?;
        let rows = experts * rank;
        let pools = |what: &str, d_in: usize, d_out: usize| -> Result<Pools> {
            let name = |side: &str| vec![(part(&at.site.path, &format!("{what}.{side}")), rows)];
            Ok(Pools {
                a: at.uniform(name("lora_a"), d_in, 1.0 / (d_in as f32).sqrt(), true)?,
                b: Param::drawn(at.device, name("lora_b"), d_out, true, |_, n| vec![0.0; n])?,
            })
        };
        Ok(Arc::new(RoutedMlp {
            site: at.site.clone(),
            router,
            gate: pools("gate_proj", d, f)?,
            up: pools("up_proj", d, f)?,
            down: pools("down_proj", f, d)?,
            scale: options.scale(),
            dropout: options.lora().lora_dropout,
        }))
    }

    /// Rank of one expert.
    fn rank(&self) -> usize {
        self.router.pool().1
    }

    /// `W x` of a projection once per token, repeated for its experts, plus each expert's update.
    fn project(
        &self,
        x: &Tensor,
        base: Tensor,
        pools: &Pools,
        tokens: &Selection,
        pairs: &Selection,
    ) -> Result<Tensor> {
        let n = pairs.units().rows();
        let chosen = n / tokens.units().rows().max(1);
        let u = shrink_by(x, &pools.a.tensor(), tokens)?.reshape(&[n, self.rank()])?;
        expand_by(base.repeat_rows(chosen)?, &u, &pools.b.tensor(), pairs, self.scale)
    }

    /// Dropout on the input of an adapter branch, alike for all experts.
    fn drop(&self, t: &Tensor, input: &str, pass: &Pass) -> Result<Tensor> {
        match pass.dropout(&part(&self.site.name, input), self.dropout) {
            Some(d) => t.dropout(d.p, d.stream),
            None => Ok(t.clone()),
        }
    }
}

impl<R: Router + 'static> MlpAdapter for RoutedMlp<R> {
    fn forward(&self, x: &Tensor, mlp: &Mlp, pass: &Pass) -> Result<Tensor> {
        let m = x.shape().rows();
        let rows = x.reshape(&[m, x.shape().last()])?;
        let tokens = decide(&self.router, &self.site.name, &rows, pass)?;
        let k = tokens.idx().shape().last();
        let (experts, rank) = self.router.pool();
        // The same choices seen by (token, expert) pairs, m * k rows with one expert each.
        let idx = tokens.idx().reshape(&[1, 1, m * k, 1])?;
        let pairs = Selection::new(idx, None, &Units::tokens(m * k), experts, rank)?;
        let base =
            |i: usize| rows.linear(&mlp.gate_up.linears[i].weight, mlp.gate_up.linears[i].bias.as_ref());
        let branch = self.drop(&rows, "gate_up", pass)?;
        let gate = self.project(&branch, base(0)?, &self.gate, &tokens, &pairs)?;
        let up = self.project(&branch, base(1)?, &self.up, &tokens, &pairs)?;
        let h = mlp.combine(&gate, &up)?;
        let gates = match tokens.gates() {
            Some(g) => g.reshape(&[m * k, 1])?,
            None => Tensor::full(x.device(), &[m * k, 1], 1.0)?,
        };
        let down = &mlp.down.linears[0];
        let y = h.mul(&gates)?.sum_groups(k)?.linear(&down.weight, down.bias.as_ref())?;
        let u = shrink_by(&self.drop(&h, "down", pass)?, &self.down.a.tensor(), &pairs)?
            .mul(&gates)?
            .reshape(&[m, k * rank])?;
        let y = expand_by(y, &u, &self.down.b.tensor(), &tokens, self.scale)?;
        match tokens.passed() {
            Some(share) => y.add(&rows.mul(share)?)?.reshape(x.dims()),
            None => y.reshape(x.dims()),
        }
    }

    fn params(&self) -> Vec<Param> {
        let pools = [&self.gate, &self.up, &self.down].into_iter().flat_map(|e| [e.a.clone(), e.b.clone()]);
        self.router.params().into_iter().chain(pools).collect()
    }

    fn after_step(&self) -> Result<()> {
        self.router.after_step()
    }
}
