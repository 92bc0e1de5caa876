//! Stored gradients of the tensors of a model, none of which is trained.

use super::{Checks, Sequences};
use crate::check::golden::beside::beside;
use crate::model::{Input, LoadOptions, Model, ModelFiles, Step, Weights};
use crate::{Device, Error, Result, Stream, Tensor, no_grad};
use std::path::Path;
use std::sync::Arc;

/// Gradients of the mean loss: of the norms, of the linears at their sites, of the embedding, and of routers and experts.
pub(super) fn check(checks: &mut Checks<'_>, dir: &Path, device: &Device) -> Result<()> {
    let file = checks.file;
    let options = &LoadOptions::from(Weights::F32);
    let (model, vectors) = Model::load_with_leaves(&ModelFiles::open(dir)?, device, options)?;
    let (adapters, params) = beside(file, device, model.sites(), "")?;
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
    if matches!(device, Device::Reference) {
        slopes(checks, dir, device)?;
    }
    check_all(checks, device)
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

/// Directions along which the loss is followed, for each weight.
const DIRECTIONS: u64 = 4;
/// How far, for a direction of length 1.
const STEP: f64 = 3e-4;

/// Whether a tensor is the gate of the expert that all tokens use: a frozen weight at no site, so that nothing can join it.
fn is_gate(name: &str) -> bool {
    name.ends_with("shared_expert_gate.weight")
}

/// Weights at no site have no gradient on the tape. The stored ones are compared with slopes of the loss along random
/// directions, which the reference alone can tell.
fn slopes(checks: &mut Checks<'_>, dir: &Path, device: &Device) -> Result<()> {
    let file = checks.file;
    let files = ModelFiles::open(dir)?;
    let all = Sequences::read(file, files.config().vocab_size, device)?;
    let names = file.names().filter_map(|name| name.strip_prefix("grad.")).filter(|name| is_gate(name));
    for name in names.map(String::from).collect::<Vec<_>>() {
        let weights = files.values(&name)?;
        let dims = file.dims(&format!("grad.{name}"))?.to_vec();
        let gradient = file.f32(&format!("grad.{name}"), &dims)?;
        if gradient.len() != weights.len() {
            let what = format!("grad.{name} has {} values, the tensor {}", gradient.len(), weights.len());
            return Err(Error::file(file.path(), what));
        }
        let squares = gradient.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>();
        let usual = (squares / gradient.len().max(1) as f64).sqrt().max(f64::MIN_POSITIVE);
        let mut worst = 0f64;
        for number in 0..DIRECTIONS {
            let drawn = Stream::new(number).named(&name).normal_vec(weights.len(), 1.0);
            let length = drawn.iter().map(|&value| f64::from(value).powi(2)).sum::<f64>().sqrt();
            let moved = |step: f64| -> Vec<f32> {
                let along = |(&weight, &along): (&f32, &f32)| {
                    (f64::from(weight) + step * f64::from(along) / length) as f32
                };
                weights.iter().zip(&drawn).map(along).collect()
            };
            let ends = [moved(STEP), moved(-STEP)];
            // Weights are f32: what they moved by is not quite the step.
            let steps = ends[0].iter().zip(&ends[1]).map(|(&up, &down)| f64::from(up) - f64::from(down));
            let want = steps.zip(&gradient).map(|(step, &slope)| step * f64::from(slope)).sum::<f64>();
            let mut losses = [0.0; 2];
            for (loss, values) in losses.iter_mut().zip(&ends) {
                let model = Model::load_changed(&files, device, &name, values)?;
                *loss = no_grad(|| all.mean_loss(&model))?;
            }
            worst = worst.max((losses[0] - losses[1] - want).abs() / (2.0 * STEP * usual));
        }
        checks.add(format!("grad.{name}"), worst);
    }
    Ok(())
}

/// Every stored gradient must have been compared; those of gates at no site are on the reference alone.
fn check_all(checks: &Checks<'_>, device: &Device) -> Result<()> {
    let here =
        |name: &&str| name.starts_with("grad.") && (matches!(device, Device::Reference) || !is_gate(name));
    for name in checks.file.names().filter(here) {
        if !checks.errors.iter().any(|measured| measured.name == name) {
            return Err(Error::file(checks.file.path(), format!("'{name}' was not computed")));
        }
    }
    Ok(())
}
