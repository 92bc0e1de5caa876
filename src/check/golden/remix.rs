//! Files of kind `remix`: given draws of one linear's experts, their outputs and losses, and the estimate for the router.

use super::kinds::Config;
use super::mixture::{SITE, blocks};
use super::{BOUND, Compare, Measured, Replay, bounded, tensor};
use crate::check::Subject;
use crate::io::Checkpoint;
use crate::mixture::losses::effective_support;
use crate::mixture::{Units, methods};
use crate::nn::{Choices, Labels, Param, Pass};
use crate::train::leave_one_out;
use crate::{Device, Error, Format, Gradients, Linear, Result, Stream, Tensor, Weight, backward};
use serde_json::{Map, Value, json};

/// Sizes of a file.
struct Sizes {
    b: usize,
    s: usize,
    d_in: usize,
    d_out: usize,
    e: usize,
    r: usize,
    k: usize,
    draws: usize,
}

impl Sizes {
    fn of(config: &Config<'_>, file: &Checkpoint) -> Result<Self> {
        let [b, s, d_in, d_out] = ["batch", "seq", "in", "out"].map(|name| config.number(name));
        let [e, r, k, draws] = ["E", "r", "k", "M"].map(|name| config.number(name));
        if [b, s, d_in, d_out, e, r, k, draws].contains(&0) || draws < 2 || k > e {
            return Err(Error::file(file.path(), "config has a size of 0, one draw, or k > E"));
        }
        bounded(file, "pools", &[e, r, d_in.max(d_out)])?;
        bounded(file, "outputs", &[draws, b, s, d_out])?;
        bounded(file, "what is drawn before", &[k * e, k * e])?;
        Ok(Sizes { b, s, d_in, d_out, e, r, k, draws })
    }
    fn rows(&self) -> usize {
        self.b * self.s
    }
}

/// The linear with the file's weights, experts and router.
fn layer(config: &Config<'_>, sizes: &Sizes, file: &Checkpoint, device: &Device) -> Result<Subject> {
    let Sizes { d_in, d_out, e, r, .. } = *sizes;
    let options = json!({
        "r": r, "num_experts": e, "top_k": sizes.k, "lora_dropout": 0.0, "form": config.text("form"),
        "draws": sizes.draws,
    });
    let options = options.as_object().cloned().unwrap_or_default();
    let method = methods::remix::SPEC.defaults().set(&options);
    let method = method.map_err(|error| Error::file(file.path(), error.to_string()))?;
    let weight = Weight::new(device, d_out, d_in, &file.f32("w", &[d_out, d_in])?, Format::F32)?;
    let frozen = Subject::linears(vec![Linear { weight, bias: None }]);
    let subject = frozen.adapted(&method, SITE, &[""], Stream::new(0))?;
    for param in subject.params() {
        let values = match param.name().as_str() {
            "lora_a" => file.f32("a", &[e, r, d_in])?,
            "lora_b" => blocks(&file.f32("b", &[e, d_out, r])?, d_out, r),
            _ => file.f32("router", &[e, d_in])?,
        };
        param.load(device, |_| Some(values.clone()))?;
    }
    Ok(subject)
}

/// The gradient of a parameter by the file's name and layout.
fn gradient(params: &[Param], name: &str, gradients: &Gradients, sizes: &Sizes) -> Result<Vec<f64>> {
    let part = match name {
        "a" => "lora_a",
        "b" => "lora_b",
        other => other,
    };
    let Some(param) = params.iter().find(|param| param.name() == part) else { return Ok(Vec::new()) };
    let values = match param.gradient(gradients) {
        Some(gradient) => gradient.to_f64()?,
        None => vec![0.0; param.value().len()],
    };
    Ok(if name == "b" { blocks(&values, sizes.r, sizes.d_out) } else { values })
}

pub(super) fn replay(
    file: &Checkpoint,
    kind: &str,
    values: &Map<String, Value>,
    device: &Device,
) -> Result<Replay> {
    let config = Config { kind, values };
    let sizes = Sizes::of(&config, file)?;
    let Sizes { b, s, d_in, d_out, k, draws, .. } = sizes;
    let subject = layer(&config, &sizes, file, device)?;
    let params = subject.params();
    let x = tensor(file, device, "x", &[b, s, d_in])?.leaf();
    let mut compare = Compare::new(file);

    let drawn = file.indices("samples", &[draws, sizes.rows(), k], sizes.e)?;
    let mut plain = Pass::new(Units::instances(device, b, s)?)
        .with_labels(Labels { tasks: vec![None], ..Labels::default() });
    if file.has("valid") {
        let flags: Vec<f32> = file.integers("valid", &[b, s])?.into_iter().map(|flag| flag as f32).collect();
        let count = flags.iter().filter(|flag| **flag > 0.0).count();
        plain.valid = Some((Tensor::from_f32(device, &[sizes.rows(), 1], &flags)?, count));
    }
    let dy = file.f32("grad_y", &[draws, b, s, d_out])?;
    let mut outputs = Vec::new();
    let mut losses = Vec::new();
    let mut log_q = Vec::new();
    let mut roots = Vec::new();
    for (draw, dy) in drawn.chunks(sizes.rows() * k).zip(dy.chunks(sizes.rows() * d_out)) {
        let draw = Tensor::from_u32(device, &[1, 1, sizes.rows(), k], draw)?;
        let mut pass = plain.clone().with_choices(Choices::force([(SITE.to_string(), draw)]));
        pass.train = true;
        let y = subject.forward(&x, &pass)?.swap_remove(0);
        let dy = Tensor::from_f32(device, y.dims(), dy)?;
        outputs.extend(y.to_f64()?);
        losses.push(y.detach().mul(&dy)?.sum()?.item()?);
        let of_draw = pass.take_log_probability()?;
        log_q.push(of_draw.ok_or_else(|| Error::file(file.path(), "no site has drawn"))?);
        roots.push((y, dy));
    }
    compare.within("y", &outputs, BOUND)?;
    compare.within("losses", &losses, BOUND)?;
    let values = log_q.iter().map(Tensor::item).collect::<Result<Vec<_>>>()?;
    compare.within("log_q", &values, BOUND)?;
    let gradients = backward(&roots.iter().map(|(y, dy)| (y, dy.clone())).collect::<Vec<_>>())?;
    let dx = gradients.get(&x).map(Tensor::to_f64).transpose()?.unwrap_or_default();
    compare.within("grad_x", &dx, BOUND)?;
    for name in ["a", "b"] {
        compare.within(&format!("grad_{name}"), &gradient(&params, name, &gradients, &sizes)?, BOUND)?;
    }

    let weights = leave_one_out(&Tensor::from_f64(device, &[draws, 1], &losses)?)?.to_f64()?;
    let value: f64 = weights.iter().zip(&values).map(|(weight, log_q)| weight * log_q).sum();
    compare.within("rloo.value", &[value], RLOO_BOUND)?;
    let seeds = log_q.iter().zip(&weights);
    let seeds = seeds.map(|(log_q, weight)| Ok((log_q, Tensor::full(device, log_q.dims(), *weight as f32)?)));
    let estimate = backward(&seeds.collect::<Result<Vec<_>>>()?)?;
    let of_router = gradient(&params, "router", &estimate, &sizes)?;
    if file.has("rloo.grad_router") {
        compare.within("rloo.grad_router", &of_router, RLOO_BOUND)?;
    }
    let nothing = |name: &str| -> Result<f64> {
        Ok(gradient(&params, name, &estimate, &sizes)?.iter().fold(0.0, |most: f64, v| most.max(v.abs())))
    };
    for name in ["a", "b"] {
        let error = nothing(name)?;
        compare.errors.push(Measured { name: format!("rloo.grad_{name} (zero)"), error, bound: BOUND });
    }

    let record = Choices::record();
    let y = subject.forward(&x, &plain.clone().with_choices(record.clone()))?.swap_remove(0);
    compare.within("y_infer", &y.to_f64()?, BOUND)?;
    let idx = file.integers("idx", &[sizes.rows(), k])?;
    let kept = record.get(SITE).map(|kept| kept.to_u32()).transpose()?.unwrap_or_default();
    let choices = kept.into_iter().map(i64::from).eq(idx);
    let router = tensor(file, device, "router", &[sizes.e, d_in])?;
    let q = x.detach().reshape(&[sizes.rows(), d_in])?.matmul_nt(&router)?.softmax()?;
    compare.within("ess", &effective_support(&q)?.to_f64()?, BOUND)?;
    compare.finish(kind, choices)
}

/// The bound of the estimate: a difference of losses that are nearly equal.
const RLOO_BOUND: f64 = 1e-5;
