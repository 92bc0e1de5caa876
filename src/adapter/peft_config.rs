//! `adapter_config.json` of Hugging Face PEFT: what is read, what is refused, what is written.

use super::resolve_targets;
use crate::io::read_json;
use crate::mixture::{Method, MethodSpec, Tree};
use crate::model::ModelConfig;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::path::Path;

#[derive(Deserialize)]
pub(super) struct PeftConfig {
    pub peft_type: String,
    pub r: usize,
    pub lora_alpha: f32,
    #[serde(default)]
    pub lora_dropout: f32,
    target_modules: Option<Targets>,
    bias: Option<String>,
    #[serde(default)]
    use_rslora: bool,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Targets {
    Names(Vec<String>),
    Pattern(String),
}

/// Fields whose values change nothing in what a trained LoRA computes.
const HARMLESS: [&str; 9] = [
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
];

/// Settings of ways to start: a trained LoRA does not need them, whichever way it was.
const START_SETTINGS: [&str; 4] = ["corda_config", "eva_config", "loftq_config", "lora_ga_config"];

/// What is behind the fields that people meet.
const MEANINGS: [(&str, &str); 10] = [
    (
        START,
        "a start that changes the base model; PiSSA, OLoRA and CorDA become plain LoRAs when they are saved with \
         path_initial_model_for_weight_conversion",
    ),
    ("use_dora", "DoRA"),
    ("modules_to_save", "modules trained as a whole"),
    ("layers_to_transform", "a LoRA on some layers only"),
    ("rank_pattern", "ranks by place"),
    ("alpha_pattern", "scales by place"),
    ("fan_in_fan_out", "transposed base weights"),
    ("lora_bias", "biases of B"),
    ("target_parameters", "a LoRA on parameters instead of modules"),
    ("trainable_token_indices", "trained embeddings"),
];

/// The field that says how a LoRA was started.
const START: &str = "init_lora_weights";
/// Ways to start a LoRA that leave the base model as it is. Others (pissa, olora, corda, loftq, lora_ga) change it.
const PLAIN_STARTS: [&str; 3] = ["gaussian", "eva", "orthogonal"];

impl PeftConfig {
    /// Reads the configuration of a LoRA.
    ///
    /// # Errors
    /// A field is missing or of another type; the error names the file.
    pub fn of(path: &Path, any: Value) -> Result<Self> {
        serde_path_to_error::deserialize(any).map_err(|error| {
            let place = error.path().to_string();
            let place = if place == "." { String::new() } else { format!("at '{place}': ") };
            Error::file(path, format!("{place}{}", error.into_inner()))
        })
    }

    /// What a PEFT LoRA asks for; everything that would change its output and is not computed here is refused at once.
    pub fn lora_options(
        &self,
        path: &Path,
        lora: &'static MethodSpec,
        model: &ModelConfig,
    ) -> Result<(Method, Vec<String>)> {
        let no = |what: String| Err(Error::file(path, what));
        if self.peft_type != "LORA" {
            return no(format!("peft_type '{}' is not supported here; LORA is", self.peft_type));
        }
        let refused = self.refused();
        if !refused.is_empty() {
            return no(format!("asks for what is not computed here: {}", refused.join(", ")));
        }
        let targets = match &self.target_modules {
            Some(Targets::Names(names)) => names.iter().map(|n| projection(n)).collect::<Vec<String>>(),
            Some(Targets::Pattern(p)) => {
                return no(format!(
                    "target_modules is the pattern '{p}'; a list of names is needed, of {}",
                    model.target_modules().join(", ")
                ));
            }
            None => return no("target_modules is missing".into()),
        };
        let targets =
            resolve_targets(&targets, model).map_err(|error| Error::file(path, error.to_string()))?;
        // Rank-stabilised LoRA divides alpha by sqrt(r): the same as a larger alpha here.
        let alpha = if self.use_rslora { self.lora_alpha * (self.r as f32).sqrt() } else { self.lora_alpha };
        let options = self.with_alpha(alpha);
        let method = lora.defaults().set(&options).map_err(|error| Error::file(path, error.to_string()))?;
        Ok((method, targets))
    }

    /// Rank, dropout and an alpha, as options.
    pub fn with_alpha(&self, alpha: f32) -> Tree {
        let options =
            [("r", self.r.into()), ("lora_alpha", alpha.into()), ("lora_dropout", self.lora_dropout.into())];
        options.map(|(name, value): (&str, Value)| (name.to_string(), value)).into_iter().collect()
    }

    /// Every field that asks for something else than a plain LoRA.
    fn refused(&self) -> Vec<String> {
        let mut refused: Vec<String> = Vec::new();
        if let Some(bias) = self.bias.as_deref().filter(|b| *b != "none") {
            refused.push(format!("bias = \"{bias}\" (trained biases)"));
        }
        for (key, value) in &self.rest {
            let nothing = match value {
                Value::Null | Value::Bool(false) => true,
                Value::Array(a) => a.is_empty(),
                Value::Object(o) => o.is_empty(),
                Value::String(s) if key == START => PLAIN_STARTS.contains(&s.to_lowercase().as_str()),
                Value::Bool(true) => key == START,
                _ => false,
            };
            let harmless = HARMLESS.contains(&key.as_str()) || START_SETTINGS.contains(&key.as_str());
            if !nothing && !harmless {
                let meaning = MEANINGS.iter().find(|m| m.0 == key);
                refused.push(match meaning {
                    Some((_, meaning)) if key == START => format!("{key} = {value} ({meaning})"),
                    Some((_, meaning)) => format!("{key} ({meaning})"),
                    None => format!("{key} = {value}"),
                });
            }
        }
        refused
    }
}

/// A projection's name without the block that it is in.
fn projection(name: &str) -> String {
    let bare = ["self_attn.", "mlp."].iter().find_map(|p| name.strip_prefix(p));
    bare.unwrap_or(name).to_string()
}

/// What is written: PEFT reads all it needs, and finds nothing that it does not know.
#[derive(Serialize)]
pub(super) struct Written<'a> {
    pub peft_type: &'a str,
    pub task_type: &'a str,
    pub base_model_name_or_path: &'a str,
    pub r: usize,
    pub lora_alpha: f32,
    pub lora_dropout: f32,
    pub target_modules: &'a [String],
    pub bias: &'a str,
    pub use_rslora: bool,
    pub use_dora: bool,
    pub fan_in_fan_out: bool,
}

/// `adapter_config.json`; files of other programs with that name are recognised.
pub(super) fn read_config(path: &Path) -> Result<Value> {
    if !path.is_file() {
        let hint = if path.with_file_name("config.json").is_file() {
            "it has config.json: it is a model, not an adapter"
        } else {
            "an adapter is a folder with adapter_config.json and adapter_model.safetensors"
        };
        return Err(Error::file(path, format!("is missing; {hint}")));
    }
    let any: Value = read_json(path)?;
    if any.get("peft_type").is_none() {
        let mlx = any.get("lora_parameters").is_some() || any.get("fine_tune_type").is_some();
        let what = if mlx {
            "is MLX's configuration; MLX keeps the factors transposed. Write them as a PEFT LoRA"
        } else {
            "has no peft_type: it is not a PEFT adapter"
        };
        return Err(Error::file(path, what));
    }
    if any["peft_type"] == "MIXLORA_RS" {
        let what = "is one of ours, but mixlora.json is missing beside it: copy all files of the adapter";
        return Err(Error::file(path, what));
    }
    if any["peft_type"] == "MIXLORA" {
        let what = "peft_type 'MIXLORA' (MoE-PEFT) is not read; LORA is";
        return Err(Error::file(path, what));
    }
    Ok(any)
}
