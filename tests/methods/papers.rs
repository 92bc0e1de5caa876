//! What the methods' definitions promise: dense deltas, order, frozen routers, and what they reduce to.

use crate::rig::{D, GROUPS, Rig, SEQ, SITE, SPANS, changed, devices, small};
use mixlora::check::Deviation;
use mixlora::mixture::{Method, Pool, find};
use mixlora::nn::Choices;
use mixlora::{Device, Tensor};
use serde_json::json;

fn tolerance(device: &Device) -> f64 {
    if device.same(&Device::reference()) { 1e-12 } else { 1e-5 }
}

fn conditional(factors: usize, r: usize) -> Method {
    changed(&small(find("mixlora-cond").unwrap()), json!({ "num_factors": factors, "r": r }))
}

/// The outputs of every linear; with `zero` those of the frozen linears alone.
fn outputs(rig: &Rig, choices: &Choices, b_times: f32) -> Vec<Vec<f64>> {
    for p in rig.params().iter().filter(|p| p.name().ends_with("_b") && p.trainable()) {
        p.set(p.value().scale(b_times).unwrap()).unwrap();
    }
    let y = rig.forward(&rig.x(), &rig.pass(Pool::Real).with_choices(choices.clone())).unwrap();
    y.iter().map(|t| t.to_f64().unwrap()).collect()
}

#[test]
fn the_factored_update_is_the_dense_delta() {
    for (factors, r) in [(6, 4), (5, 1), (4, 4), (9, 3)] {
        // One rank on a GPU: every rank is a kernel of its own.
        for device in devices().into_iter().take(if r == 4 { 3 } else { 2 }) {
            let rig = Rig::new(&conditional(factors, r), GROUPS[1], &device);
            let pools: Vec<Vec<f64>> = rig.params().iter().map(|p| p.value().to_f64().unwrap()).collect();
            let record = Choices::record();
            let with = outputs(&rig, &record, 1.0);
            let without = outputs(&rig, &record.replay(), 0.0);
            let (idx, x) = (record.get(SITE).unwrap().to_u32().unwrap(), rig.x().to_f64().unwrap());
            for (l, &out) in GROUPS[1].iter().enumerate() {
                for (g, _) in SPANS.iter().enumerate() {
                    let list = |side: usize| &idx[((l * 2 + side) * SPANS.len() + g) * r..][..r];
                    let mut delta = vec![0.0; D * out];
                    for (a, b) in list(0).iter().zip(list(1)) {
                        for (i, o) in (0..D).flat_map(|i| (0..out).map(move |o| (i, o))) {
                            let a = pools[0][(l * factors + *a as usize) * D + i];
                            delta[i * out + o] += a * pools[1 + l][*b as usize * out + o];
                        }
                    }
                    let scale = 2.0 * factors as f64 / r as f64;
                    let rows = g * SEQ..(g + 1) * SEQ;
                    let want: Vec<f64> = rows
                        .clone()
                        .flat_map(|t| (0..out).map(move |o| (t, o)))
                        .map(|(t, o)| scale * (0..D).map(|i| x[t * D + i] * delta[i * out + o]).sum::<f64>())
                        .collect();
                    let got: Vec<f64> =
                        (rows.start * out..rows.end * out).map(|i| with[l][i] - without[l][i]).collect();
                    let e = Deviation::of(&got, &want, 1e-3).max;
                    assert!(e <= tolerance(&device), "E {factors} r {r} on {device:?}: {e:.1e}");
                }
            }
        }
    }
}

#[test]
fn the_order_of_choices_pairs_the_factors() {
    for device in devices() {
        let rig = Rig::new(&conditional(6, 4), GROUPS[0], &device);
        let record = Choices::record();
        let free = outputs(&rig, &record, 1.0);
        let idx = record.get(SITE).unwrap();
        let reversed = |sides: &[usize]| {
            let mut v = idx.to_u32().unwrap();
            let per_side = v.len() / 2;
            for &side in sides {
                v[side * per_side..(side + 1) * per_side].chunks_mut(4).for_each(<[u32]>::reverse);
            }
            let forced = Tensor::from_u32(&device, idx.dims(), &v).unwrap();
            outputs(&rig, &Choices::force([(SITE.to_string(), forced)]), 1.0)
        };
        let error = |y: Vec<Vec<f64>>| Deviation::of(&y[0], &free[0], 1e-3).max;
        assert!(error(reversed(&[1])) > 1e-2, "{device:?}");
        assert!(error(reversed(&[0])) > 1e-2, "{device:?}");
        assert!(error(reversed(&[0, 1])) <= tolerance(&device), "{device:?}");
    }
}

#[test]
fn ungated_routers_have_no_gradient_at_all() {
    for name in ["mixlora-cond", "vt-nlp"] {
        let spec = find(name).unwrap();
        assert!(!spec.defaults().notes().is_empty());
        for device in devices() {
            let rig = Rig::new(&small(spec), GROUPS[1], &device);
            let routers: Vec<_> = rig.params().into_iter().filter(|p| p.name().contains("router")).collect();
            assert!(routers.len() == 2 && routers.iter().all(|p| !p.trainable()), "{routers:?}");
            let step = rig.step(&rig.x(), &rig.pass(Pool::Real)).unwrap();
            let trained: Vec<_> = step.0.keys().filter(|n| n.starts_with("grad ")).cloned().collect();
            assert_eq!(trained.len(), 1 + 1 + GROUPS[1].len(), "{trained:?}: x, factors_a, each factors_b");
        }
    }
}

/// All gradients of the same loss, by the method's own names: x, A, B.
pub fn same_as_lora(config: &Method, parts: [&str; 2], force: bool, prepare: impl Fn(&Rig)) {
    let lora = find("lora").unwrap();
    for device in devices() {
        let rig = Rig::new(config, GROUPS[0], &device);
        prepare(&rig);
        let plain = changed(&small(lora), json!({ "lora_alpha": config.tree()["lora_alpha"] }));
        let plain = Rig::new(&plain, GROUPS[0], &device);
        plain.param("lora_a").set(rig.param(parts[0]).value()).unwrap();
        plain.param("lora_b").set(rig.param(parts[1]).value()).unwrap();
        let mut pass = rig.pass(Pool::Real);
        if force {
            let identity: Vec<u32> = (0..2 * SPANS.len()).flat_map(|_| 0..4).collect();
            let idx = Tensor::from_u32(&device, &[1, 2, SPANS.len(), 4], &identity).unwrap();
            pass = pass.with_choices(Choices::force([(SITE.to_string(), idx)]));
        }
        let got = rig.step(&rig.x(), &pass).unwrap();
        let want = plain.step(&plain.x(), &plain.pass(Pool::Real)).unwrap();
        let names = [
            ("y0".to_string(), "y0".to_string()),
            ("grad x".into(), "grad x".into()),
            (format!("grad {}", rig.param(parts[0]).name()), "grad l0.lora_a".into()),
            (format!("grad {}", rig.param(parts[1]).name()), "grad l0.lora_b".into()),
        ];
        for (a, b) in names {
            // The gates of equal scores carry a gradient of their own to x: not with a router of zeros.
            let e = Deviation::of(&got.0[&a], &want.0[&b], 1e-3).max;
            assert!(e <= tolerance(&device).max(1e-12), "{config:?} {a} on {device:?}: {e:.1e}");
        }
    }
}

#[test]
fn all_factors_in_order_are_a_lora() {
    let config = changed(&conditional(4, 4), json!({ "lora_alpha": 6.0 }));
    same_as_lora(&config, ["factors_a", "factors_b"], true, |_| {});
}

#[test]
fn smora_with_every_rank_and_equal_scores_is_a_lora() {
    let smora = small(find("smora").unwrap());
    let config = changed(&smora, json!({ "r": 4, "top_k": 4, "lora_alpha": 6.0 }));
    same_as_lora(&config, ["lora_a", "lora_b"], false, |rig| {
        for name in ["router", "bias"] {
            let p = rig.param(name);
            p.set(p.value().scale(0.0).unwrap()).unwrap();
        }
    });
}

#[test]
fn a_balancing_bias_moves_towards_balance() {
    for name in ["smora", "flylora"] {
        let spec = find(name).unwrap();
        for device in devices() {
            let rig = Rig::new(&changed(&small(spec), json!({ "bias_lr": 0.01 })), GROUPS[0], &device);
            let bias = rig.param("bias");
            let record = Choices::record();
            let before = bias.value().to_f64().unwrap();
            let mut pass = rig.pass(Pool::Real).with_choices(record.clone());
            pass.valid = None;
            rig.forward(&rig.x(), &pass).unwrap();
            let mut load = [0f64; 4];
            record.get(SITE).unwrap().to_u32().unwrap().iter().for_each(|&e| load[e as usize] += 1.0);
            let mean = load.iter().sum::<f64>() / 4.0;
            rig.after_step();
            let after = bias.value().to_f64().unwrap();
            for ((a, b), l) in after.iter().zip(before).zip(load) {
                let want = if mean == l { 0.0 } else { 0.01 * (mean - l).signum() };
                assert!((a - b - want).abs() < 1e-7, "{name} on {device:?}");
            }
            // Nothing was counted since.
            rig.after_step();
            assert_eq!(bias.value().to_f64().unwrap(), after);
        }
    }
}
