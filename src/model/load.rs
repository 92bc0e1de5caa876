//! Decoders from files: what is checked, and how the parts are put together.

use super::llama::Layer;
use super::positions::Positions;
use super::{Fingerprint, Llama, LlamaConfig, ModelFiles};
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

impl Llama {
    /// Reads a model: a `.gguf` file, or a directory with `config.json` and safetensors.
    ///
    /// Weights keep their storage format; `dequantize` turns them into f32.
    ///
    /// # Errors
    /// The path holds no supported model; the error names the file, the field or the tensor.
    pub fn open(path: &Path, device: &Device, dequantize: bool) -> Result<Self> {
        Self::load(&ModelFiles::open(path)?, device, LoadOptions { dequantize, ..LoadOptions::default() })
    }

    /// Builds a model from open files. Some rows of every matrix and all values of every vector are looked at; what
    /// is odd but no error is kept in [`notes`](Llama::notes).
    ///
    /// # Errors
    /// Tensors are missing or have other shapes than the configuration says, values are not finite, or the device
    /// refuses them.
    pub fn load(files: &ModelFiles, device: &Device, options: LoadOptions) -> Result<Self> {
        let notes = check(files, options)?;
        let source = Stored { files, device, dequantize: options.dequantize };
        let model = assemble(files.config().clone(), device, &source)?;
        Ok(Llama { notes, origin: files.path().to_path_buf(), fingerprint: Fingerprint::of(files)?, ..model })
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
pub(super) fn assemble(config: LlamaConfig, device: &Device, source: &impl Source) -> Result<Llama> {
    let mut layers = Vec::with_capacity(config.num_hidden_layers);
    for i in 0..config.num_hidden_layers {
        let name = |part: &str| format!("model.layers.{i}.{part}");
        let linear = |part: &str| -> Result<Linear> {
            let bias = if config.has_bias(part) {
                Some(source.vector(&name(&format!("{part}.bias")))?)
            } else {
                None
            };
            Ok(Linear { weight: source.weight(&name(&format!("{part}.weight")))?, bias })
        };
        let group = |parts: &[&str]| -> Result<LinearGroup> {
            Ok(LinearGroup::frozen(parts.iter().map(|p| linear(p)).collect::<Result<_>>()?))
        };
        layers.push(Arc::new(Layer {
            input_norm: source.vector(&name("input_layernorm.weight"))?,
            qkv: group(&["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"])?,
            o: group(&["self_attn.o_proj"])?,
            post_norm: source.vector(&name("post_attention_layernorm.weight"))?,
            mlp: Mlp {
                gate_up: group(&["mlp.gate_proj", "mlp.up_proj"])?,
                down: group(&["mlp.down_proj"])?,
                adapter: None,
            },
        }));
    }
    let embed = source.weight("model.embed_tokens.weight")?;
    let head = if config.tie_word_embeddings { embed.clone() } else { source.weight("lm_head.weight")? };
    let norm = source.vector("model.norm.weight")?;
    let positions = Positions::new(config.rope_frequencies(), config.max_positions());
    Ok(Llama {
        device: device.clone(),
        embed,
        layers,
        norm,
        head,
        positions,
        config,
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
