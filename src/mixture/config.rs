//! The options of all methods, with their names in files and on the command line.

use super::Pool;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// How B's choice is conditioned on A's (conditional factor selection).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum CfsForm {
    /// One linear map per rank slot, applied to the slot's A factor: what the method describes.
    Linear,
    /// `(sum of A) * (sum of W)`: what the released code computes.
    SumProduct,
    /// An embedding of the chosen A indices.
    Choice,
}

/// Factor on each side's gates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum GateScale {
    /// Gates sum to 1: the update acts at about `s / r^2`.
    None,
    /// Gates sum to r: the update keeps its size.
    R,
}

/// What instance-routed methods do for tokens that are generated behind a prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DecodeRoute {
    /// The choice of the prompt stays for the whole conversation.
    FreezePrefill,
    /// Every step routes on its own rows, as the released code does.
    PerStep,
}

impl std::str::FromStr for DecodeRoute {
    type Err = Error;
    fn from_str(text: &str) -> Result<Self> {
        match text {
            "freeze_prefill" => Ok(DecodeRoute::FreezePrefill),
            "per_step" => Ok(DecodeRoute::PerStep),
            _ => {
                Err(Error::config("decode_route", format!("'{text}' is neither freeze_prefill nor per_step")))
            }
        }
    }
}

/// Options of a method; each method reads those it has, and its defaults set them all.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MethodConfig {
    /// Rank of the update that one input gets (cond), of an expert (ffn), or of the whole pool (rank-wise methods).
    pub r: usize,
    /// The update is scaled by `lora_alpha` over `r` (over `top_k` in smora). None: the method's rule, which is twice
    /// the number of factors in conditional methods and twice `r` elsewhere.
    pub lora_alpha: Option<f32>,
    /// Dropout on the input of the adapter branch, after routing.
    pub lora_dropout: f32,
    /// Rank-1 factors in each pool (conditional methods).
    pub num_factors: usize,
    /// Whole LoRA experts (mixlora-ffn).
    pub num_experts: usize,
    /// Experts or ranks per token (token methods).
    pub top_k: usize,
    /// Conditional factor selection; none: B has an independent router.
    pub cfs_form: Option<CfsForm>,
    /// Weight of the conditional term (the release calls it ifs_weight).
    pub cfs_weight: f32,
    /// The condition sees A's factors times their gates (gated methods).
    pub cfs_gated_input: bool,
    /// Whether the chosen factors are multiplied by gates (conditional and rank-wise methods).
    pub gated: bool,
    /// Factor on gates.
    pub gate_scale: GateScale,
    /// How an instance's rows are pooled for its router.
    pub pool: Pool,
    /// How tokens behind the prompt are routed (methods that choose per instance).
    pub decode_route: DecodeRoute,
    /// Coefficient of the load-balance loss.
    pub aux_loss_coef: f32,
    /// Step of the balancing bias per optimizer step.
    pub bias_lr: f32,
    /// Share of entries of each frozen A row that are not zero (flylora).
    pub density: f32,
}

impl Default for MethodConfig {
    fn default() -> Self {
        MethodConfig {
            r: 4,
            lora_alpha: None,
            lora_dropout: 0.0,
            num_factors: 16,
            num_experts: 8,
            top_k: 2,
            cfs_form: Some(CfsForm::Linear),
            cfs_weight: 1.0,
            cfs_gated_input: false,
            gated: false,
            gate_scale: GateScale::R,
            pool: Pool::PromptMask,
            decode_route: DecodeRoute::FreezePrefill,
            aux_loss_coef: 0.01,
            bias_lr: 1e-3,
            density: 0.25,
        }
    }
}

impl MethodConfig {
    /// Checks what every method needs.
    ///
    /// # Errors
    /// The first option that cannot work, with its allowed range.
    pub fn check(&self) -> Result<()> {
        let positive = |name: &str, v: usize| match v {
            0 => Err(Error::config(name, "is 0, must be at least 1")),
            _ => Ok(()),
        };
        positive("r", self.r)?;
        positive("num_factors", self.num_factors)?;
        positive("num_experts", self.num_experts)?;
        positive("top_k", self.top_k)?;
        if let Some(alpha) = self.lora_alpha
            && !(alpha.is_finite() && alpha > 0.0)
        {
            return Err(Error::config("lora_alpha", format!("is {alpha}, must be a positive number")));
        }
        if !(0.0..1.0).contains(&self.lora_dropout) {
            return Err(Error::config(
                "lora_dropout",
                format!("is {}, must be in [0, 1)", self.lora_dropout),
            ));
        }
        for (name, v) in [
            ("cfs_weight", self.cfs_weight),
            ("aux_loss_coef", self.aux_loss_coef),
            ("bias_lr", self.bias_lr),
        ] {
            if !v.is_finite() || v < 0.0 {
                return Err(Error::config(name, format!("is {v}, must be a number of at least 0")));
            }
        }
        if !(self.density > 0.0 && self.density <= 1.0) {
            return Err(Error::config("density", format!("is {}, must be in (0, 1]", self.density)));
        }
        if self.cfs_gated_input && !self.gated {
            return Err(Error::config("cfs_gated_input", "needs gated = true: there are no gates to apply"));
        }
        Ok(())
    }

    /// `lora_alpha / per`; what a method is built from has an alpha, its own where none was set.
    pub fn scaling(&self, per: usize) -> f32 {
        self.lora_alpha.unwrap_or(per as f32) / per as f32
    }

    /// `k` of `n`, or an error that names both.
    pub(super) fn choose(k: (&str, usize), n: (&str, usize)) -> Result<()> {
        match k.1 <= n.1 {
            true => Ok(()),
            false => Err(Error::config(n.0, format!("{} ({}) must be >= {} ({})", n.0, n.1, k.0, k.1))),
        }
    }
}
