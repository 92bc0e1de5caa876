//! Options that cannot work are refused with their name and the allowed range.

use crate::rig::{D, HIDDEN, methods, site, small};
use mixlora::mixture::{Hook, LinearSite, MethodConfig, MethodSpec, MlpSite, find};
use mixlora::{Device, Error, Stream};

/// The error of building the method's adapter.
fn refusal(spec: &MethodSpec, config: &MethodConfig) -> String {
    let device = Device::cpu();
    let built = match spec.hook {
        Hook::Linear => spec.build(config, &site(&[9, 12]), &device, Stream::new(1)).map(|_| ()),
        Hook::Mlp => {
            let site = MlpSite {
                name: "mlp".into(),
                path: String::new(),
                hidden_size: D,
                intermediate_size: HIDDEN,
            };
            spec.build_mlp(config, &site, &device, Stream::new(1)).map(|_| ())
        }
    };
    match built {
        Err(e @ Error::Config { .. }) => e.to_string(),
        other => panic!("{} {config:?}: {other:?}", spec.name),
    }
}

#[test]
fn every_method_refuses_numbers_that_cannot_be() {
    type Change = fn(&mut MethodConfig);
    let changes: [(&str, Change); 19] = [
        ("r: is 0", |c| c.r = 0),
        ("num_factors: is 0", |c| c.num_factors = 0),
        ("num_experts: is 0", |c| c.num_experts = 0),
        ("top_k: is 0", |c| c.top_k = 0),
        ("lora_dropout: is 1", |c| c.lora_dropout = 1.0),
        ("lora_dropout: is -0.1", |c| c.lora_dropout = -0.1),
        ("lora_dropout: is NaN", |c| c.lora_dropout = f32::NAN),
        ("lora_alpha: is 0", |c| c.lora_alpha = Some(0.0)),
        ("lora_alpha: is -2", |c| c.lora_alpha = Some(-2.0)),
        ("lora_alpha: is NaN", |c| c.lora_alpha = Some(f32::NAN)),
        ("lora_alpha: is inf", |c| c.lora_alpha = Some(f32::INFINITY)),
        ("density: is 0", |c| c.density = 0.0),
        ("density: is 1.5", |c| c.density = 1.5),
        ("density: is NaN", |c| c.density = f32::NAN),
        ("cfs_weight: is -1", |c| c.cfs_weight = -1.0),
        ("cfs_weight: is NaN", |c| c.cfs_weight = f32::NAN),
        ("aux_loss_coef: is NaN", |c| c.aux_loss_coef = f32::NAN),
        ("bias_lr: is -0.5", |c| c.bias_lr = -0.5),
        ("bias_lr: is inf", |c| c.bias_lr = f32::INFINITY),
    ];
    for (spec, config) in methods() {
        for (text, change) in &changes {
            let mut config = config.clone();
            change(&mut config);
            let e = refusal(spec, &config);
            assert!(e.contains(text) && e.contains("must be"), "{} '{text}': {e}", spec.name);
        }
    }
}

#[test]
fn more_choices_than_there_are_to_choose_from() {
    let cases = [
        ("mixlora-cond", "num_factors (4) must be >= r (8)"),
        ("mixlora-cond-gated", "num_factors (4) must be >= r (8)"),
        ("vt-nlp", "num_factors (4) must be >= r (8)"),
        ("mixlora-ffn", "num_experts (3) must be >= top_k (4)"),
        ("smora", "r (8) must be >= top_k (9)"),
        ("rank-wise", "r (8) must be >= top_k (9)"),
        ("flylora", "r (8) must be >= top_k (9)"),
    ];
    for (name, text) in cases {
        let spec = find(name).unwrap();
        let top_k = if name == "mixlora-ffn" { 4 } else { 9 };
        let e = refusal(spec, &MethodConfig { r: 8, num_factors: 4, top_k, ..small(spec) });
        assert!(e.contains(text), "{name}: {e}");
    }
}

#[test]
fn a_rank_above_both_sides_of_a_linear() {
    for (spec, config) in methods() {
        // The rank of one update; methods that pick ranks from a pool may have a larger pool.
        let from_pool = spec.build(
            &MethodConfig { r: 40, num_factors: 40, ..config.clone() },
            &site(&[9]),
            &Device::cpu(),
            Stream::new(1),
        );
        let large = match from_pool {
            Ok(_) => MethodConfig { r: 40, top_k: 11, ..config },
            Err(_) => MethodConfig { r: 11, num_factors: 40, ..config },
        };
        let e = refusal(spec, &large);
        let most = if spec.hook == Hook::Mlp { HIDDEN } else { 9 };
        assert!(e.contains(&format!("is 11, must be in 1..={most}: ")), "{}: {e}", spec.name);
        assert!(e.contains("is a linear 10 -> "), "{}: {e}", spec.name);
    }
    let tiny = LinearSite { name: "head".into(), d_in: 3, linears: vec![("score".into(), 1)] };
    let lora = find("lora").unwrap();
    let e = lora.build(&small(lora), &tiny, &Device::cpu(), Stream::new(1)).map(|_| ()).unwrap_err();
    assert_eq!(e.to_string(), "r: is 4, must be in 1..=1: head.score is a linear 3 -> 1");
}

#[test]
fn options_of_other_methods_say_which() {
    let cond = find("mixlora-cond").unwrap();
    let gated = find("mixlora-cond-gated").unwrap();
    let e = refusal(cond, &MethodConfig { gated: true, ..small(cond) });
    assert!(e.contains("mixlora-cond-gated"), "{e}");
    let e = refusal(gated, &MethodConfig { gated: false, ..small(gated) });
    assert!(e.contains("use the method mixlora-cond"), "{e}");
    let e = refusal(cond, &MethodConfig { cfs_gated_input: true, ..small(cond) });
    assert!(e.contains("needs gated = true"), "{e}");
    let e = find("mixlora").map(|s| s.name).unwrap_err().to_string();
    assert!(e.contains("'mixlora' is unknown") && e.contains("mixlora-cond-gated, vt-nlp"), "{e}");
}

#[test]
fn options_come_from_json_and_unknown_ones_are_refused() {
    for (_, config) in methods() {
        let text = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<MethodConfig>(&text).unwrap(), config);
    }
    let parse = |text: &str| serde_json::from_str::<MethodConfig>(text).map_err(|e| e.to_string());
    let e = parse(r#"{"rank": 8}"#).unwrap_err();
    assert!(e.contains("unknown field `rank`") && e.contains("`r`"), "{e}");
    assert!(parse(r#"{"cfs_form": "quadratic"}"#).unwrap_err().contains("sum_product"));
    assert!(parse(r#"{"pool": "mean"}"#).unwrap_err().contains("prompt_mask"));
    assert!(parse(r#"{"r": -1}"#).is_err() && parse(r#"{"r": 2.5}"#).is_err());
    assert_eq!(parse(r#"{"cfs_form": null}"#).unwrap().cfs_form, None);
}
