//! Options that several methods share.

use super::Pool;
use crate::{Error, Result, options, words};
use std::ops::Bound::{Excluded, Included, Unbounded};

words! {
    /// How B's choice is conditioned on A's (conditional factor selection).
    pub enum CfsForm {
        /// One linear map per rank slot, applied to the slot's A factor: what the method describes.
        Linear = "linear",
        /// `(sum of A) * (sum of W)`: what the released code computes.
        SumProduct = "sum_product",
        /// An embedding of the chosen A indices.
        Choice = "choice",
    }
}

words! {
    /// Factor on each side's gates.
    pub enum GateScale {
        /// Gates sum to 1: the update acts at about `s / r^2`.
        None = "none",
        /// Gates sum to r: the update keeps its size.
        R = "r",
    }
}

words! {
    /// What instance-routed methods do for tokens that are generated behind a prompt.
    pub enum DecodeRoute {
        /// The choice of the prompt stays for the whole conversation.
        FreezePrefill = "freeze_prefill",
        /// Every step routes on its own rows, as the released code does.
        PerStep = "per_step",
    }
}

options! {
    /// What every low-rank update has.
    pub struct Lora {
        /// Rank of the update that one input gets; of one expert; of the whole pool where each rank is an expert.
        r: usize = 16, in 1.0.., "arXiv:2106.09685";
        /// The update is scaled by `lora_alpha / r` (`/ top_k` in smora); absent: the method's own rule.
        lora_alpha: Option<f32> = None, in (Excluded(0.0), Unbounded), "arXiv:2106.09685";
        /// Dropout on the input of the adapter branch, after routing.
        lora_dropout: f32 = 0.0, in 0.0..1.0, "arXiv:2106.09685";
    }
}

options! {
    /// A choice of experts or ranks.
    pub struct TopK {
        /// Experts or ranks that each token gets.
        top_k: usize = 2, in 1.0..;
    }
}

options! {
    /// Pools of rank-1 factors.
    pub struct Factors {
        /// Rank-1 factors in each pool.
        num_factors: usize = 16, in 1.0.., "ACL 2024 long.38";
    }
}

options! {
    /// Whole LoRA experts.
    pub struct Experts {
        /// LoRA experts, each of rank r.
        num_experts: usize = 8, in 1.0.., "arXiv:2404.15159";
    }
}

options! {
    /// What is learned from samples that also say what was wrong.
    pub struct Preference {
        /// Coefficient of the contrast between the right answer and the wrong one.
        contrast_coef: f32 = 0.1, in 0.0.., "arXiv:2605.27762";
        /// What the difference of their log-probabilities is divided by.
        contrast_tau: f32 = 1.0, in 0.01.., "arXiv:2605.27762";
    }
}

options! {
    /// Routing by instance.
    pub struct Instance {
        /// What of an instance its router looks at.
        pool: Pool = Pool::PromptMask, "ACL 2024 long.38";
        /// Whether generated tokens keep the prompt's choice or route anew.
        decode_route: DecodeRoute = DecodeRoute::FreezePrefill;
    }
}

options! {
    /// Conditional factor selection: B's choice looks at A's.
    pub struct Cfs {
        /// How B's choice looks at A's; absent: B has an independent router.
        cfs_form: Option<CfsForm> = Some(CfsForm::Linear), "ACL 2024 long.38, section 3.3";
        /// Weight of the condition (the release calls it ifs_weight).
        cfs_weight: f32 = 1.0, in 0.0.., "ACL 2024 long.38";
    }
}

options! {
    /// An auxiliary loss that spreads the load.
    pub struct AuxLoss {
        /// Coefficient of the load-balance loss.
        aux_loss_coef: f32 = 0.01, in 0.0.., "arXiv:2101.03961";
    }
}

options! {
    /// A balancing bias on scores.
    pub struct BiasBalance {
        /// Step of the balancing bias per optimizer step.
        bias_lr: f32 = 1e-3, in 0.0.., "arXiv:2408.15664";
    }
}

options! {
    /// A frozen sparse projection.
    pub struct Sparse {
        /// Share of the entries of each frozen A row that are not zero.
        density: f32 = 0.25, in (Excluded(0.0), Included(1.0)), "FlyLoRA, NeurIPS 2025";
    }
}

/// Refuses to choose `k` of fewer than `k`; each is a name with its value.
///
/// # Errors
/// There are fewer; the error names both.
pub fn enough(k: (&str, usize), n: (&str, usize)) -> Result<()> {
    if k.1 <= n.1 {
        return Ok(());
    }
    Err(Error::config(n.0, n.1, format!("at least {} ({})", k.0, k.1)))
}
