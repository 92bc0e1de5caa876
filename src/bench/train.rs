//! Times of training steps of a whole model, compared with the dense products that every method needs.

use super::kernels::kernels;
use super::model::{attach, format_of, tokens};
use super::{
    CONDITION, Candidate, Pictured, Place, Rounds, Row, Summary, TASK, Timer, Watch, Work, for_samples,
    measure,
};
use crate::data::{Batch, Example};
use crate::mixture::Method;
use crate::model::Model;
use crate::model::vision::VisionModel;
use crate::train::{Session, StepReport, TrainConfig};
use crate::{Error, Result, Stream, Tensor, Weight, backward};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Options for timing training steps.
pub struct TrainingOptions {
    pub method: Method,
    pub batch: usize,
    pub seq: usize,
    pub steps: usize,
    /// The share of the tokens with a loss, at the end of each sequence; 1 for all.
    pub trained_share: f64,
    /// Recompute layers in the backward pass.
    pub recompute: bool,
    /// Add a row for each kernel of one more step, on GPUs with timestamps.
    pub kernels: bool,
    /// Also steps on a picture's features, which stand at the start of each sequence, beside steps on text alone. In both
    /// the places of the picture have no loss.
    pub pictured: Option<Pictured>,
}

impl TrainingOptions {
    /// The batch of text, and that with pictures.
    fn batches(&self, model: &Model) -> Result<(Batch, Option<Batch>)> {
        let seq = self.seq;
        let most = model.config().max_positions();
        if self.batch == 0 || seq < 2 || seq > most {
            return Err(Error::config(
                "seq",
                format!("{seq} in batches of {}", self.batch),
                format!("in 2..={most}"),
            ));
        }
        if !(self.trained_share > 0.0 && self.trained_share <= 1.0) {
            return Err(Error::config("trained_share", self.trained_share, "above 0 and at most 1"));
        }
        let untrained = seq - ((seq as f64 * self.trained_share).round() as usize).clamp(1, seq);
        let rows = self.pictured.as_ref().map_or(0, Pictured::rows);
        if rows + 2 > seq && rows > 0 {
            let expected = format!("at least {}: the picture has {rows} rows", rows + 2);
            return Err(Error::config("seq", seq, expected));
        }
        // The first row is what predicts; nothing predicts the token at the start.
        let untrained = untrained.max(if rows > 0 { rows + 1 } else { 0 });
        let mut ids = tokens(self.batch * seq, model.config().vocab_size);
        let flags = || (0..seq).map(|place| place >= untrained).collect();
        let example = |ids: &[u32]| Example {
            task: Some(TASK.into()),
            condition: Some([0.5; CONDITION].as_slice().into()),
            ..Example::new(ids.to_vec(), flags())
        };
        let batch = |ids: &[u32]| {
            let examples: Vec<Example> = ids.chunks(seq).map(example).collect();
            Batch::new(&examples.iter().collect::<Vec<_>>(), self.method.framing(), 0, model.device())
        };
        let text = batch(&ids)?;
        let Some(pictured) = &self.pictured else { return Ok((text, None)) };
        let token = pictured.vision.config().image_token;
        for (place, id) in ids.iter_mut().enumerate() {
            // One token of text, then the picture.
            if (1..=rows).contains(&(place % seq)) {
                *id = token;
            } else if *id == token {
                *id = 0;
            }
        }
        // Kept as a run keeps them: in memory of the host, and new on the device in each step.
        let features = pictured.features()?;
        let values = features.to_f32()?.repeat(self.batch);
        let [tiles, n, width] = *features.dims() else {
            return Err(Error::shape("tower", "features [T, N, d]", features.shape()));
        };
        let features = Tensor::from_f32(model.device(), &[self.batch * tiles, n, width], &values)?;
        Ok((text, Some(batch(&ids)?.with_pictures(&pictured.vision, features)?)))
    }
}

/// The dense products of one step: each linear forward, and backward to its input.
struct Floor {
    /// Weights with the number of rows that they are applied to.
    weights: Vec<(Weight, usize)>,
    /// Values `[rows, width]` for every number of rows and width.
    values: BTreeMap<(usize, usize), Tensor>,
}

impl Floor {
    fn new(model: &Model, batch: &Batch) -> Result<Self> {
        let rows = batch.targets.len();
        let mut weights: Vec<(Weight, usize)> = Vec::new();
        weights.extend(model.linears().map(|(_, linear)| (linear.weight.clone(), rows)));
        // Positions without a loss need no logits.
        weights.push((model.head().clone(), batch.trained));
        let mut values = BTreeMap::new();
        for (weight, rows) in &weights {
            for width in [weight.rows(), weight.cols()] {
                if let std::collections::btree_map::Entry::Vacant(entry) = values.entry((*rows, width)) {
                    let normal = Stream::new(9).normal_vec(rows * width, 1.0);
                    entry.insert(Tensor::from_f32(model.device(), &[*rows, width], &normal)?.leaf());
                }
            }
        }
        Ok(Floor { weights, values })
    }

    fn run(&self) -> Result<()> {
        self.weights.iter().try_for_each(|(weight, rows)| {
            let x = &self.values[&(*rows, weight.cols())];
            let dy = &self.values[&(*rows, weight.rows())];
            let y = x.linear(weight, None)?;
            backward(&[(&y, dy.detach())]).map(drop)
        })
    }

    fn flops(&self) -> f64 {
        self.weights.iter().map(|(weight, rows)| 4.0 * (rows * weight.rows() * weight.cols()) as f64).sum()
    }
}

/// The peak resident memory of this process, if the system reports it.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / 1024.0)
}

/// A session of its own for steps on features, with an adapter like that of the steps on text. The projector is trained in
/// it where it can be.
fn seeing(
    model: &Arc<Model>,
    options: &TrainingOptions,
    config: &TrainConfig,
    batch: Batch,
) -> Result<(RefCell<Session>, [Batch; 1])> {
    let adapter = attach(model, &for_samples(&options.method)?)?;
    let session = Session::new(model.clone(), adapter, config.clone())?;
    let trained = |vision: &&VisionModel| vision.projector().params().iter().any(|p| p.trainable());
    let vision = options.pictured.as_ref().map(|pictured| &*pictured.vision);
    let session = match vision.filter(trained) {
        Some(vision) => session.with_projector(vision, 1.0)?,
        None => session,
    };
    Ok((RefCell::new(session), [batch]))
}

/// Times training steps on fixed tokens in interleaved rounds. Returns rows for the step, its parts and the dense
/// products. The ratio of the step is to the dense products, and its percentage of the roof is their share; that of the step
/// on features is to the step.
///
/// # Errors
/// An option cannot work, the loss is not finite, or the device failed.
pub fn training(model: Arc<Model>, options: &TrainingOptions) -> Result<Vec<Row>> {
    let device = model.device().clone();
    let dtype = format_of(&model);
    let (batch, shown) = options.batches(&model)?;
    let floor = Floor::new(&model, &batch)?;
    let file = model.origin().file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
    let adapter = attach(&model, &for_samples(&options.method)?)?;
    // One step is a warm-up, and one may be profiled.
    let config =
        TrainConfig { steps: options.steps + 2, recompute: options.recompute, ..TrainConfig::default() };
    let seeing = shown.map(|batch| seeing(&model, options, &config, batch)).transpose()?;
    let session = RefCell::new(Session::new(model, adapter, config)?);
    let batches = [batch];
    let reports: RefCell<Vec<(StepReport, u64)>> = RefCell::default();
    let step: Candidate<'_> = Box::new(|watch: &mut Watch| {
        let memory = batches[0].ids.device().memory();
        memory.iter().for_each(|memory| memory.reset_peak());
        watch.time(|| {
            let report = session.borrow_mut().step(&batches)?;
            reports.borrow_mut().push((report, memory.map_or(0, |memory| memory.peak())));
            Ok(())
        })
    });
    let dense: Candidate<'_> = Box::new(|watch: &mut Watch| watch.time(|| floor.run()));
    let mut candidates = vec![step, dense];
    if let (Some((session, batch)), Some(pictured)) = (&seeing, &options.pictured) {
        candidates
            .push(Box::new(|watch: &mut Watch| watch.time(|| session.borrow_mut().step(batch).map(drop))));
        candidates.push(Box::new(|watch: &mut Watch| watch.time(|| pictured.features().map(drop))));
    }
    let timer = Timer::of(&device, true)?;
    let samples = measure(&device, timer, Rounds::single(options.steps), &mut candidates)?;
    drop(candidates);
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
    whole.roof_pct = whole.ratio.map(|ratio| 100.0 / ratio);
    whole.peak_mem_mib = reports.iter().map(|(_, peak)| *peak as f64 / (1 << 20) as f64).reduce(f64::max);
    whole.peak_rss_mib = peak_rss_mib();
    whole.loss = reports.last().map(|(report, _)| report.loss);
    let mut rows = vec![whole];
    let part = |milliseconds: fn(&StepReport) -> f64| -> Vec<f64> {
        reports.iter().skip(1).map(|(report, _)| milliseconds(report) * 1e-3).collect()
    };
    rows.push(row("forward", "fwd", &part(|report| report.times.forward)));
    rows.push(row("backward", "bwd", &part(|report| report.times.backward)));
    rows.push(row("optimizer", "", &part(|report| report.times.optimizer)));
    rows.push(row("readback", "", &part(|report| report.times.readback)));
    let mut floor_row = row("dense products", "sum", &samples[1]);
    floor_row.gflops = Some(floor.flops() / (floor_row.median_us * 1e-6) * 1e-9);
    floor_row.tok_s = Some(batches[0].tokens as f64 / (floor_row.median_us * 1e-6));
    rows.push(floor_row);
    if let ([_, _, shown, tower], Some(pictured)) = (&samples[..], &options.pictured) {
        let mut step = row("step on features", "", shown).ratio(Summary::of_ratios(shown, &samples[0]));
        step.tok_s = Some(batches[0].tokens as f64 / (step.median_us * 1e-6));
        rows.push(step);
        let work = Work { bench: "train".into(), op: "tower".into(), dir: "fwd".into(), ..Work::default() };
        rows.push(pictured.row(&place, work, timer, tower));
    }
    if options.kernels {
        let work = rows[0].work.clone();
        rows.extend(kernels(&device, &work, || session.borrow_mut().step(&batches).map(drop))?);
    }
    Ok(rows)
}
