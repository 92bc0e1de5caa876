//! Comparison of a method's derivatives with central differences on a small layer.

use super::{GradError, Subject, gradcheck_params};
use crate::mixture::{Method, Pool, Span};
use crate::nn::{Choices, Mlp, Param, Pass};
use crate::{Device, Format, Linear, Result, Stream, Tensor, Weight};

/// Inputs of the linears.
const D_IN: usize = 10;
/// Outputs of the two linears that read them, or the width inside a block.
const OUTS: [usize; 2] = [9, 12];
/// Instances of a batch padded to five rows.
const SPANS: [Span; 2] = [Span { len: 5, prompt: 3 }, Span { len: 4, prompt: 4 }];
const SEQ: usize = 5;

fn normal(device: &Device, name: &str, dims: &[usize], std: f32) -> Result<Tensor> {
    Tensor::from_f32(device, dims, &Stream::new(11).named(name).normal_vec(dims.iter().product(), std))
}

fn linear(device: &Device, name: &str, d_out: usize, d_in: usize) -> Result<Linear> {
    let values = Stream::new(12).named(name).normal_vec(d_out * d_in, 0.3);
    Ok(Linear { weight: Weight::new(device, d_out, d_in, &values, Format::F32)?, bias: None })
}

/// Sets parameters that start at zero to random values, so that no derivative vanishes.
fn randomise(params: &[Param]) -> Result<()> {
    for param in params {
        let value = param.value();
        if value.to_f64()?.iter().all(|value| *value == 0.0) {
            param.set(normal(value.device(), &param.name(), value.dims(), 0.3)?)?;
        }
    }
    Ok(())
}

/// Derivatives of a method's own hook with respect to its trained parameters and its input, on the reference device,
/// against central differences. Sizes in its options must fit a linear with 10 inputs and 9 outputs.
///
/// # Errors
/// The options do not fit, or the adapter fails.
///
/// ```
/// use mixlora::check::{GRADCHECK_BOUND, gradcheck_method};
/// let method = mixlora::mixture::find("lora")?.defaults().with("r", 2)?;
/// assert!(gradcheck_method(&method)?.iter().all(|e| e.error <= GRADCHECK_BOUND));
/// # Ok::<(), mixlora::Error>(())
/// ```
pub fn gradcheck_method(method: &Method) -> Result<Vec<GradError>> {
    let device = &Device::reference();
    let x = normal(device, "x", &[SPANS.len(), SEQ, D_IN], 1.0)?;
    let pool = method.options().instance().map_or(Pool::Real, |instance| instance.pool);
    let units = pool.units(device, &SPANS, SEQ)?;
    let pass =
        |choices: &Choices| Pass::training(units.clone(), Stream::new(5)).with_choices(choices.clone());
    let frozen = if Subject::takes_linears(method.spec().hook) {
        let linears = OUTS.map(|out| linear(device, &format!("w{out}"), out, D_IN));
        Subject::linears(linears.into_iter().collect::<Result<Vec<_>>>()?)
    } else {
        let [gate, up] = [linear(device, "gate", OUTS[0], D_IN)?, linear(device, "up", OUTS[0], D_IN)?];
        Subject::mlp(Mlp::frozen(gate, up, linear(device, "down", D_IN, OUTS[0])?))
    };
    let adapted = frozen.adapted(method, "layer", &["l0", "l1"], Stream::new(1))?;
    randomise(&adapted.params())?;
    gradcheck_params(&adapted.params(), &x, |x, choices| {
        let pass = pass(choices);
        let mut y = adapted.forward(x, &pass)?;
        y.extend(pass.take_aux()?);
        Ok(y)
    })
}
