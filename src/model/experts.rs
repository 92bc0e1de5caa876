//! MLPs of experts (Shazeer et al. 2017, arXiv:1701.06538): a router chooses some for each token.
//!
//! The host sees which tokens chose which expert, so that each expert computes those rows alone: one readback a layer.

use super::ExpertsConfig;
use super::sites::ExpertNames;
use crate::nn::Activation;
use crate::{Linear, Result, Tensor, Weight};
use std::sync::{Mutex, PoisonError};

/// The experts that tokens chose, `[.., chosen]` for each layer of experts.
pub(super) type KeptExperts = Mutex<Vec<Tensor>>;

/// One expert: `down(act(gate x) * up x)`.
#[derive(Clone)]
pub(super) struct Expert {
    pub gate: Linear,
    pub up: Linear,
    pub down: Linear,
}

impl Expert {
    fn forward(&self, x: &Tensor, activation: Activation) -> Result<Tensor> {
        let gate = x.linear(&self.gate.weight, None)?;
        let up = x.linear(&self.up.weight, None)?;
        activation.combine(&gate, &up)?.linear(&self.down.weight, None)
    }

    fn bytes(&self) -> u64 {
        [&self.gate, &self.up, &self.down].map(|l| l.weight.bytes()).iter().sum()
    }
}

/// The experts of a layer.
#[derive(Clone)]
pub(super) struct Experts {
    pub config: ExpertsConfig,
    pub activation: Activation,
    /// `[count, hidden_size]`
    pub router: Weight,
    pub experts: Vec<Expert>,
    /// The expert that all tokens use, and its gate `[1, hidden_size]`.
    pub shared: Option<(Expert, Weight)>,
}

/// The tokens that chose one expert.
#[derive(Default)]
struct Chosen {
    /// Rows of the input.
    rows: Vec<u32>,
    /// Where their gates stand in `[tokens, chosen]`.
    gates: Vec<u32>,
}

impl Experts {
    /// `sum over the chosen experts of gate_e expert_e(x)`, for `x` `[.., hidden_size]`. What was chosen goes into `kept`.
    pub fn forward(&self, x: &Tensor, kept: Option<&KeptExperts>) -> Result<Tensor> {
        let m = x.shape().rows();
        let d = x.shape().last();
        let ExpertsConfig { count, chosen: k, renormalise, .. } = self.config;
        let device = x.device();
        let rows = x.reshape(&[m, d])?;
        let logits = rows.linear(&self.router, None)?;
        let choice = best(&logits.to_f64()?, count, k);
        if let Some(kept) = kept {
            let dims = [&x.dims()[..x.dims().len() - 1], &[k]].concat();
            let chosen = Tensor::from_u32(device, &dims, &choice)?;
            kept.lock().unwrap_or_else(PoisonError::into_inner).push(chosen);
        }
        let flat: Vec<u32> = (0..m * k).map(|i| (i / k.max(1) * count) as u32 + choice[i]).collect();
        let flat = Tensor::from_u32(device, &[m * k], &flat)?;
        let pick = |t: &Tensor| t.reshape(&[m * count, 1])?.gather_rows(&flat)?.reshape(&[m, k]);
        // A softmax over the chosen logits is that over all, divided by the sum of the chosen.
        let gates = if renormalise { pick(&logits)?.softmax()? } else { pick(&logits.softmax()?)? };
        let gates = gates.reshape(&[m * k, 1])?;
        let mut tokens: Vec<Chosen> = Vec::new();
        tokens.resize_with(count, Chosen::default);
        for (i, &expert) in choice.iter().enumerate() {
            tokens[expert as usize].rows.push((i / k) as u32);
            tokens[expert as usize].gates.push(i as u32);
        }
        let mut sum: Option<Tensor> = None;
        for (expert, chosen) in self.experts.iter().zip(&tokens).filter(|(_, t)| !t.rows.is_empty()) {
            let y = self.expert_rows(expert, chosen, &rows, &gates)?;
            sum = Some(match sum {
                Some(sum) => sum.add(&y)?,
                None => y,
            });
        }
        if let Some((expert, gate)) = &self.shared {
            let y = expert.forward(&rows, self.activation)?.mul(&rows.linear(gate, None)?.sigmoid()?)?;
            sum = Some(match sum {
                Some(sum) => sum.add(&y)?,
                None => y,
            });
        }
        match sum {
            Some(sum) => sum.reshape(x.dims()),
            None => Tensor::zeros(device, x.dims()),
        }
    }

    /// What one expert adds to all rows `[tokens, hidden_size]`: zeros where it was not chosen.
    fn expert_rows(&self, expert: &Expert, chosen: &Chosen, rows: &Tensor, gates: &Tensor) -> Result<Tensor> {
        let m = rows.shape().rows();
        let n = chosen.rows.len();
        let device = rows.device();
        // One row more, whose gate is 0: those that did not choose the expert take it.
        let index = |list: &[u32]| -> Result<Tensor> {
            let padded: Vec<u32> = list.iter().copied().chain([list[0]]).collect();
            Tensor::from_u32(device, &[n + 1], &padded)
        };
        let mut counts = vec![1.0; n + 1];
        counts[n] = 0.0;
        let mut back = vec![n as u32; m];
        for (i, &row) in chosen.rows.iter().enumerate() {
            back[row as usize] = i as u32;
        }
        let gates = gates.gather_rows(&index(&chosen.gates)?)?;
        let gates = gates.mul(&Tensor::from_f32(device, &[n + 1, 1], &counts)?)?;
        let y = expert.forward(&rows.gather_rows(&index(&chosen.rows)?)?, self.activation)?.mul(&gates)?;
        y.gather_rows(&Tensor::from_u32(device, &[m], &back)?)
    }

    /// All weights by their names.
    pub fn weights(&self, names: &ExpertNames) -> impl Iterator<Item = (String, &Weight)> {
        let mut all: Vec<(String, &Weight)> = vec![(format!("{}.weight", names.router), &self.router)];
        for (i, expert) in self.experts.iter().enumerate() {
            let linears = [&expert.gate, &expert.up, &expert.down];
            let path = |name: &str| format!("{}.{i}.{name}.weight", names.experts);
            all.extend(names.linears.iter().zip(linears).map(|(name, l)| (path(name), &l.weight)));
        }
        if let Some((expert, gate)) = &self.shared {
            let linears = [("gate_proj", &expert.gate), ("up_proj", &expert.up), ("down_proj", &expert.down)];
            let path = |name: &str| format!("{}.{name}.weight", names.shared);
            all.extend(linears.map(|(name, l)| (path(name), &l.weight)));
            all.push((format!("{}.weight", names.shared_gate), gate));
        }
        all.into_iter()
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> u64 {
        let shared = self.shared.as_ref().map_or(0, |(expert, gate)| expert.bytes() + gate.bytes());
        self.router.bytes() + shared + self.experts.iter().map(Expert::bytes).sum::<u64>()
    }
}

/// The `k` largest of each row of `count` values, the largest first, the lower number first of equal ones.
fn best(logits: &[f64], count: usize, k: usize) -> Vec<u32> {
    let mut all = Vec::with_capacity(logits.len() / count.max(1) * k);
    for row in logits.chunks(count.max(1)) {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
        all.extend(order[..k].iter().map(|&e| e as u32));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_come_first() {
        assert_eq!(best(&[0.1, 3.0, 3.0, -1.0, 5.0, 0.0, 1.0, 2.0], 4, 2), [1, 2, 0, 3]);
    }
}
