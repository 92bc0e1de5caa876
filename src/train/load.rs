//! How evenly routers use their factors: shares, entropy, and a warning when almost everything goes to a few.

use crate::Result;
use crate::nn::{Choices, Kept};
use serde::Serialize;
use std::collections::BTreeMap;

/// Units that a place must have routed before it can be called collapsed, and at the end of a run, which may be short.
pub(super) const ENOUGH: u64 = 256;
pub(super) const AT_THE_END: u64 = 16;
/// Share of a place's choices that a single factor must have for that.
const COLLAPSED: f64 = 0.95;

/// Load of the routers in one step, averaged over the places that route (each side of each linear).
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct RouterLoad {
    /// Share of the choices that the most used factor of a place gets.
    pub load_max: f64,
    /// The same of the least used factor.
    pub load_min: f64,
    /// Entropy of the shares, in nats; ln(factors) when all are equal.
    pub entropy: f64,
    /// How many factors are in use, counted by their shares: `1 / sum share^2`, 1 when one has all choices.
    pub effective: f64,
    /// Share of the factors that no counted step has used yet.
    pub unused: f64,
}

impl RouterLoad {
    /// Load of one place, by how often each of its factors was chosen.
    ///
    /// ```
    /// use mixlora::train::RouterLoad;
    /// let load = RouterLoad::of(&[2.0, 2.0, 0.0, 0.0]);
    /// assert_eq!((load.load_max, load.effective, load.unused), (0.5, 2.0, 0.5));
    /// ```
    pub fn of(counts: &[f64]) -> Self {
        let total = counts.iter().sum::<f64>();
        let shares = || counts.iter().map(|&c| if total > 0.0 { c / total } else { 0.0 });
        RouterLoad {
            load_max: shares().fold(0.0, f64::max),
            load_min: shares().fold(1.0, f64::min),
            entropy: -shares().filter(|s| *s > 0.0).map(|s| s * s.ln()).sum::<f64>(),
            effective: 1.0 / shares().map(|s| s * s).sum::<f64>().max(f64::MIN_POSITIVE),
            unused: counts.iter().filter(|c| **c == 0.0).count() as f64 / counts.len().max(1) as f64,
        }
    }
}

/// Choices counted over a run.
#[derive(Debug, Default)]
pub(super) struct LoadCounter {
    /// Per place: choices of each factor, units, choices of a unit.
    places: BTreeMap<String, (Vec<u64>, u64, usize)>,
    warned: bool,
}

/// The choices of one place.
struct Counts {
    /// Of each factor.
    of: Vec<u64>,
    units: u64,
    /// Choices of a unit.
    chosen: usize,
}

/// The choices of a site, one place for each linear and side; none where a unit takes all there is.
fn counts(kept: &Kept) -> Result<Vec<Counts>> {
    match *kept.choice.dims() {
        // Choosing all there is, as a plain LoRA does, is no routing.
        [_, _, g, k] if kept.factors > k => {
            let of = |chosen: &[u32]| {
                let mut of = vec![0; kept.factors];
                chosen.iter().for_each(|&e| of[e as usize] += 1);
                Counts { of, units: g as u64, chosen: k }
            };
            Ok(kept.choice.to_u32()?.chunks(g * k).map(of).collect())
        }
        [m, l, e] => {
            let mask = kept.choice.to_f32()?;
            let of = |linear: usize| {
                let on =
                    |entry: usize| (0..m).filter(|row| mask[(row * l + linear) * e + entry] > 0.0).count();
                // How many a row takes varies: nothing is known to be stuck by its number.
                Counts { of: (0..e).map(|entry| on(entry) as u64).collect(), units: m as u64, chosen: 0 }
            };
            Ok((0..l).map(of).collect())
        }
        _ => Ok(Vec::new()),
    }
}

impl LoadCounter {
    /// Counts the recorded choices of a step's micro-batches. None when nothing was routed.
    pub fn count(&mut self, passes: &[Choices]) -> Result<Option<RouterLoad>> {
        let mut step: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for (site, kept) in passes.iter().flat_map(Choices::all) {
            for (i, Counts { of, units, chosen }) in counts(&kept)?.into_iter().enumerate() {
                let place = format!("{site}.{i}");
                let step = step.entry(place.clone()).or_insert_with(|| vec![0; of.len()]);
                let all = self.places.entry(place).or_insert_with(|| (vec![0; of.len()], 0, chosen));
                all.1 += units;
                for (e, count) in of.into_iter().enumerate() {
                    step[e] += count;
                    all.0[e] += count;
                }
            }
        }
        if step.is_empty() {
            return Ok(None);
        }
        let n = step.len() as f64;
        let mut max = 0.0;
        let mut min = 0.0;
        let mut entropy = 0.0;
        let mut effective = 0.0;
        for counts in step.values() {
            let counts: Vec<f64> = counts.iter().map(|&c| c as f64).collect();
            let load = RouterLoad::of(&counts);
            max += load.load_max / n;
            min += load.load_min / n;
            effective += load.effective / n;
            entropy += load.entropy / n;
        }
        let unused: usize = self.places.values().map(|p| p.0.iter().filter(|c| **c == 0).count()).sum();
        let factors: usize = self.places.values().map(|p| p.0.len()).sum();
        let unused = unused as f64 / factors.max(1) as f64;
        Ok(Some(RouterLoad { load_max: max, load_min: min, entropy, effective, unused }))
    }

    /// Says once when places that have routed so many units are stuck: one factor has nearly all choices, or no unit
    /// ever chose another set.
    pub fn warning(&mut self, enough: u64) -> Option<String> {
        if self.warned {
            return None;
        }
        let stuck = |(counts, units, k): &(Vec<u64>, u64, usize)| {
            let total = counts.iter().sum::<u64>().max(1) as f64;
            let top = counts.iter().max().copied().unwrap_or(0) as f64 / total;
            let used = counts.iter().filter(|c| **c > 0).count();
            *units >= enough && (top > COLLAPSED || used <= *k)
        };
        let found: Vec<_> = self.places.iter().filter(|(_, p)| stuck(p)).collect();
        let (name, (counts, units, _)) = found.first()?;
        self.warned = true;
        Some(format!(
            "{} of {} routing places use the same factors for every input; {name}, choices of each factor in {units} \
             units: {counts:?}. The mixture does no more there than one LoRA; more varied data, another seed or \
             another pool may help",
            found.len(),
            self.places.len()
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Device, Tensor};

    fn choices(idx: &[u32], k: usize, factors: usize) -> Choices {
        let cpu = Device::cpu();
        let g = idx.len() / k;
        let record = Choices::record();
        let units = crate::routing::Units::tokens(g);
        let idx = Tensor::from_u32(&cpu, &[1, 1, g, k], idx).unwrap();
        record.keep("a", &crate::routing::Selection::new(idx, None, &units, factors, 1).unwrap());
        record
    }

    // e.4 row 47.
    #[test]
    fn shares_entropy_and_collapse() {
        let mut counter = LoadCounter::default();
        let load = counter.count(&[choices(&[0, 1, 2, 3], 1, 4)]).unwrap().unwrap();
        assert_eq!((load.load_max, load.load_min, load.unused), (0.25, 0.25, 0.0));
        approx::assert_relative_eq!(load.entropy, 4f64.ln(), epsilon = 1e-12);
        assert_eq!(counter.warning(ENOUGH), None);
        let mut stuck = LoadCounter::default();
        assert_eq!(stuck.count(&[choices(&[0, 0], 1, 1)]).unwrap(), None, "one expert is no routing");
        for _ in 0..300 {
            stuck.count(&[choices(&[2, 0], 2, 4)]).unwrap();
        }
        let text = stuck.warning(ENOUGH).unwrap();
        assert!(text.contains("1 of 1") && text.contains("[300, 0, 300, 0]"), "{text}");
        assert_eq!(stuck.warning(AT_THE_END), None, "said once");
        assert_eq!(stuck.count(&[choices(&[2, 0], 2, 4)]).unwrap().unwrap().unused, 0.5);
        let mut short = LoadCounter::default();
        for _ in 0..20 {
            short.count(&[choices(&[2, 0], 2, 4)]).unwrap();
        }
        assert_eq!(short.warning(ENOUGH), None);
        assert!(short.warning(AT_THE_END).unwrap().contains("[20, 0, 20, 0]"));
    }
}
