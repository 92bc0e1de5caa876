//! Files of kind `token`: layers with a routing decision per token.

use super::{Compare, Replay, bounded, expect, tensor};
use crate::check::Subject;
use crate::io::Checkpoint;
use crate::mixture::methods::{flylora::FlyLora, mixlora_ffn::MixloraFfn, rank_wise::RankWise, smora::Smora};
use crate::mixture::{AuxLoss, BiasBalance, Experts, Lora, Method, Sparse, TopK, Units};
use crate::nn::{Choices, Mlp, Pass};
use crate::{Device, Error, Format, Linear, Result, Stream, Tensor, Weight, backward};
use serde::Deserialize;

/// The gap between scores above which their order must agree.
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
    experts: usize,
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
    /// The number of entries that the router chooses from.
    fn candidates(&self) -> usize {
        if self.layer == Layer::Ffn { self.experts } else { self.r }
    }
    fn tokens(&self) -> usize {
        self.batch.saturating_mul(self.seq)
    }
    fn scores(&self) -> &'static str {
        if matches!(self.layer, Layer::Ffn | Layer::Rank) { "logits" } else { "score" }
    }
    /// The required tensors of a file, besides the results to compare.
    fn tensors(&self) -> Vec<(&'static str, Vec<usize>)> {
        let Config { batch, seq, d_in, d_out, experts: e, hidden, r, .. } = *self;
        let output = vec![batch, seq, d_out];
        let mut all = vec![("x", vec![batch, seq, d_in]), ("grad_y", output.clone()), ("y", output)];
        all.push((self.scores(), vec![self.tokens(), self.candidates()]));
        if self.layer == Layer::Ffn {
            all.push(("router", vec![e, d_in]));
            for (names, rows, cols) in [
                (["w_gate", "a_gate", "b_gate"], hidden, d_in),
                (["w_up", "a_up", "b_up"], hidden, d_in),
                (["w_down", "a_down", "b_down"], d_in, hidden),
            ] {
                let [weight, lora_a, lora_b] = names;
                let factors = [(lora_a, vec![e, r, cols]), (lora_b, vec![e, rows, r])];
                all.push((weight, vec![rows, cols]));
                all.extend(factors);
            }
            return all;
        }
        all.extend([("w", vec![d_out, d_in]), ("a", vec![r, d_in]), ("b", vec![d_out, r])]);
        if matches!(self.layer, Layer::Rank | Layer::Smora) {
            all.push(("router", vec![r, d_in]));
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
                let experts = Experts { num_experts: self.experts };
                let balance = AuxLoss { aux_loss_coef: self.aux_coef };
                Method::new(MixloraFfn { lora, experts, choice, balance, ..MixloraFfn::default() })
            }
            Layer::Rank => Method::new(RankWise { lora, choice, gated: self.gate != "none" }),
            Layer::Smora => Method::new(Smora { lora, choice, balance }),
            Layer::Fly => Method::new(FlyLora { lora, choice, balance, sparse: Sparse::default() }),
        }
    }
}

/// The adapter under test on its frozen weights.
fn build(config: &Config, file: &Checkpoint, device: &Device) -> Result<Subject> {
    let in_file = |error: Error| Error::file(file.path(), error.to_string());
    let frozen = |name: &str, rows: usize, cols: usize| -> Result<Linear> {
        let values = file.f32(name, &[rows, cols])?;
        Ok(Linear { weight: Weight::new(device, rows, cols, &values, Format::F32)?, bias: None })
    };
    let Config { d_in, d_out, hidden, .. } = *config;
    let body = if config.layer == Layer::Ffn {
        let gate = frozen("w_gate", hidden, d_in)?;
        let up = frozen("w_up", hidden, d_in)?;
        Subject::mlp(Mlp::frozen(gate, up, frozen("w_down", d_in, hidden)?))
    } else {
        Subject::linears(vec![frozen("w", d_out, d_in)?])
    };
    let adapted = config.method().and_then(|method| body.adapted(&method, "layer", &[""], Stream::new(0)));
    adapted.map_err(in_file)
}

/// The name of a part in the file, and whether the file stores the transpose of each block of r rows.
fn stored_name(part: &str) -> (String, bool) {
    match part {
        "lora_a" => ("a".into(), false),
        "lora_b" => ("b".into(), true),
        "bias" => ("d".into(), false),
        other => match other.split_once("_proj.lora_") {
            Some((what, side)) => (format!("{side}_{what}"), side == "b"),
            None => (other.to_string(), false),
        },
    }
}

/// Transposes every `[rows, cols]` block.
fn transpose<T: Copy>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    values
        .chunks(rows * cols)
        .flat_map(|block| (0..cols).flat_map(move |col| (0..rows).map(move |row| block[row * cols + col])))
        .collect()
}

fn load(subject: &Subject, config: &Config, file: &Checkpoint, device: &Device) -> Result<()> {
    for param in subject.params() {
        param
            .load(device, |part| {
                let (name, transposed) = stored_name(part);
                let dims = file.dims(&name).ok()?.to_vec();
                let values = file.f32(&name, &dims).ok()?;
                if !transposed {
                    return Some(values);
                }
                // In files b is [out, r]; pools hold [r, out].
                Some(transpose(&values, values.len() / (config.r * experts(config)), config.r))
            })
            .map_err(|error| Error::file(file.path(), error.to_string()))?;
    }
    Ok(())
}

fn experts(config: &Config) -> usize {
    if config.layer == Layer::Ffn { config.experts } else { 1 }
}

pub(super) fn replay(file: &Checkpoint, device: &Device) -> Result<Replay> {
    let config: Config = super::config(file)?;
    let sizes =
        [config.batch, config.seq, config.d_in, config.d_out, config.k, config.r, config.candidates()];
    if sizes.contains(&0)
        || (config.layer == Layer::Ffn && (config.hidden == 0 || config.d_in != config.d_out))
    {
        return Err(Error::file(file.path(), format!("config has sizes that cannot be: {config:?}")));
    }
    expect(file, &config.tensors())?;
    bounded(file, "rows of the chosen experts", &[config.tokens(), config.k, config.hidden.max(config.r)])?;
    let want = file.indices("idx", &[config.tokens(), config.k], config.candidates())?;
    let subject = build(&config, file, device)?;
    load(&subject, &config, file, device)?;
    let choices = Choices::record();
    let mut pass =
        Pass::training(Units::tokens(config.tokens()), Stream::new(0)).with_choices(choices.clone());
    if let Some(valid) = &config.valid {
        if valid.len() != config.tokens() {
            return Err(Error::file(
                file.path(),
                format!("{} valid flags for {} tokens", valid.len(), config.tokens()),
            ));
        }
        let count = valid.iter().filter(|flag| **flag > 0.0).count();
        pass.valid = Some((Tensor::from_f32(device, &[config.tokens(), 1], valid)?, count));
    }
    let x = tensor(file, device, "x", &[config.batch, config.seq, config.d_in])?.leaf();
    let y = subject.forward(&x, &pass)?.swap_remove(0);
    let aux = pass.take_aux()?;
    let mut roots = vec![(&y, tensor(file, device, "grad_y", &[config.batch, config.seq, config.d_out])?)];
    for loss in &aux {
        roots.push((loss, Tensor::full(device, loss.dims(), 1.0)?));
    }
    let grads = backward(&roots)?;

    let mut compare = Compare::new(file);
    compare.add("y", y.dims(), &y.to_f64()?, 0.0)?;
    let dx = grads.get(&x).ok_or_else(|| Error::Tape("no gradient for x".into()))?;
    compare.add("grad_x", &[], &dx.to_f64()?, 0.0)?;
    // A single renormalised gate is always 1: the gradient of its router is analytically zero.
    let zero =
        config.k == 1 && config.gate != "none" && (config.layer != Layer::Ffn || config.aux_coef == 0.0);
    let floor = |name: &str| if zero && name.contains("router") { 1.0 } else { 0.0 };
    let stored = |part: &str, values: Vec<f64>| {
        let (name, transposed) = stored_name(part);
        if !transposed {
            return vec![(name, values)];
        }
        vec![(name, transpose(&values, config.r, values.len() / (config.r * experts(&config))))]
    };
    compare.gradients(&subject.params(), &grads, stored, floor)?;
    if let (Some(loss), true) = (aux.first(), file.has("aux_loss")) {
        compare.add("aux_loss", &[], &[loss.item()? / config.aux_coef as f64], 0.0)?;
    }
    subject.after_step()?;
    if let (Some(bias), true) =
        (subject.params().iter().find(|param| param.name() == "bias"), file.has("d_next"))
    {
        compare.add("d_next", &[config.r], &bias.value().to_f64()?, 0.0)?;
    }
    let chosen = choices.get("layer").map(|idx| idx.to_u32()).transpose()?.unwrap_or_default();
    let agree = same_choices(&config, file, &want, &chosen)?;
    let kind = format!("{:?}", config.layer).to_lowercase();
    compare.finish(&kind, agree)
}

/// Tests whether the chosen sets agree, and their order as far as neighbouring scores are apart.
fn same_choices(config: &Config, file: &Checkpoint, want: &[u32], chosen: &[u32]) -> Result<bool> {
    let candidates = config.candidates();
    let scores = file.f32(config.scores(), &[config.tokens(), candidates])?;
    let rows = want.chunks(config.k).zip(chosen.chunks(config.k)).zip(scores.chunks(candidates));
    Ok(chosen.len() == want.len()
        && rows.into_iter().all(|((want, got), scores)| {
            let sorted = |chosen: &[u32]| {
                let mut chosen = chosen.to_vec();
                chosen.sort_unstable();
                chosen
            };
            let score = |place: usize| scores[want[place] as usize];
            // A NaN is not close.
            let close = |one: usize, other: usize| (score(one) - score(other)).abs() <= ORDER_GAP;
            sorted(want) == sorted(got)
                && (0..want.len()).all(|place| {
                    let moved =
                        |other: usize| other != place && want[other] == got[place] && close(place, other);
                    want[place] == got[place] || (0..want.len()).any(moved)
                })
        }))
}
