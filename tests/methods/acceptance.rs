//! What a system's paper or code says of its mixture, for methods of LoRA experts: who acts, with which gate, what has a
//! gradient, how many values are trained.

use crate::papers::same_as_lora;
use crate::rig::{D, GROUPS, HIDDEN, Rig, SPANS, block, changed, chosen, linears, small, values};
use mixlora::adapter::{ALL_LINEAR, Adapter};
use mixlora::check::{Deviation, Subject};
use mixlora::mixture::losses::tsallis_entropy;
use mixlora::mixture::{Method, Pool, Units, find};
use mixlora::model::Model;
use mixlora::nn::{Choices, Labels, Mlp, Param, Pass};
use mixlora::{Device, Format, Linear, Stream, Tensor, Weight, backward};
use serde_json::{Value, json};
use std::path::Path;

pub fn method(name: &str, options: Value) -> Method {
    changed(&small(find(name).unwrap()), options)
}

pub fn error(got: &[f64], want: &[f64]) -> f64 {
    Deviation::of(got, want, 1e-3).max
}

pub fn read(param: &Param) -> Vec<f64> {
    param.value().to_f64().unwrap()
}

fn put(param: &Param, new: &[f64]) {
    let old = param.value();
    param.set(Tensor::from_f64(old.device(), old.dims(), new).unwrap()).unwrap();
}

/// Position of the largest value, the first of equal ones.
fn largest(values: &[f64]) -> usize {
    (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap()
}

pub fn softmax(logits: &[f64]) -> Vec<f64> {
    let top = logits.iter().cloned().fold(f64::MIN, f64::max);
    let e: Vec<f64> = logits.iter().map(|z| (z - top).exp()).collect();
    e.iter().map(|v| v / e.iter().sum::<f64>()).collect()
}

/// `w x` of each row: `x [M, d]`, `w [n, d]`.
pub fn product(x: &[f64], w: &[f64], d: usize) -> Vec<f64> {
    let row =
        |x: &[f64]| w.chunks(d).map(|w| w.iter().zip(x).map(|(a, b)| a * b).sum()).collect::<Vec<f64>>();
    x.chunks(d).flat_map(row).collect()
}

/// What the adapter of one linear adds to it.
pub fn update(rig: &Rig, x: &Tensor, pass: &Pass) -> Vec<f64> {
    let with = rig.forward(x, pass).unwrap()[0].to_f64().unwrap();
    let base = linears(GROUPS[0], &rig.device).forward(x, pass).unwrap()[0].to_f64().unwrap();
    with.iter().zip(base).map(|(a, b)| a - b).collect()
}

/// The gates of each token in a pass, `[M, E]`: experts of rank 1 that read the last input, which is 1, and write an output
/// of their own.
fn gates(rig: &Rig, e: usize, scale: f64, x: &[f64], pass: &Pass) -> Vec<Vec<f64>> {
    let out = GROUPS[0][0];
    let a: Vec<f64> = (0..e * D).map(|i| f64::from(u8::from(i % D == D - 1))).collect();
    let b: Vec<f64> = (0..e * out).map(|i| f64::from(u8::from(i % out == i / out))).collect();
    put(&rig.param("lora_a"), &a);
    put(&rig.param("lora_b"), &b);
    let x = Tensor::from_f64(&rig.device, &[x.len() / D, D], x).unwrap();
    let update = update(rig, &x, pass);
    update.chunks(out).map(|y| y[..e].iter().map(|v| v / scale).collect()).collect()
}

/// Normal rows that end in a 1.
fn ones_last(rows: usize) -> Vec<f64> {
    let x = values("tokens", rows * D, 1.0);
    x.iter().enumerate().map(|(i, &v)| if i % D == D - 1 { 1.0 } else { f64::from(v) }).collect()
}

/// The frozen linear of the rig's block with the update `scale B^T A` of one expert.
fn merged(name: &str, [out, d]: [usize; 2], rig: &Rig, expert: usize, scale: f64) -> Linear {
    let mut w: Vec<f32> = values(name, out * d, 0.3);
    let [a, b] = ["lora_a", "lora_b"].map(|side| read(&rig.param(&format!("{name}_proj.{side}"))));
    for k in expert * 4..(expert + 1) * 4 {
        for (i, w) in w.iter_mut().enumerate() {
            *w += (scale * b[k * out + i / d] * a[k * d + i % d]) as f32;
        }
    }
    let bias = Tensor::from_f32(&rig.device, &[out], &values(&format!("{name}.bias"), out, 0.3)).unwrap();
    Linear { weight: Weight::new(&rig.device, out, d, &w, Format::F32).unwrap(), bias: Some(bias) }
}

#[test]
fn llava_mole_is_a_gather_from_merged_blocks() {
    for e in [1, 3] {
        let method = method("llava-mole", json!({ "num_experts": e }));
        let rig = Rig::new(&method, GROUPS[0], &Device::cpu());
        let pass = rig.pass(Pool::Real);
        let got = rig.forward(&rig.x(), &pass).unwrap()[0].to_f64().unwrap();
        let scale = f64::from(method.options().scale());
        let of = |expert: usize| {
            let linear = |name: &str, dims| merged(name, dims, &rig, expert, scale);
            let mlp = Mlp::frozen(
                linear("gate", [HIDDEN, D]),
                linear("up", [HIDDEN, D]),
                linear("down", [D, HIDDEN]),
            );
            mlp.forward(&rig.x(), &pass).unwrap().to_f64().unwrap()
        };
        let each: Vec<Vec<f64>> = (0..e).map(of).collect();
        let bias = read(&rig.param("router_bias"));
        let logits = product(&rig.x().to_f64().unwrap(), &read(&rig.param("router")), D);
        let best: Vec<usize> = logits
            .chunks(e)
            .map(|z| largest(&z.iter().zip(&bias).map(|(z, c)| z + c).collect::<Vec<_>>()))
            .collect();
        assert!((0..e).all(|expert| best.contains(&expert)), "{best:?}");
        let want: Vec<f64> =
            best.iter().enumerate().flat_map(|(t, &b)| each[b][t * D..][..D].to_vec()).collect();
        assert!(error(&got, &want) < 1e-5, "{:.1e}", error(&got, &want));
    }
}

#[test]
fn comol_with_one_expert_is_a_lora_with_a_mixer() {
    let method = method("comol", json!({ "num_experts": 1, "lora_alpha": 6.0 }));
    // A mixer that does nothing, with all gradients.
    same_as_lora(&method, ["lora_a", "lora_b"], false, |rig| {
        put(&rig.param("core"), &(0..16).map(|i| f64::from(u8::from(i % 5 == 0))).collect::<Vec<_>>());
    });
    // Any mixer: M A in the place of A.
    let rig = Rig::new(&method, GROUPS[0], &Device::reference());
    let plain = Rig::new(&self::method("lora", json!({ "lora_alpha": 6.0 })), GROUPS[0], &rig.device);
    plain
        .param("lora_a")
        .set(rig.param("core").value().matmul(&rig.param("lora_a").value()).unwrap())
        .unwrap();
    plain.param("lora_b").set(rig.param("lora_b").value()).unwrap();
    let [got, want] = [&rig, &plain].map(|rig| update(rig, &rig.x(), &rig.pass(Pool::Real)));
    assert!(error(&got, &want) < 1e-12, "{:.1e}", error(&got, &want));
}

#[test]
fn comol_merges_its_cores() {
    let method = method("comol", json!({ "num_experts": 5 }));
    let rig = Rig::new(&method, GROUPS[0], &Device::cpu());
    let [e, r, out] = [5, 4, GROUPS[0][0]];
    let scale = method.options().scale();
    let plain = self::method("lora", json!({ "lora_alpha": scale * r as f32 }));
    let a = rig.param("lora_a").value();
    let code = rig.x().reshape(&[15, D]).unwrap().matmul_nt(&a).unwrap().to_f64().unwrap();
    let gates: Vec<Vec<f64>> =
        product(&code, &read(&rig.param("router")), r).chunks(e).map(softmax).collect();
    let mut want = vec![0.0; 15 * out];
    let cores = read(&rig.param("core"));
    for (expert, core) in cores.chunks(r * r).enumerate() {
        // The expert alone, as a LoRA.
        let alone = Rig::new(&plain, GROUPS[0], &rig.device);
        let core = Tensor::from_f64(&rig.device, &[r, r], core).unwrap();
        alone.param("lora_a").set(core.matmul(&a).unwrap()).unwrap();
        alone.param("lora_b").set(rig.param("lora_b").value()).unwrap();
        let y = update(&alone, &rig.x(), &rig.pass(Pool::Real));
        want.iter_mut().zip(y).enumerate().for_each(|(i, (want, y))| *want += gates[i / out][expert] * y);
    }
    let got = update(&rig, &rig.x(), &rig.pass(Pool::Real));
    assert!(error(&got, &want) < 1e-5, "{:.1e}", error(&got, &want));
}

#[test]
fn comol_trains_as_many_values_as_printed() {
    let [e, r] = [5, 3];
    let rig = Rig::new(&method("comol", json!({ "num_experts": e, "r": r })), GROUPS[1], &Device::cpu());
    let got: usize = rig.params().iter().filter(|p| p.trainable()).map(|p| p.value().len()).sum();
    let want: usize = GROUPS[1].iter().map(|out| r * (D + out) + e * r * r + e * r).sum();
    assert_eq!(got, want);
}

#[test]
fn dynmole_takes_its_three_branches() {
    let options = json!({ "num_experts": 6, "top_k": 2, "top_p": 0.75, "threshold": 0.9, "r": 1 });
    let method = method("dynmole", options);
    // One sure expert; a share of three experts; undecided.
    let p: [[f64; 6]; 3] = [
        [0.03, 0.9, 0.01, 0.02, 0.02, 0.02],
        [0.02, 0.26, 0.235, 0.245, 0.225, 0.015],
        [0.2, 0.18, 0.17, 0.16, 0.15, 0.14],
    ];
    let acting: [&[usize]; 3] = [&[0, 1], &[1, 2, 3], &[0, 1, 2, 3, 4, 5]];
    let rig = Rig::new(&method, GROUPS[0], &Device::reference());
    // Token i reads column i of the router, the logarithms of its p.
    let router: Vec<f64> = (0..6 * D).map(|i| p.get(i % D).map_or(0.0, |p| p[i / D].ln())).collect();
    put(&rig.param("router"), &router);
    let x: Vec<f64> = (0..3 * D).map(|i| f64::from(u8::from(i % D == i / D || i % D == D - 1))).collect();
    let scale = f64::from(method.options().scale());
    for train in [true, false] {
        let mut pass = Pass::new(Units::tokens(3));
        pass.train = train;
        for (i, gates) in gates(&rig, 6, scale, &x, &pass).iter().enumerate() {
            for (e, gate) in gates.iter().enumerate() {
                // Not made to sum to 1 again.
                let want = if acting[i].contains(&e) { p[i][e] } else { 0.0 };
                assert!((gate - want).abs() < 1e-12, "token {i}, expert {e}: {gate} of {want}");
            }
        }
    }
}

#[test]
fn the_normalised_entropy_of_the_uniform_distribution_is_1() {
    let device = Device::reference();
    let uniform = |e: usize| Tensor::from_f64(&device, &[1, e], &vec![1.0 / e as f64; e]).unwrap();
    for (e, q) in [(2, 1.1), (6, 1.1), (6, 0.5), (6, 2.0), (9, 1.0)] {
        let h = tsallis_entropy(&uniform(e), q, 0.0).unwrap().to_f64().unwrap()[0];
        assert!((h - 1.0).abs() < 1e-6, "E {e}, q {q}: {h}");
    }
    let h = tsallis_entropy(&uniform(6), 1.1, 1e-5).unwrap().to_f64().unwrap()[0];
    assert!((h - (1.0 - 3.4e-4)).abs() < 1e-5, "with the release's eps: {h}");
}

/// A `block-moe` adapter at a site of that name, with fixed values.
fn beside(noisy: bool, site: &str, device: &Device) -> Subject {
    let method = method("block-moe", json!({ "noisy": noisy }));
    let subject = block(device).adapted(&method, site, &[], Stream::new(1)).unwrap();
    let own = Rig::new(&method, GROUPS[0], device);
    for (param, value) in subject.params().iter().zip(own.params()) {
        param.set(value.value()).unwrap();
    }
    subject
}

#[test]
fn block_moe_is_deterministic_without_noise_and_by_its_seed_with_it() {
    let device = Device::cpu();
    let x = Tensor::from_f32(&device, &[15, D], &values("x", 15 * D, 1.0)).unwrap();
    for train in [true, false] {
        let y = |noisy: bool, site: &str, seed: u64| {
            let mut pass = Pass::training(Units::tokens(15), Stream::new(seed));
            pass.train = train;
            beside(noisy, site, &device).forward(&x, &pass).unwrap()[0].to_f32().unwrap()
        };
        assert_eq!(y(false, "here", 1), y(false, "there", 2));
        assert_eq!(y(true, "here", 1), y(true, "here", 1));
        assert_ne!(y(true, "here", 1), y(true, "here", 2));
        assert_ne!(y(true, "here", 1), y(true, "there", 1));
    }
}

#[test]
fn block_moe_with_one_expert_for_each_token_has_a_gate_of_1() {
    let rig = Rig::new(&method("block-moe", json!({ "top_k": 1 })), GROUPS[0], &Device::reference());
    let record = Choices::record();
    rig.forward(&rig.x(), &rig.pass(Pool::Real).with_choices(record.clone())).unwrap();
    let kept = record.all().swap_remove(0).1;
    assert!(kept.gates.is_none_or(|gates| gates.to_f64().unwrap().iter().all(|&g| g == 1.0)));
    // The largest derivative by a logit's weights, of the output or of the loss that comes with it.
    let slope = |auxiliary: bool| {
        let pass = rig.pass(Pool::Real);
        let y = rig.forward(&rig.x(), &pass).unwrap().swap_remove(0);
        let root = if auxiliary { pass.take_aux().unwrap().swap_remove(0) } else { y };
        let seed = Tensor::from_f32(&rig.device, root.dims(), &values("seed", root.len(), 1.0)).unwrap();
        let gradients = backward(&[(&root, seed)]).unwrap();
        let gradient = rig.param("router").gradient(&gradients).map(|g| g.to_f64().unwrap());
        gradient.iter().flatten().fold(0.0, |most, v| v.abs().max(most))
    };
    assert_eq!(slope(false), 0.0, "the task has no say in it");
    assert!(slope(true) > 1e-3, "the balance has");
}

/// A fresh adapter of every linear of the committed model, which has 4 layers.
fn on_model(method: &Method) -> Adapter {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny");
    let model = Model::open_f32(&path, &Device::cpu()).unwrap();
    Adapter::attach(&model, method, &[ALL_LINEAR.into()], Stream::new(1)).unwrap()
}

#[test]
fn mola_has_other_experts_and_ranks_in_other_layers() {
    let lists = json!({ "experts_by_layer": [2, 3, 5, 6], "ranks_by_layer": [4, 1, 3, 2] });
    let adapter = on_model(&method("mola", lists));
    let rows = |layer: usize, what: &str| {
        let part = format!("layers.{layer}.self_attn.v_proj.{what}");
        let mut parts = adapter.params().into_iter().flat_map(|p| p.parts().to_vec());
        parts.find(|(name, _)| name.ends_with(&part)).unwrap_or_else(|| panic!("no {part}")).1
    };
    for (layer, (e, r)) in [(2, 4), (3, 1), (5, 3), (6, 2)].into_iter().enumerate() {
        assert_eq!(["router", "lora_a", "lora_b"].map(|what| rows(layer, what)), [e, e * r, e * r]);
    }
    let values =
        |list: Value| on_model(&method("mola", json!({ "experts_by_layer": list }))).trainable_values();
    // 20 experts, in any order of the layers; two numbers stand for halves of the layers.
    let even = values(json!([5, 5, 5, 5]));
    for list in [json!([2, 4, 6, 8]), json!([8, 6, 4, 2]), json!([8, 2, 2, 8]), json!([3, 7])] {
        assert_eq!(values(list.clone()), even, "{list}");
    }
    assert_ne!(values(json!([5, 5, 5, 6])), even);
}

/// A router of `ld-mole` with logits z for every token and lambda = logsigmoid(bias) + 0.99.
fn constant(z: &[f64], bias: f64) -> Vec<f64> {
    let method = method("ld-mole", json!({ "num_experts": z.len(), "r": 1 }));
    let rig = Rig::new(&method, GROUPS[0], &Device::reference());
    let router: Vec<f64> = (0..z.len() * D).map(|i| if i % D == D - 1 { z[i / D] } else { 0.0 }).collect();
    put(&rig.param("router"), &router);
    let second = rig.param("sparsity_2");
    put(&second, &vec![0.0; second.value().len()]);
    put(&rig.param("sparsity_2_bias"), &[bias]);
    let scale = f64::from(method.options().scale());
    gates(&rig, z.len(), scale, &ones_last(1), &Pass::new(Units::tokens(1))).swap_remove(0)
}

#[test]
fn ld_mole_gates_sum_to_1() {
    let method = method("ld-mole", json!({ "num_experts": 6, "r": 1 }));
    for device in [Device::reference(), Device::cpu()] {
        let rig = Rig::new(&method, GROUPS[0], &device);
        let scale = f64::from(method.options().scale());
        let all = gates(&rig, 6, scale, &ones_last(40), &Pass::new(Units::tokens(40)));
        assert!(all.iter().flatten().any(|&g| g == 0.0) && all.iter().flatten().all(|&g| g >= -1e-6));
        for gates in all {
            assert!((gates.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{gates:?}");
        }
    }
}

#[test]
fn ld_mole_is_uniform_at_a_low_bias() {
    let z: [f64; 5] = [0.9, -0.4, 0.3, 1.7, 0.1];
    let gates = constant(&z, -1e5);
    assert!(gates.iter().all(|g| (g - 0.2).abs() < 1e-4), "{gates:?}");
    assert!(constant(&z, 0.0).iter().any(|g| (g - 0.2).abs() > 0.1));
}

#[test]
fn ld_mole_takes_as_many_experts_as_lambda_says() {
    let z: [f64; 5] = [0.9, -0.4, 0.3, 1.7, 0.1];
    let mut falling = z;
    falling.sort_by(|a, b| b.total_cmp(a));
    for k in 1..z.len() {
        // From here on, upwards, k experts act.
        let lo = 1.0 - (falling[..k].iter().sum::<f64>() - k as f64 * falling[k]);
        let active = |lambda: f64| {
            // lambda = logsigmoid(bias) + 0.99
            let l = lambda - f64::from(0.99f32);
            constant(&z, -(-l).exp_m1().ln()).iter().filter(|&&gate| gate > 1e-9).count()
        };
        assert_eq!([active(lo - 1e-3), active(lo), active(lo + 1e-3)], [k + 1, k, k], "k {k}, lambda {lo}");
    }
}

#[test]
fn hydra_and_moelora_with_one_expert_are_loras() {
    for name in ["hydra", "moelora"] {
        let method = method(name, json!({ "num_experts": 1, "lora_alpha": 6.0 }));
        same_as_lora(&method, ["lora_a", "lora_b"], false, |_| {});
    }
}

#[test]
fn moelora_leaves_the_vectors_of_other_tasks() {
    let rig =
        Rig::new(&method("moelora", json!({ "tasks": ["a", "c", "b", "d"] })), GROUPS[1], &Device::cpu());
    // The samples have the tasks a, b and a.
    let step = rig.step(&rig.x(), &rig.pass(Pool::Real)).unwrap();
    let vectors = rig.param("task_vectors").name();
    let used = step.0[&format!("grad {vectors}")].chunks(5).map(|row| row.iter().any(|&g| g != 0.0));
    assert_eq!(used.collect::<Vec<_>>(), [true, false, true, false]);
    let labels = Labels { tasks: vec![Some("e".into()); SPANS.len()], ..Labels::default() };
    let e = rig.forward(&rig.x(), &rig.pass(Pool::Real).with_labels(labels)).unwrap_err().to_string();
    assert!(e.contains("'e' is unknown") && e.contains("a, c, b, d"), "{e}");
}

#[test]
fn cond_router_chooses_by_the_condition_alone() {
    let rig = Rig::new(
        &method("cond-router", json!({ "top_k": 1, "condition_width": 2 })),
        GROUPS[1],
        &Device::cpu(),
    );
    let router: Vec<f64> = (0..3 * 3).flat_map(|i| [[1.0, 0.0], [0.0, 1.0], [-1.0, -1.0]][i % 3]).collect();
    put(&rig.param("router"), &router);
    let conditions = |values: [[f32; 2]; 3]| {
        let values = Tensor::from_f32(&rig.device, &[3, 2], &values.concat()).unwrap();
        Labels { conditions: Some(values), ..Labels::default() }
    };
    let x = rig.x();
    let outcome = |values: [[f32; 2]; 3]| {
        let record = Choices::record();
        let pass = rig.pass(Pool::Real).with_labels(conditions(values)).with_choices(record.clone());
        let y = rig.forward(&x, &pass).unwrap()[0].to_f64().unwrap();
        (y, chosen(&record).unwrap().to_u32().unwrap())
    };
    let user = [2.0, 0.1];
    let other = [0.1, 2.0];
    let (one, choices) = outcome([user, other, user]);
    // One choice for each sample and linear, whatever its positions are.
    assert_eq!(choices, [0, 1, 0].repeat(3));
    let (two, choices) = outcome([user, [-1.0, -1.0], other]);
    assert_eq!(choices, [0, 2, 1].repeat(3));
    let sample = one.len() / 3;
    assert_eq!(one[..sample], two[..sample], "the same condition, the same output");
    assert!(
        one[sample..].iter().zip(&two[sample..]).any(|(a, b)| a != b),
        "another condition, another expert"
    );

    let none = rig.pass(Pool::Real).with_labels(Labels::default());
    let e = rig.forward(&x, &none).unwrap_err().to_string();
    assert!(e.contains("chooses by a condition") && e.contains("field 'condition'"), "{e}");
    let wide = Tensor::from_f32(&rig.device, &[3, 4], &[0.5; 12]).unwrap();
    let wide = rig.pass(Pool::Real).with_labels(Labels { conditions: Some(wide), ..Labels::default() });
    let e = rig.forward(&x, &wide).unwrap_err().to_string();
    assert!(e.contains("2 numbers each"), "{e}");
}

#[test]
fn lora_mixer_takes_all_experts_in_training_and_the_best_three_at_inference() {
    const E: usize = 6;
    let method = method("lora-mixer", json!({ "num_experts": E, "r": 1, "top_k": 3 }));
    let scale = f64::from(method.options().scale());
    for device in [Device::reference(), Device::cpu()] {
        let rig = Rig::new(&method, GROUPS[0], &device);
        let x = ones_last(20);
        let logits = product(&x, &read(&rig.param("router")), D);
        for train in [true, false] {
            let mut pass = Pass::new(Units::tokens(20));
            pass.train = train;
            for (gates, z) in gates(&rig, E, scale, &x, &pass).iter().zip(logits.chunks(E)) {
                let mut order: Vec<usize> = (0..E).collect();
                order.sort_by(|&a, &b| z[b].total_cmp(&z[a]));
                let acting = &order[..if train { E } else { 3 }];
                let shares = softmax(&acting.iter().map(|&e| z[e]).collect::<Vec<_>>());
                let mut want = [0.0; E];
                acting.iter().zip(shares).for_each(|(&e, share)| want[e] = share);
                assert!(error(gates, &want) < 1e-5, "train {train}: {gates:?} of {want:?}");
            }
        }
    }
}

#[test]
fn mola_sparsifies_and_meteora_cools_down_during_training() {
    let options = json!({
        "experts_by_layer": [4], "top_k": 1, "top_k_start": 4, "top_k_until": 3, "aux_loss_coef": 0.1,
    });
    let rig = Rig::new(&method("mola", options), GROUPS[0], &Device::cpu());
    let x = rig.x();
    let at = |step: Option<usize>, train: bool| {
        let record = Choices::record();
        let mut pass = rig.pass(Pool::Real).with_choices(record.clone());
        pass.step = step;
        pass.train = train;
        let y = rig.forward(&x, &pass).unwrap()[0].to_f64().unwrap();
        (chosen(&record).unwrap().shape().last(), y)
    };
    let steps = [0, 1, 2, 3, 90].map(|step| at(Some(step), true).0);
    assert_eq!(steps, [4, 3, 2, 1, 1]);
    assert_eq!(at(None, false).0, 1, "inference has the target");

    let options = json!({
        "num_experts": 4, "top_k": 2, "temperature": 1.0, "temperature_start": 50.0, "temperature_until": 10,
        "tasks": ["a", "b"],
    });
    let cooling = Rig::new(&method("meteora", options.clone()), GROUPS[0], &Device::cpu());
    let steady = changed(&method("meteora", options), json!({ "temperature_start": null }));
    let steady = Rig::new(&steady, GROUPS[0], &Device::cpu());
    let output = |rig: &Rig, step: Option<usize>| {
        let mut pass = rig.pass(Pool::Real);
        pass.step = step;
        rig.forward(&rig.x(), &pass).unwrap()[0].to_f64().unwrap()
    };
    assert_eq!(output(&cooling, Some(10)), output(&steady, Some(0)));
    assert_eq!(output(&cooling, None), output(&steady, None));
    assert!(
        error(&output(&cooling, Some(0)), &output(&steady, Some(0))) > 1e-3,
        "nearly equal gates at first"
    );
}
