//! Adapters on disk, in the directory layout of Hugging Face PEFT.
//!
//! `adapter_config.json` and `adapter_model.safetensors`. A `lora` is PEFT's own format. Methods that PEFT does not
//! know have the type `MIXLORA_RS` and a `mixlora.json` with every option, so that no other loader takes half of
//! them; their tensors keep the names and shapes that they have here.

use super::{Adapter, check_targets};
use crate::io::{Checkpoint, Named, atomic, safetensors_bytes};
use crate::mixture::{MethodConfig, MethodSpec, find};
use crate::model::Llama;
use crate::{Error, Result, Stream};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Raised when the meaning of stored tensors or options changes.
const FORMAT_VERSION: u32 = 1;
const PREFIX: &str = "base_model.model.";

#[derive(Serialize, Deserialize)]
struct PeftConfig {
    peft_type: String,
    #[serde(default)]
    task_type: Option<String>,
    #[serde(default)]
    base_model_name_or_path: Option<String>,
    r: usize,
    lora_alpha: f32,
    #[serde(default)]
    lora_dropout: f32,
    target_modules: Targets,
    #[serde(default)]
    bias: Option<String>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(default)]
    use_dora: bool,
    #[serde(default)]
    fan_in_fan_out: bool,
    #[serde(default)]
    rank_pattern: serde_json::Map<String, serde_json::Value>,
    #[serde(default)]
    alpha_pattern: serde_json::Map<String, serde_json::Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Targets {
    Names(Vec<String>),
    One(String),
}

/// The part of `mixlora.json` that is read back.
#[derive(Serialize, Deserialize)]
struct MixloraConfig {
    format_version: u32,
    method: String,
    options: MethodConfig,
    target_modules: Vec<String>,
    base: Base,
}

/// What the base model must have for an adapter to fit.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
struct Base {
    model_type: String,
    hidden_size: usize,
    intermediate_size: usize,
    num_hidden_layers: usize,
    num_attention_heads: usize,
    num_key_value_heads: usize,
    vocab_size: usize,
}

impl Base {
    fn of(model: &Llama) -> Self {
        let c = model.config();
        Base {
            model_type: c.model_type.clone(),
            hidden_size: c.hidden_size,
            intermediate_size: c.intermediate_size,
            num_hidden_layers: c.num_hidden_layers,
            num_attention_heads: c.num_attention_heads,
            num_key_value_heads: c.num_key_value_heads,
            vocab_size: c.vocab_size,
        }
    }
}

/// Name of a part in the file, and whether the file keeps the transpose: PEFT's B is `[out, r]`.
fn stored_name(method: &MethodSpec, part: &str) -> (String, bool) {
    if method.name == "lora" {
        if let Some(path) = part.strip_suffix(".lora_a") {
            return (format!("{PREFIX}{path}.lora_A.weight"), false);
        }
        if let Some(path) = part.strip_suffix(".lora_b") {
            return (format!("{PREFIX}{path}.lora_B.weight"), true);
        }
    }
    (format!("{PREFIX}{part}"), false)
}

fn transpose(v: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| v[r * cols + c])).collect()
}

impl Adapter {
    /// Writes the adapter into a directory, which is created. Every file is written whole or not at all.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn save(&self, dir: &Path, model: &Llama, base_name: &str) -> Result<()> {
        std::fs::create_dir_all(dir).map_err(|e| Error::file(dir, format!("cannot be created: {e}")))?;
        let files = self.files(model, base_name)?;
        files.iter().try_for_each(|(name, bytes)| atomic::write(&dir.join(name), bytes))
    }

    /// The files of the adapter's directory, by name.
    pub fn files(&self, model: &Llama, base_name: &str) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        if self.method.name != "lora" {
            let own = MixloraConfig {
                format_version: FORMAT_VERSION,
                method: self.method.name.into(),
                options: self.config.clone(),
                target_modules: self.targets.clone(),
                base: Base::of(model),
            };
            files.push(("mixlora.json".into(), pretty(&own)?.into_bytes()));
        }
        let alpha = self.config.lora_alpha.unwrap_or(2.0 * self.config.r as f32);
        let peft = PeftConfig {
            peft_type: if self.method.name == "lora" { "LORA" } else { "MIXLORA_RS" }.into(),
            task_type: Some("CAUSAL_LM".into()),
            base_model_name_or_path: Some(base_name.into()),
            r: self.config.r,
            lora_alpha: alpha,
            lora_dropout: self.config.lora_dropout,
            target_modules: Targets::Names(self.targets.clone()),
            bias: Some("none".into()),
            use_rslora: false,
            use_dora: false,
            fan_in_fan_out: false,
            rank_pattern: Default::default(),
            alpha_pattern: Default::default(),
        };
        files.push(("adapter_config.json".into(), pretty(&peft)?.into_bytes()));
        files.push(("adapter_model.safetensors".into(), self.to_safetensors()?));
        Ok(files)
    }

    /// All tensors as a safetensors file. The bytes depend on the values alone.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let mut tensors = Vec::new();
        for p in self.params() {
            for (part, rows, values) in p.split(&p.value())? {
                let values: Vec<f32> = values.into_iter().map(|v| v as f32).collect();
                let cols = values.len() / rows.max(1);
                let (name, transposed) = stored_name(self.method, &part);
                tensors.push(match transposed {
                    true => Named { name, dims: vec![cols, rows], values: transpose(&values, rows, cols) },
                    false => Named { name, dims: vec![rows, cols], values },
                });
            }
        }
        safetensors_bytes(tensors)
    }

    /// Reads an adapter directory and puts it on a model: one of ours, or a PEFT LoRA.
    ///
    /// # Errors
    /// A file is missing or malformed, the adapter needs what is not supported, or it was made for another base
    /// model; the error names the file and the reason.
    pub fn load(dir: &Path, model: &mut Llama) -> Result<Self> {
        let dir = &super::locate(dir)?;
        let own = dir.join("mixlora.json");
        let (method, config, targets) = if own.exists() {
            let c: MixloraConfig = read_json(&own)?;
            if c.format_version > FORMAT_VERSION {
                let what = format!(
                    "format version {} is newer than this program ({FORMAT_VERSION})",
                    c.format_version
                );
                return Err(Error::file(&own, what));
            }
            let base = Base::of(model);
            if c.base != base {
                return Err(Error::file(
                    &own,
                    format!("was made for another base: {:?}, this is {base:?}", c.base),
                ));
            }
            (find(&c.method).map_err(|e| Error::file(&own, e.to_string()))?, c.options, c.target_modules)
        } else {
            let path = dir.join("adapter_config.json");
            let c: PeftConfig = read_json(&path)?;
            let (config, targets) = lora_options(&path, &c)?;
            (find("lora")?, config, targets)
        };
        let file = Checkpoint::open(dir.join("adapter_model.safetensors"))?;
        let adapter = Adapter::attach(model, method, &config, &targets, Stream::new(0))
            .map_err(|e| Error::file(dir, e.to_string()))?;
        adapter.fill(&file)?;
        Ok(adapter)
    }

    /// Puts the values of a file into the parameters.
    pub(crate) fn fill(&self, file: &Checkpoint) -> Result<()> {
        let mut used = 0;
        for p in self.params() {
            let value = p.value();
            let width = value.len() / p.parts().iter().map(|p| p.1).sum::<usize>().max(1);
            let mut parts = std::collections::HashMap::new();
            for (part, rows) in p.parts() {
                let (name, transposed) = stored_name(self.method, part);
                let v = match transposed {
                    true => transpose(&file.f32(&name, &[width, *rows])?, width, *rows),
                    false => file.f32(&name, &[*rows, width])?,
                };
                parts.insert(part.clone(), v);
                used += 1;
            }
            p.load(value.device(), |part| parts.get(part).cloned())?;
        }
        let extra = file.names().count().saturating_sub(used);
        match extra {
            0 => Ok(()),
            n => Err(Error::file(
                file.path(),
                format!("{n} tensors are for places that this adapter does not have"),
            )),
        }
    }
}

/// What a PEFT LoRA asks for; features that would change its output are refused.
fn lora_options(path: &Path, c: &PeftConfig) -> Result<(MethodConfig, Vec<String>)> {
    let no = |what: String| Err(Error::file(path, what));
    if c.peft_type != "LORA" {
        return no(format!("peft_type '{}' is not supported here; LORA is", c.peft_type));
    }
    if c.use_dora || c.fan_in_fan_out || !c.rank_pattern.is_empty() || !c.alpha_pattern.is_empty() {
        return no("uses DoRA, fan_in_fan_out, or ranks by pattern, which are not supported".into());
    }
    if c.bias.as_deref().is_some_and(|b| b != "none") {
        return no("trains biases, which is not supported".into());
    }
    let Targets::Names(targets) = &c.target_modules else {
        return no("target_modules is a pattern; a list of names is needed".into());
    };
    check_targets(targets).map_err(|e| Error::file(path, e.to_string()))?;
    // Rank-stabilised LoRA divides alpha by sqrt(r): the same as a larger alpha here.
    let alpha = if c.use_rslora { c.lora_alpha * (c.r as f32).sqrt() } else { c.lora_alpha };
    let config = MethodConfig {
        r: c.r,
        lora_alpha: Some(alpha),
        lora_dropout: c.lora_dropout,
        ..(find("lora")?.defaults)()
    };
    Ok((config, targets.clone()))
}

fn read_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T> {
    let text =
        std::fs::read_to_string(path).map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
    serde_json::from_str(&text).map_err(|e| Error::file(path, e.to_string()))
}

fn pretty<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|e| Error::config("adapter", e.to_string()))
}
