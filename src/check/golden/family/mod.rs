//! Folders of tiny models with reference values: logits, states, losses, gradients, greedy text, and GGUF twins.

mod gradients;

use super::model::hash_uniform;
use super::{Measured, Replay};
use crate::adapter::Conversation;
use crate::io::{Checkpoint, read_json};
use crate::model::{Model, Step};
use crate::nn::Pass;
use crate::routing::Units;
use crate::{Device, Error, Result, Tensor, no_grad};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Bound on all values: relative to the largest of their tensor, absolute for losses. transformers in f32 is within 1e-5.
const BOUND: f64 = 1e-4;

/// Whether a file of reference values belongs to the model in its folder.
pub(super) fn is_family(path: &Path) -> bool {
    path.ends_with("reference.safetensors") && path.is_file() && path.with_file_name("config.json").is_file()
}

/// The losses of samples that `eval.json` has.
#[derive(Deserialize)]
struct Evaluation {
    tasks: BTreeMap<String, Task>,
}

#[derive(Deserialize)]
struct Task {
    samples: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    ids: Vec<u32>,
    trained: Vec<u32>,
    loss: f64,
}

/// What `gguf.json` has of a twin.
#[derive(Deserialize)]
struct Twins {
    q8_0: Twin,
}

#[derive(Deserialize)]
struct Twin {
    loss: f64,
}

/// The two stored sequences.
struct Sequences {
    ids: Tensor,
    valid: Tensor,
    targets: Tensor,
    lengths: Vec<usize>,
    /// Length of both with their padding.
    s: usize,
}

impl Sequences {
    fn read(file: &Checkpoint, vocab: usize, device: &Device) -> Result<Self> {
        let [b, s] = file.dims("ids")?[..] else {
            return Err(Error::file(file.path(), "ids are not [B, S]"));
        };
        let ids = file.indices("ids", &[b, s], vocab)?;
        let lengths: Vec<usize> = file.indices("lengths", &[b], s + 1)?.iter().map(|&n| n as usize).collect();
        let real = |i: usize| i % s < lengths[i / s];
        let target = |i: usize| if i % s + 1 < lengths[i / s] { ids[i + 1] } else { u32::MAX };
        let valid: Vec<u32> = (0..b * s).map(|i| u32::from(real(i))).collect();
        let targets: Vec<u32> = (0..b * s).map(target).collect();
        Ok(Sequences {
            ids: Tensor::from_u32(device, &[b, s], &ids)?,
            valid: Tensor::from_u32(device, &[b, s], &valid)?,
            targets: Tensor::from_u32(device, &[b * s], &targets)?,
            lengths,
            s,
        })
    }

    fn pass(&self) -> Result<Pass> {
        Ok(Pass::new(Units::instances(self.ids.device(), self.lengths.len(), self.s)?))
    }

    /// The mean loss of a model over both.
    fn mean_loss(&self, model: &Model) -> Result<f64> {
        let step = Step { valid: Some(&self.valid), ..Step::default() };
        let out = model.forward(&self.ids, &self.pass()?, step)?;
        let rows = out.reshape(&[self.lengths.len() * self.s, model.config().hidden_size])?;
        Ok(model.loss(&rows, &self.targets)?.item()? / self.trained() as f64)
    }

    /// Tokens with a loss.
    fn trained(&self) -> usize {
        self.lengths.iter().map(|n| n.saturating_sub(1)).sum()
    }
}

struct Checks<'a> {
    file: &'a Checkpoint,
    errors: Vec<Measured>,
}

impl Checks<'_> {
    fn add(&mut self, name: impl Into<String>, error: f64) {
        let error = if error.is_nan() { f64::INFINITY } else { error };
        self.errors.push(Measured { name: name.into(), error, bound: BOUND });
    }

    /// The largest difference relative to the largest stored value.
    fn relative(&mut self, name: impl Into<String>, got: &[f64], want: &[f32]) -> Result<()> {
        let name = name.into();
        if got.len() != want.len() {
            let what = format!("{name}: {} values, expected {}", got.len(), want.len());
            return Err(Error::file(self.file.path(), what));
        }
        let largest = want.iter().fold(f64::MIN_POSITIVE, |m, &v| m.max((v as f64).abs()));
        let worst = got.iter().zip(want).fold(0.0, |w: f64, (g, &v)| {
            let e = (g - v as f64).abs();
            if e.is_nan() { f64::INFINITY } else { w.max(e) }
        });
        self.add(name, worst / largest);
        Ok(())
    }
}

/// Replays the model of a folder: from its safetensors, and from the GGUF files beside them.
pub(super) fn replay(file: &Checkpoint, device: &Device) -> Result<Replay> {
    let dir = file.path().parent().unwrap_or(Path::new("."));
    let model = Model::open_f32(dir, device)?;
    let mut checks = Checks { file, errors: Vec::new() };
    let mut choices = values(&mut checks, &model, "")?;
    greedy(&mut checks, &model)?;
    samples(&mut checks, &model, &dir.join("eval.json"))?;
    gradients::check(&mut checks, dir, device)?;
    let twin = |name: &str| Some(dir.join(name)).filter(|path| path.is_file());
    if let Some(path) = twin("model-f16.gguf") {
        choices &= values(&mut checks, &*Model::open_f32(&path, device)?, "f16 ")?;
    }
    if let Some(path) = twin("model-q8_0.gguf") {
        quantised(&mut checks, &*Model::open(&path, device)?, dir)?;
    }
    let kind = model.config().model_type.clone();
    Ok(Replay { path: file.path().to_path_buf(), kind, errors: checks.errors, choices })
}

/// Logits, the states of all layers, the loss, and the experts that tokens chose: whether all of those agree.
fn values(checks: &mut Checks<'_>, model: &Model, what: &str) -> Result<bool> {
    let file = checks.file;
    let v = model.config().vocab_size;
    let device = model.device();
    let all = Sequences::read(file, v, device)?;
    let mut hidden = Vec::new();
    let mut experts = Vec::new();
    let step = Step {
        valid: Some(&all.valid),
        hidden: Some(&mut hidden),
        experts: Some(&mut experts),
        ..Step::default()
    };
    let pass = all.pass()?;
    let out = no_grad(|| model.forward(&all.ids, &pass, step))?;
    let rows = out.reshape(&[all.lengths.len() * all.s, model.config().hidden_size])?;
    let logits = no_grad(|| model.logits(&rows))?.to_f64()?;
    let n = all.lengths[0];
    checks.relative(format!("{what}logits"), &logits[..n * v], &file.f32("logits", &[n, v])?)?;
    let m = file.dims("logits_row1")?[0];
    let first = all.s + all.lengths[1] - m;
    let row = &logits[first * v..(first + m) * v];
    checks.relative(format!("{what}logits_row1"), row, &file.f32("logits_row1", &[m, v])?)?;
    let loss = no_grad(|| model.loss(&rows, &all.targets))?.item()? / all.trained() as f64;
    let want = file.f32("loss", &[1])?[0] as f64;
    checks.add(format!("{what}loss"), (loss - want).abs());
    let d = model.config().hidden_size;
    let probe = hash_uniform("probe", 0, d, 1.0);
    let dims = [hidden.len(), all.lengths.len(), all.s];
    let real: Vec<bool> = all.valid.to_u32()?.iter().map(|&v| v != 0).collect();
    let norm = |h: &[f64]| h.iter().map(|x| x * x).sum::<f64>().sqrt();
    let dot = |h: &[f64]| h.iter().zip(&probe).map(|(x, p)| x * *p as f64).sum::<f64>();
    let states: Vec<Vec<f64>> = hidden.iter().map(Tensor::to_f64).collect::<Result<_>>()?;
    for (name, f) in [("hidden_norm", &norm as &dyn Fn(&[f64]) -> f64), ("hidden_probe", &dot)] {
        let of = |state: &Vec<f64>| -> Vec<f64> {
            let values = state.chunks(d).zip(&real);
            values.map(|(h, real)| if *real { f(h) } else { 0.0 }).collect()
        };
        let got: Vec<f64> = states.iter().flat_map(of).collect();
        checks.relative(format!("{what}{name}"), &got, &file.f32(name, &dims)?)?;
    }
    if what.is_empty() && file.has("short.ids") {
        let n = file.dims("short.ids")?[1];
        let ids = Tensor::from_u32(device, &[1, n], &file.indices("short.ids", &[1, n], v)?)?;
        let pass = Pass::new(Units::instances(device, 1, n)?);
        let out = no_grad(|| model.logits(&model.forward(&ids, &pass, Step::default())?))?;
        let want = file.dims("short.logits")?.to_vec();
        checks.relative("short.logits", &out.to_f64()?, &file.f32("short.logits", &want)?)?;
    }
    if !file.has("experts") {
        return Ok(true);
    }
    let differ = differing_experts(file, &experts, &real)?;
    checks.add(format!("{what}experts"), differ);
    Ok(differ == 0.0)
}

/// The share of real tokens whose experts are not the stored ones, in their order.
fn differing_experts(file: &Checkpoint, experts: &[Tensor], real: &[bool]) -> Result<f64> {
    let [layers, b, s, k] = file.dims("experts")?[..] else {
        return Err(Error::file(file.path(), "experts are not [layers, B, S, chosen]"));
    };
    let want = file.integers("experts", &[layers, b, s, k])?;
    let chosen: Vec<Vec<u32>> = experts.iter().map(Tensor::to_u32).collect::<Result<_>>()?;
    let got: Vec<i64> = chosen.concat().into_iter().map(i64::from).collect();
    if got.len() != want.len() || real.len() != b * s {
        let what = format!("has experts of shape [{layers}, {b}, {s}, {k}], the model chose {}", got.len());
        return Err(Error::file(file.path(), what));
    }
    let tokens = got.chunks(k.max(1)).zip(want.chunks(k.max(1))).zip(real.iter().cycle());
    let differ = tokens.filter(|((got, want), real)| **real && got != want).count();
    Ok(differ as f64 / (layers * real.iter().filter(|real| **real).count()).max(1) as f64)
}

/// Greedy continuations, token by token over the cache: the share of tokens that differ.
fn greedy(checks: &mut Checks<'_>, model: &Arc<Model>) -> Result<()> {
    let file = checks.file;
    let v = model.config().vocab_size;
    for i in 0.. {
        let [prompt, ids] = ["prompt", "ids"].map(|name| format!("greedy_{i}.{name}"));
        if !file.has(&prompt) {
            break;
        }
        let n = file.dims(&prompt)?.to_vec();
        let mut c = Conversation::new(model, None, 1);
        c.push(&file.indices(&prompt, &n, v)?)?;
        let n = file.dims(&ids)?.to_vec();
        let want = file.indices(&ids, &n, v)?;
        let mut differ = 0;
        for &token in &want {
            let best = c.logits(0).iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
            differ += usize::from(best.map(|(i, _)| i as u32) != Some(token));
            c.push(&[token])?;
        }
        checks.add(format!("greedy_{i}"), differ as f64 / want.len().max(1) as f64);
    }
    Ok(())
}

/// Losses of the evaluated samples.
fn samples(checks: &mut Checks<'_>, model: &Model, path: &Path) -> Result<()> {
    let evaluation: Evaluation = read_json(path)?;
    let device = model.device();
    for (name, task) in evaluation.tasks {
        let mut worst = 0f64;
        for sample in &task.samples {
            let n = sample.ids.len();
            let ids = Tensor::from_u32(device, &[1, n], &sample.ids)?;
            let target = |i: usize| match sample.trained.get(i + 1) {
                Some(&t) if t != 0 => sample.ids[i + 1],
                _ => u32::MAX,
            };
            let targets: Vec<u32> = (0..n).map(target).collect();
            let trained = targets.iter().filter(|t| **t != u32::MAX).count();
            let targets = Tensor::from_u32(device, &[n], &targets)?;
            let pass = Pass::new(Units::instances(device, 1, n)?);
            let loss = no_grad(|| {
                let h = model.forward(&ids, &pass, Step::default())?;
                model.loss(&h.reshape(&[n, model.config().hidden_size])?, &targets)
            })?;
            worst = worst.max((loss.item()? / trained as f64 - sample.loss).abs());
        }
        checks.add(format!("eval {name}"), worst);
    }
    Ok(())
}

/// The twin in blocks of q8_0, as its own weights have it.
fn quantised(checks: &mut Checks<'_>, model: &Model, dir: &Path) -> Result<()> {
    let twins: Twins = read_json(&dir.join("gguf.json"))?;
    let stored = Checkpoint::open(dir.join("gguf.safetensors"))?;
    let v = model.config().vocab_size;
    let all = Sequences::read(checks.file, v, model.device())?;
    let pass = all.pass()?;
    let step = Step { valid: Some(&all.valid), ..Step::default() };
    let out = no_grad(|| model.forward(&all.ids, &pass, step))?;
    let rows = out.reshape(&[all.lengths.len() * all.s, model.config().hidden_size])?;
    let loss = no_grad(|| model.loss(&rows, &all.targets))?.item()? / all.trained() as f64;
    checks.add("q8_0 loss", (loss - twins.q8_0.loss).abs());
    let logits = no_grad(|| model.logits(&rows))?.to_f64()?;
    let dims = stored.dims("positions")?.to_vec();
    let positions = stored.indices("positions", &dims, all.s)?;
    let got: Vec<f64> = positions.iter().flat_map(|&p| logits[p as usize * v..][..v].to_vec()).collect();
    checks.relative("q8_0 logits", &got, &stored.f32("q8_0.logits", &[positions.len(), v])?)
}
