//! Decoders from files: what is checked, and how the parts are put together.

use super::block::{FeedForward, Layer, LayerNorms, NormLayer};
use super::experts::Experts;
use super::positions::Positions;
use super::requantise::Requantise;
use super::sites::{at, number};
use super::{ExpertsConfig, Fingerprint, MlpKind, Model, ModelConfig, ModelFiles, Site, Weights};
use crate::nn::{LinearGroup, Mlp};
use crate::{Device, Error, Format, Linear, Result, Tensor, Weight};
use std::cell::RefCell;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Rows of each matrix whose values are looked at when a model is loaded.
pub(super) const SAMPLED_ROWS: usize = 16;
/// Names that a note lists at most.
const LISTED: usize = 5;

/// How a model is taken from its files.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadOptions {
    /// The format that matrices have in memory.
    pub weights: Weights,
    /// Weights with NaN or infinite values are taken as they are.
    pub allow_nonfinite: bool,
    /// The cache folder for matrices that are quantised to q4_k, q5_k or q6_k, which takes a search: the next time they are
    /// read from there. Without one, nothing is written.
    pub cache: Option<PathBuf>,
}

impl From<Weights> for LoadOptions {
    fn from(weights: Weights) -> Self {
        LoadOptions { weights, ..LoadOptions::default() }
    }
}

/// Tensors with the names that files have for them.
pub(crate) type NamedTensors = Vec<(String, Tensor)>;

impl Model {
    /// Reads a model: a `.gguf` file, or a directory with `config.json` and safetensors. Weights keep the format of the
    /// file.
    ///
    /// # Errors
    /// The path holds no supported model; the error names the file, the field or the tensor.
    pub fn open(path: &Path, device: &Device) -> Result<Arc<Self>> {
        Self::load(&ModelFiles::open(path)?, device, &LoadOptions::default())
    }

    /// [`open`](Model::open), with weights in f32: where the last bits are to be those of a computation in f32.
    ///
    /// # Errors
    /// Those of [`open`](Model::open).
    pub fn open_f32(path: &Path, device: &Device) -> Result<Arc<Self>> {
        Self::load(&ModelFiles::open(path)?, device, &Weights::F32.into())
    }

    /// Builds a model from open files. Some rows of every matrix and all values of every vector are looked at; what
    /// is odd but no error is kept in [`notes`](Model::notes).
    ///
    /// # Errors
    /// Tensors are missing or have other shapes than the configuration says, values are not finite or too large for the
    /// format, or the device refuses them.
    pub fn load(files: &ModelFiles, device: &Device, options: &LoadOptions) -> Result<Arc<Self>> {
        let mut notes = check(files, options)?;
        let source = Stored::new(files, device, options)?;
        let model = assemble(files.config().clone(), device, &source)?;
        notes.extend(source.matrices.finish());
        let fingerprint = Fingerprint::of(files)?;
        Ok(Arc::new(Model { notes, origin: files.path().to_path_buf(), fingerprint, ..model }))
    }
}

impl Model {
    /// The same with vectors that are leaves of the tape, by their names: for the gradients of norms.
    pub(crate) fn load_with_leaves(
        files: &ModelFiles,
        device: &Device,
        options: &LoadOptions,
    ) -> Result<(Arc<Self>, NamedTensors)> {
        let stored = Stored::new(files, device, options)?;
        let source = Leaves { stored, vectors: RefCell::default() };
        let model = assemble(files.config().clone(), device, &source)?;
        Ok((Arc::new(model), source.vectors.into_inner()))
    }
}

impl Model {
    /// The same with other values of one matrix, in f32: for slopes of a loss.
    pub(crate) fn load_changed(
        files: &ModelFiles,
        device: &Device,
        name: &str,
        values: &[f32],
    ) -> Result<Model> {
        let stored = Stored::new(files, device, &Weights::F32.into())?;
        assemble(files.config().clone(), device, &Changed { stored, name, values })
    }
}

/// Tensors of files, with other values of one matrix.
struct Changed<'a> {
    stored: Stored<'a>,
    name: &'a str,
    values: &'a [f32],
}

impl Source for Changed<'_> {
    fn weight(&self, name: &str) -> Result<Weight> {
        if name != self.name {
            return self.stored.weight(name);
        }
        let raw = self.stored.files.raw(name)?;
        Weight::new(self.stored.device, raw.rows, raw.cols, self.values, Format::F32)
    }
    fn vector(&self, name: &str) -> Result<Tensor> {
        self.stored.vector(name)
    }
}

/// Tensors of files, with vectors that are leaves.
struct Leaves<'a> {
    stored: Stored<'a>,
    vectors: RefCell<Vec<(String, Tensor)>>,
}

impl Source for Leaves<'_> {
    fn weight(&self, name: &str) -> Result<Weight> {
        self.stored.weight(name)
    }
    fn vector(&self, name: &str) -> Result<Tensor> {
        let values = self.stored.vector(name)?;
        // A linear keeps no gradient of its bias.
        if !name.contains("norm") {
            return Ok(values);
        }
        let leaf = values.leaf();
        self.vectors.borrow_mut().push((name.to_string(), leaf.clone()));
        Ok(leaf)
    }
}

/// Where the tensors of a model come from, by Hugging Face's names.
pub(crate) trait Source {
    fn weight(&self, name: &str) -> Result<Weight>;
    fn vector(&self, name: &str) -> Result<Tensor>;
}

/// Tensors of files.
struct Stored<'a> {
    files: &'a ModelFiles,
    device: &'a Device,
    matrices: Requantise<'a>,
}

impl<'a> Stored<'a> {
    fn new(files: &'a ModelFiles, device: &'a Device, options: &LoadOptions) -> Result<Self> {
        let matrices = Requantise::new(files, device, options.weights, options.cache.as_deref())?;
        Ok(Stored { files, device, matrices })
    }
}

impl Source for Stored<'_> {
    fn weight(&self, name: &str) -> Result<Weight> {
        self.matrices.weight(name)
    }
    fn vector(&self, name: &str) -> Result<Tensor> {
        let values = self.files.values(name)?;
        Tensor::from_f32(self.device, &[values.len()], &values)
    }
}

/// Puts a decoder together; it has no origin yet.
pub(super) fn assemble(config: ModelConfig, device: &Device, source: &impl Source) -> Result<Model> {
    let sites = config.sites();
    let parts = Parts { config: &config, device, source, sites: &sites };
    let layers =
        (0..config.num_hidden_layers).map(|i| parts.layer(i).map(Arc::new)).collect::<Result<_>>()?;
    let embed = source.weight("model.embed_tokens.weight")?;
    let head = if config.tie_word_embeddings { embed.clone() } else { source.weight("lm_head.weight")? };
    let norm = parts.norm("model.norm")?;
    let most = config.max_positions();
    let positions = config.ropes.iter().map(|rope| Positions::new(rope.clone(), most)).collect();
    Ok(Model {
        device: device.clone(),
        embed,
        layers,
        sites,
        norm,
        head,
        positions,
        config: Arc::new(config),
        notes: Vec::new(),
        origin: PathBuf::new(),
        fingerprint: Fingerprint::of_values(&[], &[]),
    })
}

/// What the layers of a model are made from.
pub(super) struct Parts<'a, S> {
    pub config: &'a ModelConfig,
    pub device: &'a Device,
    pub source: &'a S,
    pub sites: &'a [Site],
}

impl<S: Source> Parts<'_, S> {
    fn linear(&self, path: &str, bias: bool) -> Result<Linear> {
        let bias = bias.then(|| self.source.vector(&format!("{path}.bias"))).transpose()?;
        Ok(Linear { weight: self.source.weight(&format!("{path}.weight"))?, bias })
    }

    /// The linears of a site of a layer.
    fn group(&self, layer: usize, site: usize) -> Result<LinearGroup> {
        self.numbered(number(layer, site))
    }

    /// The weights of a norm as they multiply.
    fn multiplier(&self, path: &str) -> Result<Tensor> {
        let w = self.source.vector(&format!("{path}.weight"))?;
        if !self.config.norm.one_more {
            return Ok(w);
        }
        w.add(&Tensor::full(self.device, w.dims(), 1.0)?)
    }

    pub fn norm(&self, path: &str) -> Result<NormLayer> {
        let norm = self.config.norm;
        let weight = self.multiplier(path)?;
        let bias = match (norm.layer, norm.bias) {
            (true, true) => Some(self.source.vector(&format!("{path}.bias"))?),
            (true, false) => Some(Tensor::zeros(self.device, weight.dims())?),
            (false, _) => None,
        };
        Ok(NormLayer { weight, bias })
    }

    pub fn layer(&self, i: usize) -> Result<Layer> {
        let c = self.config;
        let path = format!("{}.{i}", c.names.layers);
        let norm = |name: Option<&str>| name.map(|name| self.norm(&format!("{path}.{name}"))).transpose();
        let qk = |name: &str| self.multiplier(&format!("{path}.self_attn.{name}"));
        let single = |gated: bool| -> Result<FeedForward> {
            let first = self.group(i, at::GATE_UP)?;
            let down = self.group(i, at::DOWN)?;
            Ok(FeedForward::Single { first, down, activation: c.activation, gated })
        };
        Ok(Layer {
            config: c.layers[i],
            norms: LayerNorms {
                before_attention: norm(c.norms.before_attention)?,
                after_attention: norm(c.norms.after_attention)?,
                before_mlp: norm(c.norms.before_mlp)?,
                after_mlp: norm(c.norms.after_mlp)?,
            },
            qkv: self.group(i, at::QKV)?,
            o: self.group(i, at::O)?,
            qk_norms: match c.qk_norm {
                Some(_) => Some([qk("q_norm")?, qk("k_norm")?]),
                None => None,
            },
            mlp: match (c.experts.filter(|_| c.has_experts(i)), c.mlp) {
                (Some(experts), _) => FeedForward::Experts(Box::new(self.experts(i, experts)?)),
                (None, MlpKind::Fused) => single(true)?,
                (None, MlpKind::Plain) => single(false)?,
                (None, MlpKind::Gated) => FeedForward::Gated(Mlp {
                    gate_up: self.group(i, at::GATE_UP)?,
                    down: self.group(i, at::DOWN)?,
                    activation: c.activation,
                    site: Some(number(i, at::MLP)),
                }),
            },
        })
    }

    /// The linears of a site, by its number.
    fn numbered(&self, site: usize) -> Result<LinearGroup> {
        let linears = self.sites[site].linears.iter();
        let linears =
            linears.map(|l| self.linear(&l.path, self.config.has_bias(&l.path))).collect::<Result<_>>()?;
        Ok(LinearGroup::at(site, linears))
    }

    fn experts(&self, layer: usize, config: ExpertsConfig) -> Result<Experts> {
        let first = self.config.first_expert_site(layer);
        let expert = |i: usize| -> Result<Mlp> {
            let gate_up = self.numbered(first + 1 + 2 * i)?;
            let down = self.numbered(first + 2 + 2 * i)?;
            Ok(Mlp { gate_up, down, activation: self.config.activation, site: None })
        };
        let gate = || self.source.weight(&format!("{}.weight", self.config.expert_names(layer).shared_gate));
        Ok(Experts {
            config,
            router: self.numbered(first)?,
            experts: (0..config.count).map(expert).collect::<Result<_>>()?,
            shared: config.shared.map(|_| Ok::<_, Error>((expert(config.count)?, gate()?))).transpose()?,
        })
    }
}

/// Names, shapes and values; the notes for the user.
fn check(files: &ModelFiles, options: &LoadOptions) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let extra = files.check()?;
    if !extra.is_empty() {
        let more = if extra.len() > LISTED { ", ..." } else { "" };
        let names = extra[..extra.len().min(LISTED)].join(", ");
        notes.push(format!("{} tensors of the model are not used: {names}{more}", extra.len()));
    }
    if let Some(index) = files.passed_over() {
        let name = index.file_name().unwrap_or_default().to_string_lossy();
        notes.push(format!("{name} is not used: model.safetensors is there, and counts"));
    }
    for e in files.expected() {
        let raw = files.raw(&e.name)?;
        let mut seen = raw.scan(Some(SAMPLED_ROWS))?;
        if seen.nonfinite.is_none() && seen.largest < f32::MIN_POSITIVE {
            // Few rows cannot tell.
            seen = raw.scan(None)?;
        }
        let Some(remark) = seen.remark() else { continue };
        let text = format!("tensor '{}': {remark}", files.stored_name(&e.name));
        match seen.nonfinite {
            Some(_) if !options.allow_nonfinite => {
                let what = format!(
                    "{text}; the file is damaged or was badly converted (--allow-nonfinite takes it as it is)"
                );
                return Err(Error::file(files.path(), what));
            }
            // A bias of zeros is nothing special.
            None if e.name.ends_with(".bias") => {}
            _ => notes.push(text),
        }
    }
    Ok(notes)
}
