//! Files of the method family: a layer of a method, its output, its gradients, and each of its losses alone.

use super::kinds::{self, Config, Stored};
use super::{BOUND, Compare, Measured, Replay, bounded, tensor};
use crate::check::Subject;
use crate::io::Checkpoint;
use crate::mixture::{Method, Units};
use crate::nn::{Choices, Labels, Mlp, Param, Pass};
use crate::{Device, Error, Format, Gradients, Linear, Result, Stream, Tensor, Weight, backward};
use serde_json::{Map, Value};
use std::sync::Arc;

pub(super) const SITE: &str = "layer";

/// A layer of a file: one linear or block, with the ending of its tensors' names.
struct Layer<'a> {
    config: Config<'a>,
    suffix: String,
}

/// Replays a file of a kind in [`kinds::LAYERS`].
pub(super) fn replay(
    file: &Checkpoint,
    kind: &str,
    values: &Map<String, Value>,
    device: &Device,
) -> Result<Replay> {
    // Files of several linears that read one input: each with options of its own.
    let own: Vec<Map<String, Value>> = match values.get("linears").and_then(Value::as_array) {
        Some(linears) => linears.iter().filter_map(Value::as_object).cloned().collect(),
        None => vec![values.clone()],
    };
    let numbered = values.contains_key("linears");
    let layers: Vec<Layer<'_>> = own
        .iter()
        .enumerate()
        .map(|(i, values)| {
            let suffix = if numbered { format!(".{i}") } else { String::new() };
            Layer { config: Config { kind, values }, suffix }
        })
        .collect();
    let whole = Config { kind, values };
    let [b, s] = [whole.number("batch"), whole.number("seq")];
    if [b, s, whole.number("in")].contains(&0) || layers.is_empty() {
        return Err(Error::file(file.path(), "config has a size of 0"));
    }
    let x = tensor(file, device, "x", &[b, s, whole.number("in")])?.leaf();
    for Layer { config, .. } in &layers {
        let [e, r, tasks] = ["E", "r", "tasks"].map(|name| config.number(name).max(1));
        let sides = config.numbers("kernels");
        let side = sides.iter().max().copied().unwrap_or(1);
        bounded(file, "kernels", &[sides.len(), side, side])?;
        if kind == "cond_options" {
            bounded(file, "a table of the condition", &[e, e, r])?;
        }
        bounded(file, "pools", &[e.max(tasks), r, config.number("hidden").max(whole.number("in"))])?;
    }
    let mut all = Comparison::new(file);

    let pass = pass(file, &whole, device)?;
    let methods =
        layers.iter().map(|layer| kinds::method(&layer.config, file)).collect::<Result<Vec<_>>>()?;
    let subjects = build(&layers, &methods, file, device)?;
    let mut roots = Vec::new();
    for (layer, subject) in layers.iter().zip(&subjects) {
        let record = Choices::record();
        let y = subject.forward(&x, &pass.clone().with_choices(record.clone()))?.swap_remove(0);
        all.compare.within(&format!("y{}", layer.suffix), &y.to_f64()?, BOUND)?;
        all.choices &= choices_agree(file, layer, &record)?;
        let dy = tensor(file, device, &format!("grad_y{}", layer.suffix), y.dims())?;
        roots.push((y, dy));
    }
    let gradients = backward(&roots.iter().map(|(y, dy)| (y, dy.clone())).collect::<Vec<_>>())?;
    let dx = gradients.get(&x).map(Tensor::to_f64).transpose()?.unwrap_or_default();
    all.scale = dx.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
    all.compare.within("grad_x", &dx, BOUND)?;
    if let Some(conditions) = &pass.labels.conditions {
        let total = conditions.shape().last();
        let all_of =
            gradients.get(conditions).map_or_else(|| Ok(vec![0.0; conditions.len()]), Tensor::to_f64)?;
        let mut first = 0;
        for (i, width) in whole.conditions().into_iter().enumerate() {
            let own: Vec<f64> =
                all_of.chunks(total).flat_map(|row| &row[first..first + width]).copied().collect();
            all.gradient(&format!("grad_cond.{i}"), &own, BOUND)?;
            first += width;
        }
    }
    for (layer, subject) in layers.iter().zip(&subjects) {
        all.gradients("grad_", layer, &subject.params(), &gradients, BOUND)?;
    }

    for loss in kinds::losses(&whole) {
        if !file.has(&format!("{}.value", loss.name)) {
            continue;
        }
        let changes = loss.options.as_object().cloned().unwrap_or_default();
        let alone = methods.iter().map(|method| method.set(&changes)).collect::<Result<Vec<_>>>()?;
        let subjects = build(&layers, &alone, file, device)?;
        let x = x.detach().leaf();
        let mut pass = pass.clone();
        pass.train = true;
        for subject in &subjects {
            subject.forward(&x, &pass)?;
        }
        let losses = pass.take_aux()?;
        let value = losses.iter().map(Tensor::item).sum::<Result<f64>>()?;
        all.compare.within(&format!("{}.value", loss.name), &[value], loss.bound)?;
        let one = Tensor::full(device, &[], 1.0)?;
        let gradients = backward(&losses.iter().map(|loss| (loss, one.clone())).collect::<Vec<_>>())?;
        let prefix = format!("{}.grad_", loss.name);
        let dx = gradients.get(&x).map_or_else(|| Ok(vec![0.0; x.len()]), Tensor::to_f64)?;
        all.gradient(&format!("{prefix}x"), &dx, loss.bound)?;
        for (layer, subject) in layers.iter().zip(&subjects) {
            all.gradients(&prefix, layer, &subject.params(), &gradients, loss.bound)?;
        }
    }
    all.compare.finish(kind, all.choices)
}

/// The pass of a file: tokens that count, labels, noise.
fn pass(file: &Checkpoint, config: &Config<'_>, device: &Device) -> Result<Pass> {
    let [b, s] = [config.number("batch"), config.number("seq")];
    let m = b * s;
    let units = Units::instances(device, b, s)?;
    let mut pass = Pass::new(units);
    pass.train = config.trains();
    if file.has("valid") {
        let valid = file.values_f32("valid").or_else(|_| {
            let flags = file.integers("valid", &[b, s])?;
            Ok::<Vec<f32>, Error>(flags.into_iter().map(|flag| flag as f32).collect())
        })?;
        let count = valid.iter().filter(|flag| **flag > 0.0).count();
        pass.valid = Some((Tensor::from_f32(device, &[m, 1], &valid)?, count));
    }
    // A label for each sample, or for each token.
    let labels = [("labels", vec![b, s]), ("task", vec![b]), ("types", vec![b])];
    if let Some((name, dims)) = labels.into_iter().find(|(name, _)| file.has(name)) {
        let label = |value: i64| (value >= 0).then(|| Arc::from(value.to_string()));
        let tasks = file.integers(name, &dims)?.into_iter().map(label).collect();
        pass = pass.with_labels(Labels { tasks, ..Labels::default() });
    } else {
        pass = pass.with_labels(Labels { tasks: vec![None; b], ..Labels::default() });
    }
    let widths = config.conditions();
    if !widths.is_empty() {
        let parts = widths.iter().enumerate().map(|(i, &width)| file.f32(&format!("cond.{i}"), &[b, width]));
        let parts = parts.collect::<Result<Vec<_>>>()?;
        let row = |sample: usize| {
            parts.iter().zip(&widths).flat_map(move |(part, &width)| &part[sample * width..][..width])
        };
        let values: Vec<f32> = (0..b).flat_map(row).copied().collect();
        let conditions = Tensor::from_f32(device, &[b, widths.iter().sum()], &values)?.leaf();
        pass = pass.with_labels(Labels { conditions: Some(conditions), ..Labels::default() });
    }
    if file.has("noise") {
        let dims = file.dims("noise")?.to_vec();
        pass = pass.with_noise(SITE, tensor(file, device, "noise", &dims)?);
    }
    Ok(pass)
}

/// The layers with the file's weights and adapters.
fn build(
    layers: &[Layer<'_>],
    methods: &[Method],
    file: &Checkpoint,
    device: &Device,
) -> Result<Vec<Subject>> {
    let one = |(layer, method): (&Layer<'_>, &Method)| {
        let frozen = |name: &str| -> Result<Linear> {
            let name = format!("{name}{}", layer.suffix);
            let [rows, cols] = *file.dims(&name)? else {
                return Err(Error::file(file.path(), format!("tensor '{name}' is no matrix")));
            };
            let weight = Weight::new(device, rows, cols, &file.f32(&name, &[rows, cols])?, Format::F32)?;
            Ok(Linear { weight, bias: None })
        };
        let body = if layer.config.is_block() {
            Subject::mlp(Mlp::frozen(frozen("w_gate")?, frozen("w_up")?, frozen("w_down")?))
        } else {
            Subject::linears(vec![frozen("w")?])
        };
        let in_file = |error: Error| Error::file(file.path(), error.to_string());
        let subject = body.adapted(method, SITE, &[""], Stream::new(0)).map_err(in_file)?;
        for param in subject.params() {
            param.load(device, |part| values_of(file, layer, part)).map_err(in_file)?;
        }
        Ok(subject)
    };
    layers.iter().zip(methods).map(one).collect()
}

/// A part's name in the file without the site and the linear.
fn own_name(part: &str) -> &str {
    part.strip_prefix("layer.").unwrap_or(part)
}

/// The values of a part of the adapter.
fn values_of(file: &Checkpoint, layer: &Layer<'_>, part: &str) -> Option<Vec<f32>> {
    let (name, stored) = kinds::stored_name(own_name(part));
    let name = format!("{name}{}", layer.suffix);
    let values = file.f32(&name, file.dims(&name).ok()?).ok()?;
    match stored {
        Stored::AsIs => Some(values),
        // In files b is [.., O, r]; pools hold [.., r, O].
        Stored::Transposed => match *file.dims(&name).ok()? {
            [.., rows, cols] if rows * cols > 0 => Some(blocks(&values, rows, cols)),
            _ => None,
        },
    }
}

/// Transposes every `[rows, cols]` block.
pub(super) fn blocks<T: Copy>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    let block = |block: &[T]| -> Vec<T> {
        (0..cols).flat_map(|col| (0..rows).map(move |row| row * cols + col)).map(|at| block[at]).collect()
    };
    values.chunks(rows * cols).flat_map(block).collect()
}

/// Whether the recorded choices are those of the file: sets by token, and the order where the file has one.
fn choices_agree(file: &Checkpoint, layer: &Layer<'_>, record: &Choices) -> Result<bool> {
    let Some(kept) = record.get(SITE) else { return Ok(true) };
    let named = |name: &str| Some(format!("{name}{}", layer.suffix)).filter(|name| file.has(name));
    match (named("chosen"), named("idx"), kept.dims()) {
        (Some(chosen), _, [_, _, _]) => {
            let dims = file.dims(&chosen)?.to_vec();
            let want = file.integers(&chosen, &dims)?;
            Ok(kept.to_f32()?.iter().map(|v| i64::from(*v > 0.0)).eq(want))
        }
        (None, Some(idx), [_, _, _, _]) => {
            let dims = file.dims(&idx)?.to_vec();
            let want = file.integers(&idx, &dims)?;
            Ok(kept.to_u32()?.iter().map(|v| i64::from(*v)).eq(want))
        }
        _ => Ok(true),
    }
}

/// Comparisons so far.
pub(super) struct Comparison<'a> {
    pub compare: Compare<'a>,
    pub choices: bool,
    /// The largest value of the gradient of x: what is zero on paper must be small beside it.
    pub scale: f64,
}

impl<'a> Comparison<'a> {
    pub fn new(file: &'a Checkpoint) -> Self {
        Comparison { compare: Compare::new(file), choices: true, scale: 0.0 }
    }

    /// A gradient; one that the file does not have is zero on paper.
    pub fn gradient(&mut self, name: &str, got: &[f64], bound: f64) -> Result<()> {
        if self.compare.file.has(name) {
            return self.compare.within(name, got, bound);
        }
        let most = got.iter().fold(0.0, |most: f64, v| most.max(v.abs()));
        let error = most / self.scale.max(f64::MIN_POSITIVE);
        self.compare.errors.push(Measured { name: format!("{name} (zero)"), error, bound });
        Ok(())
    }

    fn gradients(
        &mut self,
        prefix: &str,
        layer: &Layer<'_>,
        params: &[Param],
        gradients: &Gradients,
        bound: f64,
    ) -> Result<()> {
        for param in params.iter().filter(|param| param.trainable()) {
            let zeros = || Tensor::zeros(param.value().device(), param.value().dims());
            let gradient = param.gradient(gradients).cloned().map_or_else(zeros, Ok)?;
            for (part, _, values) in param.split(&gradient)? {
                let (name, stored) = kinds::stored_name(own_name(&part));
                let tensor = format!("{name}{}", layer.suffix);
                let values = match stored {
                    Stored::AsIs => values,
                    Stored::Transposed => {
                        // Loading the adapter has seen that it is a matrix.
                        let dims = self.compare.file.dims(&tensor)?;
                        blocks(&values, dims[dims.len() - 1], dims[dims.len() - 2])
                    }
                };
                self.gradient(&format!("{prefix}{tensor}"), &values, bound)?;
            }
        }
        Ok(())
    }
}
