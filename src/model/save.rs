//! A decoder as a Hugging Face directory: config.json and safetensors, in several files where it is large.

use super::Model;
use super::block::{FeedForward, NormLayer};
use crate::atomic;
use crate::{Error, Format, Result, Tensor, Weight};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::Path;

/// Bytes of one file at most, unless a single tensor is larger.
const SHARD_BYTES: usize = 4 << 30;

/// Changes the values `[rows, cols]` of a named matrix before they are written.
pub type Change<'a> = &'a dyn Fn(&str, &mut [f32]) -> Result<()>;

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
    /// The format is one of blocks, `config.json` has no words for what a GGUF file says, or the directory cannot be
    /// written.
    pub fn save(&self, dir: &Path, format: Format, change: Change<'_>) -> Result<()> {
        if !matches!(format, Format::F32 | Format::F16 | Format::Bf16) {
            return Err(Error::config("dtype", format.name(), "f32, f16 or bf16 to be written"));
        }
        let config = self.config.to_json(format);
        self.config.check_writable(&config)?;
        let mut shards =
            Shards { dir, format, open: Vec::new(), bytes: 0, files: 0, places: BTreeMap::new(), total: 0 };
        let parts = self.parts();
        for tensor in self.config.tensors() {
            let missing = || Error::refused("model", format!("tensor '{}' is not there", tensor.name));
            let mut values = match parts.get(&tensor.name).ok_or_else(missing)? {
                Part::Matrix(weight) => weight.to_f32()?,
                Part::Vector(vector, extra) => vector.to_f32()?.iter().map(|v| v - extra).collect(),
            };
            let dims: Vec<usize> = tensor.axes.iter().map(|a| a.0).collect();
            if dims.len() > 1 {
                change(&tensor.name, &mut values)?;
            }
            shards.add(tensor.name, dims, &values)?;
        }
        shards.finish()?;
        atomic::write(&dir.join("config.json"), format!("{config:#}\n").as_bytes())
    }
}

/// A tensor of a model.
pub(super) enum Part<'a> {
    Matrix(&'a Weight),
    /// Its values, and what was added to them when the model was read.
    Vector(&'a Tensor, f32),
}

impl Model {
    /// All tensors by the names of Hugging Face.
    pub(super) fn parts(&self) -> BTreeMap<String, Part<'_>> {
        let mut all = BTreeMap::new();
        all.insert("model.embed_tokens.weight".to_string(), Part::Matrix(&self.embed));
        all.insert("lm_head.weight".to_string(), Part::Matrix(&self.head));
        for (path, linear) in self.linears() {
            all.insert(format!("{path}.weight"), Part::Matrix(&linear.weight));
            if let Some(bias) = &linear.bias {
                all.insert(format!("{path}.bias"), Part::Vector(bias, 0.0));
            }
        }
        let extra = if self.config.norm.one_more { 1.0 } else { 0.0 };
        let mut norms: Vec<(String, &NormLayer)> = vec![("model.norm".into(), &self.norm)];
        for (i, layer) in self.layers.iter().enumerate() {
            let names = &self.config.norms;
            let of_layer = [
                (names.before_attention, &layer.norms.before_attention),
                (names.after_attention, &layer.norms.after_attention),
                (names.before_mlp, &layer.norms.before_mlp),
                (names.after_mlp, &layer.norms.after_mlp),
            ];
            let named = of_layer.into_iter().filter_map(|(name, norm)| Some((name?, norm.as_ref()?)));
            norms.extend(named.map(|(name, norm)| (format!("model.layers.{i}.{name}"), norm)));
            for (name, norm) in ["q_norm", "k_norm"].iter().zip(layer.qk_norms.iter().flatten()) {
                all.insert(format!("model.layers.{i}.self_attn.{name}.weight"), Part::Vector(norm, extra));
            }
            if let FeedForward::Experts(experts) = &layer.mlp {
                let names = self.config.expert_names(i);
                all.extend(experts.weights(&names).map(|(name, w)| (name, Part::Matrix(w))));
            }
        }
        for (name, norm) in norms {
            all.insert(format!("{name}.weight"), Part::Vector(&norm.weight, extra));
            if let Some(bias) = &norm.bias {
                all.insert(format!("{name}.bias"), Part::Vector(bias, 0.0));
            }
        }
        all
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
