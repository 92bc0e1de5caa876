//! Training steps of a whole model, beside the dense products that no method can do without.

use super::kernels::kernels;
use super::model::{attach, format_of, tokens};
use super::{Candidate, Place, Rounds, Row, Summary, Timer, Watch, Work, measure};
use crate::data::{Batch, Example};
use crate::mixture::Method;
use crate::model::Model;
use crate::train::{Session, StepReport, TrainConfig};
use crate::{Error, Result, Stream, Tensor, Weight, backward};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What is trained, and how.
pub struct TrainingOptions {
    pub method: Method,
    pub batch: usize,
    pub seq: usize,
    pub steps: usize,
    /// Share of the tokens that have a loss, at the end of each sequence; 1 for all.
    pub trained_share: f64,
    /// Compute layers again in the backward pass.
    pub recompute: bool,
    /// Add a row for each kernel of one more step, on GPUs with timestamps.
    pub kernels: bool,
}

impl TrainingOptions {
    fn batch(&self, model: &Model) -> Result<Batch> {
        let (seq, most) = (self.seq, model.config().max_positions());
        if self.batch == 0 || seq < 2 || seq > most {
            return Err(Error::config(
                "seq",
                format!("is {seq} in batches of {}, must be in 2..={most}", self.batch),
            ));
        }
        if !(self.trained_share > 0.0 && self.trained_share <= 1.0) {
            let what = format!("is {}, must be above 0 and at most 1", self.trained_share);
            return Err(Error::config("trained_share", what));
        }
        let untrained = seq - ((seq as f64 * self.trained_share).round() as usize).clamp(1, seq);
        let ids = tokens(self.batch * seq, model.config().vocab_size);
        let flags = || (0..seq).map(|i| i >= untrained).collect();
        let examples: Vec<Example> = ids.chunks(seq).map(|ids| Example::new(ids.to_vec(), flags())).collect();
        let pool = self.method.options().instance().map(|i| i.pool);
        Batch::new(&examples.iter().collect::<Vec<_>>(), pool, 0, model.device())
    }
}

/// The dense products of one step: each linear forward, and backward to its input.
struct Floor {
    /// Weights, and the rows that go through them.
    weights: Vec<(Weight, usize)>,
    /// Values `[rows, width]` for every number of rows and width.
    values: BTreeMap<(usize, usize), Tensor>,
}

impl Floor {
    fn new(model: &Model, batch: &Batch) -> Result<Self> {
        let rows = batch.targets.len();
        let mut weights: Vec<(Weight, usize)> = Vec::new();
        weights.extend(model.linears().map(|(_, l)| (l.weight.clone(), rows)));
        // Positions without a loss need no logits.
        weights.push((model.head().clone(), batch.trained));
        let mut values = BTreeMap::new();
        for (w, rows) in &weights {
            for width in [w.rows(), w.cols()] {
                if let std::collections::btree_map::Entry::Vacant(e) = values.entry((*rows, width)) {
                    let normal = Stream::new(9).normal_vec(rows * width, 1.0);
                    e.insert(Tensor::from_f32(model.device(), &[*rows, width], &normal)?.leaf());
                }
            }
        }
        Ok(Floor { weights, values })
    }

    fn run(&self) -> Result<()> {
        self.weights.iter().try_for_each(|(w, rows)| {
            let (x, dy) = (&self.values[&(*rows, w.cols())], &self.values[&(*rows, w.rows())]);
            let y = x.linear(w, None)?;
            backward(&[(&y, dy.detach())]).map(drop)
        })
    }

    fn flops(&self) -> f64 {
        self.weights.iter().map(|(w, rows)| 4.0 * (rows * w.rows() * w.cols()) as f64).sum()
    }
}

/// Largest resident memory of this process so far, where the system tells it.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / 1024.0)
}

/// Times training steps on tokens that are always the same: a row for the step, its parts, and the dense floor, in
/// interleaved rounds. The step's ratio is to the floor, and its percent of the roof is the floor's share.
///
/// # Errors
/// An option cannot work, the loss is not finite, or the device failed.
pub fn training(model: Arc<Model>, options: &TrainingOptions) -> Result<Vec<Row>> {
    let device = model.device().clone();
    let dtype = format_of(&model);
    let batch = options.batch(&model)?;
    let floor = Floor::new(&model, &batch)?;
    let file = model.origin().file_name().map_or(String::new(), |f| f.to_string_lossy().into_owned());
    let adapter = attach(&model, &options.method)?;
    // One step warms up, one may be profiled.
    let config =
        TrainConfig { steps: options.steps + 2, recompute: options.recompute, ..TrainConfig::default() };
    let session = RefCell::new(Session::new(model, adapter, config)?);
    let batches = [batch];
    let reports: RefCell<Vec<(StepReport, u64)>> = RefCell::default();
    let step: Candidate<'_> = Box::new(|w: &mut Watch| {
        let memory = batches[0].ids.device().memory();
        memory.iter().for_each(|m| m.reset_peak());
        w.time(|| {
            let report = session.borrow_mut().step(&batches)?;
            reports.borrow_mut().push((report, memory.map_or(0, |m| m.peak())));
            Ok(())
        })
    });
    let dense: Candidate<'_> = Box::new(|w: &mut Watch| w.time(|| floor.run()));
    let timer = Timer::of(&device, true)?;
    let samples = measure(&device, timer, Rounds::single(options.steps), &mut [step, dense])?;
    let place = Place::of(&device);
    let reports = reports.take();
    let recompute = if options.recompute { " recompute" } else { "" };
    let row = |op: &str, dir: &str, samples: &[f64]| {
        let work = Work {
            bench: "train".into(),
            op: op.into(),
            variant: format!(
                "{} {}x{} trained {}{recompute}",
                options.method.name(),
                options.batch,
                options.seq,
                options.trained_share
            ),
            shape: file.clone(),
            dtype: dtype.into(),
            dir: dir.into(),
        };
        Row::new(&place, work, timer, samples)
    };
    let mut whole = row("step", "", &samples[0]).ratio(Summary::of_ratios(&samples[0], &samples[1]));
    whole.tok_s = Some(batches[0].tokens as f64 / (whole.median_us * 1e-6));
    whole.roof_pct = whole.ratio.map(|r| 100.0 / r);
    whole.peak_mem_mib = reports.iter().map(|r| r.1 as f64 / (1 << 20) as f64).reduce(f64::max);
    whole.peak_rss_mib = peak_rss_mib();
    whole.loss = reports.last().map(|r| r.0.loss);
    let mut rows = vec![whole];
    let part =
        |f: fn(&StepReport) -> f64| -> Vec<f64> { reports.iter().skip(1).map(|r| f(&r.0) * 1e-3).collect() };
    rows.push(row("forward", "fwd", &part(|r| r.times.forward)));
    rows.push(row("backward", "bwd", &part(|r| r.times.backward)));
    rows.push(row("optimizer", "", &part(|r| r.times.optimizer)));
    rows.push(row("readback", "", &part(|r| r.times.readback)));
    let mut floor_row = row("dense products", "sum", &samples[1]);
    floor_row.gflops = Some(floor.flops() / (floor_row.median_us * 1e-6) * 1e-9);
    floor_row.tok_s = Some(batches[0].tokens as f64 / (floor_row.median_us * 1e-6));
    rows.push(floor_row);
    if options.kernels {
        let work = rows[0].work.clone();
        rows.extend(kernels(&device, &work, || session.borrow_mut().step(&batches).map(drop))?);
    }
    Ok(rows)
}
