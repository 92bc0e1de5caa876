//! Frozen rows of a trained parameter: no gradient, and no bit of them or their moments changes.

use mixlora::nn::Param;
use mixlora::train::Optimizer;
use mixlora::{Device, Tensor, backward};

const ROWS: usize = 5;
const COLS: usize = 3;
/// Rows 1 and 2 of the first part, row 0 of the second: rows 1, 2 and 3 of the whole.
const FROZEN: [usize; 3] = [1, 2, 3];

fn param(device: &Device) -> Param {
    let values: Vec<f32> = (0..ROWS * COLS).map(|i| (i as f32 * 0.7).sin()).collect();
    let value = Tensor::from_f32(device, &[ROWS, COLS], &values).unwrap();
    Param::stacked(vec![("a".into(), 3), ("b".into(), 2)], value, true).unwrap()
}

fn freeze(p: &Param) {
    p.freeze_rows("a", 1..3).unwrap();
    p.freeze_rows("b", 0..1).unwrap();
}

/// `sum of x^3`: its gradient depends on the values.
fn loss(p: &Param) -> Tensor {
    let x = p.tensor();
    x.mul(&x).unwrap().mul(&x).unwrap().sum_last().unwrap().reshape(&[1, ROWS]).unwrap().sum_last().unwrap()
}

fn gradients(p: &Param) -> mixlora::Gradients {
    let loss = loss(p);
    let one = Tensor::full(loss.device(), loss.dims(), 1.0).unwrap();
    backward(&[(&loss, one)]).unwrap()
}

#[test]
fn the_gradient_is_that_of_differences_and_zero_on_frozen_rows() {
    let p = param(&Device::reference());
    freeze(&p);
    assert_eq!(p.frozen_rows(), vec![1..4]);
    assert_eq!(p.frozen_by_part(), vec![("a".to_string(), 1..3), ("b".to_string(), 0..1)]);
    let found = p.gradient(&gradients(&p)).unwrap().to_f64().unwrap();
    let values = p.value().to_f64().unwrap();
    for i in 0..ROWS * COLS {
        let at = |step: f64| {
            let mut moved = values.clone();
            moved[i] += step;
            p.set(Tensor::from_f64(&Device::reference(), &[ROWS, COLS], &moved).unwrap()).unwrap();
            loss(&p).item().unwrap()
        };
        let slope = (at(1e-5) - at(-1e-5)) / 2e-5;
        let want = if FROZEN.contains(&(i / COLS)) { 0.0 } else { slope };
        assert!((found[i] - want).abs() < 1e-8, "{i}: {} instead of {want}", found[i]);
    }
}

#[test]
fn the_optimizer_leaves_frozen_rows_and_moments_to_the_bit() {
    for device in std::iter::once(Device::cpu()).chain(crate::common::gpu()) {
        let p = param(&device);
        let mut optimizer = Optimizer::new(vec![p.clone()]).unwrap();
        optimizer.weight_decay = 0.1;
        let step = |optimizer: &mut Optimizer| {
            let gradients = gradients(&p);
            let norm = optimizer.norm(&gradients, 1.0).unwrap();
            optimizer.update(&gradients, 1.0, 0.05, &norm, Some(1.0)).unwrap();
            let (m, v) = &optimizer.moments()[0];
            [p.value(), m.clone(), v.clone()].map(|t| t.to_f32().unwrap())
        };
        // The moments are not zero when the rows freeze.
        let before = step(&mut optimizer);
        freeze(&p);
        step(&mut optimizer);
        let after = step(&mut optimizer);
        for (before, after) in before.iter().zip(&after) {
            for row in 0..ROWS {
                let [old, new] = [before, after].map(|t| &t[row * COLS..(row + 1) * COLS]);
                let same = old.iter().zip(new).all(|(a, b)| a.to_bits() == b.to_bits());
                assert_eq!(same, FROZEN.contains(&row), "row {row} on {device:?}: {old:?} {new:?}");
            }
        }
    }
}

#[test]
fn rows_that_are_not_there_are_refused() {
    let p = param(&Device::cpu());
    let error = p.freeze_rows("a", 2..4).unwrap_err().to_string();
    assert!(error.contains("no part with rows 2..4"), "{error}");
    assert!(p.freeze_rows("c", 0..1).is_err());
    assert!(p.frozen_rows().is_empty());
}
