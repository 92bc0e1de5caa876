//! What training did to answers that it was not about.

use serde::{Deserialize, Serialize};

/// How far a model with an adapter is from the base model on prompts that training was not about.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forgotten {
    pub prompts: usize,
    /// Mean over the tokens of the base model's answers of `KL(base || adapted)`, in nats.
    pub kl: f64,
    /// Share of prompts to which the likeliest answer is the base model's, up to the first 24 tokens.
    pub unchanged: f64,
}
