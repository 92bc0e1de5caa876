//! What an adapter remembers of the vision part that it was trained with, and the projector that was trained with it.

use super::base::VisionBase;
use super::layout::{OWN, PREFIX};
use crate::io::{Checkpoint, Named, safetensors_bytes};
use crate::model::SiteLinear;
use crate::model::vision::{VisionModel, differences};
use crate::nn::Param;
use crate::{Device, Error, Result, Tensor};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// The file of a trained projector, beside the adapter's own.
pub(super) const PROJECTOR: &str = "projector.safetensors";
/// What stands before the projector in a model of transformers.
const MODEL: &str = "model.";

/// The vision part that an adapter was trained with: what tells it from others, and the projector where that is not the
/// model's own any more.
#[derive(Debug, Clone)]
pub struct VisionPart {
    base: VisionBase,
    projector: Vec<Param>,
    /// The file that says so, for messages.
    file: PathBuf,
}

impl VisionPart {
    /// Of a model, with its own projector; `processor` describes what is done to pictures, none where that is not known.
    pub fn of(vision: &VisionModel, processor: Option<Map<String, Value>>) -> Self {
        let base = VisionBase {
            identity: vision.identity().clone(),
            projector_trained: false,
            processor: processor.unwrap_or_default(),
            mixed_projector: Vec::new(),
        };
        VisionPart { base, projector: Vec::new(), file: OWN.into() }
    }

    /// The same with the present projector of a model, which goes where the adapter goes.
    pub fn with_projector(self, vision: &VisionModel) -> Self {
        let base = VisionBase { projector_trained: true, ..self.base };
        VisionPart { base, projector: vision.projector().params(), ..self }
    }

    /// The same where the adapter has a part at these linears of the projector.
    pub(super) fn with_mixture(self, linears: Vec<SiteLinear>) -> Self {
        VisionPart { base: VisionBase { mixed_projector: linears, ..self.base }, ..self }
    }

    /// The linears of the projector at which the adapter has a part.
    pub(super) fn mixed_projector(&self) -> &[SiteLinear] {
        &self.base.mixed_projector
    }

    /// Reads the part that belongs to an adapter's folder.
    pub(super) fn read(dir: &Path, base: VisionBase) -> Result<Self> {
        let path = dir.join(PROJECTOR);
        let mut projector = Vec::new();
        if base.projector_trained {
            if !path.exists() {
                let what = "is missing: the projector was trained with this adapter; copy all of its files";
                return Err(Error::file(path, what));
            }
            let file = Checkpoint::open(&path)?;
            let device = Device::cpu();
            for name in file.names() {
                let own = name.strip_prefix(PREFIX).and_then(|rest| rest.strip_prefix(MODEL));
                let values = Tensor::from_f32(&device, file.dims(name)?, &file.values_f32(name)?)?;
                projector.push(Param::new(own.unwrap_or(name), values, false)?);
            }
        }
        Ok(VisionPart { base, projector, file: dir.join(OWN) })
    }

    /// The same with values of its own, which no training changes.
    pub(super) fn copied(&self) -> Result<Self> {
        let device = Device::cpu();
        let copy = |p: &Param| {
            let values = p.value();
            Param::new(p.name(), Tensor::from_f32(&device, values.dims(), &values.to_f32()?)?, false)
        };
        Ok(VisionPart { projector: self.projector.iter().map(copy).collect::<Result<_>>()?, ..self.clone() })
    }

    pub(super) fn base(&self) -> &VisionBase {
        &self.base
    }
    /// The projector that was trained; empty where it is the model's own.
    pub fn projector(&self) -> &[Param] {
        &self.projector
    }

    /// The file of the projector, where that was trained.
    pub(super) fn file(&self) -> Result<Option<(String, Vec<u8>)>> {
        let named = |p: &Param| {
            let values = p.value();
            let name = format!("{PREFIX}{MODEL}{}", p.name());
            Ok(Named { name, dims: values.dims().to_vec(), values: values.to_f32()? })
        };
        let all = self.projector.iter().map(named).collect::<Result<Vec<_>>>()?;
        if all.is_empty() {
            return Ok(None);
        }
        Ok(Some((PROJECTOR.into(), safetensors_bytes(all)?)))
    }

    /// Refuses another vision part than this one: another tower, other preparation of pictures, or another projector
    /// where none was trained.
    ///
    /// # Errors
    /// It is another one; the fields that differ are named.
    pub fn check(&self, here: &VisionPart) -> Result<()> {
        let refused = |what: String| Err(Error::file(&self.file, what));
        let advice =
            "give the model that it was trained on; --force takes it all the same where the shapes fit";
        if let Some(what) = self.base.identity.other_tower(&here.base.identity) {
            return refused(format!("was trained with pictures on another vision tower: {what}; {advice}"));
        }
        let differ = differences(&self.base.processor, &here.base.processor);
        // A program without pictures knows nothing of them.
        let known = !here.base.processor.is_empty() && !self.base.processor.is_empty();
        if known && !differ.is_empty() {
            return refused(format!(
                "was trained on pictures that were prepared in another way: {}; put the preprocessor_config.json of \
                 that time back beside the model, or --force",
                differ.join(", ")
            ));
        }
        if self.projector.is_empty() && !self.base.identity.same_projector(&here.base.identity) {
            let what =
                "was trained with another projector between tower and model, whose weights it does not hold";
            return refused(format!("{what}; {advice}"));
        }
        Ok(())
    }

    /// Gives a model the projector that was trained, where one was.
    ///
    /// # Errors
    /// Its tensors are not those of the model's projector.
    pub fn put_into(&self, vision: &VisionModel) -> Result<()> {
        if self.projector.is_empty() {
            return Ok(());
        }
        let refused = |what: String| Error::file(self.file.with_file_name(PROJECTOR), what);
        let own = vision.projector().params();
        let is_own = |p: &&Param| own.iter().any(|o| o.name() == p.name());
        if let Some(other) = self.projector.iter().find(|p| !is_own(p)) {
            return Err(refused(format!("has '{}', which the model's projector has not", other.name())));
        }
        for param in &own {
            let name = param.name();
            let stored = self.projector.iter().find(|p| p.name() == name);
            let values = stored.ok_or_else(|| refused(format!("lacks '{name}'")))?.value();
            let old = param.value();
            if values.dims() != old.dims() {
                let what = format!("has '{name}' as {:?}, expected {:?}", values.dims(), old.dims());
                return Err(refused(what));
            }
            param.set(Tensor::from_f32(old.device(), old.dims(), &values.to_f32()?)?)?;
        }
        Ok(())
    }
}
