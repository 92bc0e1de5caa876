//! A mixture layer beside the frozen linear that it adapts.

use super::{Candidate, Costs, Place, Roof, Rounds, Row, Shape, Summary, Timer, Watch, Work, measure};
use crate::check::Deviation;
use crate::mixture::{Hook, LinearSite, Method, MethodSpec, MlpSite, Pool, Span};
use crate::nn::{Choices, LinearAdapter, LinearGroup, Mlp, MlpAdapter, Param, Pass};
use crate::tape::inside;
use crate::{Device, Error, Format, Linear, Result, Stream, Tensor, Weight, backward};
use std::sync::Arc;

/// Bound on the error of a layer and of its input's gradient relative to the largest value, beside the f64 reference.
const BOUND: f64 = 1e-4;
/// Instances and rows of each in the comparison with the reference.
const CHECKED: [usize; 2] = [2, 3];
const SITE: &str = "layer";

/// Which layers are timed, and how.
pub struct LayerOptions {
    pub methods: Vec<&'static MethodSpec>,
    /// `d_in x d_out`; `hidden_size x intermediate_size` of methods that take a block.
    pub shapes: Vec<Shape<2>>,
    pub batch: usize,
    pub seq: usize,
    /// Sizes of pools of factors, for methods that have them; the others have their defaults.
    pub factors: Vec<usize>,
    /// Factors that are chosen from those.
    pub r: usize,
    pub rounds: Rounds,
    /// The host's clock, also where the device has timestamps.
    pub wall: bool,
}

/// A layer: a linear or a gated block, frozen or adapted.
enum Body {
    Linear(LinearGroup, Option<Arc<dyn LinearAdapter>>),
    Block(Box<Mlp>, Option<Arc<dyn MlpAdapter>>),
}

/// Gives every parameter of zeros small values, so that no part of an update is zero.
pub(super) fn randomise(params: &[Param]) -> Result<()> {
    for p in params {
        let value = p.value();
        if value.to_f32()?.iter().all(|v| *v == 0.0) {
            let values = Stream::new(4).named(&p.name()).normal_vec(value.len(), 0.02);
            p.set(Tensor::from_f32(value.device(), value.dims(), &values)?)?;
        }
    }
    Ok(())
}

fn linear(device: &Device, name: &str, d_in: usize, d_out: usize) -> Result<Linear> {
    let std = (d_in as f32).powf(-0.5);
    let values = Stream::new(1).named(name).normal_vec(d_out * d_in, std);
    Ok(Linear { weight: Weight::new(device, d_out, d_in, &values, Format::F32)?, bias: None })
}

impl Body {
    fn frozen(device: &Device, hook: Hook, Shape([d, n]): Shape<2>) -> Result<Self> {
        let w = |name: &str, d_in: usize, d_out: usize| linear(device, name, d_in, d_out);
        Ok(match hook {
            Hook::Linear => Body::Linear(LinearGroup::frozen(vec![w("w", d, n)?]), None),
            Hook::Mlp => {
                let mlp = Mlp::frozen(w("gate", d, n)?, w("up", d, n)?, w("down", n, d)?);
                Body::Block(Box::new(mlp), None)
            }
        })
    }

    /// The same weights with a method on them.
    fn adapted(&self, device: &Device, method: &Method, shape: Shape<2>) -> Result<Self> {
        let (Shape([d, n]), stream) = (shape, Stream::new(2));
        match self {
            Body::Linear(group, _) => {
                let site = LinearSite::alone(SITE, d, vec![(String::new(), n)]);
                let adapter = method.build(&site, device, stream)?;
                randomise(&adapter.params())?;
                Ok(Body::Linear(group.clone(), Some(adapter)))
            }
            Body::Block(mlp, _) => {
                let site = MlpSite::alone(SITE, d, n);
                let adapter = method.build_mlp(&site, device, stream)?;
                adapter.iter().try_for_each(|a| randomise(&a.params()))?;
                Ok(Body::Block(mlp.clone(), adapter))
            }
        }
    }

    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        match self {
            Body::Linear(group, None) => Ok(group.forward(x, pass)?.swap_remove(0)),
            Body::Linear(group, Some(adapter)) => {
                Ok(adapter.forward(x, &group.linears, pass)?.swap_remove(0))
            }
            Body::Block(mlp, None) => mlp.forward(x, pass),
            Body::Block(mlp, Some(adapter)) => adapter.forward(x, mlp, pass),
        }
    }
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
        let values = |name: &str, d: usize| {
            let values = Stream::new(1).named(name).normal_vec(batch * seq * d, 1.0);
            Tensor::from_f32(device, &[batch, seq, d], &values)
        };
        let spans = vec![Span { len: seq, prompt: seq }; batch];
        Ok(Rig { x: values("x", d_in)?, dy: values("dy", d_out)?, spans })
    }

    fn pass(&self) -> Result<Pass> {
        let [_, seq, _] = *self.x.dims() else { return Err(Error::config("layer", "has no rows")) };
        let units = Pool::Real.units(self.x.device(), &self.spans, seq)?;
        Ok(Pass::training(units, Stream::new(6)))
    }

    fn forward(&self, body: &Body, x: &Tensor, pass: &Pass) -> Result<Roots> {
        let y = body.forward(x, pass)?;
        let mut roots = vec![(y, self.dy.clone())];
        for a in pass.take_aux() {
            let one = Tensor::full(a.device(), a.dims(), 1.0)?;
            roots.push((a, one));
        }
        Ok(roots)
    }
}

fn walk(roots: Roots) -> Result<crate::Gradients> {
    backward(&roots.iter().map(|(y, dy)| (y, dy.clone())).collect::<Vec<_>>())
}

/// The layer's output and its input's gradient beside those of the reference, which takes the device's choices.
fn verify(device: &Device, method: &Method, shape: Shape<2>) -> Result<Deviation> {
    let hook = method.spec().hook;
    let output = |d: &Device, choices: Choices| -> Result<[Vec<f64>; 2]> {
        let Shape([d_in, d_out]) = shape;
        let d_out = if hook == Hook::Mlp { d_in } else { d_out };
        let body = Body::frozen(d, hook, shape)?.adapted(d, method, shape)?;
        let rig = Rig::new(d, CHECKED, d_in, d_out)?;
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
    let kept = choices.all().into_iter().map(|(site, kept)| Ok((site, kept.idx.to_device(&reference)?)));
    let kept = kept.collect::<Result<Vec<_>>>()?;
    // A method without a router keeps nothing.
    let choices = if kept.is_empty() { Choices::Free } else { Choices::force(kept) };
    let want = output(&reference, choices)?;
    let each = got.iter().zip(&want).map(|(g, w)| Deviation::of(g, w, 1e-30));
    Ok(each.fold(Deviation::default(), Deviation::worst))
}

/// Launches and traffic of a forward and of a backward pass.
#[derive(Clone, Copy, Default)]
struct Launches {
    dispatches: i64,
    submits: u64,
    readbacks: u64,
    bytes: u64,
}

/// Counts what the device did since it was last asked; nothing where it is no GPU.
fn launches(device: &Device) -> Option<Launches> {
    match device {
        Device::Gpu(gpu) => {
            let s = gpu.stats();
            gpu.reset_stats();
            let dispatches = s.dispatches as i64;
            Some(Launches { dispatches, submits: s.submits, readbacks: s.readbacks, bytes: s.bytes_bound })
        }
        _ => None,
    }
}

fn count(device: &Device, rig: &Rig, body: &Body) -> Result<[Option<Launches>; 2]> {
    let (x, pass) = (rig.x.leaf(), rig.pass()?);
    device.sync()?;
    launches(device);
    let roots = rig.forward(body, &x, &pass)?;
    device.sync()?;
    let forward = launches(device);
    walk(roots)?;
    device.sync()?;
    Ok([forward, launches(device)])
}

/// A layer to be timed.
struct Entry {
    name: String,
    variant: String,
    hook: Hook,
    body: Body,
    rig: Rig,
    /// How it compared with the reference; none for frozen layers, which are the baselines.
    verified: Option<Deviation>,
}

/// Times every method on every shape beside the frozen layer, interleaved: rows for forward, backward and their sum,
/// with the ratio to the frozen layer in the same round. `progress` hears what is being done.
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
    for hook in [Hook::Linear, Hook::Mlp] {
        let methods: Vec<_> = options.methods.iter().filter(|m| m.hook == hook).collect();
        if methods.is_empty() {
            continue;
        }
        let Shape([d_in, n]) = shape;
        let d_out = if hook == Hook::Mlp { d_in } else { n };
        let name = format!("frozen {}", hook.name());
        let frozen = Body::frozen(device, hook, shape)?;
        let rig = || Rig::new(device, size, d_in, d_out);
        let mut adapted = Vec::new();
        for method in methods {
            for (variant, method) in variants(method, options)? {
                progress(&format!("checking {} {variant} on {shape}", method.name()));
                let verified = Some(verify(device, &method, shape)?);
                let body = frozen.adapted(device, &method, shape)?;
                adapted.push(Entry {
                    name: method.name().into(),
                    variant,
                    hook,
                    body,
                    rig: rig()?,
                    verified,
                });
            }
        }
        all.push(Entry { name, variant: String::new(), hook, body: frozen, rig: rig()?, verified: None });
        all.extend(adapted);
    }
    Ok(all)
}

/// The options that a method is timed with, and what to call them.
fn variants(method: &'static MethodSpec, options: &LayerOptions) -> Result<Vec<(String, Method)>> {
    let defaults = method.defaults();
    let all = defaults.options().variants(&options.factors, options.r);
    all.into_iter().map(|(name, changes)| Ok((name, defaults.set(&changes)?))).collect()
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
    let holds = |e: &Entry| e.verified.is_none_or(|d| d.max <= BOUND);
    let mut rows = Vec::new();
    let work = |e: &Entry, dir: &str| Work {
        bench: "layer".into(),
        op: e.name.clone(),
        variant: e.variant.clone(),
        shape: format!("{}x{} rows {shape}", options.batch, options.seq),
        dtype: "f32".into(),
        dir: dir.into(),
    };
    let wrong = |e: &Entry| Row {
        verified: Some(false),
        verified_nmse: e.verified.map(|d| d.nmse),
        ..Row::new(&place, work(e, ""), timer, &[])
    };
    rows.extend(entries.iter().filter(|e| !holds(e)).map(wrong));
    let kept: Vec<Entry> = entries.into_iter().filter(holds).collect();
    let counts = kept.iter().map(|e| count(device, &e.rig, &e.body)).collect::<Result<Vec<_>>>()?;
    let mut candidates: Vec<Candidate<'_>> = Vec::new();
    for Entry { rig, body, .. } in &kept {
        candidates.push(Box::new(move |w: &mut Watch| {
            let (x, n, pass) = (rig.x.leaf(), w.batch(), rig.pass()?);
            // As a training step runs: on the threads that compute.
            let forward = || (0..n).try_for_each(|_| rig.forward(body, &x, &pass).map(drop));
            w.time(|| inside(device, forward))
        }));
        candidates.push(Box::new(move |w: &mut Watch| {
            let (x, pass) = (rig.x.leaf(), rig.pass()?);
            let tapes = (0..w.batch()).map(|_| rig.forward(body, &x, &pass)).collect::<Result<Vec<_>>>()?;
            w.time(|| tapes.into_iter().try_for_each(|roots| walk(roots).map(drop)))
        }));
    }
    let samples = measure(device, timer, options.rounds, &mut candidates)?;
    let of = |i: usize| {
        let (f, b) = (&samples[2 * i], &samples[2 * i + 1]);
        let sum: Vec<f64> = f.iter().zip(b).map(|(f, b)| f + b).collect();
        [f.clone(), b.clone(), sum]
    };
    for (i, e) in kept.iter().enumerate() {
        let base = kept.iter().position(|b| b.hook == e.hook && b.verified.is_none()).unwrap_or(i);
        for (j, dir) in ["fwd", "bwd", "sum"].into_iter().enumerate() {
            let mut row = Row::new(&place, work(e, dir), timer, &of(i)[j]);
            if i == base {
                row = row.costs(Some(frozen_costs(options, shape, e.hook, j == 2)), roof);
            } else {
                row = row.ratio(Summary::of_ratios(&of(i)[j], &of(base)[j]));
                row.verified = Some(true);
                row.verified_nmse = e.verified.map(|d| d.nmse);
            }
            if let (Some(Some(here)), Some(Some(frozen))) = (counts[i].get(j), counts[base].get(j)) {
                row.extra_dispatches = Some(here.dispatches - frozen.dispatches);
                row.submits = Some(here.submits);
                row.readbacks = Some(here.readbacks);
                row.bound_mib = Some(here.bytes as f64 / (1 << 20) as f64);
            }
            rows.push(row);
        }
    }
    Ok(rows)
}

/// Work of the frozen products in one direction or both; that of a block's activation is not counted.
fn frozen_costs(options: &LayerOptions, Shape([d, n]): Shape<2>, hook: Hook, both: bool) -> Costs {
    let m = options.batch * options.seq;
    let products = if hook == Hook::Mlp { 3 } else { 1 } * if both { 2 } else { 1 };
    Costs { flops: (products * 2 * m * d * n) as f64, bytes: (products * 4 * (m * d + m * n + d * n)) as f64 }
}
