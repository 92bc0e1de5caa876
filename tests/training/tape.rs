//! The gradient tape: misuse, recompute, length, memory.

use mixlora::{Device, Error, Tensor, backward, checkpoint, checkpoint_many, no_grad};

fn devices() -> Vec<Device> {
    [Device::reference(), Device::cpu()].into_iter().chain(crate::common::gpu()).collect()
}

#[test]
fn the_tape_is_used_once() {
    for device in devices() {
        let x = Tensor::full(&device, &[3], 2.0).unwrap().leaf();
        let loss = x.mul(&x).unwrap().sum().unwrap();
        assert_eq!(loss.backward().unwrap().get(&x).unwrap().to_f32().unwrap(), [4.0; 3]);
        match loss.backward() {
            Err(Error::Tape(text)) => assert!(text.contains("already consumed"), "{text}"),
            Err(e) => panic!("{e}"),
            Ok(_) => panic!("a second pass over a consumed tape"),
        }
    }
}

#[test]
fn misuse_is_an_error() {
    for device in devices() {
        let x = Tensor::full(&device, &[3], 2.0).unwrap().leaf();
        assert!(matches!(x.scale(2.0).unwrap().backward(), Err(Error::Tape(_))), "not a scalar");
        let constant = Tensor::full(&device, &[1], 2.0).unwrap();
        assert!(matches!(constant.backward(), Err(Error::Tape(_))), "no leaf");
        let seed = Tensor::zeros(&device, &[2]).unwrap();
        assert!(matches!(backward(&[(&x, seed)]), Err(Error::Tape(_))), "seed of another shape");
        let elsewhere = Tensor::zeros(&Device::cpu(), &[3]).unwrap();
        assert!(matches!(backward(&[(&x, elsewhere)]), Err(Error::Tape(_))), "seed on another device");
        let indices = Tensor::from_u32(&device, &[3], &[0; 3]).unwrap();
        assert!(matches!(backward(&[(&x, indices)]), Err(Error::Tape(_))), "seed of indices");
    }
}

#[test]
fn no_grad_records_nothing_and_ends() {
    let x = Tensor::full(&Device::cpu(), &[3], 2.0).unwrap().leaf();
    let y = no_grad(|| no_grad(|| x.scale(2.0)).and_then(|y| y.add(&x))).unwrap();
    assert!(!y.requires_grad());
    assert!(x.scale(2.0).unwrap().requires_grad());
    let panicked = std::panic::catch_unwind(|| no_grad(|| panic!("inside")));
    assert!(panicked.is_err());
    assert!(x.scale(2.0).unwrap().requires_grad(), "recording comes back after a panic");
}

/// One block with a parameter of its own.
fn block(x: &Tensor, w: &Tensor) -> mixlora::Result<Tensor> {
    x.rms_norm(w, 1e-5)?.mul(x)?.add_scaled(x, 0.5)
}

#[test]
fn checkpoints_change_no_bit_of_the_gradients() {
    for device in devices() {
        let values: Vec<f32> = (0..60).map(|i| (i as f32 * 0.7).sin()).collect();
        let run = |recompute: bool| {
            let x = Tensor::from_f32(&device, &[5, 12], &values).unwrap().leaf();
            let ws: Vec<_> =
                (0..4).map(|i| Tensor::full(&device, &[12], 0.5 + i as f32).unwrap().leaf()).collect();
            let mut y = x.clone();
            for w in &ws {
                let w = w.clone();
                y = match recompute {
                    true => checkpoint(&[&y], move |x| block(&x[0], &w)).unwrap(),
                    false => block(&y, &w).unwrap(),
                };
            }
            let loss = y.mul(&y).unwrap().sum().unwrap();
            let grads = loss.backward().unwrap();
            let mut all = vec![loss.to_f32().unwrap(), grads.get(&x).unwrap().to_f32().unwrap()];
            all.extend(ws.iter().map(|w| grads.get(w).unwrap().to_f32().unwrap()));
            all
        };
        assert_eq!(run(false), run(true), "{device:?}");
    }
}

#[test]
fn a_checkpoint_of_frozen_inputs_reaches_the_parameters_inside() {
    let device = Device::cpu();
    let x = Tensor::full(&device, &[2], 3.0).unwrap();
    let w = Tensor::full(&device, &[2], 1.0).unwrap().leaf();
    let inside = w.clone();
    let y = checkpoint(&[&x], move |x| x[0].mul(&inside)).unwrap();
    assert_eq!(y.sum().unwrap().backward().unwrap().get(&w).unwrap().to_f32().unwrap(), [3.0; 2]);
    // A checkpoint that hands its input on.
    let x = x.leaf();
    let y = checkpoint(&[&x], |x| Ok(x[0].clone())).unwrap();
    assert_eq!(y.sum().unwrap().backward().unwrap().get(&x).unwrap().to_f32().unwrap(), [1.0; 2]);
}

#[test]
fn a_long_chain_does_not_overflow_the_stack() {
    let run = || {
        let x = Tensor::full(&Device::reference(), &[1], 1.0).unwrap().leaf();
        let chain = || {
            let mut y = x.clone();
            for _ in 0..100_000 {
                y = y.scale(-1.0).unwrap();
            }
            y
        };
        assert_eq!(chain().backward().unwrap().get(&x).unwrap().item().unwrap(), 1.0);
        drop(chain());
        // A closure that holds on to recorded tensors.
        let mut y = x.clone();
        for _ in 0..100_000 {
            let kept = y.clone();
            y = checkpoint(&[&x], move |_| Ok(kept.clone())).unwrap();
        }
        drop(y);
    };
    std::thread::Builder::new().stack_size(256 << 10).spawn(run).unwrap().join().unwrap();
}

#[test]
fn saved_memory_is_freed_as_the_pass_proceeds() {
    for device in devices() {
        let Some(memory) = device.memory() else { continue };
        let x = Tensor::full(&device, &[1 << 16], 1.0).unwrap().leaf();
        let bytes = memory.current();
        let mut y = x.clone();
        for _ in 0..20 {
            y = y.mul(&y).unwrap();
        }
        let loss = y.sum().unwrap();
        drop(y);
        // Each product saves its operand; the operand of the first is x itself.
        assert!(memory.current() >= 20 * bytes);
        memory.reset_peak();
        let before = memory.current();
        let grads = loss.backward().unwrap();
        // Were nothing freed on the way, the gradients of 20 products would come on top.
        assert!(memory.peak() <= before + 5 * bytes, "{} {before} {bytes}", memory.peak());
        // The loss is still held, its history is gone.
        assert!(memory.current() <= 2 * bytes + (1 << 12), "{} {bytes}", memory.current());
        drop((grads, x, loss));
        assert_eq!(memory.current(), 0);
    }
}

#[test]
fn gradients_add_up_over_uses_and_passes() {
    for device in devices() {
        let x = Tensor::full(&device, &[2], 3.0).unwrap().leaf();
        let pass = || x.add(&x).unwrap().mul(&x).unwrap().sum().unwrap().backward().unwrap();
        let mut total = pass();
        total.accumulate(pass()).unwrap();
        assert_eq!(total.get(&x).unwrap().to_f32().unwrap(), [24.0; 2]);
        assert!(total.get(&x.detach()).is_none());
        assert_eq!(total.iter().count(), 1);
        assert!(total.remove(&x).is_some() && total.get(&x).is_none());
    }
}

#[test]
fn a_checkpoint_with_two_outputs_passes_both_gradients_on() {
    let d = Device::cpu();
    let x = Tensor::from_f32(&d, &[3], &[1.0, 2.0, -1.0]).unwrap().leaf();
    let w = Tensor::from_f32(&d, &[3], &[0.5, -2.0, 3.0]).unwrap().leaf();
    let grads = |recompute: bool| {
        let inside = w.clone();
        let f = move |x: &[Tensor]| {
            let state = x[0].mul(&inside)?;
            let aux = state.mul(&state)?.sum()?;
            Ok(vec![state, aux])
        };
        let y = match recompute {
            true => checkpoint_many(&[&x], f).unwrap(),
            false => f(std::slice::from_ref(&x)).unwrap(),
        };
        let roots =
            [(&y[0], Tensor::full(&d, &[3], 2.0).unwrap()), (&y[1], Tensor::full(&d, &[], 0.5).unwrap())];
        let g = backward(&roots).unwrap();
        [g.get(&x), g.get(&w)].map(|g| g.unwrap().to_f32().unwrap())
    };
    assert_eq!(grads(true), grads(false));
    assert_eq!(grads(true)[0], [2.0 * 0.5 + 0.25, -4.0 + 8.0, 6.0 - 9.0]);
}
