//! What an adapter's directory holds: its files and their texts, and what its tensors are called there.

use super::base::{Base, VisionBase};
use super::peft_config::Written;
use crate::io::{Checkpoint, read_json};
use crate::mixture::{Files, Method, MethodSpec, Methods, Tree};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Raised when the meaning of stored tensors or options changes.
const FORMAT_VERSION: u32 = 1;
/// The options of an adapter, and what its base is.
pub(super) const OWN: &str = "mixlora.json";
pub(super) const PREFIX: &str = "base_model.model.";
pub(super) const TENSORS: &str = "adapter_model.safetensors";

/// `mixlora.json`.
#[derive(Serialize, Deserialize)]
pub(super) struct MixloraConfig {
    format_version: u32,
    method: String,
    options: Tree,
    pub target_modules: Vec<String>,
    pub base: Base,
    /// What it saw pictures with; absent where it was trained without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vision: Option<VisionBase>,
}

/// Name of a part in the file, and whether the file keeps the transpose: PEFT's B is `[out, r]`.
pub(super) fn stored_name(method: &MethodSpec, part: &str) -> (String, bool) {
    if method.files == Files::Peft {
        if let Some(path) = part.strip_suffix(".lora_a") {
            return (format!("{PREFIX}{path}.lora_A.weight"), false);
        }
        if let Some(path) = part.strip_suffix(".lora_b") {
            return (format!("{PREFIX}{path}.lora_B.weight"), true);
        }
    }
    (format!("{PREFIX}{part}"), false)
}

/// The part that a name in the file is of, and whether the file keeps its transpose.
pub(super) fn part_name(method: &MethodSpec, name: &str) -> (String, bool) {
    let part = name.strip_prefix(PREFIX).unwrap_or(name);
    if method.files == Files::Peft {
        if let Some(path) = part.strip_suffix(".lora_A.weight") {
            return (format!("{path}.lora_a"), false);
        }
        if let Some(path) = part.strip_suffix(".lora_B.weight") {
            return (format!("{path}.lora_b"), true);
        }
    }
    (part.to_string(), false)
}

/// What `adapter_config.json` calls the base model; for messages.
pub(super) fn base_name(dir: &Path) -> Option<String> {
    let peft: serde_json::Value = read_json(&dir.join("adapter_config.json")).ok()?;
    peft["base_model_name_or_path"].as_str().map(String::from)
}

impl MixloraConfig {
    /// Refuses a file of a later version.
    pub fn check_version(&self, path: &Path) -> Result<()> {
        if self.format_version <= FORMAT_VERSION {
            return Ok(());
        }
        let version = self.format_version;
        let what = format!("format version {version} is newer than this program ({FORMAT_VERSION})");
        Err(Error::file(path, what))
    }

    /// The method with its stored options over its defaults, and notes on what is passed over.
    pub fn method(&self, path: &Path, methods: &Methods) -> Result<(Method, Vec<String>)> {
        let wrap = |e: Error| Error::file(path, e.to_string());
        let spec = methods.find(&self.method).map_err(wrap)?;
        let (method, unknown) = spec.defaults().stored(&self.options).map_err(wrap)?;
        Ok((method, methods.notes_of(path, spec, &unknown)))
    }
}

/// `mixlora.json` and `adapter_config.json`.
pub(super) fn texts(
    method: &Method,
    targets: &[String],
    base: &Base,
    base_name: &str,
    vision: Option<&VisionBase>,
) -> Result<Vec<(String, Vec<u8>)>> {
    let lora = method.options().lora();
    let own = MixloraConfig {
        format_version: FORMAT_VERSION,
        method: method.name().into(),
        options: method.tree(),
        target_modules: targets.to_vec(),
        base: base.clone(),
        vision: vision.cloned(),
    };
    let peft = Written {
        peft_type: if method.spec().files == Files::Peft { "LORA" } else { "MIXLORA_RS" },
        task_type: "CAUSAL_LM",
        base_model_name_or_path: base_name,
        r: lora.r,
        lora_alpha: method.options().alpha(),
        lora_dropout: lora.lora_dropout,
        target_modules: targets,
        bias: "none",
        use_rslora: false,
        use_dora: false,
        fan_in_fan_out: false,
    };
    Ok(vec![
        (OWN.into(), pretty(&own)?.into_bytes()),
        ("adapter_config.json".into(), pretty(&peft)?.into_bytes()),
    ])
}

/// The tensors of an adapter's directory; what other programs leave there instead is named.
pub(super) fn open_tensors(dir: &Path) -> Result<Checkpoint> {
    let path = dir.join(TENSORS);
    if path.exists() {
        return Checkpoint::open(path);
    }
    if dir.join("adapters.safetensors").exists() {
        let what = format!(
            "is MLX's format: its factors are transposed (lora_a [in, r]). Write their transposes as \
             base_model.model.<path>.lora_A.weight and lora_B.weight to {TENSORS}"
        );
        return Err(Error::file(dir.join("adapters.safetensors"), what));
    }
    if dir.join("adapter_model.bin").exists() {
        let what = format!(
            "is a pickle file, which may run any code when it is loaded; it is not read. Where you trust it, convert \
             it: safetensors.torch.save_file(torch.load('adapter_model.bin', weights_only=True), '{TENSORS}')"
        );
        return Err(Error::file(dir.join("adapter_model.bin"), what));
    }
    Err(Error::file(path, "is missing"))
}

fn pretty<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|error| Error::refused("adapter", error.to_string()))
}
