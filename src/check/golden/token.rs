//! Files of kind `token`: layers that route every token by itself.

use super::{Compare, Replay, bounded, config, expect, tensor};
use crate::io::Checkpoint;
use crate::mixture::methods::{flylora::FlyLora, mixlora_ffn::MixloraFfn, rank_wise::RankWise, smora::Smora};
use crate::mixture::{AuxLoss, BiasBalance, Experts, LinearSite, Lora, Method, MlpSite, Sparse, TopK, Units};
use crate::nn::{Choices, LinearAdapter, Mlp, MlpAdapter, Param, Pass};
use crate::{Device, Error, Format, Linear, Result, Stream, Tensor, Weight, backward};
use serde::Deserialize;
use std::sync::Arc;

/// Gap between scores above which their order must agree.
const ORDER_GAP: f32 = 1e-5;

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Layer {
    Ffn,
    Rank,
    Smora,
    Fly,
}

#[derive(Debug, Deserialize)]
struct Config {
    layer: Layer,
    batch: usize,
    seq: usize,
    #[serde(rename = "in")]
    d_in: usize,
    #[serde(rename = "out")]
    d_out: usize,
    #[serde(default, rename = "E")]
    e: usize,
    #[serde(default)]
    hidden: usize,
    k: usize,
    r: usize,
    alpha: f32,
    #[serde(default)]
    gate: String,
    #[serde(default)]
    aux_coef: f32,
    #[serde(default)]
    bias_lr: f32,
    valid: Option<Vec<f32>>,
}

impl Config {
    /// Entries that the router chooses from.
    fn candidates(&self) -> usize {
        if self.layer == Layer::Ffn { self.e } else { self.r }
    }
    fn tokens(&self) -> usize {
        self.batch.saturating_mul(self.seq)
    }
    fn scores(&self) -> &'static str {
        if matches!(self.layer, Layer::Ffn | Layer::Rank) { "logits" } else { "score" }
    }
    /// What the file must hold, besides the results that it compares.
    fn tensors(&self) -> Vec<(&'static str, Vec<usize>)> {
        let Config { batch: b, seq: s, d_in: i, d_out: o, e, hidden: h, r, .. } = *self;
        let mut all = vec![("x", vec![b, s, i]), ("grad_y", vec![b, s, o]), ("y", vec![b, s, o])];
        all.push((self.scores(), vec![self.tokens(), self.candidates()]));
        if self.layer == Layer::Ffn {
            all.push(("router", vec![e, i]));
            all.extend([("w_gate", vec![h, i]), ("w_up", vec![h, i]), ("w_down", vec![i, h])]);
            all.extend([("a_gate", vec![e, r, i]), ("a_up", vec![e, r, i]), ("a_down", vec![e, r, h])]);
            all.extend([("b_gate", vec![e, h, r]), ("b_up", vec![e, h, r]), ("b_down", vec![e, i, r])]);
            return all;
        }
        all.extend([("w", vec![o, i]), ("a", vec![r, i]), ("b", vec![o, r])]);
        if matches!(self.layer, Layer::Rank | Layer::Smora) {
            all.push(("router", vec![r, i]));
        }
        if matches!(self.layer, Layer::Smora | Layer::Fly) {
            all.push(("d", vec![r]));
        }
        all
    }
    fn method(&self) -> Result<Method> {
        let lora = Lora { r: self.r, lora_alpha: Some(self.alpha), lora_dropout: 0.0 };
        let choice = TopK { top_k: self.k };
        let balance = BiasBalance { bias_lr: self.bias_lr };
        match self.layer {
            Layer::Ffn => {
                let experts = Experts { num_experts: self.e };
                let balance = AuxLoss { aux_loss_coef: self.aux_coef };
                Method::new(MixloraFfn { lora, experts, choice, balance })
            }
            Layer::Rank => Method::new(RankWise { lora, choice, gated: self.gate != "none" }),
            Layer::Smora => Method::new(Smora { lora, choice, balance }),
            Layer::Fly => Method::new(FlyLora { lora, choice, balance, sparse: Sparse::default() }),
        }
    }
}

/// The adapter under test and its frozen layers.
enum Subject {
    Linear(Vec<Linear>, Arc<dyn LinearAdapter>),
    Mlp(Box<Mlp>, Arc<dyn MlpAdapter>),
}

impl Subject {
    fn build(c: &Config, file: &Checkpoint, device: &Device) -> Result<Self> {
        let wrap = |e: Error| Error::file(file.path(), e.to_string());
        let method = c.method().map_err(wrap)?;
        let frozen = |name: &str, rows: usize, cols: usize| -> Result<Linear> {
            let values = file.f32(name, &[rows, cols])?;
            Ok(Linear { weight: Weight::new(device, rows, cols, &values, Format::F32)?, bias: None })
        };
        if c.layer == Layer::Ffn {
            let site = MlpSite::alone("layer", c.d_in, c.hidden);
            let built = method.build_mlp(&site, device, Stream::new(0)).map_err(wrap)?;
            let adapter = built.ok_or_else(|| Error::file(file.path(), "the method has no block hook"))?;
            let (d, h) = (c.d_in, c.hidden);
            let mlp = Mlp::frozen(frozen("w_gate", h, d)?, frozen("w_up", h, d)?, frozen("w_down", d, h)?);
            return Ok(Subject::Mlp(Box::new(mlp), adapter));
        }
        let site = LinearSite::alone("layer", c.d_in, vec![(String::new(), c.d_out)]);
        let adapter = method.build(&site, device, Stream::new(0)).map_err(wrap)?;
        Ok(Subject::Linear(vec![frozen("w", c.d_out, c.d_in)?], adapter))
    }
    fn params(&self) -> Vec<Param> {
        match self {
            Subject::Linear(_, a) => a.params(),
            Subject::Mlp(_, a) => a.params(),
        }
    }
    fn forward(&self, x: &Tensor, pass: &Pass) -> Result<Tensor> {
        match self {
            Subject::Linear(linears, a) => Ok(a.forward(x, linears, pass)?.swap_remove(0)),
            Subject::Mlp(mlp, a) => a.forward(x, mlp, pass),
        }
    }
    fn after_step(&self) -> Result<()> {
        match self {
            Subject::Linear(_, a) => a.after_step(),
            Subject::Mlp(_, a) => a.after_step(),
        }
    }
}

/// The file's name of a part, and whether the file keeps the transpose of each block of r rows.
fn stored_name(part: &str) -> (String, bool) {
    match part {
        "lora_a" => ("a".into(), false),
        "lora_b" => ("b".into(), true),
        "bias" => ("d".into(), false),
        p => match p.split_once("_proj.lora_") {
            Some((what, side)) => (format!("{side}_{what}"), side == "b"),
            None => (p.to_string(), false),
        },
    }
}

/// Transposes every `[rows, cols]` block.
fn transpose<T: Copy>(v: &[T], rows: usize, cols: usize) -> Vec<T> {
    v.chunks(rows * cols)
        .flat_map(|m| (0..cols).flat_map(move |c| (0..rows).map(move |r| m[r * cols + c])))
        .collect()
}

fn load(subject: &Subject, c: &Config, file: &Checkpoint, device: &Device) -> Result<()> {
    for p in subject.params() {
        p.load(device, |part| {
            let (name, transposed) = stored_name(part);
            let dims = file.dims(&name).ok()?.to_vec();
            let v = file.f32(&name, &dims).ok()?;
            // In files b is [out, r]; pools hold [r, out].
            Some(if transposed { transpose(&v, v.len() / (c.r * experts(c)), c.r) } else { v })
        })
        .map_err(|e| Error::file(file.path(), e.to_string()))?;
    }
    Ok(())
}

fn experts(c: &Config) -> usize {
    if c.layer == Layer::Ffn { c.e } else { 1 }
}

pub(super) fn replay(file: &Checkpoint, device: &Device) -> Result<Replay> {
    let c: Config = config(file)?;
    let sizes = [c.batch, c.seq, c.d_in, c.d_out, c.k, c.r, c.candidates()];
    if sizes.contains(&0) || (c.layer == Layer::Ffn && (c.hidden == 0 || c.d_in != c.d_out)) {
        return Err(Error::file(file.path(), format!("config has sizes that cannot be: {c:?}")));
    }
    expect(file, &c.tensors())?;
    bounded(file, "rows of the chosen experts", &[c.tokens(), c.k, c.hidden.max(c.r)])?;
    let want = file.indices("idx", &[c.tokens(), c.k], c.candidates())?;
    let subject = Subject::build(&c, file, device)?;
    load(&subject, &c, file, device)?;
    let choices = Choices::record();
    let mut pass = Pass::training(Units::tokens(c.tokens()), Stream::new(0)).with_choices(choices.clone());
    if let Some(valid) = &c.valid {
        if valid.len() != c.tokens() {
            return Err(Error::file(
                file.path(),
                format!("{} valid flags for {} tokens", valid.len(), c.tokens()),
            ));
        }
        let n = valid.iter().filter(|v| **v > 0.0).count();
        pass.valid = Some((Tensor::from_f32(device, &[c.tokens(), 1], valid)?, n));
    }
    let x = tensor(file, device, "x", &[c.batch, c.seq, c.d_in])?.leaf();
    let y = subject.forward(&x, &pass)?;
    let aux = pass.take_aux();
    let mut roots = vec![(&y, tensor(file, device, "grad_y", &[c.batch, c.seq, c.d_out])?)];
    for loss in &aux {
        roots.push((loss, Tensor::full(device, loss.dims(), 1.0)?));
    }
    let grads = backward(&roots)?;

    let mut compare = Compare::new(file);
    compare.add("y", y.dims(), &y.to_f64()?, 0.0)?;
    let dx = grads.get(&x).ok_or_else(|| Error::Tape("no gradient for x".into()))?;
    compare.add("grad_x", &[], &dx.to_f64()?, 0.0)?;
    // One renormalised gate is 1 whatever the router says: its gradient is zero on paper.
    let zero = c.k == 1 && c.gate != "none" && (c.layer != Layer::Ffn || c.aux_coef == 0.0);
    let floor = |name: &str| if zero && name.contains("router") { 1.0 } else { 0.0 };
    let stored = |part: &str, v: Vec<f64>| {
        let (name, transposed) = stored_name(part);
        let v = if transposed { transpose(&v, c.r, v.len() / (c.r * experts(&c))) } else { v };
        vec![(name, v)]
    };
    compare.gradients(&subject.params(), &grads, stored, floor)?;
    if let (Some(loss), true) = (aux.first(), file.has("aux_loss")) {
        compare.add("aux_loss", &[], &[loss.item()? / c.aux_coef as f64], 0.0)?;
    }
    subject.after_step()?;
    if let (Some(bias), true) = (subject.params().iter().find(|p| p.name() == "bias"), file.has("d_next")) {
        compare.add("d_next", &[c.r], &bias.value().to_f64()?, 0.0)?;
    }
    let chosen = choices.get("layer").map(|t| t.to_u32()).transpose()?.unwrap_or_default();
    let agree = same_choices(&c, file, &want, &chosen)?;
    let kind = format!("{:?}", c.layer).to_lowercase();
    compare.finish(&kind, agree)
}

/// The chosen sets must agree, and their order wherever neighbouring scores are apart.
fn same_choices(c: &Config, file: &Checkpoint, want: &[u32], chosen: &[u32]) -> Result<bool> {
    let (t, n) = (c.tokens(), c.candidates());
    let scores = file.f32(c.scores(), &[t, n])?;
    let rows = want.chunks(c.k).zip(chosen.chunks(c.k)).zip(scores.chunks(n));
    Ok(chosen.len() == want.len()
        && rows.into_iter().all(|((want, got), scores)| {
            let sorted = |v: &[u32]| {
                let mut v = v.to_vec();
                v.sort_unstable();
                v
            };
            let score = |e: u32| scores[e as usize];
            // Written so that a NaN counts as apart.
            let apart = |i: usize, j: usize| {
                let close = (score(want[i]) - score(want[j])).abs() <= ORDER_GAP;
                !close
            };
            sorted(want) == sorted(got)
                && (0..want.len()).all(|i| {
                    want[i] == got[i] || (0..want.len()).any(|j| j != i && want[j] == got[i] && !apart(i, j))
                })
        }))
}
