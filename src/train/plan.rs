//! How much memory a run will take, from the headers of the model's files: nothing is loaded.

use super::RunConfig;
use crate::adapter::{build_sites, linear_sites, resolve_targets};
use crate::io::read_json;
use crate::mixture::Hook;
use crate::model::vision::VisionConfig;
use crate::model::{ModelConfig, ModelFiles, ModelPlace};
use crate::nn::Param;
use crate::{Device, Error, Format, Result, Stream};

/// Buffers are taken in steps of an eighth, which adds this much on average.
const ROUNDING: f64 = 1.04;

/// Bytes by what they are for.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// Category and bytes, largest parts of a run first in the order that they are made.
    pub rows: Vec<(&'static str, u64)>,
    /// The device's limit, where one is set.
    pub budget: Option<u64>,
    /// What the machine has free, where that is known; it counts where no budget is set.
    pub free: Option<u64>,
    /// Micro-batch and sequence length that it is for.
    pub shape: (usize, usize),
    /// Settings that need less, with the bytes that they lead to; the gentlest first.
    pub alternatives: Vec<(String, u64)>,
}

impl Plan {
    /// What a run takes in a micro-batch of sequences of `seq` tokens, on a device that has `free` bytes. Adapter
    /// parameters are counted by their shapes in one layer.
    ///
    /// # Errors
    /// An option does not fit the model.
    pub fn new(files: &ModelFiles, config: &RunConfig, seq: usize, free: Option<u64>) -> Result<Self> {
        let mut config = config.clone();
        if config.method.options().condition().is_some_and(|condition| condition.condition_width == 0) {
            // Without data to say it: conditions that are texts.
            config.method = config.method.with("condition_width", files.config().hidden_size)?;
        }
        let config = &config;
        let budget = config.device.budget()?;
        let rows = rows(files, config, seq)?;
        let shape = (config.train.micro_batch, seq);
        let mut plan = Plan { rows, budget, free, shape, alternatives: Vec::new() };
        if let Some(limit) = plan.limit().filter(|_| !plan.fits()) {
            plan.alternatives = alternatives(files, config, seq, limit)?;
        }
        Ok(plan)
    }

    /// All of it.
    pub fn total(&self) -> u64 {
        sum(&self.rows)
    }
    /// The budget, or else what the machine has free.
    pub fn limit(&self) -> Option<u64> {
        self.budget.or(self.free)
    }
    /// Whether it stays within that limit.
    pub fn fits(&self) -> bool {
        self.limit().is_none_or(|most| self.total() <= most)
    }
    /// The part of a category.
    pub fn bytes(&self, category: &str) -> u64 {
        self.rows.iter().filter(|r| r.0 == category).map(|r| r.1).sum()
    }
}

/// Bytes of all rows.
fn sum(rows: &[(&str, u64)]) -> u64 {
    rows.iter().fold(0, |all, row| all.saturating_add(row.1))
}

/// What could be changed so that it fits, and the bytes then; those that fit come first, then the smallest, at most
/// three.
fn alternatives(
    files: &ModelFiles,
    config: &RunConfig,
    seq: usize,
    limit: u64,
) -> Result<Vec<(String, u64)>> {
    let batch = config.train.micro_batch;
    let mut tried = Vec::new();
    let mut attempt = |text: String, change: &dyn Fn(&mut RunConfig), seq: usize| -> Result<()> {
        let mut other = config.clone();
        change(&mut other);
        tried.push((text, sum(&rows(files, &other, seq)?)));
        Ok(())
    };
    let accumulate = |n: usize| {
        move |c: &mut RunConfig| {
            let parts = c.train.micro_batch.div_ceil(n);
            c.train.grad_accumulation = c.train.grad_accumulation.saturating_mul(parts);
            c.train.micro_batch = n;
        }
    };
    if !config.train.recompute {
        attempt("--recompute".into(), &|c| c.train.recompute = true, seq)?;
    }
    // One example at a time; the batch of a step stays what it is.
    let single = if batch > 1 {
        let parts = config.train.grad_accumulation.saturating_mul(batch);
        format!(" --micro-batch 1 --grad-accumulation {parts}")
    } else {
        String::new()
    };
    if batch > 1 {
        attempt(single.trim().into(), &accumulate(1), seq)?;
        let both = |c: &mut RunConfig| {
            accumulate(1)(c);
            c.train.recompute = true;
        };
        attempt(format!("--recompute{single}"), &both, seq)?;
    }
    let mut formats = files.expected().into_iter().map(|e| files.raw(&e.name).map(|r| r.format));
    let packed = formats.any(|f| f.is_ok_and(|f| f != Format::F32));
    let least = |c: &mut RunConfig| {
        accumulate(1)(c);
        c.train.recompute = true;
        c.device.keep_quantised |= packed;
    };
    if packed && !config.device.keep_quantised {
        attempt("--keep-quantised".into(), &|c| c.device.keep_quantised = true, seq)?;
        attempt(format!("--keep-quantised --recompute{single}"), &least, seq)?;
    }
    if seq > 128 {
        let half = seq / 2;
        attempt(format!("--max-length {half} --recompute"), &|c| c.train.recompute = true, half)?;
        let kept = if packed { " --keep-quantised" } else { "" };
        attempt(format!("--max-length {half}{kept} --recompute{single}"), &least, half)?;
    }
    // Those that fit stay in their order, the gentlest first.
    tried.sort_by_key(|(_, bytes)| if *bytes > limit { *bytes } else { 0 });
    tried.truncate(3);
    Ok(tried)
}

fn rows(files: &ModelFiles, config: &RunConfig, seq: usize) -> Result<Vec<(&'static str, u64)>> {
    let c = files.config();
    let mut weights = 0;
    for e in files.expected() {
        let raw = files.raw(&e.name)?;
        // Vectors are f32 anyway.
        let keep = config.device.keep_quantised && raw.axes > 1 || raw.format == Format::F32;
        let words = if keep { raw.format.row_words(raw.cols) } else { raw.cols };
        weights += 4 * (raw.rows * words) as u64;
    }
    // Rotation tables: cosine and sine of the positions that are used.
    weights += 4 * (c.max_positions().min(seq.next_power_of_two()) * c.head_dim) as u64;
    let [trained, frozen] = adapter_values(c, config)?;
    let trained = trained + projector_values(c, config)?;
    let (kept, passing) = activations(c, config, seq)?;
    let rounded = |floats: f64| (4.0 * ROUNDING * floats) as u64;
    Ok(vec![
        ("base weights", weights),
        ("adapter", rounded(trained + frozen)),
        ("gradients", rounded(trained)),
        ("optimizer", rounded(2.0 * trained)),
        ("activations", rounded(kept)),
        ("workspace", rounded(passing)),
    ])
}

/// Values of the adapter that are trained, and others. Layers may differ.
fn adapter_values(c: &ModelConfig, config: &RunConfig) -> Result<[f64; 2]> {
    let too_large = |e: Error| match e {
        Error::Shape { .. } => Error::refused(
            "options",
            format!("the adapter is too large: {e}; lower num_factors, num_experts or r"),
        ),
        e => e,
    };
    let device = Device::shapes_only();
    let targets = &resolve_targets(&config.target_modules, c)?;
    let built = build_sites(&c.sites(), &config.method, targets, &device, Stream::new(0));
    let params: Vec<Param> = built.map_err(too_large)?.iter().flat_map(|a| a.params()).collect();
    let sum = |trainable: bool| {
        let some = params.iter().filter(|p| p.trainable() == trainable);
        some.map(|p| p.value().len() as f64).sum::<f64>()
    };
    Ok([sum(true), sum(false)])
}

/// Values of the projector of a model that sees, where it is trained.
fn projector_values(c: &ModelConfig, config: &RunConfig) -> Result<f64> {
    if config.train.projector_learning_rate.is_none() {
        return Ok(0.0);
    }
    let ModelPlace::Folder(dir) = ModelPlace::of(&config.model)? else { return Ok(0.0) };
    let vision = VisionConfig::from_json(&read_json(&dir.join("config.json"))?, c.hidden_size)?;
    let tensors = vision.iter().flat_map(VisionConfig::projector_tensors);
    Ok(tensors.map(|e| e.axes.iter().map(|axis| axis.0 as f64).product::<f64>()).sum())
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
