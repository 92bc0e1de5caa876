//! Files of kind `layer`: one Conditional MixLoRA linear.

use super::{Compare, Replay, bounded, config, expect, tensor};
use crate::io::Checkpoint;
use crate::mixture::methods::{mixlora_cond::MixloraCond, mixlora_cond_gated::MixloraCondGated};
use crate::mixture::{
    Cfs as CfsOptions, CfsForm, Factors, GateScale, Instance, LinearSite, Lora, Method, Pool, Span,
};
use crate::nn::{Choices, Pass};
use crate::{Device, Error, Format, Linear, Result, Stream, Weight, backward};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
struct Config {
    batch: usize,
    seq: usize,
    #[serde(rename = "in")]
    d_in: usize,
    #[serde(rename = "out")]
    d_out: usize,
    #[serde(rename = "E")]
    e: usize,
    r: usize,
    alpha: f32,
    #[serde(default)]
    router: Router,
    #[serde(default)]
    cfs: Cfs,
    #[serde(default = "one")]
    cfs_weight: f32,
    #[serde(default)]
    gate: Gate,
    #[serde(default)]
    cfs_input: CfsInput,
    #[serde(default = "yes")]
    base: bool,
    #[serde(default)]
    bias: bool,
}

fn one() -> f32 {
    1.0
}
fn yes() -> bool {
    true
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Router {
    #[default]
    Input,
    Instr,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Cfs {
    #[default]
    None,
    ParamLinear,
    ParamSumProduct,
    Choice,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Gate {
    #[default]
    Unscaled,
    Scaled,
}

#[derive(Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CfsInput {
    #[default]
    Raw,
    Scaled,
}

impl Config {
    /// What the file must hold, besides the results that it compares.
    fn tensors(&self) -> Vec<(&'static str, Vec<usize>)> {
        let Config { batch: b, seq: s, d_in: i, d_out: o, e, r, .. } = *self;
        let mut all = vec![
            ("x", vec![b, s, i]),
            ("grad_y", vec![b, s, o]),
            ("y", vec![b, s, o]),
            ("factors_a", vec![e, i]),
            ("factors_b", vec![e, o]),
            ("router_a", vec![e, i]),
            ("router_b", vec![e, i]),
        ];
        match self.cfs {
            Cfs::None => {}
            Cfs::Choice => all.extend([("choice_embed", vec![e, i]), ("router_cfs", vec![e, i])]),
            _ => all.push(("router_cfs", vec![e, r, i])),
        }
        all
    }
    /// What is made besides, while the layer is computed.
    fn check_made(&self, file: &Checkpoint) -> Result<()> {
        let Config { batch: b, d_in: i, d_out: o, e, r, .. } = *self;
        if !self.base {
            bounded(file, "a base weight of zeros", &[o, i])?;
        }
        bounded(file, "logits", &[b, 2, e])?;
        match self.cfs {
            Cfs::None => Ok(()),
            Cfs::Choice => bounded(file, "a table of the condition", &[e, e]),
            _ => bounded(file, "a table of the condition", &[e, e, r]),
        }
    }
    fn method(&self) -> Result<Method> {
        let lora = Lora { r: self.r, lora_alpha: Some(self.alpha), lora_dropout: 0.0 };
        let factors = Factors { num_factors: self.e };
        let cfs_form = match self.cfs {
            Cfs::None => None,
            Cfs::ParamLinear => Some(CfsForm::Linear),
            Cfs::ParamSumProduct => Some(CfsForm::SumProduct),
            Cfs::Choice => Some(CfsForm::Choice),
        };
        let cfs = CfsOptions { cfs_form, cfs_weight: self.cfs_weight };
        let instance = Instance::default();
        if self.gate == Gate::Unscaled {
            return Method::new(MixloraCond { lora, factors, cfs, instance });
        }
        let cfs_gated_input = self.cfs_input == CfsInput::Scaled;
        let gate_scale = GateScale::None;
        Method::new(MixloraCondGated { lora, factors, cfs, instance, gate_scale, cfs_gated_input })
    }
}

pub(super) fn replay(file: &Checkpoint, device: &Device) -> Result<Replay> {
    let c: Config = config(file)?;
    let (b, s, i, o) = (c.batch, c.seq, c.d_in, c.d_out);
    if [b, s, i, o, c.e, c.r].contains(&0) {
        return Err(Error::file(file.path(), format!("config has a size of 0: {c:?}")));
    }
    expect(file, &c.tensors())?;
    c.check_made(file)?;
    let mut want = file.indices("idx_a", &[b, c.r], c.e)?;
    want.extend(file.indices("idx_b", &[b, c.r], c.e)?);
    let site = LinearSite::alone("layer", i, vec![(String::new(), o)]);
    let adapter = c
        .method()
        .and_then(|method| method.build(&site, device, Stream::new(0)))
        .map_err(|e| Error::file(file.path(), e.to_string()))?;
    for p in adapter.params() {
        p.load(device, |part| {
            let dims = file.dims(part).ok()?.to_vec();
            file.f32(part, &dims).ok()
        })
        .map_err(|e| Error::file(file.path(), e.to_string()))?;
    }
    let weight = match c.base {
        true => file.f32("weight", &[o, i])?,
        false => vec![0.0; o * i],
    };
    let bias = if c.bias { Some(tensor(file, device, "bias", &[o])?) } else { None };
    let linear = Linear { weight: Weight::new(device, o, i, &weight, Format::F32)?, bias };
    let pool = if c.router == Router::Instr { Pool::Instr } else { Pool::All };
    let spans = vec![Span { len: s, prompt: s }; b];
    let choices = Choices::record();
    let pass = Pass::new(pool.units(device, &spans, s)?).with_choices(choices.clone());
    let x = tensor(file, device, "x", &[b, s, i])?.leaf();
    let y = adapter.forward(&x, &[linear], &pass)?.swap_remove(0);
    let grads = backward(&[(&y, tensor(file, device, "grad_y", &[b, s, o])?)])?;

    let mut compare = Compare::new(file);
    compare.add("y", &[b, s, o], &y.to_f64()?, 0.0)?;
    let dx = grads.get(&x).ok_or_else(|| Error::Tape("no gradient for x".into()))?;
    compare.add("grad_x", &[], &dx.to_f64()?, 0.0)?;
    // One renormalised gate is 1 whatever the router says: its gradient is zero on paper.
    let zero = c.r == 1 && c.gate == Gate::Scaled;
    let floor =
        |name: &str| if zero && (name.contains("router") || name.contains("choice")) { 1.0 } else { 0.0 };
    compare.gradients(&adapter.params(), &grads, |part, v| vec![(part.to_string(), v)], floor)?;

    let chosen = choices.get("layer").map(|t| t.to_u32()).transpose()?.unwrap_or_default();
    compare.finish("layer", chosen == want)
}
