//! `mixlora-ffn`: token-level experts inside one shared, frozen SwiGLU block (MixLoRA, arXiv:2404.15159).
//!
//! `h_e = silu(W_g x + s B_g A_g x) * (W_u x + s B_u A_u x)`, `out_e = W_d h_e + s B_d A_d h_e`,
//! `y = sum over the top k experts of gate_e out_e`. The base products are computed once: gate and up per token,
//! and down on the gated sum of the experts' h, since it is linear. Other linears get a plain LoRA.

use super::balance::load_balance_loss;
use super::lora::Lora;
use super::spec::{Hook, MethodSpec, MlpSite, fits, part};
use super::{MethodConfig, Selection, Units};
use crate::nn::{Mlp, MlpAdapter, Param, Pass};
use crate::ops::factor_expand::{expand_by, shrink_by};
use crate::ops::topk_routing::{Routing, route};
use crate::{Device, Result, Stream, Tensor};
use std::sync::Arc;

pub(super) static SPEC: MethodSpec = MethodSpec {
    name: "mixlora-ffn",
    paper: "MixLoRA (TUDB), arXiv:2404.15159",
    hook: Hook::Mlp,
    trainable: "3 E r (hidden + ffn) + E hidden; r (d_in + d_out) elsewhere",
    mergeable: false,
    defaults: || MethodConfig { r: 16, num_experts: 8, top_k: 2, gated: true, ..MethodConfig::default() },
    check: |c| MethodConfig::choose(("top_k", c.top_k), ("num_experts", c.num_experts)),
    router_without_gradient: |c| {
        (c.top_k == 1).then_some("with top_k = 1 the only gate is always 1; the balance loss alone trains it")
    },
    alpha: |c| 2 * c.r,
    has_router: true,
    linear: |c, site, device, stream| Ok(Arc::new(Lora::new(c, site, device, stream)?)),
    mlp: Some(|c, site, device, stream| Ok(Arc::new(FfnExperts::new(c, site, device, stream)?))),
};

/// Pools of one projection: `a [E * r, in]`, `b [E * r, out]`.
struct Experts {
    a: Param,
    b: Param,
}

struct FfnExperts {
    site: MlpSite,
    config: MethodConfig,
    scale: f32,
    /// `[E, hidden]`
    router: Param,
    gate: Experts,
    up: Experts,
    down: Experts,
}

impl FfnExperts {
    fn new(c: &MethodConfig, site: &MlpSite, device: &Device, stream: Stream) -> Result<Self> {
        let (d, f) = (site.hidden_size, site.intermediate_size);
        fits(&site.name, "r", c.r, d, f)?;
        let rows = c.num_experts * c.r;
        let draw = |name: String, rows: usize, cols: usize, trained: &dyn Fn(&str, usize) -> Vec<f32>| {
            Param::drawn(device, vec![(name, rows)], cols, true, trained)
        };
        let experts = |what: &str, d_in: usize, d_out: usize| -> Result<Experts> {
            let bound = 1.0 / (d_in as f32).sqrt();
            let uniform = |name: &str, n| stream.named(name).uniform_vec(n, bound);
            Ok(Experts {
                a: draw(part(&site.path, &format!("{what}.lora_a")), rows, d_in, &uniform)?,
                b: draw(part(&site.path, &format!("{what}.lora_b")), rows, d_out, &|_, n| vec![0.0; n])?,
            })
        };
        let normal = |name: &str, n| stream.named(name).normal_vec(n, 0.02);
        Ok(FfnExperts {
            site: site.clone(),
            config: c.clone(),
            scale: c.scaling(c.r),
            router: draw(part(&site.path, "router"), c.num_experts, d, &normal)?,
            gate: experts("gate_proj", d, f)?,
            up: experts("up_proj", d, f)?,
            down: experts("down_proj", f, d)?,
        })
    }

    /// `W x` of a projection once per token, repeated for its experts, plus each expert's update.
    fn project(
        &self,
        x: &Tensor,
        base: Tensor,
        e: &Experts,
        tokens: &Selection,
        pairs: &Selection,
    ) -> Result<Tensor> {
        let (k, n) = (self.config.top_k, pairs.units().rows());
        let u = shrink_by(x, &e.a.tensor(), tokens)?.reshape(&[n, self.config.r])?;
        expand_by(base.repeat_rows(k)?, &u, &e.b.tensor(), pairs, self.scale)
    }
}

impl MlpAdapter for FfnExperts {
    fn forward(&self, x: &Tensor, mlp: &Mlp, pass: &Pass) -> Result<Tensor> {
        let MethodConfig { num_experts, top_k: k, r, aux_loss_coef, lora_dropout, .. } = self.config;
        let (m, d) = (x.shape().rows(), x.shape().last());
        let rows = x.reshape(&[m, d])?;
        let logits = rows.matmul_nt(&self.router.tensor())?;
        let routing = Routing { gated: true, ..Routing::new(k) };
        let forced = pass.choices.forced(&self.site.name)?;
        let z = logits.reshape(&[m, 1, 1, num_experts])?;
        let tokens = route(&z, None, None, forced.as_ref(), &routing, &Units::tokens(m), r)?;
        pass.choices.keep(&self.site.name, &tokens);
        if pass.train && aux_loss_coef > 0.0 {
            pass.add_aux(load_balance_loss(&logits, tokens.idx(), pass)?.scale(aux_loss_coef)?);
        }
        // The same choices seen by (token, expert) pairs, m * k rows with one expert each.
        let idx = tokens.idx().reshape(&[1, 1, m * k, 1])?;
        let pairs = Selection::new(idx, None, &Units::tokens(m * k), num_experts, r)?;
        let base =
            |i: usize| rows.linear(&mlp.gate_up.linears[i].weight, mlp.gate_up.linears[i].bias.as_ref());
        // The input of every adapter branch, alike for all experts.
        let drop = |t: &Tensor, input: &str| match pass.dropout(&part(&self.site.name, input), lora_dropout) {
            Some(d) => t.dropout(d.p, d.stream),
            None => Ok(t.clone()),
        };
        let x_branch = drop(&rows, "gate_up")?;
        let gate = self.project(&x_branch, base(0)?, &self.gate, &tokens, &pairs)?;
        let up = self.project(&x_branch, base(1)?, &self.up, &tokens, &pairs)?;
        let h = gate.swiglu(&up)?;
        let gates = match tokens.gates() {
            Some(g) => g.reshape(&[m * k, 1])?,
            None => Tensor::full(x.device(), &[m * k, 1], 1.0)?,
        };
        let down = &mlp.down.linears[0];
        let y = h.mul(&gates)?.sum_groups(k)?.linear(&down.weight, down.bias.as_ref())?;
        let u = shrink_by(&drop(&h, "down")?, &self.down.a.tensor(), &pairs)?
            .mul(&gates)?
            .reshape(&[m, k * r])?;
        expand_by(y, &u, &self.down.b.tensor(), &tokens, self.scale)?.reshape(x.dims())
    }

    fn params(&self) -> Vec<Param> {
        let all = [&self.gate, &self.up, &self.down].into_iter().flat_map(|e| [e.a.clone(), e.b.clone()]);
        std::iter::once(self.router.clone()).chain(all).collect()
    }
}
