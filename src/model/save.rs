//! A decoder as a Hugging Face directory: config.json and safetensors, in several files where it is large.

use super::{Model, ModelConfig, RopeScaling};
use crate::atomic;
use crate::{Error, Format, Result, Weight};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes of one file at most, unless a single tensor is larger.
const SHARD_BYTES: usize = 4 << 30;

/// Changes the values `[rows, cols]` of a named matrix before they are written.
pub type Change<'a> = &'a dyn Fn(&str, &mut [f32]) -> Result<()>;

impl ModelConfig {
    /// As `config.json` has it.
    pub fn to_json(&self, format: Format) -> Value {
        // GGUF files of Mistral say llama; the window is Mistral's.
        let windowed = self.model_type == "llama" && self.sliding_window.is_some();
        let model_type = if windowed { "mistral" } else { self.model_type.as_str() };
        let class = match model_type {
            "mistral" => "MistralForCausalLM",
            "qwen2" => "Qwen2ForCausalLM",
            _ => "LlamaForCausalLM",
        };
        let mut json = json!({
            "architectures": [class], "model_type": model_type, "hidden_act": "silu",
            "hidden_size": self.hidden_size, "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers, "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads, "head_dim": self.head_dim,
            "vocab_size": self.vocab_size, "max_position_embeddings": self.max_position_embeddings,
            // The shortest text of the f32, not its digits in f64.
            "rms_norm_eps": self.rms_norm_eps.to_string().parse::<f64>().unwrap_or(1e-5),
            "rope_theta": self.rope_theta, "rope_scaling": self.scaling_json(),
            "tie_word_embeddings": self.tie_word_embeddings, "torch_dtype": dtype_name(format),
        });
        if model_type == "llama" {
            json["attention_bias"] = self.attention_bias.into();
            json["mlp_bias"] = self.mlp_bias.into();
        }
        if let Some(window) = self.sliding_window {
            json["sliding_window"] = window.into();
            if model_type == "qwen2" {
                json["use_sliding_window"] = true.into();
            }
        }
        json
    }

    /// Scaled frequencies as `config.json` has them. A table of factors that is not Llama 3's stands as it is, which
    /// no reader of `config.json` knows.
    fn scaling_json(&self) -> Value {
        let llama3 = match &self.rope_scaling {
            None => return Value::Null,
            Some(RopeScaling::Llama3(s)) => Some(*s),
            Some(RopeScaling::Factors(factors)) => self.llama3_of(factors),
        };
        match (llama3, &self.rope_scaling) {
            (Some(s), _) => json!({
                "rope_type": "llama3", "factor": s.factor, "low_freq_factor": s.low_freq_factor,
                "high_freq_factor": s.high_freq_factor,
                "original_max_position_embeddings": s.original_max_position_embeddings,
            }),
            (None, Some(RopeScaling::Factors(factors))) => {
                json!({ "rope_type": "factors", "factors": factors })
            }
            (None, _) => Value::Null,
        }
    }

    /// Refuses what `config.json` has no words for.
    fn check_writable(&self) -> Result<()> {
        if let Some(RopeScaling::Factors(factors)) = &self.rope_scaling
            && self.llama3_of(factors).is_none()
        {
            let what = "this GGUF file divides its frequencies by factors that are not those of rope_type llama3, and \
                        config.json has no other table; give the Hugging Face directory of this model";
            return Err(Error::config("rope_scaling", what));
        }
        Ok(())
    }
}

fn dtype_name(format: Format) -> &'static str {
    match format {
        Format::F16 => "float16",
        Format::Bf16 => "bfloat16",
        _ => "float32",
    }
}

/// The files written so far, and the tensors of the one that comes next.
struct Shards<'a> {
    dir: &'a Path,
    format: Format,
    open: Vec<(String, Vec<usize>, Vec<u8>)>,
    bytes: usize,
    files: usize,
    places: BTreeMap<String, usize>,
    total: usize,
}

impl Model {
    /// Writes the model's weights, changed on the way, and its configuration into an existing directory. Adapters are
    /// left out.
    ///
    /// # Errors
    /// The format is one of blocks, or the directory cannot be written.
    pub fn save(&self, dir: &Path, format: Format, change: Change<'_>) -> Result<()> {
        if !matches!(format, Format::F32 | Format::F16 | Format::Bf16) {
            return Err(Error::config(
                "dtype",
                format!("{} cannot be written; f32, f16, bf16 can", format.name()),
            ));
        }
        self.config.check_writable()?;
        let mut shards =
            Shards { dir, format, open: Vec::new(), bytes: 0, files: 0, places: BTreeMap::new(), total: 0 };
        let matrix = |shards: &mut Shards<'_>, name: String, w: &Weight| {
            let mut values = w.to_f32()?;
            change(&name, &mut values)?;
            shards.add(name, vec![w.rows(), w.cols()], &values)
        };
        matrix(&mut shards, "model.embed_tokens.weight".into(), &self.embed)?;
        for (i, layer) in self.layers.iter().enumerate() {
            for group in [&layer.qkv, &layer.o, &layer.mlp.gate_up, &layer.mlp.down] {
                let paths = group.site.into_iter().flat_map(|site| &self.sites[site].linears);
                for (place, linear) in paths.zip(&group.linears) {
                    matrix(&mut shards, format!("{}.weight", place.path), &linear.weight)?;
                    if let Some(bias) = &linear.bias {
                        shards.add(format!("{}.bias", place.path), bias.dims().to_vec(), &bias.to_f32()?)?;
                    }
                }
            }
            for (name, norm) in
                [("input_layernorm", &layer.input_norm), ("post_attention_layernorm", &layer.post_norm)]
            {
                let name = format!("model.layers.{i}.{name}.weight");
                shards.add(name, norm.dims().to_vec(), &norm.to_f32()?)?;
            }
        }
        shards.add("model.norm.weight".into(), self.norm.dims().to_vec(), &self.norm.to_f32()?)?;
        if !self.config.tie_word_embeddings {
            matrix(&mut shards, "lm_head.weight".into(), &self.head)?;
        }
        shards.finish()?;
        let config = format!("{:#}\n", self.config.to_json(format));
        atomic::write(&dir.join("config.json"), config.as_bytes())
    }
}

impl Shards<'_> {
    fn add(&mut self, name: String, dims: Vec<usize>, values: &[f32]) -> Result<()> {
        let bytes: Vec<u8> = match self.format {
            Format::F16 => values.iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect(),
            Format::Bf16 => values.iter().flat_map(|v| bf16::from_f32(*v).to_le_bytes()).collect(),
            _ => values.iter().flat_map(|v| v.to_le_bytes()).collect(),
        };
        if self.bytes > 0 && self.bytes + bytes.len() > SHARD_BYTES {
            self.flush()?;
        }
        self.bytes += bytes.len();
        self.total += bytes.len();
        self.places.insert(name.clone(), self.files);
        self.open.push((name, dims, bytes));
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        let bad =
            |e: safetensors::SafeTensorError| Error::file(self.dir, format!("cannot be serialised: {e}"));
        let dtype = match self.format {
            Format::F16 => Dtype::F16,
            Format::Bf16 => Dtype::BF16,
            _ => Dtype::F32,
        };
        let views = self
            .open
            .iter()
            .map(|(name, dims, bytes)| {
                Ok((name.as_str(), TensorView::new(dtype, dims.clone(), bytes).map_err(bad)?))
            })
            .collect::<Result<Vec<_>>>()?;
        let format = [("format".to_string(), "pt".to_string())];
        let file = safetensors::serialize(views, Some(format.into())).map_err(bad)?;
        atomic::write(&self.dir.join(part_name(self.files)), &file)?;
        (self.bytes, self.files) = (0, self.files + 1);
        self.open.clear();
        Ok(())
    }

    /// Writes the rest; a single file gets the usual name, several get an index.
    fn finish(&mut self) -> Result<()> {
        self.flush()?;
        let fail = |e: std::io::Error| Error::file(self.dir, format!("cannot be renamed: {e}"));
        let rename =
            |from: String, to: String| std::fs::rename(self.dir.join(from), self.dir.join(to)).map_err(fail);
        if self.files == 1 {
            return rename(part_name(0), "model.safetensors".into());
        }
        let last = |i: usize| format!("model-{:05}-of-{:05}.safetensors", i + 1, self.files);
        (0..self.files).try_for_each(|i| rename(part_name(i), last(i)))?;
        let map: BTreeMap<&String, String> = self.places.iter().map(|(n, i)| (n, last(*i))).collect();
        let index = json!({ "metadata": { "total_size": self.total }, "weight_map": map });
        atomic::write(&self.dir.join("model.safetensors.index.json"), format!("{index:#}\n").as_bytes())
    }
}

/// A file's name until the number of files is known.
fn part_name(i: usize) -> String {
    format!(".model-{i:05}.part")
}
