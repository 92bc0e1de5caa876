//! A whole model: rows of its pictures, logits, the loss with the projector's gradients, greedy text, and a grey picture.

use super::training;
use super::{Compare, MODEL, Replay, bounded};
use crate::data::Example;
use crate::io::{Checkpoint, GgufFile, cannot_read};
use crate::model::vision::{VisionFiles, VisionModel};
use crate::model::{Input, KvCache, LoadOptions, Model, Step, Weights};
use crate::nn::Pass;
use crate::routing::Units;
use crate::{Device, Error, Result, Tensor, no_grad};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const VALUES: f64 = 1e-5;
const GRADIENTS: f64 = 2e-5;
/// The vision part in a file of llama.cpp, beside a folder's own, and the rows that it makes.
const MMPROJ: &str = "mmproj.gguf";
const MMPROJ_ROWS: &str = "mmproj_expected.safetensors";

/// The stored batch.
pub(super) struct Samples {
    pub ids: Vec<u32>,
    labels: Vec<i64>,
    mask: Vec<u32>,
    pub prompts: Vec<usize>,
    tiles: Vec<usize>,
    pub dims: [usize; 2],
}

impl Samples {
    fn read(file: &Checkpoint, vocab: usize) -> Result<Self> {
        let [b, s] = file.dims("input_ids")?[..] else {
            return Err(Error::file(file.path(), "'input_ids' is not [B, S]"));
        };
        let sizes = |name: &str, most: usize| -> Result<Vec<usize>> {
            Ok(file.indices(name, &[b], most + 1)?.into_iter().map(|n| n as usize).collect())
        };
        let tiles = file.dims("pixel_values")?.first().copied().unwrap_or(0);
        Ok(Samples {
            ids: file.indices("input_ids", &[b, s], vocab)?,
            labels: file.integers("labels", &[b, s])?,
            mask: file.indices("attention_mask", &[b, s], 2)?,
            prompts: sizes("prompt_length", s)?,
            tiles: sizes("tiles", tiles)?,
            dims: [b, s],
        })
    }

    /// Tokens of a sample.
    #[cfg(all(feature = "images", feature = "tokenizer"))]
    pub fn length(&self, sample: usize) -> usize {
        self.mask[sample * self.dims[1]..][..self.dims[1]].iter().filter(|&&real| real == 1).count()
    }

    /// A sample without its padding.
    pub fn example(&self, sample: usize) -> Example {
        let s = self.dims[1];
        let n = (sample * s..(sample + 1) * s).filter(|&i| self.mask[i] == 1).count();
        let of_sample = sample * s..sample * s + n;
        let trained = self.labels[of_sample.clone()].iter().map(|&label| label >= 0).collect();
        Example { prompt: n, ..Example::new(self.ids[of_sample].to_vec(), trained) }
    }
    /// The token behind the ends of shorter samples.
    pub fn pad(&self) -> u32 {
        self.mask.iter().position(|&real| real == 0).map_or(0, |at| self.ids[at])
    }
    /// The numbers of a sample's tiles.
    pub fn tiles_of(&self, sample: usize) -> std::ops::Range<usize> {
        let first = self.tiles[..sample].iter().sum();
        first..first + self.tiles[sample]
    }

    /// The tokens that each position is to be continued with; `u32::MAX` without a loss.
    fn targets(&self) -> Vec<u32> {
        let s = self.dims[1];
        let next = |i: usize| if i % s + 1 < s { u32::try_from(self.labels[i + 1]).ok() } else { None };
        (0..self.ids.len()).map(|i| next(i).unwrap_or(u32::MAX)).collect()
    }
}

pub(super) fn replay(file: &Checkpoint, device: &Device) -> Result<Replay> {
    let dir = file.path().parent().unwrap_or(Path::new("."));
    let options = &LoadOptions::from(Weights::F32);
    let model = Model::open_f32(dir, device)?;
    let Some(vision) = VisionModel::open(dir, &model, options, true)? else {
        return Err(Error::file(dir, "its config.json describes no model that sees"));
    };
    let samples = Samples::read(file, model.config().vocab_size)?;
    let dims = file.dims("pixel_values")?.to_vec();
    bounded(file, "pictures", &dims)?;
    let pixels = Tensor::from_f32(device, &dims, &file.f32("pixel_values", &dims)?)?;
    let mut compare = Compare::new(file);
    let [b, s] = samples.dims;

    let pass = Pass::new(Units::instances(device, b, s)?);
    let rows = vision.rows(&pixels, &pass)?;
    compare.within("image_features", &rows.to_f64()?, VALUES)?;
    let x = vision.splice(&model, &samples.ids, [b, s], Some(&rows))?;
    let valid = Tensor::from_u32(device, &[b, s], &samples.mask)?;
    let step = Step { valid: Some(&valid), ..Step::default() };
    let hidden = model.forward(Input::Embeddings(&x), &pass, step)?;
    let hidden = hidden.reshape(&[b * s, model.config().hidden_size])?;
    let logits = no_grad(|| model.logits(&hidden.detach()))?.to_f64()?;
    let v = model.config().vocab_size;
    let shown = |(i, &logit): (usize, &f64)| if samples.mask[i / v] == 0 { 0.0 } else { logit };
    let logits: Vec<f64> = logits.iter().enumerate().map(shown).collect();
    compare.within("logits", &logits, VALUES)?;

    let targets = samples.targets();
    let trained = targets.iter().filter(|&&id| id != u32::MAX).count();
    let targets = Tensor::from_u32(device, &[b * s], &targets)?;
    let loss = model.loss(&hidden, &targets)?.scale(1.0 / trained.max(1) as f32)?;
    compare.measure("loss", &[file.f64("loss", &[1])?[0] as f32], &[loss.item()?], 0.0, VALUES);
    let gradients = loss.backward()?;
    for param in vision.projector().params() {
        let Some(gradient) = param.gradient(&gradients) else { continue };
        let ending = format!(".{}", param.name());
        let stored = file.names().find(|name| name.starts_with("grad.") && name.ends_with(&ending));
        let stored =
            stored.ok_or_else(|| Error::file(file.path(), format!("has no gradient of {}", param.name())))?;
        compare.within(stored, &gradient.to_f64()?, GRADIENTS)?;
    }

    let greedy = Greedy { model: &model, vision: &vision, samples: &samples, pixels: &pixels };
    let mut same = no_grad(|| greedy.check(&mut compare))?;
    #[cfg(all(feature = "images", feature = "tokenizer"))]
    if let Some(what) = super::texts::differences(file, dir, &model, &samples)?.first() {
        return Err(Error::file(file.path(), format!("what the model reads differs: {what}")));
    }
    if dir.join(MMPROJ).is_file() && dir.join(MMPROJ_ROWS).is_file() {
        mmproj(&mut compare, dir, &vision, &pixels)?;
    }
    let training = trajectories(dir)?;
    let vision = Arc::new(vision);
    let features = no_grad(|| vision.tower().forward(&pixels, &Pass::new(Units::tokens(0)), None))?;
    let params = vision.projector().params();
    let first: Vec<Tensor> = params.iter().map(|param| param.value()).collect();
    for path in training {
        same &=
            training::replay(&mut compare, &Checkpoint::open(path)?, &model, &vision, &samples, &features)?;
        params.iter().zip(&first).try_for_each(|(param, value)| param.set(value.clone()))?;
    }
    compare.finish(MODEL, same)
}

/// The files of training beside a model, in order.
fn trajectories(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(dir).map_err(cannot_read(dir))?;
    let mut paths: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    let name =
        |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("train_"));
    paths.retain(name);
    paths.sort();
    Ok(paths)
}

/// Text that continues each prompt.
struct Greedy<'a> {
    model: &'a Arc<Model>,
    vision: &'a VisionModel,
    samples: &'a Samples,
    pixels: &'a Tensor,
}

impl Greedy<'_> {
    /// The pictures of a sample, or none; all of them grey where `grey`.
    fn rows(&self, sample: usize, grey: bool) -> Result<Option<Tensor>> {
        let count = self.samples.tiles[sample];
        if count == 0 {
            return Ok(None);
        }
        let first = self.samples.tiles_of(sample).start;
        let each: usize = self.pixels.dims()[1..].iter().product();
        let index: Vec<u32> = (first as u32..(first + count) as u32).collect();
        let index = Tensor::from_u32(self.pixels.device(), &[count], &index)?;
        let pixels = self.pixels.reshape(&[self.pixels.dims()[0], each])?.gather_rows(&index)?;
        let pixels = pixels.scale(if grey { 0.0 } else { 1.0 })?;
        let pixels = pixels.reshape(&[&[count], &self.pixels.dims()[1..]].concat())?;
        self.vision.rows(&pixels, &Pass::new(Units::tokens(0))).map(Some)
    }

    /// The last logits of more tokens.
    fn step(&self, ids: &[u32], rows: Option<&Tensor>, cache: &mut KvCache) -> Result<Vec<f64>> {
        let x = self.vision.splice(self.model, ids, [1, ids.len()], rows)?;
        let pass = Pass::new(Units::instances(self.model.device(), 1, ids.len())?);
        let step = Step { cache: Some(cache), ..Step::default() };
        let hidden = self.model.forward(Input::Embeddings(&x), &pass, step)?;
        let d = self.model.config().hidden_size;
        let last = Tensor::from_u32(self.model.device(), &[1], &[ids.len() as u32 - 1])?;
        self.model.logits(&hidden.reshape(&[ids.len(), d])?.gather_rows(&last)?)?.to_f64()
    }

    /// Whether every token of every continuation is the stored one. The first sample with pictures also has logits, and
    /// logits of grey in place of its pictures.
    fn check(&self, compare: &mut Compare<'_>) -> Result<bool> {
        let [b, s] = self.samples.dims;
        let n = compare.file.dims("continuation")?.last().copied().unwrap_or(0);
        let wanted = compare.file.indices("continuation", &[b, n], self.model.config().vocab_size)?;
        let shown = (0..b).find(|&sample| self.samples.tiles[sample] > 0);
        let mut same = true;
        for sample in 0..b {
            let prompt = &self.samples.ids[sample * s..][..self.samples.prompts[sample]];
            if prompt.is_empty() {
                return Err(Error::file(compare.file.path(), "a prompt is empty"));
            }
            let rows = self.rows(sample, false)?;
            let mut cache = KvCache::default();
            let mut logits = self.step(prompt, rows.as_ref(), &mut cache)?;
            if shown == Some(sample) {
                compare.within("first_logits", &logits, VALUES)?;
                let grey = self.rows(sample, true)?;
                let mut cache = KvCache::default();
                let grey = self.step(prompt, grey.as_ref(), &mut cache)?;
                compare.within("first_logits_grey", &grey, VALUES)?;
            }
            for &want in &wanted[sample * n..][..n] {
                let best = logits.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1).then(b.0.cmp(&a.0)));
                same &= best.is_some_and(|(id, _)| id as u32 == want);
                // The stored token goes in, so that one difference does not lead to others.
                logits = self.step(&[want], None, &mut cache)?;
            }
        }
        Ok(same)
    }
}

/// The same pictures through the vision part of a GGUF file.
fn mmproj(compare: &mut Compare<'_>, dir: &Path, vision: &VisionModel, pixels: &Tensor) -> Result<()> {
    let file = GgufFile::open(dir.join(MMPROJ))?;
    let (files, config) = VisionFiles::open_gguf(file, vision.config().image_token)?;
    let options = &LoadOptions::from(Weights::F32);
    let vision = VisionModel::load(config, &files, pixels.device(), options, false)?;
    let rows = no_grad(|| vision.rows(pixels, &Pass::new(Units::tokens(0))))?;
    let want = Checkpoint::open(dir.join(MMPROJ_ROWS))?.values_f32("image_features")?;
    compare.measure("mmproj image_features", &want, &rows.to_f64()?, 0.0, VALUES);
    Ok(())
}
