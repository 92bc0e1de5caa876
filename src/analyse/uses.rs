//! Which factors each instance uses, place by place: the indicator vectors of its choices.

use crate::adapter::Adapter;
use crate::data::Batch;
use crate::model::{Model, Site, SiteKind};
use crate::nn::{Choices, Kept, SiteAdapter};
use crate::{DType, Result};
use serde::Serialize;

/// A place where a router chooses: a side of a linear, or a whole site where all share a choice.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Place {
    /// `layers.3.qkv.q_proj.A`: the site, the linear, and the side where A and B have choices of their own.
    pub name: String,
    /// Number of the layer; none for what acts before the first one.
    pub layer: Option<usize>,
    /// Factors or experts to choose from.
    pub factors: usize,
}

/// What the instances of a batch use at the places of a site.
pub(super) struct Uses {
    pub places: Vec<Place>,
    /// By place, instance and factor: 1 where the instance chose it, 0 where not; of methods that choose by token the
    /// share of the instance's tokens that did.
    pub shares: Vec<Vec<Vec<f32>>>,
}

/// What the instances of a batch chose, site by site in the order of the model; sites that were given no choice, or whose
/// rows are not those of the batch (experts of a model see some rows only), are left out.
pub(super) fn uses(model: &Model, adapter: &Adapter, batch: &Batch, choices: &Choices) -> Result<Vec<Uses>> {
    let kept = choices.all();
    let weights = batch.weights.to_f32()?;
    let rows = Rows { instances: batch.spans.len(), weights };
    let mut all = Vec::new();
    for (number, site) in model.sites().iter().enumerate() {
        let Some((_, kept)) = kept.iter().find(|(name, _)| *name == site.name) else { continue };
        let Some(shares) = rows.shares(kept)? else { continue };
        let adapted = adapter.sites().get(number);
        all.push(Uses { places: places(site, adapted, kept), shares });
    }
    Ok(all)
}

/// The places of a site, in the order of its choices.
fn places(site: &Site, adapted: Option<&SiteAdapter>, kept: &Kept) -> Vec<Place> {
    let [linears, sides, factors] = match *kept.choice.dims() {
        [linears, sides, _, _] => [linears, sides, kept.factors],
        [_, linears, entries] => [linears, 1, entries],
        _ => [0; 3],
    };
    let names: Vec<&str> = match adapted {
        Some(SiteAdapter::Linears(_, taken)) => taken.iter().map(|&i| site.linears[i].module()).collect(),
        _ => Vec::new(),
    };
    let mut all = Vec::new();
    for linear in 0..linears {
        let linear = match names.get(linear).filter(|_| names.len() == linears) {
            Some(name) => format!(".{name}"),
            None if linears > 1 => format!(".{linear}"),
            None => String::new(),
        };
        for side in 0..sides {
            let side = if sides > 1 { ["A", "B"][side.min(1)] } else { "" };
            let dot = if side.is_empty() { "" } else { "." };
            all.push(Place {
                name: format!("{}{linear}{dot}{side}", site.name),
                layer: (site.kind != SiteKind::Start).then_some(site.layer),
                factors,
            });
        }
    }
    all
}

/// The rows of a batch.
struct Rows {
    instances: usize,
    /// 1 for rows that are real.
    weights: Vec<f32>,
}

impl Rows {
    /// Whose each of so many units is, and how much it counts there; none where units are neither instances nor rows.
    fn owners(&self, units: usize) -> Option<Vec<(usize, f32)>> {
        if units == self.instances {
            return Some((0..units).map(|unit| (unit, 1.0)).collect());
        }
        if units != self.weights.len() {
            return None;
        }
        let of_instance = |(instance, weights): (usize, &[f32])| {
            let tokens = weights.iter().sum::<f32>().max(1.0);
            weights.iter().map(|weight| (instance, weight / tokens)).collect::<Vec<_>>()
        };
        let length = units / self.instances.max(1);
        Some(self.weights.chunks(length.max(1)).enumerate().flat_map(of_instance).collect())
    }

    /// What each instance uses, by place; none where nothing is chosen, or not by these rows.
    fn shares(&self, kept: &Kept) -> Result<Option<Vec<Vec<Vec<f32>>>>> {
        let empty = |places: usize, factors: usize| vec![vec![vec![0.0; factors]; self.instances]; places];
        match (kept.choice.dtype(), kept.choice.dims()) {
            // To take all there is, as a plain LoRA does, is no choice.
            (DType::U32, &[linears, sides, units, chosen]) if kept.factors > chosen => {
                let Some(owners) = self.owners(units) else { return Ok(None) };
                let mut all = empty(linears * sides, kept.factors);
                for (at, &factor) in kept.choice.to_u32()?.iter().enumerate() {
                    let (instance, weight) = owners[at / chosen % units];
                    if let Some(share) = all[at / (chosen * units)][instance].get_mut(factor as usize) {
                        *share += weight;
                    }
                }
                Ok(Some(all))
            }
            (DType::F32, &[units, linears, entries]) => {
                let Some(owners) = self.owners(units) else { return Ok(None) };
                let mut all = empty(linears, entries);
                for (at, _) in kept.choice.to_f32()?.iter().enumerate().filter(|(_, on)| **on > 0.0) {
                    let (instance, weight) = owners[at / (linears * entries)];
                    all[at / entries % linears][instance][at % entries] += weight;
                }
                Ok(Some(all))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Tensor};

    fn kept(dims: &[usize], choice: &[u32], factors: usize) -> Kept {
        let choice = Tensor::from_u32(&Device::cpu(), dims, choice).unwrap();
        Kept { choice, gates: None, factors }
    }

    #[test]
    fn instances_have_indicators_and_tokens_shares_without_padding() {
        let rows = Rows { instances: 2, weights: vec![1.0, 1.0, 1.0, 0.0] };
        // One linear, two sides, two instances, two of three factors.
        let shares = rows.shares(&kept(&[1, 2, 2, 2], &[0, 1, 1, 2, 2, 0, 2, 1], 3)).unwrap().unwrap();
        let a = [[1.0, 1.0, 0.0], [0.0, 1.0, 1.0]];
        let b = [[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]];
        assert_eq!(shares, [a, b]);
        // One of three factors for each of four rows, the last of which is padding.
        let shares = rows.shares(&kept(&[1, 1, 4, 1], &[0, 2, 1, 0], 3)).unwrap().unwrap();
        assert_eq!(shares, [[[0.5, 0.0, 0.5], [0.0, 1.0, 0.0]]]);
        let mask = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 1.0];
        let choice = Tensor::from_f32(&Device::cpu(), &[4, 1, 2], &mask).unwrap();
        let shares = rows.shares(&Kept { choice, gates: None, factors: 0 }).unwrap().unwrap();
        assert_eq!(shares, [[[1.0, 0.5], [0.0, 1.0]]]);
    }

    #[test]
    fn what_takes_everything_or_other_rows_is_no_choice() {
        let rows = Rows { instances: 2, weights: vec![1.0; 4] };
        assert_eq!(rows.shares(&kept(&[1, 1, 2, 2], &[0, 1, 0, 1], 2)).unwrap(), None);
        assert_eq!(rows.shares(&kept(&[1, 1, 3, 1], &[0, 1, 0], 2)).unwrap(), None);
    }
}
