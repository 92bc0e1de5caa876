//! Settings that take less memory: what a plan proposes where a run does not fit, and what `--fit` takes.

use super::{Plan, Planned};
use crate::model::Weights;
use crate::train::RunConfig;
use crate::{Format, Result};

/// Formats for weights that are tried, the most precise first.
const FORMATS: [Format; 4] = [Format::Q8_0, Format::Q6_K, Format::Q5_K, Format::Q4_K];
/// Time of a micro-batch beside what its rows take, in rows.
const START: f64 = 48.0;
/// Times that a step takes when layers are computed again.
const AGAIN: f64 = 4.0 / 3.0;
/// Parts of a micro-batch that are tried, besides one for each example.
const MOST_PARTS: usize = 64;
/// The shortest sequence that is proposed.
const SHORTEST: usize = 64;

/// What is changed so that a run takes less memory. What a step learns from stays: its batch and the length of sequences.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Saving {
    pub weights: Weights,
    /// Micro-batches in place of one, with as many more of a step.
    pub parts: usize,
    /// Layers are computed again in the backward pass.
    pub recompute: bool,
}

/// Settings that fit, with what they take.
#[derive(Debug, Clone, PartialEq)]
pub struct Fit {
    pub saving: Saving,
    pub config: RunConfig,
    pub plan: Plan,
}

impl Saving {
    /// Those of a run, the gentlest first: weights as precise as they can be, then what costs the least time. The first changes
    /// nothing.
    ///
    /// # Errors
    /// The model's files cannot be read.
    pub fn all<'a>(files: impl Into<Planned<'a>>, config: &RunConfig) -> Result<Vec<Self>> {
        let batch = config.train.micro_batch;
        let recompute = if config.train.recompute { &[true][..] } else { &[false, true] };
        let mut all = Vec::new();
        for weights in std::iter::once(config.device.weights).chain(smaller_weights(files.into(), config)?) {
            let single = Some(batch).filter(|batch| *batch > MOST_PARTS);
            let parts = (1..=batch.min(MOST_PARTS)).filter(|n| batch.is_multiple_of(*n)).chain(single);
            let pairs = parts.flat_map(|parts| recompute.iter().map(move |&again| (parts, again)));
            let mut savings: Vec<Saving> =
                pairs.map(|(parts, recompute)| Saving { weights, parts, recompute }).collect();
            savings.sort_by(|a, b| a.time(config).total_cmp(&b.time(config)));
            all.extend(savings);
        }
        Ok(all)
    }

    /// The time of a step, relative to one whose rows all go through the model at once.
    fn time(&self, config: &RunConfig) -> f64 {
        let rows = config.train.micro_batch as f64 * config.text.max_length as f64 / self.parts as f64;
        (1.0 + START / rows.max(1.0)) * if self.recompute { AGAIN } else { 1.0 }
    }

    /// A run with it.
    pub fn of(&self, config: &RunConfig) -> RunConfig {
        let mut config = config.clone();
        config.device.weights = self.weights;
        config.train.recompute = self.recompute;
        config.train.micro_batch = config.train.micro_batch.div_ceil(self.parts);
        config.train.grad_accumulation = config.train.grad_accumulation.saturating_mul(self.parts);
        config
    }

    /// What it changes, as options of a command; nothing where it changes nothing.
    pub fn options(&self, config: &RunConfig) -> String {
        let with = self.of(config);
        let mut options = Vec::new();
        if with.device.weights != config.device.weights {
            options.push(format!("--weights {}", self.weights));
        }
        if self.parts > 1 {
            let [batch, parts] = [with.train.micro_batch, with.train.grad_accumulation];
            options.push(format!("--micro-batch {batch} --grad-accumulation {parts}"));
        }
        if with.train.recompute != config.train.recompute {
            options.push("--recompute".into());
        }
        options.join(" ")
    }
}

impl Fit {
    /// The gentlest settings that fit, by what `plan` says of each; none where none do.
    ///
    /// # Errors
    /// The model's files cannot be read, or what `plan` meets.
    pub fn find<'a>(
        files: impl Into<Planned<'a>>,
        config: &RunConfig,
        plan: impl Fn(&RunConfig) -> Result<Plan>,
    ) -> Result<Option<Self>> {
        for saving in Saving::all(files, config)? {
            let config = saving.of(config);
            let plan = plan(&config)?;
            if plan.fits() {
                return Ok(Some(Fit { saving, config, plan }));
            }
        }
        Ok(None)
    }
}

/// Formats in which the weights take less than now, the most precise first.
fn smaller_weights(files: Planned<'_>, config: &RunConfig) -> Result<Vec<Weights>> {
    let mut least = files.weight_bytes(config.device.weights)?;
    let mut smaller = Vec::new();
    for weights in std::iter::once(Weights::File).chain(FORMATS.map(Weights::As)) {
        let bytes = files.weight_bytes(weights)?;
        if bytes < least {
            least = bytes;
            smaller.push(weights);
        }
    }
    Ok(smaller)
}

/// What could be changed so that a run fits, and the bytes then, by what `total` says for settings and a length: those that
/// fit come first, the gentlest before the others, then the smallest; at most three.
pub(super) fn alternatives(
    files: Planned<'_>,
    config: &RunConfig,
    (seq, least_seq): (usize, usize),
    limit: u64,
    total: impl Fn(&RunConfig, usize) -> Result<u64>,
) -> Result<Vec<(String, u64)>> {
    let savings = Saving::all(files, config)?;
    let mut tried = Vec::new();
    for saving in &savings[1..] {
        tried.push((saving.options(config), total(&saving.of(config), seq)?));
    }
    if let Some(last) = savings.last().filter(|_| seq / 2 >= least_seq.max(SHORTEST)) {
        let half = seq / 2;
        let recompute = Saving { recompute: true, ..savings[0] };
        let both = [Some(recompute), Some(*last).filter(|last| *last != recompute)];
        for saving in both.into_iter().flatten() {
            let options = format!("--max-length {half} {}", saving.options(config));
            tried.push((options.trim_end().to_string(), total(&saving.of(config), half)?));
        }
    }
    // Those that fit stay in their order.
    tried.sort_by_key(|(_, bytes)| if *bytes > limit { *bytes } else { 0 });
    tried.truncate(3);
    Ok(tried)
}
