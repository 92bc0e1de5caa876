//! The options that the release of Conditional MixLoRA has beside its defaults: what each promises, and that what cannot work
//! together is refused.

use crate::acceptance::{error, method, read};
use crate::derivatives;
use crate::papers::same_as_lora;
use crate::rig::{D, GROUPS, Rig, SEQ, SITE, SPANS, changed, chosen, devices, forced_on, gpu, small};
use mixlora::adapter::{ALL_LINEAR, Adapter};
use mixlora::mixture::{Method, Pool, RouterGradient, find};
use mixlora::model::Model;
use mixlora::nn::{Choices, Labels};
use mixlora::{Device, Stream, Tensor};
use serde_json::{Value, json};
use std::path::Path;

const E: usize = 6;
const R: usize = 3;
const UNGATED: &str = "mixlora-cond";
const GATED: &str = "mixlora-cond-gated";

fn with(name: &str, options: Value) -> Method {
    changed(&method(name, json!({ "num_factors": E, "r": R, "cfs_form": null })), options)
}

/// Every option, alone and with those it works with.
fn all() -> Vec<Method> {
    let mut all = Vec::new();
    for name in [UNGATED, GATED, "vt-nlp"] {
        for options in [
            json!({ "independent_rank": false }),
            json!({ "mix_lora_a": false }),
            json!({ "mix_start_layer": 1 }),
            json!({ "add_noise": true }),
            json!({ "add_noise": true, "mix_lora_a": false, "gate_scale": "none" }),
            json!({ "add_noise": true, "independent_rank": false }),
            json!({ "add_noise": true, "cfs_form": "linear", "cfs_weight": 0.7 }),
            json!({ "add_noise": true, "cfs_form": "sum_product", "router_input": "condition" }),
            json!({ "add_noise": true, "cfs_form": "choice" }),
            json!({ "router_input": "condition" }),
            json!({ "router_input": "condition", "cfs_form": "linear", "num_factors": 40 }),
            json!({ "router_input": "condition", "independent_rank": false }),
            json!({ "router_input": "condition", "mix_lora_a": false }),
        ] {
            all.push(with(name, options));
        }
    }
    for options in [json!({}), json!({ "independent_rank": false }), json!({ "mix_lora_a": false })] {
        all.push(changed(&with(UNGATED, options), json!({ "router_input": "random" })));
    }
    all
}

/// What a forward pass chose.
fn choices(rig: &Rig, seed: u64, train: bool) -> Vec<u32> {
    let record = Choices::record();
    let mut pass = rig.pass(Pool::Real).with_choices(record.clone());
    pass.stream = Stream::new(seed);
    pass.train = train;
    rig.forward(&rig.x(), &pass).unwrap();
    chosen(&record).unwrap().to_u32().unwrap()
}

#[test]
fn derivatives_of_every_option() {
    let mut worst = 0f64;
    for config in all() {
        for outs in GROUPS {
            worst = worst.max(derivatives::check(&config, outs, Pool::PromptMask));
        }
        let dropout = changed(&config, json!({ "lora_dropout": 0.4 }));
        worst = worst.max(derivatives::check(&dropout, GROUPS[1], Pool::All));
    }
    println!("worst {worst:.1e}");
}

#[test]
fn lanes_agree_on_every_option() {
    for config in all() {
        let config = changed(&config, json!({ "lora_dropout": 0.25 }));
        let reference = Rig::new(&config, GROUPS[1], &Device::reference());
        let record = Choices::record();
        let want = reference
            .step(&reference.x(), &reference.pass(Pool::PromptMask).with_choices(record.clone()))
            .unwrap();
        for device in std::iter::once(Device::cpu()).chain(gpu()) {
            let rig = Rig::new(&config, GROUPS[1], &device);
            let free = Choices::record();
            let own = rig.step(&rig.x(), &rig.pass(Pool::PromptMask).with_choices(free.clone())).unwrap();
            let e = own.error(&want);
            assert!(e <= 1e-5, "{config:?} on {device:?}: {e:.1e}");
            let idx = |c: &Choices| chosen(c).map(|t| t.to_u32().unwrap());
            assert_eq!(idx(&free), idx(&record), "{config:?}");
            // Forced and frozen choices, and another number of threads, change no bit.
            let forced = rig.pass(Pool::PromptMask).with_choices(forced_on(&record, &device));
            if chosen(&record).is_some() {
                assert_eq!(rig.step(&rig.x(), &forced).unwrap().bits(), own.bits(), "{config:?}");
                let frozen = rig.pass(Pool::PromptMask).with_choices(free.freeze());
                let y = rig.forward(&rig.x(), &frozen).unwrap()[0].to_f64().unwrap();
                assert_eq!(y, own.0["y0"], "{config:?}");
            }
        }
        let bits = |threads: usize| {
            let rig = Rig::new(&config, GROUPS[1], &Device::cpu_with_threads(threads).unwrap());
            rig.step(&rig.x(), &rig.pass(Pool::Real)).unwrap().bits()
        };
        assert!(bits(1) == bits(3), "{config:?}");
    }
}

/// All factors of pairs in their order, and one A with all of B in their order, are a LoRA; so is a layer below the start.
#[test]
fn pairs_one_a_and_lower_layers_are_loras() {
    let pools = ["factors_a", "factors_b"];
    let all_of = json!({ "num_factors": 4, "r": 4, "lora_alpha": 6.0 });
    let pairs = changed(&with(UNGATED, json!({ "independent_rank": false })), all_of.clone());
    let sides = |config: &Method| {
        let rig = Rig::new(config, GROUPS[0], &Device::cpu());
        let record = Choices::record();
        rig.forward(&rig.x(), &rig.pass(Pool::Real).with_choices(record.clone())).unwrap();
        chosen(&record).unwrap().dims().to_vec()
    };
    assert_eq!(sides(&pairs), [1, 1, SPANS.len(), 4], "B takes A's choice");
    // The order of pairs does not matter.
    same_as_lora(&pairs, pools, false, |_| {});
    let one_a = changed(&with(UNGATED, json!({ "mix_lora_a": false })), all_of.clone());
    assert_eq!(sides(&one_a), [1, 2, SPANS.len(), 4]);
    same_as_lora(&one_a, pools, true, |_| {});
    let below = changed(&with(UNGATED, json!({ "mix_start_layer": 1 })), all_of);
    same_as_lora(&below, ["lora_a", "lora_b"], false, |_| {});
}

#[test]
fn one_a_is_trained_once_and_by_all() {
    for device in devices() {
        for name in [UNGATED, GATED] {
            let rig = Rig::new(&with(name, json!({ "mix_lora_a": false })), GROUPS[1], &device);
            let outs: usize = GROUPS[1].iter().sum();
            let pools: usize = rig
                .params()
                .iter()
                .filter(|p| p.trainable() && !p.name().contains("router"))
                .map(|p| p.value().len())
                .sum();
            assert_eq!(pools, GROUPS[1].len() * R * D + E * outs);
            assert_eq!(rig.param("router_b").value().dims(), [GROUPS[1].len() * E, D], "B's router alone");
            let chosen = choices(&rig, 1, true);
            let per_side = SPANS.len() * R;
            for of_a in chosen.chunks(per_side).step_by(2) {
                assert!(of_a.chunks(R).all(|list| list == [0, 1, 2]), "{of_a:?}");
            }
            // An index that A does not have is refused where it can be seen.
            let wrong = Tensor::from_u32(&device, &[3, 2, SPANS.len(), R], &vec![4; 6 * per_side]).unwrap();
            let pass = rig.pass(Pool::Real).with_choices(Choices::force([(SITE.to_string(), wrong)]));
            if gpu().is_none_or(|gpu| !gpu.same(&device)) {
                assert!(rig.forward(&rig.x(), &pass).unwrap_err().to_string().contains("3 rows of A"));
            }
        }
    }
}

#[test]
fn layers_below_the_start_have_a_lora() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny");
    let model = Model::open_f32(&path, &Device::cpu()).unwrap();
    let attach = |start: usize| {
        let method = with(UNGATED, json!({ "mix_start_layer": start }));
        Adapter::attach(&model, &method, &[ALL_LINEAR.into()], Stream::new(1))
    };
    let adapter = attach(2).unwrap();
    let rows = |layer: usize, what: &str| {
        let part = format!("layers.{layer}.self_attn.v_proj.{what}");
        adapter
            .params()
            .iter()
            .flat_map(|p| p.parts().to_vec())
            .find(|(n, _)| n.ends_with(&part))
            .map(|p| p.1)
    };
    for layer in 0..4 {
        let lora = (layer < 2).then_some(R);
        let mixture = (layer >= 2).then_some(E);
        assert_eq!(["lora_a", "lora_b"].map(|what| rows(layer, what)), [lora; 2], "layer {layer}");
        let parts = ["factors_a", "factors_b", "router_a", "router_b"];
        assert_eq!(parts.map(|what| rows(layer, what)), [mixture; 4], "layer {layer}");
    }
    let e = attach(5).err().unwrap().to_string();
    assert!(e.contains("mix_start_layer: is 5, must be at most 4, the number of layers"), "{e}");
}

#[test]
fn noise_of_deviation_1_over_r_is_added_to_what_is_ranked() {
    for name in [UNGATED, GATED] {
        for form in [Value::Null, json!("linear"), json!("choice")] {
            let quiet = Rig::new(&with(name, json!({ "cfs_form": form })), GROUPS[0], &Device::reference());
            let noisy = with(name, json!({ "cfs_form": form, "add_noise": true }));
            let rig = Rig::new(&noisy, GROUPS[0], &Device::reference());
            let dims = [SPANS.len(), 1, 2, E];
            let given = |values: &[f64]| {
                let noise = Tensor::from_f64(&rig.device, &dims, values).unwrap();
                let record = Choices::record();
                let pass = rig.pass(Pool::Real).with_choices(record.clone()).with_noise(SITE, noise);
                let y = rig.forward(&rig.x(), &pass).unwrap()[0].to_f64().unwrap();
                (y, chosen(&record).unwrap().to_u32().unwrap())
            };
            // Without noise it is the method itself.
            let (y, idx) = given(&[0.0; SPANS.len() * 2 * E]);
            assert_eq!(idx, choices(&quiet, 1, true));
            let want = quiet.forward(&quiet.x(), &quiet.pass(Pool::Real)).unwrap()[0].to_f64().unwrap();
            // The mean over choices is by a factor in single precision.
            assert!(error(&y, &want) < 1e-7, "{form}");
            // B's fused score is at most 1 + cfs_weight: r times 2.1 of noise decides alone; A's logits are larger.
            let mut values = vec![0.0; SPANS.len() * 2 * E];
            (0..SPANS.len()).for_each(|unit| values[(2 * unit + 1) * E + 4] = 2.1 * R as f64);
            if !form.is_null() {
                let (_, moved) = given(&values);
                assert!(moved[SPANS.len() * R..].chunks(R).all(|list| list[0] == 4), "{moved:?}");
                assert_eq!(moved[..SPANS.len() * R], idx[..SPANS.len() * R], "A's choice is as it was");
            }
            for train in [true, false] {
                assert_eq!(choices(&rig, 1, train), choices(&rig, 1, train));
                let other = (2..8).any(|seed| choices(&rig, seed, train) != choices(&rig, 1, train));
                assert!(other, "noise at inference too");
            }
        }
    }
}

#[test]
fn random_factors_are_drawn_uniformly_and_apart() {
    let rig = Rig::new(&with(UNGATED, json!({ "router_input": "random" })), GROUPS[1], &Device::cpu());
    assert!(rig.params().iter().all(|p| !p.name().contains("router")), "{:?}", rig.params());
    let linears = GROUPS[1].len();
    let mut hits = [[0f64; E]; E];
    let mut each = [[0f64; E]; 2];
    let passes = 400;
    for seed in 0..passes {
        let idx = choices(&rig, seed, seed % 2 == 0);
        let list = |l: usize, side: usize, g: usize| &idx[((l * 2 + side) * SPANS.len() + g) * R..][..R];
        for (l, g) in (0..linears).flat_map(|l| (0..SPANS.len()).map(move |g| (l, g))) {
            for (side, each) in each.iter_mut().enumerate() {
                let mut sorted = list(l, side, g).to_vec();
                sorted.sort();
                sorted.dedup();
                assert_eq!(sorted.len(), R, "distinct");
                sorted.iter().for_each(|&e| each[e as usize] += 1.0);
            }
            hits[list(l, 0, g)[0] as usize][list(l, 1, g)[0] as usize] += 1.0;
        }
    }
    let draws = (passes as usize * linears * SPANS.len()) as f64;
    for side in each {
        // Six deviations of a share of 1/2.
        assert!(side.iter().all(|n| (n / draws - 0.5).abs() < 3.0 / draws.sqrt()), "{side:?}");
    }
    let share = 1.0 / (E * E) as f64;
    let bound = 6.0 * (share / draws).sqrt();
    assert!(hits.iter().flatten().all(|n| (n / draws - share).abs() < bound), "{hits:?}");
    assert_ne!(choices(&rig, 1, false), choices(&rig, 2, false));
    assert_eq!(choices(&rig, 1, false), choices(&rig, 1, false));
}

#[test]
fn a_condition_takes_the_place_of_the_pooled_input() {
    for name in [UNGATED, GATED] {
        let config = with(name, json!({ "router_input": "condition", "condition_width": 2 }));
        assert!(config.options().condition().is_some());
        let rig = Rig::new(&config, GROUPS[0], &Device::cpu());
        assert_eq!(rig.param("router_a").value().dims(), [2 * E, 2]);
        let outcome = |values: [[f32; 2]; 3]| {
            let record = Choices::record();
            let values = Tensor::from_f32(&rig.device, &[3, 2], &values.concat()).unwrap();
            let labels = Labels { conditions: Some(values), ..Labels::default() };
            let pass = rig.pass(Pool::Real).with_labels(labels).with_choices(record.clone());
            let y = rig.forward(&rig.x(), &pass).unwrap()[0].to_f64().unwrap();
            (y, chosen(&record).unwrap().to_u32().unwrap())
        };
        let task = [2.0, 0.1];
        let other = [-1.5, 1.0];
        let (one, idx) = outcome([task, other, task]);
        let of = |idx: &[u32], side: usize, g: usize| idx[(side * SPANS.len() + g) * R..][..R].to_vec();
        for side in 0..2 {
            assert_eq!(of(&idx, side, 0), of(&idx, side, 2), "the same task, whatever the text");
            assert_ne!(of(&idx, side, 0), of(&idx, side, 1));
        }
        let (two, _) = outcome([task, task, other]);
        let sample = SEQ * GROUPS[0][0];
        assert_eq!(one[..sample], two[..sample]);
        assert_ne!(one[sample..], two[sample..]);
        let none = rig.pass(Pool::Real).with_labels(Labels::default());
        let e = rig.forward(&rig.x(), &none).unwrap_err().to_string();
        assert!(e.contains("chooses by a condition"), "{e}");
    }
    let unknown = with(UNGATED, json!({ "router_input": "condition", "condition_width": 0 }));
    let site = mixlora::mixture::LinearSite::alone("here", 8, vec![("w".into(), 8)]);
    let e = unknown.build(&site, &Device::cpu(), Stream::new(1)).err().unwrap().to_string();
    assert!(e.starts_with("condition_width: is 0"), "{e}");
    assert!(small(find(UNGATED).unwrap()).options().condition().is_none());
}

#[test]
fn what_learns_is_what_is_said() {
    for config in all() {
        let rig = Rig::new(&config, GROUPS[0], &Device::reference());
        let step = rig.step(&rig.x(), &rig.pass(Pool::Real)).unwrap();
        let most = |name: &String| step.0[name].iter().fold(0f64, |most, v| most.max(v.abs()));
        let routers: Vec<_> = step.0.keys().filter(|name| name.contains("router")).collect();
        let expected = match config.options().router_gradient() {
            // Layers below the start have none.
            RouterGradient::Yes => config.tree()["mix_start_layer"] == 0,
            _ => false,
        };
        assert_eq!(routers.into_iter().any(|name| most(name) > 1e-6), expected, "{config:?}");
    }
    let drawn = with(UNGATED, json!({ "router_input": "random" }));
    assert_eq!(drawn.options().router_gradient(), RouterGradient::NoRouter);
    assert_eq!(drawn.options().rule().to_string(), "-, top 3, none");
    let one = changed(&with(GATED, json!({ "independent_rank": false })), json!({ "r": 1 }));
    assert!(matches!(one.options().router_gradient(), RouterGradient::No(_)));
}

#[test]
fn combinations_that_cannot_work_are_refused() {
    let cases = [
        (
            UNGATED,
            json!({ "router_input": "random", "cfs_form": "linear" }),
            "router_input",
            "cfs_form must be null",
        ),
        (UNGATED, json!({ "router_input": "random", "add_noise": true }), "add_noise", "there are none"),
        (UNGATED, json!({ "independent_rank": false, "cfs_form": "linear" }), "independent_rank", "cfs_form"),
        (UNGATED, json!({ "mix_lora_a": false, "cfs_form": "choice" }), "mix_lora_a", "cfs_form"),
        (
            UNGATED,
            json!({ "mix_lora_a": false, "independent_rank": false }),
            "mix_lora_a",
            "independent_rank",
        ),
        (
            "vt-nlp",
            json!({ "router_input": "random", "cfs_form": "sum_product" }),
            "router_input",
            "cfs_form",
        ),
        (GATED, json!({ "router_input": "random" }), "router_input", "take mixlora-cond"),
        (
            GATED,
            json!({ "add_noise": true, "cfs_gated_input": true, "cfs_form": "linear" }),
            "add_noise",
            "cfs_gated",
        ),
    ];
    for (name, options, option, text) in cases {
        let plain = with(name, json!({}));
        let e = plain.set(options.as_object().unwrap()).unwrap_err().to_string();
        assert!(e.starts_with(&format!("{option}: ")) && e.contains(text), "{name} {options}: {e}");
    }
}

/// What earlier versions stored says nothing of these options: they have their defaults.
#[test]
fn stored_methods_without_the_options_are_as_they_were() {
    for name in [UNGATED, GATED, "vt-nlp"] {
        let spec = find(name).unwrap();
        let mut tree = spec.defaults().tree();
        for option in
            ["router_input", "independent_rank", "mix_lora_a", "mix_start_layer", "add_noise", "condition"]
        {
            assert!(tree.remove(option).is_some());
        }
        tree.remove("condition_width");
        assert_eq!(spec.defaults().stored(&tree).unwrap().0, spec.defaults());
        let rig = Rig::new(&small(spec), GROUPS[0], &Device::reference());
        assert_eq!(read(&rig.param("router_a")).len(), 2 * 6 * D);
    }
}
