//! Cases: every function and gate, from nothing to large values.

use crate::engine::{Case, Operand, Timed, TimedSizes};
use crate::{Result, Tensor};

pub(super) fn cases() -> Vec<Case> {
    type F = fn(&Tensor) -> Result<Tensor>;
    let kinds: [(&str, F); 9] = [
        ("silu", Tensor::silu),
        ("gelu", Tensor::gelu),
        ("gelu_erf", Tensor::gelu_erf),
        ("quick_gelu", Tensor::quick_gelu),
        ("sigmoid", Tensor::sigmoid),
        ("softcap 1.5", |x| x.softcap(1.5)),
        ("relu", Tensor::relu),
        ("relu6", Tensor::relu6),
        ("softplus", Tensor::softplus),
    ];
    let positive: [(&str, F); 6] = [
        ("log_shifted 0.5", |x| x.log_shifted(0.5)),
        ("power -1", |x| x.power(-1.0, 0.0)),
        ("power -0.5", |x| x.power(-0.5, 0.25)),
        ("power 0.5", |x| x.power(0.5, 0.0)),
        ("power 1.1", |x| x.power(1.1, 0.0)),
        ("power 2", |x| x.power(2.0, -0.05)),
    ];
    let mut all = Vec::new();
    for (dims, spread) in
        [(&[0, 4][..], 1.0), (&[1], 1.0), (&[3, 5], 3.0), (&[7, 301], 1.0), (&[70_000, 3], 40.0)]
    {
        let n: usize = dims.iter().product();
        let x = |name| Operand::normal(name, dims).times(spread);
        for (name, f) in kinds {
            let label = format!("{name} {dims:?} x {spread}");
            all.push(Case::new(label, vec![x("x")], move |x| Ok(vec![f(&x[0])?])).cost(10 * n, 8 * n));
        }
        // Larger values overflow.
        let inputs = vec![Operand::normal("x", dims).times(spread.min(8.0))];
        all.push(Case::new(format!("exp {dims:?}"), inputs, |x| Ok(vec![x[0].exp()?])).cost(5 * n, 8 * n));
        for (name, f) in positive {
            let inputs = vec![Operand::between("x", dims, 0.1, 3.0 * spread)];
            let label = format!("{name} {dims:?} up to {}", 3.0 * spread);
            all.push(Case::new(label, inputs, move |x| Ok(vec![f(&x[0])?])).cost(15 * n, 8 * n));
        }
        type G = fn(&Tensor, &Tensor) -> Result<Tensor>;
        let gates: [(&str, G); 2] = [("swiglu", Tensor::swiglu), ("geglu", Tensor::geglu)];
        for (name, f) in gates {
            let inputs = vec![x("gate"), x("up")];
            let label = format!("{name} {dims:?} x {spread}");
            all.push(Case::new(label, inputs, move |x| Ok(vec![f(&x[0], &x[1])?])).cost(11 * n, 12 * n));
        }
    }
    let inputs = vec![Operand::normal("gate", &[6]), Operand::normal("up", &[6]).frozen()];
    all.push(Case::new("swiglu, frozen up", inputs, |x| Ok(vec![x[0].swiglu(&x[1])?])));
    all
}

pub(super) fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, d] = sizes.plane();
    let n = rows * d;
    let inputs = ["gate", "up"].map(|name| Operand::normal(name, &[rows, d])).into();
    let swiglu = Timed::plain(format!("swiglu {rows}x{d}"), inputs, (11 * n, 12 * n), |x| x[0].swiglu(&x[1]));
    let inputs = vec![Operand::between("x", &[rows, d], 0.1, 3.0)];
    let power = Timed::plain(format!("power {rows}x{d}"), inputs, (15 * n, 8 * n), |x| x[0].power(0.5, 0.0));
    vec![swiglu.backward(20 * n, 20 * n), power.backward(20 * n, 12 * n)]
}
