//! How much memory a run will take, from the headers of the model's files: nothing is loaded.

mod pictures;
mod saving;

pub use pictures::{PlannedPictures, Tiles};
pub use saving::{Fit, Saving};

use super::RunConfig;
use crate::adapter::{build_sites, linear_sites, resolve_targets};
use crate::mixture::{Hook, SitePart};
use crate::model::{ModelConfig, ModelFiles, ModelShape, Site, Weights};
use crate::nn::Param;
use crate::{Device, Error, Format, Result, Stream};

/// Buffers are taken in steps of an eighth, which adds this much on average.
const ROUNDING: f64 = 1.04;

/// The decoder that a plan is for: open files, or sizes alone.
#[derive(Clone, Copy)]
pub enum Planned<'a> {
    Files(&'a ModelFiles),
    /// Its matrices are in the format of the shape.
    Shape(&'a ModelShape),
}

impl<'a> From<&'a ModelFiles> for Planned<'a> {
    fn from(files: &'a ModelFiles) -> Self {
        Planned::Files(files)
    }
}

impl<'a> From<&'a ModelShape> for Planned<'a> {
    fn from(shape: &'a ModelShape) -> Self {
        Planned::Shape(shape)
    }
}

impl Planned<'_> {
    /// Its configuration.
    pub fn config(&self) -> &ModelConfig {
        match self {
            Planned::Files(files) => files.config(),
            Planned::Shape(shape) => &shape.config,
        }
    }

    /// Bytes of all its tensors, with matrices in these formats; vectors are f32.
    ///
    /// # Errors
    /// A file cannot be read.
    pub fn weight_bytes(&self, weights: Weights) -> Result<u64> {
        let words = |(rows, cols, axes, format): (usize, usize, usize, Format)| {
            let format = if axes > 1 { weights.of(format, cols) } else { Format::F32 };
            (rows * format.row_words(cols)) as u64
        };
        Ok(4 * self.tensors()?.into_iter().map(words).sum::<u64>())
    }

    /// Rows, columns, number of axes and format of each of its tensors.
    fn tensors(&self) -> Result<Vec<(usize, usize, usize, Format)>> {
        let of_file = |files: &ModelFiles| {
            let raw =
                |e: crate::model::Expected| files.raw(&e.name).map(|t| (t.rows, t.cols, t.axes, t.format));
            files.expected().into_iter().map(raw).collect()
        };
        match self {
            Planned::Files(files) => of_file(files),
            Planned::Shape(shape) => {
                let of = |e: crate::model::Expected| match *e.axes.iter().map(|a| a.0).collect::<Vec<_>>() {
                    [rows, cols] => (rows, cols, 2, shape.format),
                    ref dims => (1, dims.iter().product(), 1, Format::F32),
                };
                Ok(shape.config.tensors().into_iter().map(of).collect())
            }
        }
    }
}

/// What the tower needs while it looks at pictures, before the first step.
const LOOKING: &str = "tower workspace";
/// What is there from the first step on.
const STEPPING: [&str; 5] = ["adapter", "gradients", "optimizer", "activations", "workspace"];

/// Bytes by what they are for.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Category and bytes, largest parts of a run first in the order that they are made.
    pub rows: Vec<(&'static str, u64)>,
    /// The vision part, where the data have pictures.
    pub pictures: Option<SeenPictures>,
    /// The device's limit, where one is set.
    pub budget: Option<u64>,
    /// What the machine has free, where that is known; it counts where no budget is set.
    pub free: Option<u64>,
    /// Micro-batch and sequence length that it is for.
    pub shape: (usize, usize),
    /// Settings that need less, with the bytes that they lead to; the gentlest first.
    pub alternatives: Vec<(String, u64)>,
}

/// What is known of the pictures of a plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct SeenPictures {
    pub pictures: usize,
    pub tiles: usize,
    /// Rows of pictures in the longest sequence.
    pub rows: usize,
    /// Bytes of their features: of all, and of those in the machine's memory, which on the CPU is that of the device too.
    pub features: u64,
    pub kept: u64,
    /// Whether what is kept must fit into what is free.
    counts: bool,
}

impl Plan {
    /// What a run takes in a micro-batch of sequences of `seq` tokens, on a device where it is known. Adapter parameters are
    /// counted by their shapes in one layer.
    ///
    /// # Errors
    /// An option does not fit the model.
    pub fn new<'a>(
        files: impl Into<Planned<'a>>,
        config: &RunConfig,
        seq: usize,
        device: Option<&Device>,
    ) -> Result<Self> {
        Self::with_pictures(files, config, seq, device, None)
    }

    /// The same for data with pictures, whose rows are among the `seq` tokens.
    ///
    /// # Errors
    /// An option does not fit the model.
    pub fn with_pictures<'a>(
        files: impl Into<Planned<'a>>,
        config: &RunConfig,
        seq: usize,
        device: Option<&Device>,
        pictures: Option<&PlannedPictures>,
    ) -> Result<Self> {
        let files = files.into();
        let mut config = config.clone();
        config.device.weights = Self::weights(files, &config, seq, device, pictures)?;
        let config = &config;
        let mut plan = Self::sized(files, config, seq, device, pictures)?;
        if let Some(limit) = plan.limit().filter(|_| !plan.fits()) {
            let limit = limit.saturating_sub(plan.beside());
            // A picture is not cut.
            let least = pictures.map_or(0, |pictures| pictures.rows() + 1);
            let total = |config: &RunConfig, seq: usize| {
                Self::sized(files, config, seq, device, pictures).map(|plan| plan.total())
            };
            plan.alternatives = saving::alternatives(files, config, (seq, least), limit, total)?;
        }
        Ok(plan)
    }

    /// The same without alternatives.
    ///
    /// # Errors
    /// An option does not fit the model.
    pub fn sized<'a>(
        files: impl Into<Planned<'a>>,
        config: &RunConfig,
        seq: usize,
        device: Option<&Device>,
        pictures: Option<&PlannedPictures>,
    ) -> Result<Self> {
        let files = files.into();
        if let Some(rows) = pictures.map(PlannedPictures::rows).filter(|&rows| rows >= seq) {
            let expected = format!("more than {rows}, the rows of a picture");
            return Err(Error::config("text.max_length", seq, expected));
        }
        let mut config = config.clone();
        if config.method.options().condition().is_some_and(|condition| condition.condition_width == 0) {
            // Without data to say it: conditions that are texts.
            config.method = config.method.with("condition_width", files.config().hidden_size)?;
        }
        let config = &config;
        let budget = config.device.budget()?;
        let free = device.and_then(Device::free_memory);
        let rows = rows(files, config, seq, pictures)?;
        let shape = (config.train.micro_batch, seq);
        let counts = budget.is_none() && !matches!(device, Some(Device::Gpu(_)));
        let seen = pictures.map(|pictures| SeenPictures {
            pictures: pictures.pictures,
            tiles: pictures.tiles.all,
            rows: pictures.rows(),
            features: pictures.kept().0,
            kept: pictures.kept().1,
            counts,
        });
        Ok(Plan { rows, pictures: seen, budget, free, shape, alternatives: Vec::new() })
    }

    /// The format of the weights where the settings leave it open: f32 for a CPU, which computes fastest with it, if the run
    /// then takes at most half of what there is; else that of the file.
    ///
    /// # Errors
    /// An option does not fit the model.
    pub fn weights<'a>(
        files: impl Into<Planned<'a>>,
        config: &RunConfig,
        seq: usize,
        device: Option<&Device>,
        pictures: Option<&PlannedPictures>,
    ) -> Result<Weights> {
        let given = config.device.weights;
        if given != Weights::Auto || !matches!(device, Some(Device::Cpu(_))) {
            return Ok(if given == Weights::Auto { Weights::File } else { given });
        }
        let mut wide = config.clone();
        wide.device.weights = Weights::F32;
        let plan = Self::sized(files, &wide, seq, device, pictures)?;
        let fits = plan.limit().is_none_or(|most| plan.total().saturating_add(plan.beside()) <= most / 2);
        Ok(if fits { Weights::F32 } else { Weights::File })
    }

    /// The most that the device holds at a time: the tower's workspace is gone when the first step begins.
    pub fn total(&self) -> u64 {
        sum(&self.rows)
    }
    /// Features in the machine's memory, where that is the device's.
    fn beside(&self) -> u64 {
        self.pictures.filter(|seen| seen.counts).map_or(0, |seen| seen.kept)
    }
    /// The budget, or else what the machine has free.
    pub fn limit(&self) -> Option<u64> {
        self.budget.or(self.free)
    }
    /// Whether it stays within that limit.
    pub fn fits(&self) -> bool {
        self.limit().is_none_or(|most| self.total().saturating_add(self.beside()) <= most)
    }
    /// The part of a category.
    pub fn bytes(&self, category: &str) -> u64 {
        self.rows.iter().filter(|r| r.0 == category).map(|r| r.1).sum()
    }
}

/// Bytes of all rows, where either the tower looks or steps are made.
fn sum(rows: &[(&str, u64)]) -> u64 {
    let of = |which: &dyn Fn(&str) -> bool| {
        rows.iter().filter(|row| which(row.0)).fold(0u64, |all, row| all.saturating_add(row.1))
    };
    let always = of(&|name| name != LOOKING && !STEPPING.contains(&name));
    always.saturating_add(of(&|name| name == LOOKING).max(of(&|name| STEPPING.contains(&name))))
}

fn rows(
    files: Planned<'_>,
    config: &RunConfig,
    seq: usize,
    pictures: Option<&PlannedPictures>,
) -> Result<Vec<(&'static str, u64)>> {
    let c = files.config();
    let mut weights = files.weight_bytes(config.device.weights)?;
    // Rotation tables: cosine and sine of the positions that are used.
    weights += 4 * (c.max_positions().min(seq.next_power_of_two()) * c.head_dim) as u64;
    let [mut trained, frozen] = adapter_values(c, config, pictures)?;
    let own = trained + frozen;
    let (mut kept, mut passing) = activations(c, config, seq)?;
    let rounded = |floats: f64| (4.0 * ROUNDING * floats) as u64;
    let mut rows = vec![("base weights", weights)];
    if let Some(pictures) = pictures {
        let learns = config.train.projector_learning_rate.is_some();
        let mixed = config.method.options().takes(SitePart::Projector);
        trained += if learns { pictures.projector() } else { 0.0 };
        let examples = config.train.micro_batch as f64 * config.method.options().draws() as f64;
        let (more, through) = pictures.in_batch(examples, examples * seq as f64, learns || mixed);
        kept += more;
        // Rows are put among tokens before the first layer, and gone when the last one has its gradient.
        passing = passing.max(through);
        rows.push(("tower weights", pictures.weights));
        rows.push(("projector", rounded(pictures.projector())));
        rows.push((LOOKING, rounded(pictures.looking())));
    }
    rows.extend([
        ("adapter", rounded(own)),
        ("gradients", rounded(trained)),
        ("optimizer", rounded(2.0 * trained)),
        ("activations", rounded(kept)),
        ("workspace", rounded(passing)),
    ]);
    Ok(rows)
}

/// Values of the adapter that are trained, and others. Layers may differ.
fn adapter_values(
    c: &ModelConfig,
    config: &RunConfig,
    pictures: Option<&PlannedPictures>,
) -> Result<[f64; 2]> {
    let too_large = |e: Error| match e {
        Error::Shape { .. } => Error::refused(
            "options",
            format!("the adapter is too large: {e}; lower num_factors, num_experts or r"),
        ),
        e => e,
    };
    let device = Device::shapes_only();
    let targets = &resolve_targets(&config.target_modules, c)?;
    let projector = pictures.map_or_else(Vec::new, |pictures| pictures.config.projector_places());
    let projector = Site::of_projector(&projector, c.num_hidden_layers);
    let sites: Vec<Site> = c.sites().into_iter().chain(projector).collect();
    let built = build_sites(&sites, &config.method, targets, &device, Stream::new(0));
    let params: Vec<Param> = built.map_err(too_large)?.iter().flat_map(|a| a.params()).collect();
    let sum = |trainable: bool| {
        let some = params.iter().filter(|p| p.trainable() == trainable);
        some.map(|p| p.value().len() as f64).sum::<f64>()
    };
    Ok([sum(true), sum(false)])
}

/// Floats that are kept for the backward pass, and the most that pass through at a time.
///
/// A layer keeps per row: its input and the sum between (2 D); rotated q, k, and v with the attention's output
/// (2 Q + 2 KV) and its row statistics; gate and up (2 F); and what the method says, such as the products with the chosen
/// A factors. With recomputation only the input is kept, and one layer at a time is whole.
fn activations(c: &ModelConfig, config: &RunConfig, seq: usize) -> Result<(f64, f64)> {
    // Whatever is asked for, these do not overflow.
    let n = |v: usize| v as f64;
    let rows = n(config.train.micro_batch)
        * n(config.method.options().draws())
        * n(config.method.framing().rows_in_front() + seq);
    let d = n(c.hidden_size);
    let f = n(c.intermediate_size);
    let heads = n(c.num_attention_heads);
    let layers = n(c.num_hidden_layers);
    let q = heads * n(c.head_dim);
    let kv = n(c.num_key_value_heads * c.head_dim);
    let method = config.method.spec();
    let memory = config.method.options().row_memory();
    let own = 7.0 * memory.per_linear + memory.per_layer + d * memory.hidden + f * memory.product;
    let layer = 2.0 * (d + q + kv + f * memory.gate_up) + heads + own;
    // What stands beside the first block needs no gradient ahead of it.
    let ahead = if method.hook == Hook::Block { 2.0 * (q + kv) + d + heads } else { 0.0 };
    let kept =
        if config.train.recompute { rows * (layers * d + layer) } else { rows * (layers * layer - ahead) };
    let [per_row, once] = at_sites(c, config)?;
    let at_sites = rows * per_row + once;
    let kept = kept + if config.train.recompute { at_sites / layers } else { at_sites };
    // Behind the layers: the states that the loss reads, and their gradient. On the way back a layer's gradients come
    // while what it kept goes: measured, what is left on top is about one MLP width (all of a block's experts), and
    // another one where the product of gate and up is computed again, for what is trained behind it.
    let beside = method.hook == Hook::Block && !config.train.recompute;
    let again = f64::from(u8::from(memory.product == 0.0 && !beside));
    let experts = method.hook == Hook::Mlp && memory.product > 0.0;
    let widths = if experts { 3.0 * memory.gate_up } else { 1.0 + again };
    let flowing = rows * (d + f * widths);
    Ok((kept + rows * d * (1.0 + memory.before), flowing))
}

/// What a method keeps at all groups of linears together, where that depends on their widths: for each row, and once.
fn at_sites(c: &ModelConfig, config: &RunConfig) -> Result<[f64; 2]> {
    let targets = resolve_targets(&config.target_modules, c)?;
    let sites = c.sites();
    let each = linear_sites(&sites, &config.method, &targets).map(|site| {
        let kept = config.method.options().site_memory(&site);
        [kept.per_row, kept.once]
    });
    Ok(each.fold([0.0; 2], |[rows, once], [more_rows, more_once]| [rows + more_rows, once + more_once]))
}
