//! Adapters inside a checkpoint: recorded in the first pass, replayed in the second.

use crate::rig::{Rig, changed, devices, groups, methods, small};
use mixlora::mixture::{Pool, find};
use mixlora::nn::Choices;
use mixlora::{Tensor, checkpoint};
use serde_json::json;
use std::sync::atomic::{AtomicUsize, Ordering};

/// `sum_i <y_i, y_i>`, one scalar of all outputs.
fn loss(y: &[Tensor]) -> mixlora::Result<Tensor> {
    let mut sum = y[0].mul(&y[0])?.sum()?;
    for t in &y[1..] {
        sum = sum.add(&t.mul(t)?.sum()?)?;
    }
    Ok(sum)
}

#[test]
fn recompute_changes_no_bit_of_any_gradient() {
    for device in devices() {
        for (spec, config) in methods() {
            let config = changed(&config, json!({ "lora_dropout": 0.3 }));
            for outs in groups(spec) {
                let run = |recompute: bool| {
                    let rig = Rig::new(&config, outs, &device);
                    let (x, f) = (rig.x().leaf(), rig.function());
                    let first = rig.pass(Pool::PromptMask).with_choices(Choices::record());
                    let again = first.clone().with_choices(first.choices.replay());
                    let calls = AtomicUsize::new(0);
                    let layer = move |x: &Tensor| match calls.fetch_add(1, Ordering::Relaxed) {
                        0 => loss(&f(x, &first)?),
                        _ => loss(&f(x, &again)?),
                    };
                    let y = match recompute {
                        true => checkpoint(&[&x], move |x| layer(&x[0])).unwrap(),
                        false => layer(&x).unwrap(),
                    };
                    let gradients = y.backward().unwrap();
                    let mut all = vec![y.to_f64().unwrap(), gradients.get(&x).unwrap().to_f64().unwrap()];
                    for p in rig.params() {
                        all.extend(p.gradient(&gradients).map(|g| g.to_f64().unwrap()));
                    }
                    rig.after_step();
                    all.extend(rig.params().iter().map(|p| p.value().to_f64().unwrap()));
                    all
                };
                assert!(run(true) == run(false), "{} {outs:?} on {device:?}", spec.name);
            }
        }
    }
}

#[test]
fn a_replayed_pass_does_not_count_in_statistics() {
    for name in ["smora", "flylora"] {
        let spec = find(name).unwrap();
        for device in devices() {
            let rig = Rig::new(&small(spec), &[9], &device);
            let values = || rig.param("bias").value().to_f64().unwrap();
            let record = Choices::record();
            rig.forward(&rig.x(), &rig.pass(Pool::Real).with_choices(record.clone())).unwrap();
            rig.after_step();
            let counted = values();
            rig.forward(&rig.x(), &rig.pass(Pool::Real).with_choices(record.replay())).unwrap();
            rig.after_step();
            assert_eq!(values(), counted, "{name} on {device:?}");
            let mut inference = rig.pass(Pool::Real);
            inference.train = false;
            rig.forward(&rig.x(), &inference).unwrap();
            rig.after_step();
            assert_eq!(values(), counted, "{name} on {device:?}");
        }
    }
}
