//! Files of whole-model kinds: logits with hidden-state probes, greedy text, training trajectories.

use super::trained::{LINEARS, Mixture, SITES, stored_choices};
use super::{Measured, Replay};
use crate::adapter::{ALL_LINEAR, Adapter, Conversation};
use crate::data::{Batch, Example};
use crate::io::{Checkpoint, read_text};
use crate::mixture::{Instance, Method, Pool};
use crate::model::{Model, Step};
use crate::nn::{Choices, Pass};
use crate::routing::Units;
use crate::train::{Decay, Schedule, Session, TrainConfig};
use crate::{Error, Result, Stream, Tensor, no_grad};
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;

/// Absolute bound on logits. PyTorch in f32 differs from its own f64 by up to 1e-4.
const LOGITS: f64 = 5e-4;
/// Bound on hidden-state figures, relative to the largest of the layer.
const HIDDEN: f64 = 1e-4;
/// Relative bounds on losses and gradient norms with the stored choices forced.
const LOSS: f64 = 5e-4;
const GRAD_NORM: f64 = 1e-3;
/// Bound on losses where routers choose for themselves, and on the share of choices that may differ then.
const FREE_LOSS: f64 = 1e-2;
const FREE_DIFFER: f64 = 0.01;
/// Margins below this are lost in single precision.
const MARGIN: f32 = 1e-5;

/// Element `i` is number `i + 1` of splitmix64 seeded by the name's FNV-1a hash, as a value in [-bound, bound).
pub(super) fn hash_uniform(name: &str, seed: u64, n: usize, bound: f32) -> Vec<f32> {
    let start = 0xCBF2_9CE4_8422_2325u64 ^ seed;
    let state = name.bytes().fold(start, |h, c| (h ^ c as u64).wrapping_mul(0x0100_0000_01B3));
    (1..=n as u64)
        .map(|i| {
            let mut z = state.wrapping_add(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            z ^= z >> 31;
            ((z >> 40) as f32 * 2f32.powi(-23) - 1.0) * bound
        })
        .collect()
}

/// The largest absolute difference; infinite for a NaN.
fn largest(got: impl Iterator<Item = f64>, want: impl Iterator<Item = f64>) -> f64 {
    got.zip(want)
        .fold(0.0, |w: f64, (g, v)| if (g - v).is_nan() { f64::INFINITY } else { w.max((g - v).abs()) })
}

fn wide(v: &[f32]) -> impl Iterator<Item = f64> + '_ {
    v.iter().map(|&v| v as f64)
}

pub(super) fn is_logits(file: &Checkpoint) -> bool {
    file.has("full_logits")
}
pub(super) fn is_training(file: &Checkpoint) -> bool {
    file.has("selected_all")
}
/// Whether a file in a folder is one of greedy texts; other JSON files are passed over.
pub(super) fn is_greedy(path: &Path) -> bool {
    let read = || serde_json::from_str::<Greedy>(&read_text(path).ok()?).ok();
    path.extension().is_some_and(|e| e == "json") && read().is_some()
}

pub(super) fn replay_logits(file: &Checkpoint, model: &Model) -> Result<Replay> {
    let s = file.dims("ids")?.iter().product::<usize>();
    if s == 0 {
        return Err(Error::file(file.path(), "tensor 'ids' is empty"));
    }
    let (v, d, layers) =
        (model.config().vocab_size, model.config().hidden_size, model.config().num_hidden_layers);
    let ids = file.indices("ids", &[s], v)?;
    let ids = Tensor::from_u32(model.device(), &[1, s], &ids)?;
    let mut hidden = Vec::new();
    let pass = Pass::new(Units::instances(model.device(), 1, s)?);
    let logits = no_grad(|| {
        let h = model.forward(&ids, &pass, Step { hidden: Some(&mut hidden), ..Step::default() })?;
        model.logits(&h)?.to_f64()
    })?;
    let mut errors = Vec::new();
    let mut add =
        |name: &str, error: f64, bound: f64| errors.push(Measured { name: name.into(), error, bound });

    let k = file.dims("top_ids")?.get(1).copied().unwrap_or(0);
    let top = file.indices("top_ids", &[s, k], v)?;
    let at = |row: usize, id: u32| logits[row * v + id as usize];
    let got = top.iter().enumerate().map(|(i, &id)| at(i / k.max(1), id));
    add("top_values", largest(got, wide(&file.f32("top_values", &[s, k])?)), LOGITS);
    let best = (0..s).all(|r| {
        let row = &logits[r * v..(r + 1) * v];
        let largest = row.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        k == 0 || largest.is_some_and(|(i, _)| i as u32 == top[r * k])
    });
    let log_sum = |row: &[f64]| {
        let m = row.iter().fold(f64::MIN, |m, &x| m.max(x));
        m + row.iter().map(|x| (x - m).exp()).sum::<f64>().ln()
    };
    let sums = logits.chunks(v).map(log_sum);
    add("logsumexp", largest(sums, wide(&file.f32("logsumexp", &[s])?)), LOGITS);
    let n = file.dims("full_rows")?.iter().product::<usize>();
    let rows = file.indices("full_rows", &[n], s)?;
    let full = rows.iter().flat_map(|&r| logits[r as usize * v..(r as usize + 1) * v].iter().copied());
    add("full_logits", largest(full, wide(&file.f32("full_logits", &[n, v])?)), LOGITS);

    let states: Vec<Vec<f64>> = hidden.iter().map(Tensor::to_f64).collect::<Result<_>>()?;
    let probe = hash_uniform("probe", 0, d, 1.0);
    let dims = [layers + 2, s];
    let norm = |h: &[f64]| h.iter().map(|x| x * x).sum::<f64>().sqrt();
    let dot = |h: &[f64]| h.iter().zip(&probe).map(|(x, p)| x * *p as f64).sum::<f64>();
    for (name, f) in [("hidden_norm", &norm as &dyn Fn(&[f64]) -> f64), ("hidden_probe", &dot)] {
        let want = file.f32(name, &dims)?;
        let mut worst = 0f64;
        for (state, want) in states.iter().zip(want.chunks(s)) {
            let scale = wide(want).fold(1e-6, |m: f64, x| m.max(x.abs()));
            worst = worst.max(largest(state.chunks(d).map(f), wide(want)) / scale);
        }
        add(name, worst, HIDDEN);
    }
    let want = file.f32("hidden_last", &[layers + 2, d])?;
    let mut worst = 0f64;
    for (state, want) in states.iter().zip(want.chunks(d)) {
        let scale = wide(want).fold(1e-6, |m: f64, x| m.max(x.abs()));
        worst = worst.max(largest(state[(s - 1) * d..].iter().copied(), wide(want)) / scale);
    }
    add("hidden_last", worst, HIDDEN);
    Ok(Replay { path: file.path().to_path_buf(), kind: "logits".into(), errors, choices: best })
}

#[derive(Deserialize)]
struct Greedy {
    items: Vec<GreedyItem>,
}

#[derive(Deserialize)]
struct GreedyItem {
    prompt_ids: Vec<u32>,
    continuation_ids: Vec<u32>,
}

/// Greedy continuations over the key/value cache: every token must be equal.
pub(super) fn replay_greedy(path: &Path, model: &Arc<Model>) -> Result<Replay> {
    let text = read_text(path)?;
    let file: Greedy = serde_json::from_str(&text).map_err(|error| Error::file(path, error.to_string()))?;
    let mut differ = 0;
    let mut total = 0;
    for item in &file.items {
        let mut c = Conversation::new(model, None, 1);
        c.push(&item.prompt_ids)?;
        for &want in &item.continuation_ids {
            let best = c.logits(0).iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
            let got = best.map_or(0, |(i, _)| i as u32);
            differ += usize::from(got != want);
            total += 1;
            // The stored token goes in, so that one difference is counted once.
            c.push(&[want])?;
        }
    }
    let share = differ as f64 / total.max(1) as f64;
    let errors = vec![Measured { name: "tokens differing".into(), error: share, bound: 0.0 }];
    Ok(Replay { path: path.to_path_buf(), kind: "greedy".into(), errors, choices: differ == 0 })
}

#[derive(Debug, Deserialize)]
struct Training {
    #[serde(flatten)]
    mixture: Mixture,
    router: String,
    gate: String,
    lr: f64,
    schedule: String,
    #[serde(default)]
    warmup: usize,
    steps: usize,
    clip: Option<f32>,
}

impl Training {
    fn method(&self, file: &Checkpoint) -> Result<Method> {
        if self.gate != "unscaled" || !["input", "instr"].contains(&self.router.as_str()) {
            let what =
                format!("gate '{}' with router '{}' is not supported in this kind", self.gate, self.router);
            return Err(Error::file(file.path(), what));
        }
        self.mixture.method(file, Instance::default())
    }

    fn batches(&self, file: &Checkpoint, model: &Model) -> Result<Vec<Batch>> {
        let dims = file.dims("input_ids")?.to_vec();
        let [n, b, s] = dims[..] else {
            return Err(Error::file(file.path(), format!("input_ids has shape {dims:?}, expected 3 axes")));
        };
        if [n, b, s].contains(&0) {
            return Err(Error::file(
                file.path(),
                format!("input_ids has shape {dims:?}: there are no tokens"),
            ));
        }
        let v = model.config().vocab_size;
        let device = model.device();
        let ids = file.indices("input_ids", &dims, v)?;
        let labels = file.integers("labels", &dims)?;
        let lengths = file.indices("lengths", &[n, b], s + 1)?;
        let pool = if self.router == "instr" { Pool::Instr } else { Pool::All };
        (0..n)
            .map(|i| {
                let rows = i * b * s..(i + 1) * b * s;
                let example = |row: usize| {
                    let length = lengths[i * b + row] as usize;
                    let first = rows.start + row * s;
                    let trained = labels[first..first + length].iter().map(|label| *label >= 0).collect();
                    let ids = ids[first..first + length].to_vec();
                    Example { prompt: length, ..Example::new(ids, trained) }
                };
                let examples: Vec<Example> = (0..b).map(example).collect();
                Batch::new(&examples.iter().collect::<Vec<_>>(), pool, 0, device)
            })
            .collect()
    }
}

/// Replays a fine-tuning run: with the stored choices forced, then with routers choosing for themselves.
pub(super) fn replay_training(file: &Checkpoint, open: &dyn Fn() -> Result<Arc<Model>>) -> Result<Replay> {
    let c: Training = super::config(file)?;
    let mut errors = Vec::new();
    let mut agree = true;
    for forced in [true, false] {
        let run = run_training(file, &c, open()?, forced)?;
        let relative = |name: &str, got: &[f64]| -> Result<f64> {
            let want = file.f64(name, &[c.steps])?;
            Ok(got.iter().zip(&want).fold(0.0, |w: f64, (g, v)| w.max(((g - v) / v).abs())))
        };
        let kind = if forced { "forced" } else { "free" };
        let loss_bound = if forced { LOSS } else { FREE_LOSS };
        let mut add =
            |what: &str, error, bound| errors.push(Measured { name: format!("{what} {kind}"), error, bound });
        add("loss", relative("loss", &run.losses)?, loss_bound);
        if forced {
            add("grad_norm", relative("grad_norm", &run.norms)?, GRAD_NORM);
        } else {
            add("choices differing", run.differ, FREE_DIFFER);
            agree = run.same_while_clear;
        }
    }
    Ok(Replay { path: file.path().to_path_buf(), kind: "train".into(), errors, choices: agree })
}

struct Run {
    losses: Vec<f64>,
    norms: Vec<f64>,
    /// Share of choices that differ from the stored ones.
    differ: f64,
    /// Every choice is equal up to the first step with a margin below [`MARGIN`].
    same_while_clear: bool,
}

fn run_training(file: &Checkpoint, c: &Training, model: Arc<Model>, forced: bool) -> Result<Run> {
    let device = model.device().clone();
    let layers = model.config().num_hidden_layers;
    let targets = [ALL_LINEAR.to_string()];
    let most = model.config().hidden_size;
    if c.mixture.factors > most {
        let what = format!("config has E {}, at most hidden_size ({most}) is replayed", c.mixture.factors);
        return Err(Error::file(file.path(), what));
    }
    let batches = c.batches(file, &model)?;
    let b = batches[0].ids.dims()[0];
    let r = c.mixture.r;
    let selected = file.indices("selected_all", &[c.steps, layers * LINEARS, 2, b, r], c.mixture.factors)?;
    let margins = file.f32("margin_all", &[c.steps, layers * LINEARS, 2, b])?;
    let per_step = layers * LINEARS * 2 * b * r;
    let adapter = Adapter::attach(&model, &c.method(file)?, &targets, Stream::new(0))?;
    for p in adapter.params() {
        let width = p.value().shape().last();
        let sizes: std::collections::HashMap<&str, usize> =
            p.parts().iter().map(|(n, rows)| (n.as_str(), rows * width)).collect();
        p.load(&device, |part| {
            // Pools of B have as many columns as outputs; the bound of the others follows their inputs.
            // Names in the files are short: q for q_proj.
            c.mixture.initial(part, *sizes.get(part)?, width, |linear| {
                linear.strip_suffix("_proj").unwrap_or(linear)
            })
        })?;
    }
    let decay = match c.schedule.as_str() {
        "constant" => Decay::Constant,
        _ => Decay::Cosine,
    };
    let warmup_steps = if decay == Decay::Constant { 0 } else { c.warmup };
    let schedule = Schedule { learning_rate: c.lr, warmup_steps, decay, ..Schedule::default() };
    let config =
        TrainConfig { schedule, steps: c.steps, max_grad_norm: c.clip, seed: 0, ..TrainConfig::default() };
    let mut session = Session::new(model, adapter, config)?;
    let mut run = Run { losses: vec![], norms: vec![], differ: 0.0, same_while_clear: true };
    let mut differ = 0usize;
    let mut clear = true;
    for step in 0..c.steps {
        let stored = &selected[step * per_step..(step + 1) * per_step];
        let forced_choices = stored_choices(stored, layers, [b, r], &device)?;
        let choices = if forced { forced_choices.clone() } else { Choices::record() };
        let report =
            session.step_with(&batches[step % batches.len()..][..1], std::slice::from_ref(&choices))?;
        run.losses.push(report.loss);
        run.norms.push(report.grad_norm);
        if !forced {
            clear &= margins[step * per_step / r..(step + 1) * per_step / r].iter().all(|m| *m >= MARGIN);
            let mut here = 0;
            for layer in 0..layers {
                for (name, _) in SITES {
                    let site = format!("layers.{layer}.{name}");
                    let got = choices.get(&site);
                    let want = forced_choices.get(&site);
                    let (Some(got), Some(want)) = (got, want) else { continue };
                    here += got.to_u32()?.iter().zip(want.to_u32()?).filter(|(g, w)| **g != *w).count();
                }
            }
            run.same_while_clear &= here == 0 || !clear;
            differ += here;
        }
    }
    run.differ = differ as f64 / selected.len() as f64;
    Ok(run)
}
