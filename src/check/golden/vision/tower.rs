//! A tower: its states, its features, and gradients of pictures, embeddings, norms and linears.

use super::super::config as read_config;
use super::beside::beside;
use super::{Compare, Measured, Replay, TOWER, bounded};
use crate::io::Checkpoint;
use crate::model::vision::{Feature, Tower, TowerConfig, VisionFiles, assemble};
use crate::model::{LoadOptions, Source, Weights};
use crate::nn::Pass;
use crate::routing::Units;
use crate::{Device, Error, Result, Tensor, Weight, backward, no_grad};
use serde_json::Value;
use std::cell::RefCell;
use std::sync::Arc;

/// Bounds relative to the largest value of each tensor. PyTorch in f32 is within 1.7e-6.
const VALUES: f64 = 1e-5;
const GRADIENTS: f64 = 2e-5;
/// What stands before the names in the file.
const PREFIX: &str = "vision_model.";

/// The tensors of a tower, of which those with a stored gradient are leaves.
struct Leaves<'a, S> {
    stored: S,
    file: &'a Checkpoint,
    leaves: RefCell<Vec<(String, Tensor)>>,
}

impl<S: Source> Source for Leaves<'_, S> {
    fn weight(&self, name: &str) -> Result<Weight> {
        self.stored.weight(name)
    }
    fn vector(&self, name: &str) -> Result<Tensor> {
        let values = self.stored.vector(name)?;
        let stored = format!("grad.{}", name.strip_prefix(PREFIX).unwrap_or(name));
        if !self.file.has(&stored) {
            return Ok(values);
        }
        let leaf = values.leaf();
        self.leaves.borrow_mut().push((stored, leaf.clone()));
        Ok(leaf)
    }
}

pub(super) fn replay(file: &Checkpoint, device: &Device) -> Result<Replay> {
    let config: Value = read_config(file)?;
    let in_file = |error: Error| Error::file(file.path(), error.to_string());
    let tower = TowerConfig::from_json(&config["config"]).map_err(in_file)?;
    let layer = config["feature_layer"].as_i64().unwrap_or(-1);
    let feature = Feature::behind(&tower, layer, config["select"] != "patch").map_err(in_file)?;
    let dims = file.dims("pixel_values")?.to_vec();
    bounded(file, "pictures", &dims)?;
    let pixels = Tensor::from_f32(device, &dims, &file.f32("pixel_values", &dims)?)?;
    let files = VisionFiles::with_prefix(Checkpoint::open(file.path())?, format!("w.{PREFIX}"));
    let mut compare = Compare::new(file);

    states(&mut compare, &tower, &files, &pixels)?;
    let options = &LoadOptions::from(Weights::F32);
    let whole = Tower::load(tower.clone(), feature, &files, device, options)?;
    let (adapters, params) = beside(file, device, whole.sites(), PREFIX)?;
    let source = Leaves { stored: files.source(device, options), file, leaves: RefCell::default() };
    let tower = assemble(tower, feature, device, &source)?;
    let pixels = pixels.leaf();
    let pass = Pass::new(Units::tokens(0)).with_adapters(Arc::new(adapters));
    let features = tower.forward(&pixels, &pass, None)?;
    compare.within("feature", &features.to_f64()?, VALUES)?;
    let cotangent = Tensor::from_f32(device, features.dims(), &file.f32("cotangent", features.dims())?)?;
    let gradients = backward(&[(&features, cotangent)])?;
    let mut add = |name: &str, gradient: Option<&Tensor>| match gradient {
        Some(gradient) => compare.within(name, &gradient.to_f64()?, GRADIENTS),
        None => Ok(()),
    };
    add("grad.pixel_values", gradients.get(&pixels))?;
    for (name, leaf) in source.leaves.into_inner() {
        add(&name, gradients.get(&leaf))?;
    }
    for param in params.iter().filter(|param| file.has(&format!("grad.{}", param.name()))) {
        add(&format!("grad.{}", param.name()), param.gradient(&gradients))?;
    }
    let errors: &[Measured] = &compare.errors;
    let missing =
        |name: &&str| name.starts_with("grad.") && !errors.iter().any(|measured| measured.name == *name);
    if let Some(name) = file.names().find(missing) {
        return Err(Error::file(file.path(), format!("'{name}' was not computed: no such gradient")));
    }
    compare.finish(TOWER, true)
}

/// The states of all layers, and what the last norm makes of the last ones.
fn states(
    compare: &mut Compare<'_>,
    tower: &TowerConfig,
    files: &VisionFiles,
    pixels: &Tensor,
) -> Result<()> {
    let device = pixels.device();
    let options = &LoadOptions::from(Weights::F32);
    let last = Tower::load(tower.clone(), Feature::last(tower), files, device, options)?;
    let mut hidden = Vec::new();
    let pass = Pass::new(Units::tokens(0));
    let normed = no_grad(|| last.forward(pixels, &pass, Some(&mut hidden)))?;
    let mut all = Vec::new();
    for state in &hidden {
        all.extend(state.to_f64()?);
    }
    compare.within("hidden_states", &all, VALUES)?;
    let normed_values = normed.to_f64()?;
    if !tower.class_token() {
        return compare.within("last", &normed_values, VALUES);
    }
    if let Some(state) = hidden.last() {
        compare.within("last", &state.to_f64()?, VALUES)?;
    }
    let [_, rows, d] = *normed.dims() else { return Ok(()) };
    // The class token's row of each picture.
    let pooled: Vec<f64> = normed_values.chunks(rows * d).flat_map(|picture| picture[..d].to_vec()).collect();
    compare.within("pooled", &pooled, VALUES)
}
