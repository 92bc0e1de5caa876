//! Times of a mixture layer compared with the frozen linear that it adapts.

use super::{
    CONDITION, Candidate, Costs, Place, Roof, Rounds, Row, Shape, Summary, TASK, Timer, Watch, Work,
    for_samples, measure,
};
use crate::check::{Deviation, Subject};
use crate::mixture::{Hook, Method, MethodSpec, Pool, Span, Tree};
use crate::nn::{Choices, Labels, Mlp, Param, Pass};
use crate::tape::inside;
use crate::{Device, Error, Format, Linear, Result, Stream, Tensor, Weight, backward};

/// The bound on the error of a layer and of its input gradient, relative to the largest value of the f64 reference.
const BOUND: f64 = 1e-4;
/// The numbers of instances and of their rows in the comparison with the reference.
const CHECKED: [usize; 2] = [2, 3];
const SITE: &str = "layer";

/// Options for timing layers.
pub struct LayerOptions {
    pub methods: Vec<&'static MethodSpec>,
    /// `d_in x d_out`; `hidden_size x intermediate_size` of methods that take a block.
    pub shapes: Vec<Shape<2>>,
    pub batch: usize,
    pub seq: usize,
    /// Sizes of pools of factors, for methods that have them; the others have their defaults.
    pub factors: Vec<usize>,
    /// The number of factors chosen from a pool.
    pub r: usize,
    /// Other options, for the methods that have them.
    pub set: Tree,
    pub rounds: Rounds,
    /// Use the host's clock even if the device has timestamps.
    pub wall: bool,
}

/// Sets parameters of zeros to small random values, so that no part of an update is zero.
pub(super) fn randomise(params: &[Param]) -> Result<()> {
    for param in params {
        let value = param.value();
        if value.to_f32()?.iter().all(|value| *value == 0.0) {
            let values = Stream::new(4).named(&param.name()).normal_vec(value.len(), 0.02);
            param.set(Tensor::from_f32(value.device(), value.dims(), &values)?)?;
        }
    }
    Ok(())
}

fn linear(device: &Device, name: &str, d_in: usize, d_out: usize) -> Result<Linear> {
    let std = (d_in as f32).powf(-0.5);
    let values = Stream::new(1).named(name).normal_vec(d_out * d_in, std);
    Ok(Linear { weight: Weight::new(device, d_out, d_in, &values, Format::F32)?, bias: None })
}

/// Frozen weights that a method with that hook takes.
fn frozen(device: &Device, hook: Hook, Shape([d_in, width]): Shape<2>) -> Result<Subject> {
    if Subject::takes_linears(hook) {
        return Ok(Subject::linears(vec![linear(device, "w", d_in, width)?]));
    }
    let gate = linear(device, "gate", d_in, width)?;
    let up = linear(device, "up", d_in, width)?;
    Ok(Subject::mlp(Mlp::frozen(gate, up, linear(device, "down", width, d_in)?)))
}

/// The same weights with an adapter whose update is not zero.
fn adapted(frozen: &Subject, method: &Method) -> Result<Subject> {
    let adapted = frozen.adapted(method, SITE, &[""], Stream::new(2))?;
    randomise(&adapted.params())?;
    Ok(adapted)
}

/// Outputs of a layer.
fn width_out(hook: Hook, Shape([d_in, width]): Shape<2>) -> usize {
    if Subject::takes_linears(hook) { width } else { d_in }
}

/// The tape of one forward pass: output and auxiliary losses, with their gradients.
type Roots = Vec<(Tensor, Tensor)>;

/// A batch for a layer.
struct Rig {
    x: Tensor,
    dy: Tensor,
    spans: Vec<Span>,
}

impl Rig {
    fn new(device: &Device, [batch, seq]: [usize; 2], d_in: usize, d_out: usize) -> Result<Self> {
        let values = |name: &str, width: usize| {
            let values = Stream::new(1).named(name).normal_vec(batch * seq * width, 1.0);
            Tensor::from_f32(device, &[batch, seq, width], &values)
        };
        let spans = vec![Span { len: seq, prompt: seq }; batch];
        Ok(Rig { x: values("x", d_in)?, dy: values("dy", d_out)?, spans })
    }

    fn pass(&self) -> Result<Pass> {
        let [batch, seq, _] = *self.x.dims() else { return Err(Error::refused("layer", "has no rows")) };
        let units = Pool::Real.units(self.x.device(), &self.spans, seq)?;
        let conditions = Stream::new(1).named("conditions").normal_vec(batch * CONDITION, 1.0);
        let conditions = Tensor::from_f32(self.x.device(), &[batch, CONDITION], &conditions)?;
        let tasks = vec![Some(TASK.into()); batch];
        let labels = Labels { tasks, conditions: Some(conditions), ..Labels::default() };
        Ok(Pass::training(units, Stream::new(6)).with_labels(labels))
    }

    fn forward(&self, body: &Subject, x: &Tensor, pass: &Pass) -> Result<Roots> {
        let y = body.forward(x, pass)?.swap_remove(0);
        let mut roots = vec![(y, self.dy.clone())];
        for loss in pass.take_aux()? {
            let one = Tensor::full(loss.device(), loss.dims(), 1.0)?;
            roots.push((loss, one));
        }
        Ok(roots)
    }
}

/// Runs the backward pass.
fn walk(roots: Roots) -> Result<crate::Gradients> {
    backward(&roots.iter().map(|(y, dy)| (y, dy.clone())).collect::<Vec<_>>())
}

/// Compares a layer's output and input gradient with those of the reference, which uses the device's choices.
fn verify(device: &Device, method: &Method, shape: Shape<2>) -> Result<Deviation> {
    let hook = method.spec().hook;
    let output = |device: &Device, choices: Choices| -> Result<[Vec<f64>; 2]> {
        let body = adapted(&frozen(device, hook, shape)?, method)?;
        let rig = Rig::new(device, CHECKED, shape.0[0], width_out(hook, shape))?;
        let x = rig.x.leaf();
        let pass = rig.pass()?.with_choices(choices);
        let roots = rig.forward(&body, &x, &pass)?;
        let y = roots[0].0.to_f64()?;
        let dx = walk(roots)?.get(&x).map_or(Ok(Vec::new()), Tensor::to_f64)?;
        Ok([y, dx])
    };
    let choices = Choices::record();
    let got = output(device, choices.clone())?;
    let reference = Device::reference();
    let recorded = choices.all().into_iter();
    let recorded = recorded.map(|(site, recorded)| Ok((site, recorded.choice.to_device(&reference)?)));
    let recorded = recorded.collect::<Result<Vec<_>>>()?;
    // A method without a router records nothing.
    let choices = if recorded.is_empty() { Choices::Free } else { Choices::force(recorded) };
    let want = output(&reference, choices)?;
    let each = got.iter().zip(&want).map(|(got, want)| Deviation::of(got, want, 1e-30));
    Ok(each.fold(Deviation::default(), Deviation::worst))
}

/// Launches and memory traffic of a pass.
#[derive(Clone, Copy, Default)]
struct Launches {
    dispatches: i64,
    submits: u64,
    readbacks: u64,
    bytes: u64,
}

/// Returns the counts of a GPU since the last call; none for other devices.
fn launches(device: &Device) -> Option<Launches> {
    match device {
        Device::Gpu(gpu) => {
            let stats = gpu.stats();
            gpu.reset_stats();
            Some(Launches {
                dispatches: stats.dispatches as i64,
                submits: stats.submits,
                readbacks: stats.readbacks,
                bytes: stats.bytes_bound,
            })
        }
        _ => None,
    }
}

/// Counts the launches of a forward and of a backward pass.
fn count(device: &Device, rig: &Rig, body: &Subject) -> Result<[Option<Launches>; 2]> {
    let x = rig.x.leaf();
    let pass = rig.pass()?;
    device.sync()?;
    launches(device);
    let roots = rig.forward(body, &x, &pass)?;
    device.sync()?;
    let forward = launches(device);
    walk(roots)?;
    device.sync()?;
    Ok([forward, launches(device)])
}

/// A layer to time.
struct Entry {
    name: String,
    variant: String,
    hook: Hook,
    body: Subject,
    rig: Rig,
    /// The comparison with the reference; none for frozen layers, which are the baselines.
    verified: Option<Deviation>,
}

/// Times every method on every shape, interleaved with the frozen layer. Returns rows for forward, backward and their
/// sum, with the ratio to the frozen layer in the same round. `progress` receives a description of each part.
///
/// # Errors
/// An option cannot work for a method, or the device failed.
pub fn layer(
    device: &Device,
    options: &LayerOptions,
    roof: Option<&Roof>,
    mut progress: impl FnMut(&str),
) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for &shape in &options.shapes {
        let entries = entries(device, options, shape, &mut progress)?;
        progress(&format!("timing {shape}"));
        rows.extend(timed(device, options, shape, roof, entries)?);
    }
    Ok(rows)
}

fn entries(
    device: &Device,
    options: &LayerOptions,
    shape: Shape<2>,
    progress: &mut impl FnMut(&str),
) -> Result<Vec<Entry>> {
    let size = [options.batch, options.seq];
    let mut all: Vec<Entry> = Vec::new();
    for hook in [Hook::Linear, Hook::Mlp, Hook::Block] {
        let methods: Vec<_> = options.methods.iter().filter(|method| method.hook == hook).collect();
        if methods.is_empty() {
            continue;
        }
        let name = format!("frozen {}", hook.name());
        let frozen = frozen(device, hook, shape)?;
        let rig = || Rig::new(device, size, shape.0[0], width_out(hook, shape));
        let mut layers = Vec::new();
        for method in methods {
            for (variant, method) in variants(method, options)? {
                progress(&format!("checking {} {variant} on {shape}", method.name()));
                let verified = Some(verify(device, &method, shape)?);
                let body = adapted(&frozen, &method)?;
                layers.push(Entry { name: method.name().into(), variant, hook, body, rig: rig()?, verified });
            }
        }
        all.push(Entry { name, variant: String::new(), hook, body: frozen, rig: rig()?, verified: None });
        all.extend(layers);
    }
    Ok(all)
}

/// The timed variants of a method with their names.
fn variants(method: &'static MethodSpec, options: &LayerOptions) -> Result<Vec<(String, Method)>> {
    let defaults = method.defaults();
    let own = method.option_names();
    let set: Tree = options
        .set
        .iter()
        .filter(|(name, _)| own.contains(&name.as_str()))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let others: String = set.iter().map(|(name, value)| format!(" {name} {value}")).collect();
    let all = defaults.options().variants(&options.factors, options.r);
    let changed = |(name, mut changes): (String, Tree)| {
        changes.extend(set.clone());
        Ok((format!("{name}{others}"), for_samples(&defaults.set(&changes)?)?))
    };
    all.into_iter().map(changed).collect()
}

fn timed(
    device: &Device,
    options: &LayerOptions,
    shape: Shape<2>,
    roof: Option<&Roof>,
    entries: Vec<Entry>,
) -> Result<Vec<Row>> {
    let place = Place::of(device);
    let timer = Timer::of(device, options.wall)?;
    let holds = |entry: &Entry| entry.verified.is_none_or(|deviation| deviation.max <= BOUND);
    let work = |entry: &Entry, dir: &str| Work {
        bench: "layer".into(),
        op: entry.name.clone(),
        variant: entry.variant.clone(),
        shape: format!("{}x{} rows {shape}", options.batch, options.seq),
        dtype: "f32".into(),
        dir: dir.into(),
    };
    let wrong = |entry: &Entry| Row {
        verified: Some(false),
        verified_nmse: entry.verified.map(|deviation| deviation.nmse),
        ..Row::new(&place, work(entry, ""), timer, &[])
    };
    let mut rows: Vec<Row> = entries.iter().filter(|entry| !holds(entry)).map(wrong).collect();
    let right: Vec<Entry> = entries.into_iter().filter(holds).collect();
    let counts =
        right.iter().map(|entry| count(device, &entry.rig, &entry.body)).collect::<Result<Vec<_>>>()?;
    let samples = sample(device, timer, options.rounds, &right)?;
    for (index, entry) in right.iter().enumerate() {
        let is_baseline = |other: &Entry| other.hook == entry.hook && other.verified.is_none();
        let baseline = right.iter().position(is_baseline).unwrap_or(index);
        for (part, dir) in ["fwd", "bwd", "sum"].into_iter().enumerate() {
            let mut row = Row::new(&place, work(entry, dir), timer, &samples[index][part]);
            if index == baseline {
                row = row.costs(Some(frozen_costs(options, shape, entry.hook, dir == "sum")), roof);
            } else {
                row = row.ratio(Summary::of_ratios(&samples[index][part], &samples[baseline][part]));
                row.verified = Some(true);
                row.verified_nmse = entry.verified.map(|deviation| deviation.nmse);
            }
            if let (Some(Some(own)), Some(Some(frozen))) =
                (counts[index].get(part), counts[baseline].get(part))
            {
                row.extra_dispatches = Some(own.dispatches - frozen.dispatches);
                row.submits = Some(own.submits);
                row.readbacks = Some(own.readbacks);
                row.bound_mib = Some(own.bytes as f64 / (1 << 20) as f64);
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Samples of the forward pass, the backward pass and their sum, in seconds, for each layer.
fn sample(device: &Device, timer: Timer, rounds: Rounds, layers: &[Entry]) -> Result<Vec<[Vec<f64>; 3]>> {
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    for Entry { rig, body, .. } in layers {
        candidates.push(Box::new(move |watch: &mut Watch| {
            let x = rig.x.leaf();
            let batch = watch.batch();
            let pass = rig.pass()?;
            // Training steps run on the compute threads as well.
            let forward = || (0..batch).try_for_each(|_| rig.forward(body, &x, &pass).map(drop));
            watch.time(|| inside(device, forward))
        }));
        candidates.push(Box::new(move |watch: &mut Watch| {
            let x = rig.x.leaf();
            let pass = rig.pass()?;
            let tapes =
                (0..watch.batch()).map(|_| rig.forward(body, &x, &pass)).collect::<Result<Vec<_>>>()?;
            watch.time(|| tapes.into_iter().try_for_each(|roots| walk(roots).map(drop)))
        }));
    }
    let samples = measure(device, timer, rounds, &mut candidates)?;
    let parts = samples.chunks(2).map(|pair| {
        let forward = &pair[0];
        let backward = &pair[1];
        let sum = forward.iter().zip(backward).map(|(forward, backward)| forward + backward).collect();
        [forward.clone(), backward.clone(), sum]
    });
    Ok(parts.collect())
}

/// The work of the frozen products in one direction or both, without the activation of a block.
fn frozen_costs(options: &LayerOptions, Shape([d_in, d_out]): Shape<2>, hook: Hook, both: bool) -> Costs {
    let rows = options.batch * options.seq;
    let products = if Subject::takes_linears(hook) { 1 } else { 3 } * if both { 2 } else { 1 };
    Costs {
        flops: (products * 2 * rows * d_in * d_out) as f64,
        bytes: (products * 4 * (rows * d_in + rows * d_out + d_in * d_out)) as f64,
    }
}
