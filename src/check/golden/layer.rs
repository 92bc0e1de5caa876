//! Files of kind `layer`: one Conditional MixLoRA linear.

use super::{Compare, Replay, bounded, expect, tensor};
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
    factors: usize,
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
    /// The required tensors of a file, besides the results to compare.
    fn tensors(&self) -> Vec<(&'static str, Vec<usize>)> {
        let Config { batch, seq, d_in, d_out, factors: e, r, .. } = *self;
        let mut all = vec![
            ("x", vec![batch, seq, d_in]),
            ("grad_y", vec![batch, seq, d_out]),
            ("y", vec![batch, seq, d_out]),
            ("factors_a", vec![e, d_in]),
            ("factors_b", vec![e, d_out]),
            ("router_a", vec![e, d_in]),
            ("router_b", vec![e, d_in]),
        ];
        match self.cfs {
            Cfs::None => {}
            Cfs::Choice => all.extend([("choice_embed", vec![e, d_in]), ("router_cfs", vec![e, d_in])]),
            _ => all.push(("router_cfs", vec![e, r, d_in])),
        }
        all
    }
    /// Checks the sizes of further tensors that the layer computes.
    fn check_computed(&self, file: &Checkpoint) -> Result<()> {
        let Config { batch, d_in, d_out, factors: e, r, .. } = *self;
        if !self.base {
            bounded(file, "a base weight of zeros", &[d_out, d_in])?;
        }
        bounded(file, "logits", &[batch, 2, e])?;
        match self.cfs {
            Cfs::None => Ok(()),
            Cfs::Choice => bounded(file, "a table of the condition", &[e, e]),
            _ => bounded(file, "a table of the condition", &[e, e, r]),
        }
    }
    fn method(&self) -> Result<Method> {
        let lora = Lora { r: self.r, lora_alpha: Some(self.alpha), lora_dropout: 0.0 };
        let factors = Factors { num_factors: self.factors };
        let cfs_form = match self.cfs {
            Cfs::None => None,
            Cfs::ParamLinear => Some(CfsForm::Linear),
            Cfs::ParamSumProduct => Some(CfsForm::SumProduct),
            Cfs::Choice => Some(CfsForm::Choice),
        };
        let cfs = CfsOptions { cfs_form, cfs_weight: self.cfs_weight };
        let instance = Instance::default();
        if self.gate == Gate::Unscaled {
            return Method::new(MixloraCond { lora, factors, cfs, instance, ..MixloraCond::default() });
        }
        let cfs_gated_input = self.cfs_input == CfsInput::Scaled;
        let gate_scale = GateScale::None;
        Method::new(MixloraCondGated {
            lora,
            factors,
            cfs,
            instance,
            gate_scale,
            cfs_gated_input,
            ..MixloraCondGated::default()
        })
    }
}

pub(super) fn replay(file: &Checkpoint, device: &Device) -> Result<Replay> {
    let config: Config = super::config(file)?;
    let Config { batch, seq, d_in, d_out, factors, r, .. } = config;
    if [batch, seq, d_in, d_out, factors, r].contains(&0) {
        return Err(Error::file(file.path(), format!("config has a size of 0: {config:?}")));
    }
    expect(file, &config.tensors())?;
    config.check_computed(file)?;
    let mut want = file.indices("idx_a", &[batch, r], factors)?;
    want.extend(file.indices("idx_b", &[batch, r], factors)?);
    let site = LinearSite::alone("layer", d_in, vec![(String::new(), d_out)]);
    let in_file = |error: Error| Error::file(file.path(), error.to_string());
    let adapter =
        config.method().and_then(|method| method.build(&site, device, Stream::new(0))).map_err(in_file)?;
    for param in adapter.params() {
        param
            .load(device, |part| {
                let dims = file.dims(part).ok()?.to_vec();
                file.f32(part, &dims).ok()
            })
            .map_err(in_file)?;
    }
    let weight = if config.base { file.f32("weight", &[d_out, d_in])? } else { vec![0.0; d_out * d_in] };
    let bias = config.bias.then(|| tensor(file, device, "bias", &[d_out])).transpose()?;
    let linear = Linear { weight: Weight::new(device, d_out, d_in, &weight, Format::F32)?, bias };
    let pool = if config.router == Router::Instr { Pool::Instr } else { Pool::All };
    let spans = vec![Span { len: seq, prompt: seq }; batch];
    let choices = Choices::record();
    let pass = Pass::new(pool.units(device, &spans, seq)?).with_choices(choices.clone());
    let x = tensor(file, device, "x", &[batch, seq, d_in])?.leaf();
    let y = adapter.forward(&x, &[linear], &pass)?.swap_remove(0);
    let grads = backward(&[(&y, tensor(file, device, "grad_y", &[batch, seq, d_out])?)])?;

    let mut compare = Compare::new(file);
    compare.add("y", &[batch, seq, d_out], &y.to_f64()?, 0.0)?;
    let dx = grads.get(&x).ok_or_else(|| Error::Tape("no gradient for x".into()))?;
    compare.add("grad_x", &[], &dx.to_f64()?, 0.0)?;
    // A single renormalised gate is always 1: the gradient of its router is analytically zero.
    let zero = r == 1 && config.gate == Gate::Scaled;
    let floor =
        |name: &str| if zero && (name.contains("router") || name.contains("choice")) { 1.0 } else { 0.0 };
    compare.gradients(&adapter.params(), &grads, |part, values| vec![(part.to_string(), values)], floor)?;

    let chosen = choices.get("layer").map(|idx| idx.to_u32()).transpose()?.unwrap_or_default();
    compare.finish("layer", chosen == want)
}
