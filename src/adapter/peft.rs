//! Adapters on disk, in the directory layout of Hugging Face PEFT.
//!
//! `adapter_config.json` and `adapter_model.safetensors`. A `lora` is PEFT's own format. Methods that PEFT does not
//! know have the type `MIXLORA_RS`, so that no other loader takes half of them; their tensors keep the names and
//! shapes that they have here. `mixlora.json` has every option and what the base model was; without it a LoRA of PEFT
//! or an adapter of VT-NLP's release is read.

use super::base::Base;
use super::peft_config::{PeftConfig, Written};
use super::released::{Released, is_released};
use super::weights::{self, transpose};
use super::{Adapter, AdapterWeights, Matrix, PartShape};
use crate::io::{Checkpoint, read_json};
use crate::mixture::{Files, Method, MethodSpec, Methods, Tree};
use crate::model::Model;
use crate::{Error, Result, Stream};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::path::Path;

/// Raised when the meaning of stored tensors or options changes.
const FORMAT_VERSION: u32 = 1;
/// The options of an adapter, and what its base is.
pub(super) const OWN: &str = "mixlora.json";
const PREFIX: &str = "base_model.model.";
pub(super) const TENSORS: &str = "adapter_model.safetensors";

/// `mixlora.json`.
#[derive(Serialize, Deserialize)]
pub(super) struct MixloraConfig {
    format_version: u32,
    method: String,
    options: Tree,
    pub target_modules: Vec<String>,
    pub base: Base,
}

/// How an adapter is taken from its files.
#[derive(Debug, Clone, Default)]
pub struct AdapterOptions {
    /// Takes an adapter that was trained on other weights, if the shapes fit.
    pub force: bool,
    /// The methods that its files may name.
    pub methods: Methods,
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
    pub(super) fn check_version(&self, path: &Path) -> Result<()> {
        if self.format_version <= FORMAT_VERSION {
            return Ok(());
        }
        let version = self.format_version;
        let what = format!("format version {version} is newer than this program ({FORMAT_VERSION})");
        Err(Error::file(path, what))
    }

    /// The method with its stored options over its defaults, and notes on what is passed over.
    pub(super) fn method(&self, path: &Path, methods: &Methods) -> Result<(Method, Vec<String>)> {
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
) -> Result<Vec<(String, Vec<u8>)>> {
    let lora = method.options().lora();
    let own = MixloraConfig {
        format_version: FORMAT_VERSION,
        method: method.name().into(),
        options: method.tree(),
        target_modules: targets.to_vec(),
        base: base.clone(),
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

impl Adapter {
    /// Writes the adapter into a directory, which is created. Every file is written whole or not at all.
    ///
    /// # Errors
    /// The directory cannot be written.
    pub fn save(&self, dir: &Path, model: &Model, base_name: &str) -> Result<()> {
        AdapterWeights::of(self, model, base_name)?.save(dir)
    }

    /// The files of the adapter's directory, by name.
    ///
    /// # Errors
    /// The values cannot be read from the device.
    pub fn files(&self, model: &Model, base_name: &str) -> Result<Vec<(String, Vec<u8>)>> {
        AdapterWeights::of(self, model, base_name)?.files()
    }

    /// All tensors as a safetensors file. The bytes depend on the values alone.
    ///
    /// # Errors
    /// The values cannot be read from the device.
    pub fn to_safetensors(&self) -> Result<Vec<u8>> {
        let each = self.params().iter().map(|p| Matrix::of(p, &p.value())).collect::<Result<Vec<_>>>()?;
        weights::to_safetensors(self.method.spec(), each.into_iter().flatten().collect())
    }

    /// Reads an adapter directory and puts it on a model: one of ours, a PEFT LoRA, or one of VT-NLP's release.
    ///
    /// # Errors
    /// A file is missing or malformed, the adapter needs what is not supported, or it was made for another base
    /// model; the error names the file and the reason.
    pub fn load(dir: &Path, model: &Model) -> Result<Self> {
        Self::load_with(dir, model, &AdapterOptions::default())
    }

    /// The same with options.
    ///
    /// # Errors
    /// Those of [`load`](Adapter::load).
    pub fn load_with(dir: &Path, model: &Model, options: &AdapterOptions) -> Result<Self> {
        let dir = &super::locate(dir)?;
        let (own, path) = (dir.join(OWN), dir.join("adapter_config.json"));
        if !own.exists() {
            let c: PeftConfig = read_config(&path)?;
            if is_released(&c) {
                let method = options.methods.of_files(Files::OwnOrReleased)?;
                return Self::load_released(&Released::open(dir)?, &path, &c, method, model);
            }
            let lora = options.methods.of_files(Files::Peft)?;
            let (method, targets) = c.lora_options(&path, lora, model.config())?;
            return Self::attach_and_fill(dir, model, &method, &targets);
        }
        let c: MixloraConfig = read_json(&own)?;
        c.check_version(&own)?;
        if !options.force {
            c.base.check(&own, base_name(dir).as_deref(), model)?;
        }
        let (method, notes) = c.method(&own, &options.methods)?;
        let mut adapter = Self::attach_and_fill(dir, model, &method, &c.target_modules)?;
        adapter.notes = notes;
        Ok(adapter)
    }

    fn attach_and_fill(dir: &Path, model: &Model, method: &Method, targets: &[String]) -> Result<Self> {
        let file = open_tensors(dir)?;
        let wrap = |e: Error| Error::file(dir, e.to_string());
        let parts = Adapter::parts(model, method, targets).map_err(wrap)?;
        check_tensors(&file, method.spec(), targets, &parts)?;
        let adapter = Adapter::attach(model, method, targets, Stream::new(0)).map_err(wrap)?;
        adapter.fill_with(|part, rows, cols| {
            let (name, transposed) = stored_name(method.spec(), part);
            let values = file.values_f32(&name)?;
            Ok(if transposed { transpose(&values, cols, rows) } else { values })
        })?;
        Ok(adapter)
    }

    fn load_released(
        files: &Released,
        path: &Path,
        c: &PeftConfig,
        method: &'static MethodSpec,
        model: &Model,
    ) -> Result<Self> {
        let (method, targets) = files.options(path, c, method, model.config())?;
        let wrap = |e: Error| Error::file(path, e.to_string());
        let cfs = !method.tree()["cfs_form"].is_null();
        files.check(&Adapter::parts(model, &method, &targets).map_err(wrap)?, cfs)?;
        let adapter = Adapter::attach(model, &method, &targets, Stream::new(0)).map_err(wrap)?;
        adapter.fill_with(|part, rows, cols| files.values(part, rows, cols, cfs))?;
        Ok(adapter)
    }

    /// Puts values into the parameters, part by part: name, rows, columns.
    pub(super) fn fill_with(&self, read: impl Fn(&str, usize, usize) -> Result<Vec<f32>>) -> Result<()> {
        for p in self.params() {
            let value = p.value();
            let width = value.len() / p.parts().iter().map(|p| p.1).sum::<usize>().max(1);
            let mut parts = HashMap::new();
            for (part, rows) in p.parts() {
                parts.insert(part.clone(), read(part, *rows, width)?);
            }
            p.load(value.device(), |part| parts.get(part).cloned())?;
        }
        Ok(())
    }
}

/// Compares a file with the parts that an adapter will have.
fn check_tensors(
    file: &Checkpoint,
    method: &MethodSpec,
    targets: &[String],
    parts: &[PartShape],
) -> Result<()> {
    let fail = |what: String| Err(Error::file(file.path(), what));
    let plain = method.files == Files::Peft;
    if let Some(name) = file.names().find(|n| plain && (n.ends_with(".lora_a") || n.ends_with(".lora_b"))) {
        return fail(format!(
            "tensor '{name}' has a name of MLX, whose factors are transposed (lora_a [in, r]); write their transposes \
             as {PREFIX}<path>.lora_A.weight and lora_B.weight"
        ));
    }
    let names: Vec<String> = parts.iter().map(|part| stored_name(method, &part.name).0).collect();
    let extra = file.expect_tensors(names.iter().map(String::as_str))?;
    if let Some(name) = extra.first() {
        return fail(format!(
            "{} tensors are for places that this adapter does not have, such as '{name}'; its targets are {}",
            extra.len(),
            targets.join(", ")
        ));
    }
    for part in parts {
        let (name, transposed) = stored_name(method, &part.name);
        let expected = if transposed { [part.cols, part.rows] } else { [part.rows, part.cols] };
        let found = file.dims(&name)?;
        if plain && found == [expected[1], expected[0]] && found != expected {
            return fail(format!(
                "tensor '{name}' is {found:?}, expected {expected:?}: the factors are transposed (as MLX writes them), \
                 or A and B are swapped"
            ));
        }
        file.expect_dims(&name, &expected)?;
    }
    Ok(())
}

/// `adapter_config.json`; files of other programs with that name are recognised.
fn read_config(path: &Path) -> Result<PeftConfig> {
    if !path.is_file() {
        let hint = if path.with_file_name("config.json").is_file() {
            "it has config.json: it is a model, not an adapter"
        } else {
            "an adapter is a folder with adapter_config.json and adapter_model.safetensors"
        };
        return Err(Error::file(path, format!("is missing; {hint}")));
    }
    let any: serde_json::Value = read_json(path)?;
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
    read_json(path)
}

fn pretty<T: Serialize>(value: &T) -> Result<String> {
    serde_json::to_string_pretty(value).map_err(|error| Error::config("adapter", error.to_string()))
}
