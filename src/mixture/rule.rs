//! Score x Select x Gate: how a router turns a unit's products with its rows into choices and gates.

use crate::ops::topk_routing as kernel;
use crate::{Error, Result};
use std::fmt;

/// The score `s_e` of entry e, from its logit `z_e = w_e . x` and its balancing bias `d_e`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Score {
    /// There is nothing to score.
    None,
    /// `s = z`.
    Logit,
    /// `s = softmax(z)`, over all entries.
    Softmax,
    /// `s = sigmoid(z) + d`.
    Sigmoid,
    /// `s = |z + d|`.
    Magnitude,
    /// `s = softmax(u / |u|, tau)` of the entry's own activation `u = A x`.
    Activation,
}

/// The set S of entries that a unit gets. More rules will come: a match needs an arm for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Select {
    /// `S = {0 .. E}`: every entry.
    All,
    /// S holds the k largest scores, in falling order; the lowest index first among equals.
    TopK(usize),
    /// S holds the largest scores up to a share of their sum, and a least number of them.
    TopP,
    /// S holds the scores above a threshold.
    Above,
    /// S is the support of a projection onto the simplex (Sparsegen).
    Support,
}

/// The weight `g_e` of an entry in S.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gate {
    /// `g = 1`: no gradient reaches the scores.
    None,
    /// `g = s`: the score as it is.
    Score,
    /// `g = exp(s_e) / sum of exp(s) over S`.
    Softmax,
    /// `g = |S| s_e / sum of s over S`: they sum to the number of entries in S.
    Share,
    /// `g = (s - tau) / (1 - lambda)` of the projection: they sum to 1.
    Sparsegen,
}

/// One choice per axis.
///
/// ```
/// use mixlora::mixture::{Gate, Rule, Score, Select};
/// let rule = Rule { score: Score::Sigmoid, select: Select::TopK(2), gate: Gate::Share };
/// assert_eq!(rule.to_string(), "sigmoid, top 2, share");
/// assert!(rule.routing().is_ok());
/// // Sparse gates that keep their size: no kernel has them.
/// let error = Rule { gate: Gate::Score, ..rule }.routing().unwrap_err();
/// assert!(error.to_string().contains("sigmoid, top 2, score"));
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    pub score: Score,
    pub select: Select,
    pub gate: Gate,
}

impl Rule {
    /// Nothing is scored, everything is taken, with gates of 1.
    pub const EVERYTHING: Rule = Rule { score: Score::None, select: Select::All, gate: Gate::None };

    /// The k largest logits, with the given gates.
    pub const fn top_k(k: usize, gate: Gate) -> Self {
        Rule { score: Score::Logit, select: Select::TopK(k), gate }
    }

    /// Entries that a unit gets, where the rule says how many.
    pub fn chosen(&self) -> Option<usize> {
        match self.select {
            Select::TopK(k) => Some(k),
            _ => None,
        }
    }

    /// The routing of the kernels that compute this rule on one side.
    ///
    /// # Errors
    /// No kernel computes the combination; the error lists those that are computed.
    pub fn routing(&self) -> Result<kernel::Routing> {
        use kernel::Score as Ranked;
        let unknown = || {
            let what = format!(
                "no kernel computes '{self}'; computed are the scores logit (gates: none, softmax), softmax (none, share), \
                 sigmoid (share) and magnitude (none), each with top-k"
            );
            Error::refused("rule", what)
        };
        let Select::TopK(k) = self.select else { return Err(unknown()) };
        let (score, gated) = match (self.score, self.gate) {
            // A softmax over all keeps the order of the logits.
            (Score::Logit | Score::Softmax, Gate::None) => (Ranked::Logits, false),
            (Score::Logit, Gate::Softmax) | (Score::Softmax, Gate::Share) => (Ranked::Logits, true),
            (Score::Sigmoid, Gate::Share) => (Ranked::Sigmoid, true),
            (Score::Magnitude, Gate::None) => (Ranked::Magnitude, false),
            _ => return Err(unknown()),
        };
        let mut routing = kernel::Routing { score, gated, ..kernel::Routing::new(k) };
        if self.score == Score::Softmax && gated {
            // Shares of a softmax are the softmax over S, times |S|.
            routing.gate_scale = k as f32;
        }
        Ok(routing)
    }
}

impl Score {
    /// Whether a balancing bias is part of it.
    pub fn biased(self) -> bool {
        matches!(self, Score::Sigmoid | Score::Magnitude)
    }
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Score::None => "-",
            Score::Logit => "logit",
            Score::Softmax => "softmax",
            Score::Sigmoid => "sigmoid",
            Score::Magnitude => "magnitude",
            Score::Activation => "activation",
        }
    }
}

impl fmt::Display for Select {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Select::All => formatter.write_str("all"),
            Select::TopK(k) => write!(formatter, "top {k}"),
            Select::TopP => formatter.write_str("top p"),
            Select::Above => formatter.write_str("threshold"),
            Select::Support => formatter.write_str("support"),
        }
    }
}

impl Gate {
    /// For tables.
    pub const fn name(self) -> &'static str {
        match self {
            Gate::None => "none",
            Gate::Score => "score",
            Gate::Softmax => "softmax",
            Gate::Share => "share",
            Gate::Sparsegen => "sparsegen",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}, {}, {}", self.score.name(), self.select, self.gate.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mixture::{Units, route};
    use crate::{Device, Tensor};

    /// Choices and gates by the formulas of the axes, in f64.
    fn by_formula(rule: &Rule, z: &[f64], bias: &[f64]) -> (Vec<u32>, Option<Vec<f64>>) {
        let sum: f64 = z.iter().map(|v| v.exp()).sum();
        let score = |e: usize| match rule.score {
            Score::Softmax => z[e].exp() / sum,
            Score::Sigmoid => 1.0 / (1.0 + (-z[e]).exp()) + bias[e],
            Score::Magnitude => (z[e] + bias[e]).abs(),
            _ => z[e],
        };
        let mut order: Vec<usize> = (0..z.len()).collect();
        order.sort_by(|&i, &j| score(j).total_cmp(&score(i)));
        order.truncate(rule.chosen().unwrap());
        let total: f64 = order.iter().map(|&e| score(e)).sum();
        let exponents: f64 = order.iter().map(|&e| score(e).exp()).sum();
        let gate = |&e: &usize| match rule.gate {
            Gate::Softmax => score(e).exp() / exponents,
            Gate::Share => order.len() as f64 * score(e) / total,
            _ => score(e),
        };
        let gates = (rule.gate != Gate::None).then(|| order.iter().map(gate).collect());
        (order.iter().map(|&e| e as u32).collect(), gates)
    }

    #[test]
    fn every_rule_is_computed_as_its_formulas_say_or_refused() {
        let z = [0.3, -1.2, 2.0, 0.9, -0.4];
        let bias = [0.1, 0.0, -0.2, 0.3, 0.0];
        let mut computed = 0;
        for score in [Score::None, Score::Logit, Score::Softmax, Score::Sigmoid, Score::Magnitude] {
            for gate in [Gate::None, Gate::Score, Gate::Softmax, Gate::Share] {
                let rule = Rule { score, select: Select::TopK(3), gate };
                let Ok(routing) = rule.routing() else {
                    let error = rule.routing().unwrap_err().to_string();
                    assert!(error.contains(&format!("no kernel computes '{rule}'")), "{error}");
                    continue;
                };
                computed += 1;
                let cpu = Device::reference();
                let logits = Tensor::from_f64(&cpu, &[1, 1, 1, 5], &z).unwrap();
                let d = Tensor::from_f64(&cpu, &[1, 5], &bias).unwrap();
                let d = score.biased().then_some(&d);
                let choice = route(&logits, d, None, None, &routing, &Units::tokens(1), 1).unwrap();
                let (idx, gates) = by_formula(&rule, &z, &bias);
                assert_eq!(choice.idx().to_u32().unwrap(), idx, "{rule}");
                assert_eq!(choice.gates().is_some(), gates.is_some(), "{rule}");
                if let (Some(got), Some(want)) = (choice.gates(), gates) {
                    for (got, want) in got.to_f64().unwrap().iter().zip(want) {
                        assert!((got - want).abs() < 1e-12, "{rule}: {got} {want}");
                    }
                }
            }
        }
        assert_eq!(computed, 6);
        assert!(Rule::EVERYTHING.routing().unwrap_err().to_string().contains("'-, all, none'"));
    }
}
