//! Derivatives on the reference lane against central differences in f64.

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
