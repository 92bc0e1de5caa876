//! Derivatives on the reference lane against central differences in f64.

use crate::nn::{Choices, Param};
use crate::ops::Case;
use crate::rng::Stream;
use crate::{DType, Device, Error, Result, Tensor, backward, no_grad};

/// What [`gradcheck`] may return for a correct derivative.
pub const GRADCHECK_BOUND: f64 = 1e-6;
/// Central differences are taken at this step, relative to max(1, |x|).
const STEP: f64 = 1e-5;
/// Values per input that are tried; more are sampled with a fixed stride.
const SAMPLES: usize = 48;

/// Largest error of a case's derivatives relative to the largest derivative of that input.
///
/// `L = sum(y * seed)` for fixed random seeds; each sampled input value is moved both ways.
pub fn gradcheck(case: &Case) -> Result<f64> {
    let device = Device::reference();
    let mut values: Vec<Vec<f64>> =
        case.inputs.iter().map(|o| o.data().unwrap_or(&[]).iter().map(|&v| v as f64).collect()).collect();
    let inputs = |values: &[Vec<f64>]| -> Result<Vec<Tensor>> {
        case.inputs
            .iter()
            .zip(values)
            .map(|(o, v)| match o.has_grad() {
                true => Ok(Tensor::from_f64(&device, o.on(&device)?.dims(), v)?.leaf()),
                false => o.on(&device),
            })
            .collect()
    };
    let seed = |i: usize, n: usize| -> Vec<f64> {
        Stream::new(5).fork(i as u64).normal_vec(n, 1.0).into_iter().map(f64::from).collect()
    };
    let loss = |values: &[Vec<f64>]| -> Result<f64> {
        let y = no_grad(|| (case.run)(&inputs(values)?))?;
        let mut sum = 0.0;
        for (i, t) in y.iter().enumerate().filter(|(_, t)| t.dtype() == DType::F32) {
            sum += t.to_f64()?.iter().zip(seed(i, t.len())).map(|(y, s)| y * s).sum::<f64>();
        }
        Ok(sum)
    };
    let leaves = inputs(&values)?;
    let y = (case.run)(&leaves)?;
    let mut roots = Vec::new();
    for (i, t) in y.iter().enumerate().filter(|(_, t)| t.dtype() == DType::F32) {
        roots.push((t, Tensor::from_f64(&device, t.dims(), &seed(i, t.len()))?));
    }
    let grads = backward(&roots)?;
    let mut worst = 0f64;
    for (k, leaf) in leaves.iter().enumerate().filter(|(k, _)| case.inputs[*k].has_grad()) {
        let got = match grads.get(leaf) {
            Some(g) => g.to_f64()?,
            None => vec![0.0; leaf.len()],
        };
        if got.len() != values[k].len() {
            return Err(Error::Tape(format!(
                "{}: gradient of input {k} has {} values",
                case.label,
                got.len()
            )));
        }
        let largest = got.iter().fold(1e-3f64, |m, v| m.max(v.abs()));
        for j in (0..got.len()).step_by((got.len() / SAMPLES).max(1)) {
            let x = values[k][j];
            let h = STEP * x.abs().max(1.0);
            values[k][j] = x + h;
            let up = loss(&values)?;
            values[k][j] = x - h;
            let down = loss(&values)?;
            values[k][j] = x;
            let error = (got[j] - (up - down) / (2.0 * h)).abs() / largest;
            worst = worst.max(if error.is_nan() { f64::INFINITY } else { error });
        }
    }
    Ok(worst)
}

/// Error of one tensor's derivative.
#[derive(Debug, Clone, PartialEq)]
pub struct GradError {
    /// The parameter's name, or `x`.
    pub name: String,
    /// Largest error relative to the largest derivative.
    pub error: f64,
    /// The largest derivative; 0 where the outputs do not depend on the tensor.
    pub largest: f64,
}

/// Derivatives of a module's outputs with respect to its trained parameters and to its input `x`, on the reference
/// lane, against central differences.
///
/// `run` computes the outputs (auxiliary losses may be among them). It is called first with choices to record, and
/// then, for the differences, with the same choices forced: a step can never flip one.
///
/// # Errors
/// Something is not on the reference lane, or `run` fails. Parameters may then be left changed.
pub fn gradcheck_params(
    params: &[Param],
    x: &Tensor,
    run: impl Fn(&Tensor, &Choices) -> Result<Vec<Tensor>>,
) -> Result<Vec<GradError>> {
    let seed = |i: usize, n: usize| -> Vec<f64> {
        Stream::new(6).fork(i as u64).normal_vec(n, 1.0).into_iter().map(f64::from).collect()
    };
    let choices = Choices::record();
    let leaf = x.leaf();
    let y = run(&leaf, &choices)?;
    let forced = choices.replay();
    let mut roots = Vec::new();
    for (i, t) in y.iter().enumerate() {
        roots.push((t, Tensor::from_f64(t.device(), t.dims(), &seed(i, t.len()))?));
    }
    let gradients = backward(&roots)?;
    let loss = |x: &Tensor| -> Result<f64> {
        let y = no_grad(|| run(x, &forced))?;
        let terms = y
            .iter()
            .enumerate()
            .map(|(i, t)| Ok(t.to_f64()?.iter().zip(seed(i, t.len())).map(|(y, s)| y * s).sum::<f64>()));
        terms.sum()
    };
    let check = |name: String, value: &Tensor, got: Option<&Tensor>, at: &dyn Fn(Tensor) -> Result<f64>| {
        let mut values = value.to_f64()?;
        let got = got.map_or(Ok(vec![0.0; value.len()]), Tensor::to_f64)?;
        let largest = got.iter().fold(0f64, |m, v| m.max(v.abs()));
        let mut error = 0f64;
        for j in (0..got.len()).step_by((got.len() / SAMPLES).max(1)) {
            let v = values[j];
            let h = STEP * v.abs().max(1.0);
            let mut moved = |v: f64| {
                values[j] = v;
                at(Tensor::from_f64(value.device(), value.dims(), &values)?)
            };
            let slope = (moved(v + h)? - moved(v - h)?) / (2.0 * h);
            values[j] = v;
            let e = (got[j] - slope).abs() / largest.max(1e-3);
            error = error.max(if e.is_nan() { f64::INFINITY } else { e });
        }
        Ok(GradError { name, error, largest })
    };
    let mut all = vec![check("x".into(), &x.detach(), gradients.get(&leaf), &|x| loss(&x))?];
    for p in params.iter().filter(|p| p.trainable()) {
        let value = p.value();
        let at = |v: Tensor| {
            p.set(v)?;
            loss(x)
        };
        let e = check(p.name(), &value, p.gradient(&gradients), &at);
        p.set(value)?;
        all.push(e?);
    }
    Ok(all)
}
