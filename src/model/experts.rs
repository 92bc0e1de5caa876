//! MLPs of experts (Shazeer et al. 2017, arXiv:1701.06538): a router chooses some for each token.
//!
//! The host sees which tokens chose which expert, so that each expert computes those rows alone: one readback a layer.

use super::ExpertsConfig;
use super::sites::ExpertNames;
use crate::nn::{LinearGroup, Mlp, Pass};
use crate::routing::Units;
use crate::{Error, Linear, Result, Tensor, Weight};
use std::sync::{Mutex, PoisonError};

/// The experts that tokens chose, `[.., chosen]` for each layer of experts.
pub(super) type KeptExperts = Mutex<Vec<Tensor>>;

/// The experts of a layer, each a gated MLP whose linears are at sites.
#[derive(Clone)]
pub(crate) struct Experts {
    pub config: ExpertsConfig,
    /// `[count, hidden_size]`
    pub router: LinearGroup,
    pub experts: Vec<Mlp>,
    /// The expert that all tokens use, and its gate `[1, hidden_size]`.
    pub shared: Option<(Mlp, Weight)>,
}

/// The linears of an expert: gate, up and down.
fn linears(expert: &Mlp) -> impl Iterator<Item = &Linear> {
    expert.gate_up.linears.iter().chain(&expert.down.linears)
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
    pub fn forward(&self, x: &Tensor, pass: &Pass, kept: Option<&KeptExperts>) -> Result<Tensor> {
        let m = x.shape().rows();
        let d = x.shape().last();
        let ExpertsConfig { count, chosen: k, renormalise, .. } = self.config;
        let device = x.device();
        let rows = x.reshape(&[m, d])?;
        let logits = self.router.forward(&rows, pass)?.swap_remove(0);
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
            let y = self.expert_rows(expert, chosen, [&rows, &gates], pass)?;
            sum = Some(match sum {
                Some(sum) => sum.add(&y)?,
                None => y,
            });
        }
        if let Some((expert, gate)) = &self.shared {
            let y = expert.forward(&rows, pass)?.mul(&rows.linear(gate, None)?.sigmoid()?)?;
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
    fn expert_rows(
        &self,
        expert: &Mlp,
        chosen: &Chosen,
        [rows, gates]: [&Tensor; 2],
        pass: &Pass,
    ) -> Result<Tensor> {
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
        // Adapters see these rows alone.
        let within = pass.clone().with_units(Units::instances(device, 1, n + 1)?);
        let y = expert.forward(&rows.gather_rows(&index(&chosen.rows)?)?, &within)?.mul(&gates)?;
        y.gather_rows(&Tensor::from_u32(device, &[m], &back)?)
    }

    /// All weights by their names.
    pub(super) fn weights(&self, names: &ExpertNames) -> impl Iterator<Item = (String, &Weight)> {
        let router = self.router.linears.iter().map(|l| &l.weight);
        let mut all: Vec<(String, &Weight)> =
            router.map(|weight| (format!("{}.weight", names.router), weight)).collect();
        for (i, expert) in self.experts.iter().enumerate() {
            let path = |name: &str| format!("{}.{i}.{name}.weight", names.experts);
            all.extend(names.linears.iter().zip(linears(expert)).map(|(name, l)| (path(name), &l.weight)));
        }
        if let Some((expert, gate)) = &self.shared {
            let named = ["gate_proj", "up_proj", "down_proj"].iter().zip(linears(expert));
            all.extend(named.map(|(name, l)| (format!("{}.{name}.weight", names.shared), &l.weight)));
            all.push((format!("{}.weight", names.shared_gate), gate));
        }
        all.into_iter()
    }

    /// Bytes of all weights.
    pub fn bytes(&self) -> u64 {
        let shared = self.shared.iter();
        let gates = shared.clone().map(|(_, gate)| gate.bytes()).sum::<u64>();
        let experts = self.experts.iter().chain(shared.map(|(expert, _)| expert));
        let all = experts.flat_map(linears).chain(&self.router.linears);
        gates + all.map(|l| l.weight.bytes()).sum::<u64>()
    }
}

/// How often the rows of each tag chose each expert: `[tags][experts]`, from the choices `[.., chosen]` of a layer (as
/// [`Step::experts`](super::Step::experts) collects them) and a tag for each row (as
/// [`Labels::tags`](crate::nn::Labels::tags) has them, 0 where there are none).
///
/// ```
/// use mixlora::{Device, Tensor, model::experts_by_tag};
/// // Two experts of three for each of three rows, of which the last one is tagged.
/// let chosen = Tensor::from_u32(&Device::cpu(), &[3, 2], &[0, 1, 0, 2, 2, 1])?;
/// assert_eq!(experts_by_tag(&chosen, &[0, 0, 1], 3)?, [[2, 1, 1], [0, 1, 1]]);
/// # Ok::<(), mixlora::Error>(())
/// ```
///
/// # Errors
/// There is not one tag for each row, or a choice is none of so many experts.
pub fn experts_by_tag(chosen: &Tensor, tags: &[u32], experts: usize) -> Result<Vec<Vec<u64>>> {
    let k = chosen.shape().last().max(1);
    let choices = chosen.to_u32()?;
    let known = choices.iter().all(|&expert| (expert as usize) < experts);
    // A tag is a small number; one that is not would only make an empty table.
    let most = tags.iter().max().map_or(0, |&tag| tag as usize + 1);
    if choices.len() != k * tags.len() || !known || most > 1 << 16 {
        let want = format!("choices among {experts} experts, and a tag below {} for each row", 1 << 16);
        return Err(Error::shape(
            "experts_by_tag",
            want,
            format!("{} with {} tags", chosen.shape(), tags.len()),
        ));
    }
    let mut counts = vec![vec![0; experts]; most];
    for (choices, &tag) in choices.chunks(k).zip(tags) {
        choices.iter().for_each(|&expert| counts[tag as usize][expert as usize] += 1);
    }
    Ok(counts)
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
