//! Matrices in another format than that of the file: which one each takes, and where quantised ones are kept.

use super::{ModelFiles, ModelPlace, Weights};
use crate::io::folder::fingerprint;
use crate::io::{KeptKind, KeptValues};
use crate::{Device, Format, Result, Weight};
use serde_json::json;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::Path;

/// What the cache folder has of weights.
const WEIGHTS: KeptKind = KeptKind {
    name: "weights",
    hint: "weights are quantised anew each time where MIXLORA_CACHE names no other folder",
};
/// Changes when the same values are quantised otherwise.
const QUANTISER: u32 = 1;

/// How the matrices of a model are stored on a device.
pub(super) struct Requantise<'a> {
    files: &'a ModelFiles,
    device: &'a Device,
    weights: Weights,
    kept: RefCell<Option<KeptValues>>,
    /// Matrices by the format that they have instead of the one that was asked for.
    instead: RefCell<BTreeMap<&'static str, usize>>,
    notes: RefCell<Vec<String>>,
}

impl<'a> Requantise<'a> {
    /// Matrices that a search quantises are kept in the cache folder, if one is given.
    ///
    /// # Errors
    /// The files cannot be read.
    pub fn new(
        files: &'a ModelFiles,
        device: &'a Device,
        weights: Weights,
        cache: Option<&Path>,
    ) -> Result<Self> {
        let mut notes = Vec::new();
        let mut kept = None;
        // The others cost no more time than reading them.
        if let (Some(cache), Weights::As(Format::Q4_K | Format::Q5_K | Format::Q6_K)) = (cache, weights) {
            let of = fingerprint(&ModelPlace::of(files.path())?.files()?)?;
            let about = json!({ "of": of, "weights": weights, "quantiser": QUANTISER });
            let path = match files.gguf() {
                Some(file) => file.path().file_stem(),
                None => files.path().parent().and_then(Path::file_name),
            };
            let name = path.unwrap_or_default().to_string_lossy();
            let name = format!("{name}-{weights}");
            match KeptValues::open(&cache.join(WEIGHTS.name), &name, about, WEIGHTS) {
                Ok(found) => kept = Some(found),
                Err(error) => notes.push(error.to_string()),
            }
        }
        let instead = RefCell::default();
        Ok(Requantise {
            files,
            device,
            weights,
            kept: RefCell::new(kept),
            instead,
            notes: RefCell::new(notes),
        })
    }

    /// A matrix with its rows in Hugging Face's order.
    ///
    /// # Errors
    /// It cannot be read, a value is too large for its format, or the device refuses it.
    pub fn weight(&self, name: &str) -> Result<Weight> {
        let raw = self.files.raw(name)?;
        let mut format = self.weights.of(raw.format, raw.cols);
        if self.files.config().routes_experts(name) && format.block_len() > 1 {
            // Small, and each choice hangs on it; llama.cpp leaves it too.
            format = raw.format;
        } else if matches!(self.weights, Weights::As(wanted) if wanted != format) {
            *self.instead.borrow_mut().entry(format.name()).or_default() += 1;
        }
        let from_files = |device: &Device| self.files.weight(name, device, format.into());
        if format == raw.format || format.block_len() < 256 || self.kept.borrow().is_none() {
            return from_files(self.device);
        }
        if let Some(weight) = self.take_kept(name, [raw.rows, raw.cols], format)? {
            return Ok(weight);
        }
        // Words are written from where a CPU has them.
        let weight = match self.device {
            Device::Cpu(_) => from_files(self.device)?,
            _ => from_files(&Device::cpu())?,
        };
        self.keep(name, &weight);
        if matches!(self.device, Device::Cpu(_)) { Ok(weight) } else { weight.to_device(self.device) }
    }

    /// The matrix as an earlier run left it.
    fn take_kept(&self, name: &str, dims: [usize; 2], format: Format) -> Result<Option<Weight>> {
        let mut kept = self.kept.borrow_mut();
        let Some(kept) = &mut *kept else { return Ok(None) };
        let words = format.row_words(dims[1]);
        let mut shards = Vec::new();
        let mut rows = 0;
        while rows < dims[0] {
            match kept.get(&format!("{name} {rows}")) {
                Some(([_, have, wide], values)) if wide == words && have > 0 => {
                    shards.push(values);
                    rows += have;
                }
                _ => return Ok(None),
            }
        }
        let shards: Vec<&[u32]> = shards.iter().map(|shard| bytemuck::cast_slice(shard)).collect();
        Weight::from_packed(self.device, dims, &shards, format).map(Some)
    }

    /// Writes a matrix for the next run; where that fails nothing more is written.
    fn keep(&self, name: &str, weight: &Weight) {
        let mut kept = self.kept.borrow_mut();
        let Some(files) = &mut *kept else { return };
        for shard in weight.packed() {
            let dims = [1, shard.rows, weight.format().row_words(weight.cols())];
            let key = format!("{name} {}", shard.first);
            if let Err(error) = files.put(&key, dims, bytemuck::cast_slice(shard.words)) {
                self.notes.borrow_mut().push(error.to_string());
                *kept = None;
                return;
            }
        }
    }

    /// Ends what is written, and says what was odd.
    pub fn finish(self) -> Vec<String> {
        let mut notes = self.notes.into_inner();
        for (format, count) in self.instead.into_inner() {
            let matrices = if count == 1 { "matrix has" } else { "matrices have" };
            notes.push(format!(
                "{count} {matrices} rows that are no multiple of what {} needs, and {format} instead",
                self.weights
            ));
        }
        if let Some(mut kept) = self.kept.into_inner() {
            notes.extend(kept.finish().err().map(|error| error.to_string()));
            notes.append(&mut kept.notes);
        }
        notes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_of_experts_stay_as_they_are() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/models/qwen2_moe-a");
        let files = ModelFiles::open(Path::new(folder)).unwrap();
        let cpu = Device::cpu();
        let format = |weights: Weights, name: &str| {
            let matrices = Requantise::new(&files, &cpu, weights, None).unwrap();
            matrices.weight(&format!("model.layers.0.{name}.weight")).unwrap().format()
        };
        let own = files.raw("model.layers.0.mlp.gate.weight").unwrap().format;
        for router in ["mlp.gate", "mlp.shared_expert_gate"] {
            assert_eq!(format(Format::Q8_0.into(), router), own, "{router}");
        }
        assert_eq!(format(Format::Bf16.into(), "mlp.gate"), Format::Bf16);
        assert_eq!(format(Format::Q8_0.into(), "mlp.experts.1.gate_proj"), Format::Q8_0);
    }
}
