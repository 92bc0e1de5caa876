//! Options: every method has its own, and what cannot work is refused with its name and the allowed range.

use crate::rig::{D, HIDDEN, adapted, block, changed, linears, methods, number, small};
use mixlora::check::Subject;
use mixlora::mixture::{Hook, LinearSite, Method, Methods, Routes, find};
use mixlora::{Device, Error, Result, Stream};
use serde_json::{Value, json};

/// Builds the adapter of a method's own hook.
fn build(method: &Method) -> Result<()> {
    let device = Device::cpu();
    let linear = Subject::takes_linears(method.spec().hook);
    let frozen = if linear { linears(&[9, 12], &device) } else { block(&device) };
    adapted(&frozen, method).map(|_| ())
}

/// The error of a method with an option changed.
fn refusal(method: &Method, name: &str, value: Value) -> String {
    match method.with(name, value.clone()) {
        Err(e @ (Error::Config { .. } | Error::Refused { .. })) => e.to_string(),
        other => panic!("{} {name} = {value}: {other:?}", method.name()),
    }
}

#[test]
fn every_method_refuses_numbers_that_cannot_be() {
    let changes = [
        ("r", json!(0), "r: is 0, must be at least 1"),
        ("num_factors", json!(0), "num_factors: is 0, must be at least 1"),
        ("num_experts", json!(0), "num_experts: is 0, must be at least 1"),
        ("top_k", json!(0), "top_k: is 0, must be at least 1"),
        ("lora_dropout", json!(1.0), "lora_dropout: is 1, must be in [0, 1)"),
        ("lora_dropout", json!(-0.1), "lora_dropout: is -0.1, must be in [0, 1)"),
        ("lora_alpha", json!(0.0), "lora_alpha: is 0, must be above 0"),
        ("lora_alpha", json!(-2), "lora_alpha: is -2, must be above 0"),
        ("lora_alpha", json!(1e300), "lora_alpha: is inf, must be above 0"),
        ("density", json!(0.0), "density: is 0, must be in (0, 1]"),
        ("density", json!(1.5), "density: is 1.5, must be in (0, 1]"),
        ("cfs_weight", json!(-1.0), "cfs_weight: is -1, must be at least 0"),
        ("aux_loss_coef", json!(-1.0), "aux_loss_coef: is -1, must be at least 0"),
        ("bias_lr", json!(-0.5), "bias_lr: is -0.5, must be at least 0"),
        ("bias_lr", json!(-1e300), "bias_lr: is -inf, must be at least 0"),
    ];
    let mut tried = 0;
    for (spec, method) in methods() {
        for (name, value, text) in &changes {
            if spec.option_names().contains(name) {
                assert_eq!(refusal(&method, name, value.clone()), *text, "{}", spec.name);
                tried += 1;
            }
        }
    }
    assert!(tried > 50, "{tried}");
}

#[test]
fn typed_options_are_checked_as_those_of_files_are() {
    use mixlora::mixture::methods::smora::Smora;
    let mut options = Smora::default();
    options.lora.lora_dropout = f32::NAN;
    let e = Method::new(options).unwrap_err().to_string();
    assert_eq!(e, "lora_dropout: is NaN, must be in [0, 1)");
    assert_eq!(Method::new(Smora::default()).unwrap(), find("smora").unwrap().defaults());
}

#[test]
fn more_choices_than_there_are_to_choose_from() {
    let cases = [
        ("mixlora-cond", "num_factors: is 4, must be at least r (8)"),
        ("mixlora-cond-gated", "num_factors: is 4, must be at least r (8)"),
        ("vt-nlp", "num_factors: is 4, must be at least r (8)"),
        ("mixlora-ffn", "num_experts: is 3, must be at least top_k (4)"),
        ("smora", "r: is 8, must be at least top_k (9)"),
        ("rank-wise", "r: is 8, must be at least top_k (9)"),
        ("flylora", "r: is 8, must be at least top_k (9)"),
    ];
    for (name, text) in cases {
        let method = changed(&small(find(name).unwrap()), json!({ "num_factors": 20, "r": 8 }));
        let (option, value) = match name {
            "mixlora-ffn" => ("top_k", 4),
            _ if name.contains("cond") || name == "vt-nlp" => ("num_factors", 4),
            _ => ("top_k", 9),
        };
        let e = refusal(&method, option, json!(value));
        assert!(e.contains(text), "{name}: {e}");
    }
}

#[test]
fn a_rank_above_both_sides_of_a_linear() {
    for (spec, method) in methods().filter(|(spec, _)| spec.option_names().contains(&"r")) {
        // The rank of one update; methods that pick ranks from a pool may have a larger pool.
        let from_pool = changed(&method, json!({ "r": 40, "num_factors": 40 }));
        let large = match build(&from_pool) {
            Ok(()) => changed(&method, json!({ "r": 40, "top_k": 11 })),
            Err(_) => changed(&method, json!({ "r": 11, "num_factors": 40 })),
        };
        let e = build(&large).unwrap_err().to_string();
        let most = match spec.hook {
            Hook::Linear => 9,
            Hook::Mlp => HIDDEN,
            Hook::Block => D,
        };
        assert!(e.contains(&format!("is 11, must be in 1..={most}: ")), "{}: {e}", spec.name);
        assert!(e.contains("is a linear 10 -> "), "{}: {e}", spec.name);
    }
    let tiny = LinearSite::alone("head", 3, vec![("score".into(), 1)]);
    let lora = small(find("lora").unwrap());
    let e = lora.build(&tiny, &Device::cpu(), Stream::new(1)).map(|_| ()).unwrap_err();
    assert_eq!(e.to_string(), "r: is 4, must be in 1..=1: head.score is a linear 3 -> 1");
}

/// Options that were once accepted by methods that have no use for them.
#[test]
fn options_of_other_methods_are_refused_with_the_own_list() {
    for (name, option, value) in [
        ("lora", "num_factors", json!(7)),
        ("lora", "top_k", json!(99)),
        ("lora", "cfs_weight", json!(0.5)),
        ("lora", "density", json!(0.5)),
        ("lora", "pool", json!("real")),
        ("smora", "gated", json!(false)),
        ("smora", "gate_scale", json!("none")),
        ("mixlora-ffn", "gated", json!(false)),
        ("flylora", "gated", json!(true)),
        ("mixlora-cond", "gated", json!(true)),
        ("mixlora-cond-gated", "gated", json!(false)),
    ] {
        let method = find(name).unwrap().defaults();
        let e = refusal(&method, option, value);
        assert!(e.starts_with(&format!("{option}: is no option of {name}")), "{e}");
        let own = method.spec().option_names().join(", ");
        assert!(e.ends_with(&format!("its options are {own}")), "{e}");
    }
    let e = refusal(&find("smora").unwrap().defaults(), "topk", json!(2));
    assert!(e.contains("did you mean 'top_k'?"), "{e}");
    let e = find("mixlora").map(|s| s.name).unwrap_err().to_string();
    assert!(e.contains("'mixlora' is unknown") && e.contains("mixlora-fitted, vt-nlp"), "{e}");
}

#[test]
fn options_come_from_files_and_go_back_as_they_are() {
    for (spec, method) in methods() {
        let text = serde_json::to_string(&method.tree()).unwrap();
        let again = spec.defaults().set(&serde_json::from_str(&text).unwrap()).unwrap();
        assert_eq!(again, method);
    }
    let cond = find("mixlora-cond").unwrap().defaults();
    assert!(refusal(&cond, "cfs_form", json!("quadratic")).contains("sum_product"));
    assert!(refusal(&cond, "pool", json!("mean")).contains("prompt_mask"));
    assert!(refusal(&cond, "r", json!(-1)).starts_with("r: "));
    assert!(refusal(&cond, "r", json!(2.5)).starts_with("r: "));
    assert_eq!(cond.with("cfs_form", Value::Null).unwrap().tree()["cfs_form"], Value::Null);
    // An f32 is written as it was given.
    assert_eq!(small(find("smora").unwrap()).tree()["bias_lr"].to_string(), "0.01");
}

/// What a stored file does not say has the method's default, and not that of another method.
#[test]
fn stored_options_are_laid_over_the_methods_own_defaults() {
    let stored = json!({ "r": 8, "top_k": 2, "of_a_later_version": 1, "num_factors": 16 });
    let smora = find("smora").unwrap().defaults();
    let (method, unknown) = smora.stored(stored.as_object().unwrap()).unwrap();
    assert_eq!((number(&method, "r"), number(&method, "top_k")), (8, 2));
    assert_eq!(method.tree()["bias_lr"], json!(1e-5));
    assert_eq!(method.options().alpha(), 16.0);
    let mut unknown = unknown;
    unknown.sort();
    assert_eq!(unknown, ["num_factors", "of_a_later_version"]);
    assert!(smora.stored(json!({ "r": "x" }).as_object().unwrap()).is_err());
}

/// The facts by which other parts of the program act on a method fit what the method builds.
#[test]
fn what_a_method_says_of_itself_is_so() {
    for &spec in Methods::builtin().all() {
        let method = spec.defaults();
        let by_instance = method.options().instance().is_some();
        assert_eq!(by_instance, spec.routes == Routes::Instance, "{}", spec.name);
        assert_eq!(spec.option_names().contains(&"pool"), by_instance, "{}", spec.name);
        assert!(!spec.mergeable || spec.routes == Routes::None, "{}", spec.name);
        let memory = method.options().row_memory();
        assert!(memory.per_linear + memory.per_layer >= 1.0, "{}", spec.name);
        for (name, changes) in method.options().variants(&[8, 32], 2) {
            assert!(!name.is_empty());
            method.set(&changes).unwrap();
        }
        for field in method.options().fields() {
            assert!(field.doc.len() > 10 && !field.doc.contains('\n'), "{} {}", spec.name, field.name);
            field.check().unwrap();
        }
        mixlora::train::RunConfig::defaults(spec).unwrap();
    }
}
