//! Decoders from files: what is checked, and how the parts are put together.

use super::decoder::Layer;
use super::positions::Positions;
use super::{Fingerprint, Model, ModelConfig, ModelFiles};
use crate::nn::{LinearGroup, Mlp};
use crate::{Device, Error, Linear, Result, Tensor, Weight};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of each matrix whose values are looked at when a model is loaded.
const SAMPLED_ROWS: usize = 16;
/// Names that a note lists at most.
const LISTED: usize = 5;

/// How a model is taken from its files.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// Weights become f32 instead of keeping their storage format.
    pub dequantize: bool,
    /// Weights with NaN or infinite values are taken as they are.
    pub allow_nonfinite: bool,
}

impl Model {
    /// Reads a model: a `.gguf` file, or a directory with `config.json` and safetensors.
    ///
    /// Weights keep their storage format; `dequantize` turns them into f32.
    ///
    /// # Errors
    /// The path holds no supported model; the error names the file, the field or the tensor.
    pub fn open(path: &Path, device: &Device, dequantize: bool) -> Result<Arc<Self>> {
        Self::load(&ModelFiles::open(path)?, device, LoadOptions { dequantize, ..LoadOptions::default() })
    }

    /// Builds a model from open files. Some rows of every matrix and all values of every vector are looked at; what
    /// is odd but no error is kept in [`notes`](Model::notes).
    ///
    /// # Errors
    /// Tensors are missing or have other shapes than the configuration says, values are not finite, or the device
    /// refuses them.
    pub fn load(files: &ModelFiles, device: &Device, options: LoadOptions) -> Result<Arc<Self>> {
        let notes = check(files, options)?;
        let source = Stored { files, device, dequantize: options.dequantize };
        let model = assemble(files.config().clone(), device, &source)?;
        let fingerprint = Fingerprint::of(files)?;
        Ok(Arc::new(Model { notes, origin: files.path().to_path_buf(), fingerprint, ..model }))
    }
}

/// Where the tensors of a model come from, by Hugging Face's names.
pub(super) trait Source {
    fn weight(&self, name: &str) -> Result<Weight>;
    fn vector(&self, name: &str) -> Result<Tensor>;
}

/// Tensors of files.
struct Stored<'a> {
    files: &'a ModelFiles,
    device: &'a Device,
    dequantize: bool,
}

impl Source for Stored<'_> {
    fn weight(&self, name: &str) -> Result<Weight> {
        self.files.weight(name, self.device, self.dequantize)
    }
    fn vector(&self, name: &str) -> Result<Tensor> {
        let values = self.files.values(name)?;
        Tensor::from_f32(self.device, &[values.len()], &values)
    }
}

/// Puts a decoder together; it has no origin yet.
pub(super) fn assemble(config: ModelConfig, device: &Device, source: &impl Source) -> Result<Model> {
    let sites = config.sites();
    let linear = |path: &str| -> Result<Linear> {
        let bias = config.has_bias(path).then(|| source.vector(&format!("{path}.bias"))).transpose()?;
        Ok(Linear { weight: source.weight(&format!("{path}.weight"))?, bias })
    };
    let group = |site: usize| -> Result<LinearGroup> {
        let linears = sites[site].linears.iter().map(|l| linear(&l.path)).collect::<Result<_>>()?;
        Ok(LinearGroup::at(site, linears))
    };
    let mut layers = Vec::with_capacity(config.num_hidden_layers);
    for i in 0..config.num_hidden_layers {
        let site = |name: &str| {
            let name = format!("layers.{i}.{name}");
            let at = sites.iter().position(|s| s.name == name);
            at.ok_or_else(|| Error::config("model", format!("has no site {name}")))
        };
        let name = |part: &str| format!("model.layers.{i}.{part}");
        layers.push(Arc::new(Layer {
            site: site("block")?,
            input_norm: source.vector(&name("input_layernorm.weight"))?,
            qkv: group(site("qkv")?)?,
            o: group(site("o")?)?,
            post_norm: source.vector(&name("post_attention_layernorm.weight"))?,
            mlp: Mlp {
                gate_up: group(site("gate_up")?)?,
                down: group(site("down")?)?,
                site: Some(site("mlp")?),
            },
        }));
    }
    let embed = source.weight("model.embed_tokens.weight")?;
    let head = if config.tie_word_embeddings { embed.clone() } else { source.weight("lm_head.weight")? };
    let norm = source.vector("model.norm.weight")?;
    let positions = Positions::new(config.rope_frequencies(), config.max_positions());
    Ok(Model {
        device: device.clone(),
        embed,
        layers,
        sites,
        norm,
        head,
        positions,
        config: Arc::new(config),
        notes: Vec::new(),
        origin: PathBuf::new(),
        fingerprint: Fingerprint::of_values(&[], &[]),
    })
}

/// Names, shapes and values; the notes for the user.
fn check(files: &ModelFiles, options: LoadOptions) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let extra = files.check()?;
    if !extra.is_empty() {
        let more = if extra.len() > LISTED { ", ..." } else { "" };
        let names = extra[..extra.len().min(LISTED)].join(", ");
        notes.push(format!("{} tensors of the model are not used: {names}{more}", extra.len()));
    }
    if let Some(index) = files.passed_over() {
        let name = index.file_name().unwrap_or_default().to_string_lossy();
        notes.push(format!("{name} is not used: model.safetensors is there, and counts"));
    }
    if let Some(window) = files.config().sliding_window {
        notes.push(format!(
            "the model has a sliding window: sequences of up to {window} positions can be used"
        ));
    }
    for e in files.expected() {
        let raw = files.raw(&e.name)?;
        let mut seen = raw.scan(Some(SAMPLED_ROWS))?;
        if seen.nonfinite.is_none() && seen.largest < f32::MIN_POSITIVE {
            // Few rows cannot tell.
            seen = raw.scan(None)?;
        }
        let Some(remark) = seen.remark() else { continue };
        let text = format!("tensor '{}': {remark}", files.stored_name(&e.name));
        match seen.nonfinite {
            Some(_) if !options.allow_nonfinite => {
                let what = format!(
                    "{text}; the file is damaged or was badly converted (--allow-nonfinite takes it as it is)"
                );
                return Err(Error::file(files.path(), what));
            }
            // A bias of zeros is nothing special.
            None if e.name.ends_with(".bias") => {}
            _ => notes.push(text),
        }
    }
    Ok(notes)
}
