//! Decoders from files: a GGUF file, or a Hugging Face directory of safetensors.

use super::llama::Layer;
use super::{Llama, LlamaConfig, RopeScaling};
use crate::io::{Checkpoint, GgufFile};
use crate::nn::{LinearGroup, Mlp};
use crate::ops::rope::Rope;
use crate::{Device, Error, Format, Linear, Result, Tensor, Weight};
use serde::Deserialize;
use std::path::Path;
use std::sync::Arc;

use super::config::SUPPORTED;

/// Where a decoder's tensors come from, by the names of Hugging Face.
trait Source {
    fn path(&self) -> &Path;
    fn config(&self) -> &LlamaConfig;
    fn has(&self, name: &str) -> bool;
    /// A matrix with its rows in Hugging Face's order.
    fn weight(&self, name: &str, device: &Device) -> Result<Weight>;
    fn values(&self, name: &str) -> Result<Vec<f32>>;
}

/// The configuration of a model: a `.gguf` file, or a directory with `config.json`. Weights are not looked at.
///
/// # Errors
/// The path holds no supported model.
pub fn model_config(path: &Path) -> Result<LlamaConfig> {
    match path.is_dir() {
        true => hf_config(path),
        false => gguf_config(&GgufFile::open(path)?),
    }
}

impl Llama {
    /// Reads a model: a `.gguf` file, or a directory with `config.json` and safetensors.
    ///
    /// Weights keep their storage format; `dequantize` turns them into f32.
    ///
    /// # Errors
    /// The path holds no supported model; the error names the file, the field or the tensor.
    pub fn open(path: &Path, device: &Device, dequantize: bool) -> Result<Self> {
        match path.is_dir() {
            true => Self::build(&HfSource::open(path)?, device, dequantize),
            false => Self::from_gguf(&GgufFile::open(path)?, device, dequantize),
        }
    }

    /// Builds a model from an open GGUF file.
    pub fn from_gguf(file: &GgufFile, device: &Device, dequantize: bool) -> Result<Self> {
        Self::build(&GgufSource { config: gguf_config(file)?, file }, device, dequantize)
    }

    fn build(source: &dyn Source, device: &Device, dequantize: bool) -> Result<Self> {
        let config = source.config().clone();
        let c = &config;
        let (d, hd) = (c.hidden_size, c.head_dim);
        let wrong = |name: &str, what: String| Error::file(source.path(), format!("tensor '{name}': {what}"));
        let weight = |name: &str, rows: usize, cols: usize| -> Result<Weight> {
            let w = source.weight(name, device)?;
            if (w.rows(), w.cols()) != (rows, cols) {
                let got =
                    format!("[{}, {}], expected [{rows}, {cols}] by the configuration", w.rows(), w.cols());
                return Err(wrong(name, got));
            }
            if dequantize && w.format() != Format::F32 { w.with_format(Format::F32) } else { Ok(w) }
        };
        let vector = |name: &str, n: usize| -> Result<Tensor> {
            let v = source.values(name)?;
            if v.len() != n {
                return Err(wrong(name, format!("{} values, expected {n} by the configuration", v.len())));
            }
            Tensor::from_f32(device, &[n], &v)
        };
        let linear = |i: usize, name: &str, rows: usize, cols: usize| -> Result<Linear> {
            let base = format!("model.layers.{i}.{name}");
            let bias = format!("{base}.bias");
            let bias = if source.has(&bias) { Some(vector(&bias, rows)?) } else { None };
            Ok(Linear { weight: weight(&format!("{base}.weight"), rows, cols)?, bias })
        };
        let group = LinearGroup::frozen;
        let (q, kv, f) = (c.num_attention_heads * hd, c.num_key_value_heads * hd, c.intermediate_size);
        let mut layers = Vec::with_capacity(c.num_hidden_layers);
        for i in 0..c.num_hidden_layers {
            layers.push(Arc::new(Layer {
                input_norm: vector(&format!("model.layers.{i}.input_layernorm.weight"), d)?,
                qkv: group(vec![
                    linear(i, "self_attn.q_proj", q, d)?,
                    linear(i, "self_attn.k_proj", kv, d)?,
                    linear(i, "self_attn.v_proj", kv, d)?,
                ]),
                o: group(vec![linear(i, "self_attn.o_proj", d, q)?]),
                post_norm: vector(&format!("model.layers.{i}.post_attention_layernorm.weight"), d)?,
                mlp: Mlp {
                    gate_up: group(vec![linear(i, "mlp.gate_proj", f, d)?, linear(i, "mlp.up_proj", f, d)?]),
                    down: group(vec![linear(i, "mlp.down_proj", d, f)?]),
                    adapter: None,
                },
            }));
        }
        let embed = weight("model.embed_tokens.weight", c.vocab_size, d)?;
        let head = match c.tie_word_embeddings {
            true => embed.clone(),
            false => weight("lm_head.weight", c.vocab_size, d)?,
        };
        let norm = vector("model.norm.weight", d)?;
        let rope = Rope::from_frequencies(device, &c.rope_frequencies(), c.max_position_embeddings)?;
        Ok(Llama { device: device.clone(), embed, layers, norm, head, rope, config })
    }
}

struct GgufSource<'a> {
    file: &'a GgufFile,
    config: LlamaConfig,
}

fn gguf_config(file: &GgufFile) -> Result<LlamaConfig> {
    let arch = file.str("general.architecture")?.to_string();
    if !SUPPORTED.contains(&arch.as_str()) {
        let what = format!("architecture '{arch}' is not supported; supported are {}", SUPPORTED.join(", "));
        return Err(Error::file(file.path(), what));
    }
    let key = |name: &str| format!("{arch}.{name}");
    let size = |name: &str| file.u32(&key(name)).map(|v| v as usize);
    let heads = size("attention.head_count")?;
    let hidden_size = size("embedding_length")?;
    let head_dim = match file.u32(&key("attention.key_length")) {
        Ok(n) => n as usize,
        Err(_) => file.u32(&key("rope.dimension_count")).map_or(hidden_size / heads.max(1), |n| n as usize),
    };
    let vocab_size = file.tensor("token_embd.weight")?.rows();
    LlamaConfig {
        hidden_size,
        intermediate_size: size("feed_forward_length")?,
        num_hidden_layers: size("block_count")?,
        num_attention_heads: heads,
        num_key_value_heads: size("attention.head_count_kv").unwrap_or(heads),
        head_dim,
        vocab_size,
        max_position_embeddings: size("context_length")?,
        rms_norm_eps: file.f32(&key("attention.layer_norm_rms_epsilon"))?,
        rope_theta: file.f32(&key("rope.freq_base")).unwrap_or(10_000.0) as f64,
        // GGUF files of scaled models carry factors per frequency instead.
        rope_scaling: None,
        tie_word_embeddings: !file.tensors().contains_key("output.weight"),
        attention_bias: file.tensors().contains_key("blk.0.attn_q.bias"),
        model_type: arch,
    }
    .check()
    .map_err(|e| Error::file(file.path(), e.to_string()))
}

/// The name that llama.cpp gives a tensor.
pub(crate) fn gguf_name(name: &str) -> String {
    let fixed = match name {
        "model.embed_tokens.weight" => Some("token_embd.weight"),
        "model.norm.weight" => Some("output_norm.weight"),
        "lm_head.weight" => Some("output.weight"),
        _ => None,
    };
    if let Some(fixed) = fixed {
        return fixed.into();
    }
    let mut out = name.replacen("model.layers.", "blk.", 1);
    for (from, to) in [
        ("self_attn.q_proj", "attn_q"),
        ("self_attn.k_proj", "attn_k"),
        ("self_attn.v_proj", "attn_v"),
        ("self_attn.o_proj", "attn_output"),
        ("mlp.gate_proj", "ffn_gate"),
        ("mlp.up_proj", "ffn_up"),
        ("mlp.down_proj", "ffn_down"),
        ("input_layernorm", "attn_norm"),
        ("post_attention_layernorm", "ffn_norm"),
    ] {
        out = out.replace(from, to);
    }
    out
}

/// Whether the rows of a tensor stand in another order in GGUF files: llama.cpp interleaves the halves of each q and
/// k head of the llama architecture; Hugging Face's order has the first halves of all pairs, then the second ones.
fn permuted(config: &LlamaConfig, name: &str) -> bool {
    (name.contains("q_proj") || name.contains("k_proj")) && config.model_type == "llama"
}

/// Hugging Face's row that stands at row `at` of a GGUF file's tensor.
pub(crate) fn gguf_row(config: &LlamaConfig, name: &str, at: usize) -> usize {
    if !permuted(config, name) {
        return at;
    }
    let (hd, half) = (config.head_dim, config.head_dim / 2);
    let (head, i, s) = (at / hd, at % hd / 2, at % 2);
    head * hd + s * half + i
}

impl Source for GgufSource<'_> {
    fn path(&self) -> &Path {
        self.file.path()
    }
    fn config(&self) -> &LlamaConfig {
        &self.config
    }
    fn has(&self, name: &str) -> bool {
        self.file.tensors().contains_key(&gguf_name(name))
    }
    fn weight(&self, name: &str, device: &Device) -> Result<Weight> {
        if permuted(&self.config, name) {
            let (hd, half) = (self.config.head_dim, self.config.head_dim / 2);
            return self.file.weight_rows(&gguf_name(name), device, |row| {
                let (head, s, i) = (row / hd, row % hd / half, row % half);
                head * hd + 2 * i + s
            });
        }
        self.file.weight(&gguf_name(name), device)
    }
    fn values(&self, name: &str) -> Result<Vec<f32>> {
        self.file.values_f32(&gguf_name(name))
    }
}

struct HfSource {
    checkpoint: Checkpoint,
    config: LlamaConfig,
}

/// The fields of `config.json` that matter; names as there.
#[derive(Deserialize)]
struct HfConfig {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: Option<usize>,
    head_dim: Option<usize>,
    vocab_size: usize,
    max_position_embeddings: usize,
    rms_norm_eps: f32,
    rope_theta: Option<f64>,
    rope_scaling: Option<serde_json::Value>,
    #[serde(default)]
    tie_word_embeddings: bool,
    attention_bias: Option<bool>,
}

fn hf_config(dir: &Path) -> Result<LlamaConfig> {
    let path = dir.join("config.json");
    let text =
        std::fs::read_to_string(&path).map_err(|e| Error::file(&path, format!("cannot be read: {e}")))?;
    let c: HfConfig = serde_json::from_str(&text).map_err(|e| Error::file(&path, e.to_string()))?;
    if !SUPPORTED.contains(&c.model_type.as_str()) {
        let what =
            format!("model_type '{}' is not supported; supported are {}", c.model_type, SUPPORTED.join(", "));
        return Err(Error::file(&path, what));
    }
    LlamaConfig {
        hidden_size: c.hidden_size,
        intermediate_size: c.intermediate_size,
        num_hidden_layers: c.num_hidden_layers,
        num_attention_heads: c.num_attention_heads,
        num_key_value_heads: c.num_key_value_heads.unwrap_or(c.num_attention_heads),
        head_dim: c.head_dim.unwrap_or(c.hidden_size / c.num_attention_heads.max(1)),
        vocab_size: c.vocab_size,
        max_position_embeddings: c.max_position_embeddings,
        rms_norm_eps: c.rms_norm_eps,
        rope_theta: c.rope_theta.unwrap_or(10_000.0),
        rope_scaling: rope_scaling(&path, c.rope_scaling)?,
        tie_word_embeddings: c.tie_word_embeddings,
        attention_bias: c.attention_bias.unwrap_or(c.model_type == "qwen2"),
        model_type: c.model_type,
    }
    .check()
    .map_err(|e| Error::file(&path, e.to_string()))
}

impl HfSource {
    fn open(dir: &Path) -> Result<Self> {
        let config = hf_config(dir)?;
        Ok(HfSource { checkpoint: Checkpoint::open(dir)?, config })
    }
}

/// Llama 3's scaling, or none; other kinds are refused, since ignoring them would change the model.
fn rope_scaling(path: &Path, value: Option<serde_json::Value>) -> Result<Option<RopeScaling>> {
    let Some(value) = value.filter(|v| !v.is_null()) else { return Ok(None) };
    let kind = value.get("rope_type").or(value.get("type")).and_then(|v| v.as_str()).unwrap_or("");
    match kind {
        "default" => Ok(None),
        "llama3" => serde_json::from_value(value)
            .map(Some)
            .map_err(|e| Error::file(path, format!("rope_scaling: {e}"))),
        other => Err(Error::file(path, format!("rope_scaling of type '{other}' is not supported"))),
    }
}

impl Source for HfSource {
    fn path(&self) -> &Path {
        self.checkpoint.path()
    }
    fn config(&self) -> &LlamaConfig {
        &self.config
    }
    fn has(&self, name: &str) -> bool {
        self.checkpoint.has(name)
    }
    fn weight(&self, name: &str, device: &Device) -> Result<Weight> {
        self.checkpoint.weight(name, device)
    }
    fn values(&self, name: &str) -> Result<Vec<f32>> {
        self.checkpoint.values_f32(name)
    }
}
