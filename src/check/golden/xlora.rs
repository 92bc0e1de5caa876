//! Files of kind `xlora`: linears that read one input, with trained LoRAs under a classifier of given states.

use super::kinds::Config;
use super::{BOUND, Compare, Replay, bounded, tensor};
use crate::adapter::{Matrix, expert_pool};
use crate::io::Checkpoint;
use crate::mixture::{Depth, LinearSite, Method, SitePart, StateSite, Units, methods};
use crate::nn::{Param, Pass};
use crate::{Device, Error, Format, Linear, Result, Stream, Tensor, Weight, backward};
use serde_json::{Map, Value, json};

pub(super) const KIND: &str = "xlora";

/// Ranks and scales of the experts.
struct Experts {
    ranks: Vec<usize>,
    scales: Vec<f32>,
}

impl Experts {
    fn rank(&self) -> usize {
        self.ranks.iter().copied().max().unwrap_or(0)
    }
    /// The scale that the method has; what an expert's own is besides goes into its B.
    fn scale(&self) -> f32 {
        self.scales.iter().copied().fold(0.0, f32::max)
    }
}

fn list(config: &Config<'_>, name: &str) -> Vec<f64> {
    let values = config.values.get(name).and_then(Value::as_array);
    values.into_iter().flatten().filter_map(Value::as_f64).collect()
}

fn method(config: &Config<'_>, experts: &Experts, file: &Checkpoint) -> Result<Method> {
    let value = |name: &str| config.values.get(name).cloned().unwrap_or(Value::Null);
    let rank = experts.rank();
    let options = json!({
        "num_experts": experts.ranks.len(), "r": rank, "lora_alpha": experts.scale() * rank as f32,
        "lora_dropout": 0.0, "depth": config.number("depth"), "size": config.number("size").max(1),
        "classifier_dropout": 0.0, "layerwise": config.flag("layerwise"), "softmax": config.flag("softmax"),
        "temperature": value("temperature"), "top_k": Some(config.number("top_k")).filter(|k| *k > 0),
        "softmax_topk": config.flag("softmax_topk"), "global_scaling": value("global_weight"),
        "train_experts": config.flag("trainable_adapters"),
    });
    let options = options.as_object().cloned().unwrap_or_default();
    let method = methods::x_lora::SPEC.defaults().set(&options);
    method.map_err(|error| Error::file(file.path(), error.to_string()))
}

/// The pool of a side of a linear: `a.l.i [r_i, in]`, `b.l.i [out, r_i]`.
fn pool(file: &Checkpoint, linear: usize, side: &str, width: usize, experts: &Experts) -> Result<Vec<f32>> {
    let of_b = side == "b";
    let read = |(i, &rank): (usize, &usize)| {
        let name = format!("{side}.{linear}.{i}");
        let dims = if of_b { [width, rank] } else { [rank, width] };
        let matrix = Matrix { rows: dims[0], cols: dims[1], values: file.f32(&name, &dims)?, name };
        Ok(if of_b { matrix.transposed() } else { matrix })
    };
    let each = experts.ranks.iter().enumerate().map(read).collect::<Result<Vec<Matrix>>>()?;
    let factor = |scale: &f32| if of_b { scale / experts.scale() } else { 1.0 };
    let each: Vec<(Matrix, f32)> = each.into_iter().zip(experts.scales.iter().map(factor)).collect();
    Ok(expert_pool(&each, experts.rank(), width))
}

/// Puts the file's values into parameters by the names of their parts: `<linear>.lora_a`, `classifier_1`.
fn fill(file: &Checkpoint, params: &[Param], experts: &Experts) -> Result<()> {
    for param in params {
        let width = param.value().shape().last();
        let device = param.value().device().clone();
        let mut values = Vec::new();
        for (part, rows) in param.parts() {
            values.push(match classifier_name(part) {
                Some(name) if name.starts_with("cls_b") => (part.clone(), file.f32(&name, &[width])?),
                Some(name) => (part.clone(), file.f32(&name, &[*rows, width])?),
                None => {
                    let (linear, side) = linear_side(part);
                    (part.clone(), pool(file, linear, side, width, experts)?)
                }
            });
        }
        param.load(&device, |part| values.iter().find(|(name, _)| name == part).map(|(_, v)| v.clone()))?;
    }
    Ok(())
}

/// The file's name of a part of the classifier, whose linears it numbers from 0.
fn classifier_name(part: &str) -> Option<String> {
    let number = part.strip_prefix("classifier_")?;
    let (kind, number) = number.strip_suffix("_bias").map_or(("w", number), |number| ("b", number));
    Some(format!("cls_{kind}.{}", number.parse::<usize>().ok()?.checked_sub(1)?))
}

/// The number of the linear of a part `<number>.lora_a`, and its side in files.
fn linear_side(part: &str) -> (usize, &'static str) {
    let number = part.split('.').next().and_then(|number| number.parse().ok());
    (number.unwrap_or(0), if part.ends_with("lora_a") { "a" } else { "b" })
}

pub(super) fn replay(
    file: &Checkpoint,
    kind: &str,
    values: &Map<String, Value>,
    device: &Device,
) -> Result<Replay> {
    let config = Config { kind, values };
    let [b, s, d_in, d] = ["batch", "seq", "in", "d"].map(|name| config.number(name));
    let whole = |name: &str| list(&config, name).into_iter().map(|v| v as usize).collect::<Vec<_>>();
    let outs = whole("outs");
    let scales = list(&config, "scales").into_iter().map(|v| v as f32).collect::<Vec<_>>();
    let experts = Experts { ranks: whole("ranks"), scales };
    let sizes = [b, s, d_in, d, outs.len(), experts.rank(), config.number("depth")];
    if sizes.contains(&0) || experts.ranks.len() != experts.scales.len() {
        return Err(Error::file(file.path(), "config has a size of 0, or not a scale for each rank"));
    }
    let widest = outs.iter().copied().max().unwrap_or(0).max(d_in);
    bounded(file, "pools", &[outs.len(), experts.ranks.len(), experts.rank(), widest])?;
    bounded(file, "a classifier", &[config.number("depth"), config.number("size").max(1), d])?;
    bounded(file, "gates", &[b, s, outs.len(), experts.ranks.len()])?;

    let method = method(&config, &experts, file)?;
    let linears = outs.iter().enumerate().map(|(l, &out)| {
        let name = format!("w.{l}");
        let weight = Weight::new(device, out, d_in, &file.f32(&name, &[out, d_in])?, Format::F32)?;
        Ok(Linear { weight, bias: None })
    });
    let linears = linears.collect::<Result<Vec<_>>>()?;
    let named = outs.iter().enumerate().map(|(l, &out)| (l.to_string(), out)).collect();
    let adapter = method.build(&LinearSite::alone("layer", d_in, named), device, Stream::new(0))?;
    let start = StateSite {
        name: "start".into(),
        path: String::new(),
        depth: Depth::ONLY,
        part: SitePart::Other,
        hidden_size: d,
        linears: outs.len(),
    };
    let Some(before) = method.build_before(&start, device, Stream::new(0))? else {
        return Err(Error::file(file.path(), "the method decides nothing before the first layer"));
    };
    let params = [adapter.params(), before.params()].concat();
    fill(file, &params, &experts)?;

    let x = tensor(file, device, "x", &[b, s, d_in])?.leaf();
    let states = tensor(file, device, "h", &[b, s, d])?;
    let mut pass = Pass::new(Units::instances(device, b, s)?);
    pass.decision = before.decide(&x, &mut || Ok(states.clone()), &pass)?;
    let outputs = adapter.forward(&x, &linears, &pass)?;
    let mut compare = Compare::new(file);
    let mut roots = Vec::new();
    for (l, y) in outputs.iter().enumerate() {
        compare.within(&format!("y.{l}"), &y.to_f64()?, BOUND)?;
        roots.push((y, tensor(file, device, &format!("grad_y.{l}"), y.dims())?));
    }
    let gradients = backward(&roots)?;
    let of = |leaf: &Tensor| gradients.get(leaf).map_or_else(|| Ok(vec![0.0; leaf.len()]), Tensor::to_f64);
    compare.within("grad_x", &of(&x)?, BOUND)?;
    for param in params.iter().filter(|param| param.trainable()) {
        let gradient = param.gradient(&gradients).cloned();
        let gradient = gradient.map_or_else(|| Tensor::zeros(device, param.value().dims()), Ok)?;
        for (part, _, values) in param.split(&gradient)? {
            match classifier_name(&part) {
                // What is 0 on paper is left out of the file.
                Some(name) if file.has(&format!("grad_{name}")) => {
                    compare.within(&format!("grad_{name}"), &values, BOUND)?;
                }
                Some(name) => compare.measure(&name, &vec![0.0; values.len()], &values, 1.0, BOUND),
                None => compare_pool(&mut compare, &part, &values, &experts)?,
            }
        }
    }
    compare.finish(kind, true)
}

/// Compares the gradient of a pool with those of its experts.
fn compare_pool(compare: &mut Compare<'_>, part: &str, values: &[f64], experts: &Experts) -> Result<()> {
    let (linear, side) = linear_side(part);
    let rows = experts.ranks.len() * experts.rank();
    let width = values.len() / rows;
    for (i, (&rank, &scale)) in experts.ranks.iter().zip(&experts.scales).enumerate() {
        let first = i * experts.rank() * width;
        let block = &values[first..first + rank * width];
        let got: Vec<f64> = if side == "b" {
            let factor = f64::from(scale / experts.scale());
            (0..width).flat_map(|col| (0..rank).map(move |row| block[row * width + col] * factor)).collect()
        } else {
            block.to_vec()
        };
        compare.within(&format!("grad_{side}.{linear}.{i}"), &got, BOUND)?;
    }
    Ok(())
}
