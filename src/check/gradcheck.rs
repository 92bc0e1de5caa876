//! Comparison of derivatives on the reference device with central differences in f64.

use crate::nn::{Choices, Param};
use crate::ops::{Case, Operand};
use crate::rng::Stream;
use crate::{DType, Device, Error, Gradients, Result, Tensor, backward, no_grad};

/// The largest error that [`gradcheck`] may return for a correct derivative.
pub const GRADCHECK_BOUND: f64 = 1e-6;
/// The step of central differences, relative to max(1, |x|).
const STEP: f64 = 1e-5;
/// The number of values per input that are tried; larger inputs are sampled with a fixed stride.
const SAMPLES: usize = 48;
/// The length of the smaller of two steps along a direction.
const DIRECTION_STEP: f64 = 1e-4;

/// The weights of the outputs in a scalar loss `L = sum(y * weights)`.
fn loss_weights(seed: u64, output: usize, count: usize) -> Vec<f64> {
    Stream::new(seed).fork(output as u64).normal_vec(count, 1.0).into_iter().map(f64::from).collect()
}

/// The scalar loss of the f32 outputs.
fn weighted_loss(seed: u64, outputs: &[Tensor]) -> Result<f64> {
    let mut loss = 0.0;
    for (index, output) in outputs.iter().enumerate().filter(|(_, output)| output.dtype() == DType::F32) {
        let weights = loss_weights(seed, index, output.len());
        loss += output.to_f64()?.iter().zip(weights).map(|(value, weight)| value * weight).sum::<f64>();
    }
    Ok(loss)
}

/// The gradients of the scalar loss.
fn loss_gradients(seed: u64, outputs: &[Tensor]) -> Result<Gradients> {
    let mut roots = Vec::new();
    for (index, output) in outputs.iter().enumerate().filter(|(_, output)| output.dtype() == DType::F32) {
        let weights = loss_weights(seed, index, output.len());
        roots.push((output, Tensor::from_f64(output.device(), output.dims(), &weights)?));
    }
    backward(&roots)
}

/// The positions of the sampled values among `count` ones.
fn sampled(count: usize) -> impl Iterator<Item = usize> {
    (0..count).step_by((count / SAMPLES).max(1))
}

/// Returns the largest error of a case's derivatives, relative to the largest derivative of the same input.
///
/// The loss is `L = sum(y * weights)` with fixed random weights; each sampled input value is moved in both directions.
///
/// # Errors
/// The case fails, or a gradient has the wrong number of values.
pub fn gradcheck(case: &Case) -> Result<f64> {
    const SEED: u64 = 5;
    let device = Device::reference();
    let data = |operand: &Operand| operand.data().unwrap_or(&[]).iter().map(|&value| value as f64).collect();
    let mut values: Vec<Vec<f64>> = case.inputs.iter().map(data).collect();
    let inputs = |values: &[Vec<f64>]| -> Result<Vec<Tensor>> {
        let input = |(operand, values): (&Operand, &Vec<f64>)| {
            let tensor = operand.on(&device)?;
            if !operand.has_grad() {
                return Ok(tensor);
            }
            Ok(Tensor::from_f64(&device, tensor.dims(), values)?.leaf())
        };
        case.inputs.iter().zip(values).map(input).collect()
    };
    let loss = |values: &[Vec<f64>]| weighted_loss(SEED, &no_grad(|| (case.run)(&inputs(values)?))?);
    let leaves = inputs(&values)?;
    let gradients = loss_gradients(SEED, &(case.run)(&leaves)?)?;
    let mut worst = 0f64;
    for (input, leaf) in leaves.iter().enumerate().filter(|(input, _)| case.inputs[*input].has_grad()) {
        let got = gradients.get(leaf).map_or(Ok(vec![0.0; leaf.len()]), Tensor::to_f64)?;
        if got.len() != values[input].len() {
            let what = format!("{}: gradient of input {input} has {} values", case.label, got.len());
            return Err(Error::Tape(what));
        }
        let largest = got.iter().fold(1e-3f64, |largest, value| largest.max(value.abs()));
        for at in sampled(got.len()) {
            let value = values[input][at];
            let step = STEP * value.abs().max(1.0);
            values[input][at] = value + step;
            let up = loss(&values)?;
            values[input][at] = value - step;
            let down = loss(&values)?;
            values[input][at] = value;
            let error = (got[at] - (up - down) / (2.0 * step)).abs() / largest;
            worst = worst.max(if error.is_nan() { f64::INFINITY } else { error });
        }
    }
    Ok(worst)
}

/// The error of the derivative with respect to one tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct GradError {
    /// The name of the parameter, or `x`.
    pub name: String,
    /// The largest error, relative to the largest derivative.
    pub error: f64,
    /// The largest derivative; 0 if the outputs do not depend on the tensor.
    pub largest: f64,
}

/// Compares the derivatives of a module's outputs with respect to its trained parameters and its input `x` with central
/// differences. All tensors are on the reference device.
///
/// `run` computes the outputs, which may include auxiliary losses. It is first called with choices to record and then,
/// for the differences, with the same choices forced, so that a step cannot change a choice.
///
/// # Errors
/// A tensor is not on the reference device, or `run` fails. Parameters may then be left changed.
pub fn gradcheck_params(
    params: &[Param],
    x: &Tensor,
    run: impl Fn(&Tensor, &Choices) -> Result<Vec<Tensor>>,
) -> Result<Vec<GradError>> {
    check_params(params, x, &run, compare)
}

/// The same along one random direction for each tensor: four runs check all its values at once, where
/// [`gradcheck_params`] takes two for each value. For modules as large as a model. The error is relative to the
/// derivative that the direction has on average, `|gradient| / sqrt(values)`.
///
/// # Errors
/// Those of [`gradcheck_params`].
pub fn gradcheck_directions(
    params: &[Param],
    x: &Tensor,
    run: impl Fn(&Tensor, &Choices) -> Result<Vec<Tensor>>,
) -> Result<Vec<GradError>> {
    check_params(params, x, &run, compare_direction)
}

/// Compares the gradient of one named tensor with differences of a loss.
type Comparison = fn(String, &Tensor, Option<&Tensor>, &dyn Fn(Tensor) -> Result<f64>) -> Result<GradError>;

fn check_params(
    params: &[Param],
    x: &Tensor,
    run: &dyn Fn(&Tensor, &Choices) -> Result<Vec<Tensor>>,
    compare: Comparison,
) -> Result<Vec<GradError>> {
    const SEED: u64 = 6;
    let choices = Choices::record();
    let leaf = x.leaf();
    let outputs = run(&leaf, &choices)?;
    let forced = choices.replay();
    let gradients = loss_gradients(SEED, &outputs)?;
    let loss = |x: &Tensor| weighted_loss(SEED, &no_grad(|| run(x, &forced))?);
    let mut errors = vec![compare("x".into(), &x.detach(), gradients.get(&leaf), &|x| loss(&x))?];
    for param in params.iter().filter(|param| param.trainable()) {
        let value = param.value();
        let loss_with = |value: Tensor| {
            param.set(value)?;
            loss(x)
        };
        let error = compare(param.name(), &value, param.gradient(&gradients), &loss_with);
        param.set(value)?;
        errors.push(error?);
    }
    Ok(errors)
}

/// Compares the derivative along a random direction with central differences of `loss`.
fn compare_direction(
    name: String,
    tensor: &Tensor,
    gradient: Option<&Tensor>,
    loss: &dyn Fn(Tensor) -> Result<f64>,
) -> Result<GradError> {
    let values = tensor.to_f64()?;
    let got = gradient.map_or(Ok(vec![0.0; tensor.len()]), Tensor::to_f64)?;
    let drawn = Stream::new(7).named(&name).normal_vec(values.len(), 1.0);
    let length =
        |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
    let unit = length(&mut drawn.iter().map(|&value| f64::from(value)));
    let direction: Vec<f64> = drawn.iter().map(|&value| f64::from(value) / unit).collect();
    let loss_at = |step: f64| {
        let moved: Vec<f64> =
            values.iter().zip(&direction).map(|(value, along)| value + step * along).collect();
        loss(Tensor::from_f64(tensor.device(), tensor.dims(), &moved)?)
    };
    let difference = |step: f64| -> Result<f64> { Ok((loss_at(step)? - loss_at(-step)?) / (2.0 * step)) };
    // Differences at two steps, so that the third derivative falls out.
    let slope = (4.0 * difference(DIRECTION_STEP)? - difference(2.0 * DIRECTION_STEP)?) / 3.0;
    let derivative = got.iter().zip(&direction).map(|(value, along)| value * along).sum::<f64>();
    let usual = length(&mut got.iter().copied()) / (got.len() as f64).sqrt();
    let error = (derivative - slope).abs() / usual.max(1e-3);
    let largest = got.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    Ok(GradError { name, error: if error.is_nan() { f64::INFINITY } else { error }, largest })
}

/// Compares the gradient of one tensor with central differences of `loss`.
fn compare(
    name: String,
    tensor: &Tensor,
    gradient: Option<&Tensor>,
    loss: &dyn Fn(Tensor) -> Result<f64>,
) -> Result<GradError> {
    let mut values = tensor.to_f64()?;
    let got = gradient.map_or(Ok(vec![0.0; tensor.len()]), Tensor::to_f64)?;
    let largest = got.iter().fold(0f64, |largest, value| largest.max(value.abs()));
    let mut worst = 0f64;
    for at in sampled(got.len()) {
        let value = values[at];
        let step = STEP * value.abs().max(1.0);
        let mut loss_at = |moved: f64| {
            values[at] = moved;
            loss(Tensor::from_f64(tensor.device(), tensor.dims(), &values)?)
        };
        let slope = (loss_at(value + step)? - loss_at(value - step)?) / (2.0 * step);
        values[at] = value;
        let error = (got[at] - slope).abs() / largest.max(1e-3);
        worst = worst.max(if error.is_nan() { f64::INFINITY } else { error });
    }
    Ok(GradError { name, error: worst, largest })
}
