//! What files of training trajectories share: a Conditional MixLoRA on every linear, its first values, and stored choices.

use super::model::hash_uniform;
use crate::io::Checkpoint;
use crate::mixture::methods::mixlora_cond::MixloraCond;
use crate::mixture::{Cfs, CfsForm, Factors, Instance, Lora, Method};
use crate::nn::Choices;
use crate::{Device, Error, Result, Tensor};
use serde::Deserialize;

/// Sites of a layer, and how many of its linears they hold.
pub(super) const SITES: [(&str, usize); 4] = [("qkv", 3), ("o", 1), ("gate_up", 2), ("down", 1)];
/// Linears of a layer.
pub(super) const LINEARS: usize = 7;

/// The mixture of a file.
#[derive(Debug, Deserialize)]
pub(super) struct Mixture {
    #[serde(rename = "E")]
    pub factors: usize,
    pub r: usize,
    alpha: f32,
    cfs: String,
    #[serde(default = "one")]
    cfs_weight: f32,
    b_bound: f32,
    #[serde(default = "one")]
    router_gain: f32,
    init_seed: u64,
}

fn one() -> f32 {
    1.0
}

impl Mixture {
    /// The method, with a way to route instances.
    pub fn method(&self, file: &Checkpoint, instance: Instance) -> Result<Method> {
        let cfs_form = match self.cfs.as_str() {
            "none" => None,
            "param_linear" => Some(CfsForm::Linear),
            "param_sum_product" => Some(CfsForm::SumProduct),
            other => {
                return Err(Error::file(file.path(), format!("cfs '{other}' is not supported in this kind")));
            }
        };
        Method::new(MixloraCond {
            lora: Lora { r: self.r, lora_alpha: Some(self.alpha), lora_dropout: 0.0 },
            factors: Factors { num_factors: self.factors },
            cfs: Cfs { cfs_form, cfs_weight: self.cfs_weight },
            instance,
            ..MixloraCond::default()
        })
    }

    /// The first values of a part such as `model.layers.3.self_attn.q_proj.factors_a`, whose linear the file calls as
    /// `named` says.
    pub fn initial(&self, part: &str, n: usize, inputs: usize, named: fn(&str) -> &str) -> Option<Vec<f32>> {
        let [_, _, layer, _, linear, what] = part.split('.').collect::<Vec<_>>()[..] else { return None };
        let root = (inputs as f64).sqrt();
        let bound = match what {
            "factors_b" => self.b_bound,
            "factors_a" => (1.0 / root) as f32,
            _ => (f64::from(self.router_gain) / root) as f32,
        };
        Some(hash_uniform(&format!("{layer}.{}.{what}", named(linear)), self.init_seed, n, bound))
    }
}

/// The stored choices of one step, `[linears, 2, batch, r]`, by site.
pub(super) fn stored_choices(
    stored: &[u32],
    layers: usize,
    [batch, r]: [usize; 2],
    device: &Device,
) -> Result<Choices> {
    let mut rest = stored;
    let mut all = Vec::new();
    for layer in 0..layers {
        for (site, linears) in SITES {
            let (own, others) = rest.split_at(linears * 2 * batch * r);
            rest = others;
            all.push((
                format!("layers.{layer}.{site}"),
                Tensor::from_u32(device, &[linears, 2, batch, r], own)?,
            ));
        }
    }
    Ok(Choices::force(all))
}
