//! Devices: what a GPU does with input that the CPU refuses.

use crate::common;
use mixlora::mixture::mixture_linears;
use mixlora::mixture::{Selection, Units};
use mixlora::{Device, Format, Linear, Result, Stream, Tensor, Weight, backward};

/// Outputs of two linears and the gradients of the pools, for the choices of three tokens.
fn step(device: &Device, choices: [u32; 3]) -> Result<Vec<Vec<f32>>> {
    const FACTORS: usize = 4;
    const WIDTH: usize = 8;
    let values = |name: &str, rows: usize| {
        let normal = Stream::new(3).named(name).normal_vec(rows * WIDTH, 1.0);
        Tensor::from_f32(device, &[rows, WIDTH], &normal)
    };
    let linear = || -> Result<Linear> {
        let weight = Weight::new(device, WIDTH, WIDTH, &[0.5; WIDTH * WIDTH], Format::F32)?;
        Ok(Linear { weight, bias: None })
    };
    let idx = Tensor::from_u32(device, &[2, 1, 3, 1], &[choices, choices].concat())?;
    let selection = Selection::new(idx, None, &Units::tokens(3), FACTORS, 1)?;
    let a = values("a", 2 * FACTORS)?.leaf();
    let b = [values("b0", FACTORS)?.leaf(), values("b1", FACTORS)?.leaf()];
    let linears = [linear()?, linear()?];
    let y = mixture_linears(&values("x", 3)?, &linears, &a, &b, &selection, 1.0, None)?;
    let roots = y.iter().map(|y| Ok((y, values("dy", 3)?))).collect::<Result<Vec<_>>>()?;
    let grads = backward(&roots)?;
    let gradients = [&a, &b[0], &b[1]].map(|p| grads.get(p).unwrap().to_f32());
    y.iter().map(Tensor::to_f32).chain(gradients).collect()
}

#[test]
fn choices_out_of_range_on_a_gpu() {
    let e = step(&Device::cpu(), [0, 1_000_000, 3]).unwrap_err().to_string();
    assert!(e.contains("expected choices among 4 factors, found choice 1000000"), "{e}");
    let Some(gpu) = common::gpu() else { return };
    let want = step(&gpu, [0, 3, 3]).unwrap();
    for beyond in [4, 5, 1_000_000, u32::MAX] {
        assert_eq!(step(&gpu, [0, beyond, 3]).unwrap(), want, "choice {beyond}");
    }
}
