//! Adapters on disk, in the directory layout of Hugging Face PEFT.
//!
//! `adapter_config.json` and `adapter_model.safetensors`. A `lora` is PEFT's own format. Methods that PEFT does not
//! know have the type `MIXLORA_RS`, so that no other loader takes half of them; their tensors keep the names and
//! shapes that they have here. `mixlora.json` has every option and what the base model was; without it a LoRA of PEFT
//! or an adapter of VT-NLP's release is read.

use super::layout::{MixloraConfig, OWN, PREFIX, base_name, open_tensors, stored_name};
use super::peft_config::{PeftConfig, read_config};
use super::released::{Layout, Released, is_released};
use super::weights::{self, transpose};
use super::{Adapter, AdapterOptions, AdapterWeights, Matrix, PartShape, VisionPart};
use crate::io::{Checkpoint, read_json};
use crate::mixture::{Files, Method, MethodSpec};
use crate::model::{Model, SiteLinear};
use crate::{Error, Result, Stream};
use std::path::Path;

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
            let any = read_config(&path)?;
            if any["peft_type"] == "XLORA" {
                return super::xlora::load(dir, &path, any, model);
            }
            let c = PeftConfig::of(&path, any)?;
            if is_released(&c) {
                let method = options.methods.of_files(Files::OwnOrReleased)?;
                return Self::load_released(&Released::open(dir)?, &path, &c, method, model);
            }
            let lora = options.methods.of_files(Files::Peft)?;
            let (method, targets) = c.lora_options(&path, lora, model.config())?;
            return Self::attach_and_fill(dir, model, &[], &method, &targets);
        }
        let c: MixloraConfig = read_json(&own)?;
        c.check_version(&own)?;
        if !options.force {
            c.base.check(&own, base_name(dir).as_deref(), model)?;
        }
        let (method, notes) = c.method(&own, &options.methods)?;
        let projector = c.vision.as_ref().map_or(&[][..], |vision| &vision.mixed_projector);
        let mut adapter = Self::attach_and_fill(dir, model, projector, &method, &c.target_modules)?;
        adapter.notes = notes;
        Ok(adapter.with_vision(c.vision.map(|base| VisionPart::read(dir, base)).transpose()?))
    }

    fn attach_and_fill(
        dir: &Path,
        model: &Model,
        projector: &[SiteLinear],
        method: &Method,
        targets: &[String],
    ) -> Result<Self> {
        let file = open_tensors(dir)?;
        let wrap = |e: Error| Error::file(dir, e.to_string());
        let parts = Adapter::parts(model, projector, method, targets).map_err(wrap)?;
        check_tensors(&file, method.spec(), targets, &parts)?;
        let adapter =
            Adapter::attach_beside(model, projector, method, targets, Stream::new(0)).map_err(wrap)?;
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
        let layout = Layout::of(&method);
        files.check(&Adapter::parts(model, &[], &method, &targets).map_err(wrap)?, layout)?;
        let adapter = Adapter::attach(model, &method, &targets, Stream::new(0)).map_err(wrap)?;
        adapter.fill_with(|part, rows, cols| files.values(part, rows, cols, layout))?;
        Ok(adapter)
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
