//! The rules of a routing: what is ranked, how many are chosen, and what B's choice looks at.

use crate::Tensor;

/// What is ranked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// The logits; gates are a softmax over the chosen.
    Logits,
    /// `sigmoid(z) + bias`; gates are `k q / sum of the chosen q` (SMoRA).
    Sigmoid,
    /// `|z + bias|`; no gates (FlyLoRA).
    Magnitude,
}

/// B's choice conditioned on A's: `score = softmax(z_b) + weight * softmax(q)`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Condition {
    /// Weight of the conditional term.
    pub weight: f32,
    /// False: `q = sum_k softmax(C[I_k, :, k])`, a table `[E, E, k]`; true: `q = mean_k C[I_k]`, a table `[E, E, 1]`.
    pub choice: bool,
    /// The condition sees A's factors times their gates.
    pub gated_input: bool,
}

/// What the condition of B's choice reads.
#[derive(Debug, Clone, Copy)]
pub enum Table<'a> {
    /// `[L, E, E, S]`: what every factor of A says for every factor of B in each slot. It depends on parameters alone.
    Factors(&'a Tensor),
    /// `[L, G, K, E]`: the same for the choices of A alone; see [`first_choices`](super::first_choices) and
    /// [`condition_rows`](crate::ops::condition_rows::condition_rows).
    Choices(&'a Tensor),
}

impl<'a> Table<'a> {
    pub(super) fn tensor(&self) -> &'a Tensor {
        match self {
            Table::Factors(t) | Table::Choices(t) => t,
        }
    }
    pub(super) fn of_choices(this: &Option<Self>) -> bool {
        matches!(this, Some(Table::Choices(_)))
    }
}

/// How logits become choices and gates.
#[derive(Debug, Clone, PartialEq)]
pub struct Routing {
    /// Choices per unit and side.
    pub k: usize,
    /// 1: B uses A's choice. 2: each side has its own router.
    pub sides: usize,
    pub score: Score,
    /// Whether gates come out.
    pub gated: bool,
    /// Factor on the gates of each side.
    pub gate_scale: f32,
    pub condition: Option<Condition>,
    /// Force the GPU layout: "wide" (a workgroup per unit) or "lane" (an invocation per unit).
    pub(crate) variant: Option<&'static str>,
}

impl Routing {
    /// Plain top-k of logits on one side, without gates.
    pub fn new(k: usize) -> Self {
        Routing {
            k,
            sides: 1,
            score: Score::Logits,
            gated: false,
            gate_scale: 1.0,
            condition: None,
            variant: None,
        }
    }
    /// Slots of a condition table.
    pub(in crate::ops) fn table_slots(&self) -> usize {
        if self.condition.is_some_and(|c| !c.choice) { self.k } else { 1 }
    }
}
