//! Folders of tiny models with reference values: logits, states, losses, gradients, greedy text, and GGUF twins.

use super::model::hash_uniform;
use super::{Measured, Replay};
use crate::adapter::Conversation;
use crate::io::{Checkpoint, read_json};
use crate::model::{Input, LoadOptions, Model, ModelFiles, SiteKind, Step};
use crate::nn::{LinearAdapter, Param, Pass, SiteAdapter, SiteAdapters};
use crate::routing::Units;
use crate::{Device, Error, Linear, Result, Tensor, no_grad};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

/// Bound on all values: relative to the largest of their tensor, absolute for losses. transformers in f32 is within 1e-5.
const BOUND: f64 = 1e-4;

/// Whether a file of reference values belongs to the model in its folder.
pub(super) fn is_family(path: &Path) -> bool {
    path.ends_with("reference.safetensors") && path.with_file_name("config.json").is_file()
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
    let model = Model::open(dir, device, true)?;
    let mut checks = Checks { file, errors: Vec::new() };
    values(&mut checks, &model, "")?;
    greedy(&mut checks, &model)?;
    samples(&mut checks, &model, &dir.join("eval.json"))?;
    gradients(&mut checks, dir, device)?;
    let twin = |name: &str| Some(dir.join(name)).filter(|path| path.is_file());
    if let Some(path) = twin("model-f16.gguf") {
        values(&mut checks, &*Model::open(&path, device, true)?, "f16 ")?;
    }
    if let Some(path) = twin("model-q8_0.gguf") {
        quantised(&mut checks, &*Model::open(&path, device, false)?, dir)?;
    }
    let kind = model.config().model_type.clone();
    Ok(Replay { path: file.path().to_path_buf(), kind, errors: checks.errors, choices: true })
}

/// Logits, the states of all layers, and the loss.
fn values(checks: &mut Checks<'_>, model: &Model, what: &str) -> Result<()> {
    let file = checks.file;
    let v = model.config().vocab_size;
    let device = model.device();
    let all = Sequences::read(file, v, device)?;
    let mut hidden = Vec::new();
    let step = Step { valid: Some(&all.valid), hidden: Some(&mut hidden), ..Step::default() };
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
    Ok(())
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

/// Zeros beside frozen linears: their gradients are those of the weights and of the biases.
struct Beside {
    weights: Vec<Param>,
    biases: Vec<Param>,
}

impl LinearAdapter for Beside {
    fn forward(&self, x: &Tensor, linears: &[Linear], _: &Pass) -> Result<Vec<Tensor>> {
        let rows = x.reshape(&[x.shape().rows(), x.shape().last()])?;
        let ones = Tensor::full(x.device(), &[x.shape().rows(), 1], 1.0)?;
        let parts = linears.iter().zip(self.weights.iter().zip(&self.biases));
        let output = |(linear, (w, b)): (&Linear, (&Param, &Param))| {
            let y = x.linear(&linear.weight, linear.bias.as_ref())?;
            let beside = rows.matmul_nt(&w.tensor())?.add(&ones.matmul_nt(&b.tensor())?)?;
            y.add(&beside.reshape(y.dims())?)
        };
        parts.map(output).collect()
    }
    fn params(&self) -> Vec<Param> {
        self.weights.iter().chain(&self.biases).cloned().collect()
    }
}

/// Gradients of the mean loss: of the norms, of the linears at their sites, and of the embedding. Those of routers and
/// experts have no place where an adapter could join.
fn gradients(checks: &mut Checks<'_>, dir: &Path, device: &Device) -> Result<()> {
    let file = checks.file;
    let options = LoadOptions { dequantize: true, ..LoadOptions::default() };
    let (model, vectors) = Model::load_with_leaves(&ModelFiles::open(dir)?, device, options)?;
    let mut adapters = SiteAdapters::default();
    let mut params = Vec::new();
    for (number, site) in model.sites().iter().enumerate().filter(|(_, s)| s.kind != SiteKind::Mlp) {
        let wanted = |l: &crate::model::SiteLinear| {
            ["weight", "bias"].iter().any(|what| file.has(&format!("grad.{}.{what}", l.path)))
        };
        if !site.linears.iter().any(wanted) {
            continue;
        }
        let zeros = |path: String, dims: [usize; 2]| Param::new(path, Tensor::zeros(device, &dims)?, true);
        let weight = |l: &crate::model::SiteLinear| zeros(format!("{}.weight", l.path), [l.d_out, l.d_in]);
        let bias = |l: &crate::model::SiteLinear| zeros(format!("{}.bias", l.path), [l.d_out, 1]);
        let beside = Beside {
            weights: site.linears.iter().map(weight).collect::<Result<_>>()?,
            biases: site.linears.iter().map(bias).collect::<Result<_>>()?,
        };
        params.extend(beside.params());
        adapters.set(number, SiteAdapter::Linears(Arc::new(beside), Vec::new()));
    }
    let v = model.config().vocab_size;
    let d = model.config().hidden_size;
    let all = Sequences::read(file, v, device)?;
    let pass = all.pass()?.with_adapters(Arc::new(adapters));
    let x = no_grad(|| model.embed(&all.ids))?.leaf();
    let step = Step { valid: Some(&all.valid), ..Step::default() };
    let rows = model.forward(Input::Embeddings(&x), &pass, step)?;
    let rows = rows.reshape(&[all.lengths.len() * all.s, d])?;
    let loss = model.loss(&rows, &all.targets)?.scale(1.0 / all.trained() as f32)?;
    let gradients = loss.backward()?;
    for p in &params {
        let name = format!("grad.{}", p.name());
        if let Some(g) = p.gradient(&gradients).filter(|_| file.has(&name)) {
            let dims = file.dims(&name)?.to_vec();
            checks.relative(&name, &g.to_f64()?, &file.f32(&name, &dims)?)?;
        }
    }
    for (path, leaf) in &vectors {
        let name = format!("grad.{path}");
        if let Some(g) = gradients.get(leaf).filter(|_| file.has(&name)) {
            checks.relative(&name, &g.to_f64()?, &file.f32(&name, &[leaf.len()])?)?;
        }
    }
    let dx =
        gradients.get(&x).ok_or_else(|| Error::Tape("no gradient of the embeddings".into()))?.to_f64()?;
    let mut embedding = if model.config().tie_word_embeddings {
        head_gradient(&model, &rows.detach(), &all)?
    } else {
        vec![0.0; v * d]
    };
    let scale = model.config().embedding_scale as f64;
    for (id, dx) in all.ids.to_u32()?.iter().zip(dx.chunks(d)) {
        embedding[*id as usize * d..][..d].iter_mut().zip(dx).for_each(|(g, dx)| *g += scale * dx);
    }
    let name = "grad.model.embed_tokens.weight";
    checks.relative(name, &embedding, &file.f32(name, &[v, d])?)?;
    check_all(checks)
}

/// The gradient of the mean loss by the head's weights, in f64 from the hidden states.
fn head_gradient(model: &Model, rows: &Tensor, all: &Sequences) -> Result<Vec<f64>> {
    let c = model.config();
    let v = c.vocab_size;
    let d = c.hidden_size;
    let logits = no_grad(|| model.logits(rows))?.to_f64()?;
    let hidden = rows.to_f64()?;
    let mut gradient = vec![0.0; v * d];
    for (i, target) in all.targets.to_u32()?.into_iter().enumerate().filter(|(_, t)| *t != u32::MAX) {
        let row = &logits[i * v..(i + 1) * v];
        let top = row.iter().fold(f64::MIN, |m, &x| m.max(x));
        let total: f64 = row.iter().map(|x| (x - top).exp()).sum();
        for (id, &logit) in row.iter().enumerate() {
            let p = (logit - top).exp() / total - f64::from(u8::from(id as u32 == target));
            let slope = c.logit_softcap.map_or(1.0, |cap| 1.0 - (logit / cap as f64).powi(2));
            let dl = p * slope * c.logit_scale as f64 / all.trained() as f64;
            let h = &hidden[i * d..][..d];
            gradient[id * d..][..d].iter_mut().zip(h).for_each(|(g, h)| *g += dl * h);
        }
    }
    Ok(gradient)
}

/// Every stored gradient must have been compared, but those of experts.
fn check_all(checks: &Checks<'_>) -> Result<()> {
    let expert = |n: &str| n.contains("expert") || n.contains(".gate.weight");
    for name in checks.file.names().filter(|n| n.starts_with("grad.") && !expert(n)) {
        if !checks.errors.iter().any(|m| m.name == name) {
            return Err(Error::file(checks.file.path(), format!("'{name}' was not computed")));
        }
    }
    Ok(())
}
