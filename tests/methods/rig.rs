//! A method's adapter on random values, small enough for f64 differences.

use mixlora::check::Subject;
use mixlora::mixture::{Method, MethodSpec, Methods, Pool, Span};
use mixlora::nn::{Choices, Labels, Mlp, Param, Pass};
use mixlora::{Device, Format, Linear, Result, Stream, Tensor, Weight, backward};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::sync::OnceLock;

pub const SITE: &str = "layer";
pub const D: usize = 10;
/// One linear, and three of different widths.
pub const GROUPS: [&[usize]; 2] = [&[9], &[6, 4, 7]];
pub const HIDDEN: usize = 8;
/// Instances of a batch padded to 5 rows: none, some and most of it is padding.
pub const SPANS: [Span; 3] =
    [Span { len: 5, prompt: 3 }, Span { len: 4, prompt: 4 }, Span { len: 2, prompt: 1 }];
pub const SEQ: usize = 5;
/// Numbers of a condition.
const CONDITION: usize = 4;

/// Small sizes that fit every method.
pub fn small(spec: &'static MethodSpec) -> Method {
    let sizes = json!({
        "r": 4, "lora_alpha": null, "lora_dropout": 0.0, "num_factors": 6, "num_experts": 3, "top_k": 2, "density": 0.5,
        "aux_loss_coef": 0.5, "bias_lr": 0.01, "experts_by_layer": [3], "tasks": ["a", "b"], "task_width": 5,
        "entropy_coef": 0.3, "top_p": 0.6, "gate_loss_coef": 0.4, "localized_coef": 0.0, "sparsity_width": 5,
        "z_loss_coef": 0.2, "sparse_coef": 0.3, "hinge_coef": 0.0, "noisy": false, "rsl_coef": 0.3, "frozen_rows": 0,
        "condition_width": CONDITION, "depth": 2, "size": 6, "layerwise": true, "train_experts": true, "draws": 2,
        "classifier_dropout": 0.0,
        "kernels": [2, 3, 3], "temperature": 0.7, "contrast_coef": 0.2, "generic_tasks": ["b"],
    });
    changed(&spec.defaults(), sizes)
}

/// A method with those of the given options that it has.
pub fn changed(method: &Method, options: Value) -> Method {
    let own = method.spec().option_names();
    let all = options.as_object().unwrap().clone();
    method.set(&all.into_iter().filter(|(name, _)| own.contains(&name.as_str())).collect()).unwrap()
}

/// A number among a method's options.
pub fn number(method: &Method, name: &str) -> usize {
    method.tree()[name].as_u64().unwrap() as usize
}

pub struct Rig {
    pub device: Device,
    subject: Subject,
}

pub fn values(name: &str, n: usize, std: f32) -> Vec<f32> {
    Stream::new(11).named(name).normal_vec(n, std)
}

fn linear(device: &Device, name: &str, out: usize, d: usize) -> Linear {
    let w = values(name, out * d, 0.3);
    let weight = Weight::new(device, out, d, &w, Format::F32).unwrap();
    let bias = Tensor::from_f32(device, &[out], &values(&format!("{name}.bias"), out, 0.3)).unwrap();
    Linear { weight, bias: Some(bias) }
}

/// Frozen linears of those outputs.
pub fn linears(outs: &[usize], device: &Device) -> Subject {
    let linears = outs.iter().enumerate().map(|(i, &o)| linear(device, &format!("w{i}"), o, D));
    Subject::linears(linears.collect())
}

/// A frozen gated block.
pub fn block(device: &Device) -> Subject {
    let w = |name: &str, rows: usize, cols: usize| linear(device, name, rows, cols);
    Subject::mlp(Mlp::frozen(w("gate", HIDDEN, D), w("up", HIDDEN, D), w("down", D, HIDDEN)))
}

/// A fresh adapter of a method's own hook.
pub fn adapted(frozen: &Subject, method: &Method) -> Result<Subject> {
    frozen.adapted(method, SITE, &["l0", "l1", "l2"], Stream::new(1))
}

impl Rig {
    /// The method's own hook: a group of linears, or a block.
    pub fn new(method: &Method, outs: &[usize], device: &Device) -> Rig {
        let linear = Subject::takes_linears(method.spec().hook);
        let frozen = if linear { linears(outs, device) } else { block(device) };
        let rig = Rig { device: device.clone(), subject: adapted(&frozen, method).unwrap() };
        rig.randomise();
        rig
    }

    /// Parameters that start at zero get values, by name, so that nothing is hidden by zeros.
    fn randomise(&self) {
        for p in self.params() {
            let v = p.value();
            if v.to_f64().unwrap().iter().all(|&x| x == 0.0) {
                let std = if p.trainable() { 0.4 } else { 0.05 };
                let rows: usize = p.parts().iter().map(|(_, rows)| rows).sum();
                let part = |(name, n): &(String, usize)| values(name, n * v.len() / rows, std);
                let new: Vec<f32> = p.parts().iter().flat_map(part).collect();
                p.set(Tensor::from_f32(&self.device, v.dims(), &new).unwrap()).unwrap();
            }
        }
    }

    pub fn params(&self) -> Vec<Param> {
        self.subject.params()
    }

    /// The first parameter with a part of that ending.
    pub fn param(&self, ending: &str) -> Param {
        let found = self.params().into_iter().find(|p| p.parts().iter().any(|(n, _)| n.ends_with(ending)));
        found.unwrap_or_else(|| panic!("no {ending} in {:?}", self.params()))
    }

    pub fn after_step(&self) {
        self.subject.after_step().unwrap();
    }

    pub fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Vec<Tensor>> {
        self.subject.forward(x, pass)
    }

    /// What can be moved into a checkpoint.
    pub fn function(&self) -> impl Fn(&Tensor, &Pass) -> Result<Vec<Tensor>> + Send + 'static + use<> {
        let subject = self.subject.clone();
        move |x, pass| subject.forward(x, pass)
    }

    /// A training pass: instances pooled as asked for, padding left out of statistics.
    pub fn pass(&self, pool: Pool) -> Pass {
        let units = pool.units(&self.device, &SPANS, SEQ).unwrap();
        let mut pass =
            Pass::training(units, Stream::new(5)).with_labels(labels(&self.device, 0..SPANS.len()));
        let valid: Vec<f32> =
            SPANS.iter().flat_map(|s| (0..SEQ).map(move |i| f32::from(u8::from(i < s.len)))).collect();
        let n = valid.iter().filter(|v| **v > 0.0).count();
        pass.valid = Some((Tensor::from_f32(&self.device, &[valid.len(), 1], &valid).unwrap(), n));
        pass
    }

    /// A batch of the shape of [`SPANS`].
    pub fn x(&self) -> Tensor {
        let dims = [SPANS.len(), SEQ, D];
        Tensor::from_f32(&self.device, &dims, &values("x", dims.iter().product(), 1.0)).unwrap()
    }

    /// Outputs, auxiliary losses and all gradients of one step with fixed seeds.
    pub fn step(&self, x: &Tensor, pass: &Pass) -> Result<Outcome> {
        let leaf = x.leaf();
        let mut y = self.forward(&leaf, pass)?;
        y.extend(pass.take_aux()?);
        let mut all = BTreeMap::new();
        let mut roots = Vec::new();
        for (i, t) in y.iter().enumerate() {
            all.insert(format!("y{i}"), t.to_f64()?);
            let seed = Stream::new(7).fork(i as u64).normal_vec(t.len(), 1.0);
            roots.push((t, Tensor::from_f32(&self.device, t.dims(), &seed)?));
        }
        let gradients = backward(&roots)?;
        let mut put = |name: String, g: Option<&Tensor>| -> Result<()> {
            if let Some(g) = g {
                all.insert(name, g.to_f64()?);
            }
            Ok(())
        };
        put("grad x".into(), gradients.get(&leaf))?;
        for p in self.params() {
            put(format!("grad {}", p.name()), p.gradient(&gradients))?;
        }
        Ok(Outcome(all))
    }
}

/// Named values of a step.
#[derive(Debug, PartialEq)]
pub struct Outcome(pub BTreeMap<String, Vec<f64>>);

impl Outcome {
    /// The largest difference relative to the largest value of each tensor.
    pub fn error(&self, want: &Outcome) -> f64 {
        assert_eq!(self.0.keys().collect::<Vec<_>>(), want.0.keys().collect::<Vec<_>>());
        let mut worst = 0f64;
        for (name, want) in &want.0 {
            let got = &self.0[name];
            assert!(got.iter().all(|v| v.is_finite()), "{name}");
            worst = worst.max(mixlora::check::Deviation::of(got, want, 1e-3).max);
        }
        worst
    }
    /// Bits of all values in f32.
    pub fn bits(&self) -> Vec<u32> {
        self.0.values().flatten().map(|&v| (v as f32).to_bits()).collect()
    }
}

/// Every method with its small configuration.
pub fn methods() -> impl Iterator<Item = (&'static MethodSpec, Method)> {
    Methods::builtin().all().to_vec().into_iter().map(|spec| (spec, small(spec)))
}

/// The groups that a method is tried on: blocks have one shape.
pub fn groups(spec: &MethodSpec) -> &'static [&'static [usize]] {
    if Subject::takes_linears(spec.hook) { &GROUPS } else { &GROUPS[..1] }
}

/// Whether a choice was made: `lora` makes none.
pub fn chosen(choices: &Choices) -> Option<Tensor> {
    choices.get(SITE)
}

/// Entries of a choice, or the zeros and ones of a mask.
pub fn entries(choice: &Tensor) -> Vec<u32> {
    choice.to_u32().unwrap_or_else(|_| choice.to_f32().unwrap().iter().map(|&v| v as u32).collect())
}

/// The tasks and conditions of the instances of [`SPANS`].
pub fn labels(device: &Device, instances: std::ops::Range<usize>) -> Labels {
    let conditions = &values("conditions", SPANS.len() * CONDITION, 1.0)[instances.start * CONDITION..];
    let conditions = &conditions[..instances.len() * CONDITION];
    let conditions = Tensor::from_f32(device, &[instances.len(), CONDITION], conditions).unwrap();
    let tasks = ["a", "b", "a"].map(|task| Some(task.into()));
    Labels { tasks: tasks[instances].to_vec(), conditions: Some(conditions), ..Labels::default() }
}

/// Kept choices on another device.
pub fn forced_on(choices: &Choices, device: &Device) -> Choices {
    Choices::force(chosen(choices).map(|t| (SITE.to_string(), t.to_device(device).unwrap())))
}

/// One GPU for all tests: kernels are compiled once.
pub fn gpu() -> Option<Device> {
    static GPU: OnceLock<Option<Device>> = OnceLock::new();
    GPU.get_or_init(super::common::gpu).clone()
}

/// Every lane that this machine has.
pub fn devices() -> Vec<Device> {
    [Device::reference(), Device::cpu()].into_iter().chain(gpu()).collect()
}
