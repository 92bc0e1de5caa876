//! Rows of pools that are dropped: what nothing chose goes without a trace, and what stays is what matters most.

use crate::common::tiny::write_model;
use mixlora::adapter::{ALL_LINEAR, Adapter, AdapterOptions, AdapterWeights, Keep, Usage};
use mixlora::data::{Batch, Example};
use mixlora::mixture::Method;
use mixlora::model::{Model, Step};
use mixlora::nn::{Choices, Pass};
use mixlora::train::{count_usage, loss_of};
use mixlora::{Device, Stream, Tensor, no_grad};
use serde_json::{Value, json};
use std::sync::Arc;

const VOCAB: u32 = 50;

fn tiny() -> Arc<Model> {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), VOCAB as usize, 64);
    Model::open(dir.path(), &Device::cpu()).unwrap()
}

/// An adapter whose parameters are all somewhere, as after training.
fn moved(model: &Model, method: &Method) -> Adapter {
    let adapter = Adapter::attach(model, method, &[ALL_LINEAR.into()], Stream::new(3)).unwrap();
    for param in adapter.params() {
        let value = param.value();
        let noise = Stream::new(8).named(&param.name()).normal_vec(value.len(), 0.1);
        let noise = Tensor::from_f32(model.device(), value.dims(), &noise).unwrap();
        param.set(value.add(&noise).unwrap()).unwrap();
    }
    adapter
}

fn batch(model: &Model, method: &Method) -> Batch {
    let bits = Stream::new(5);
    let example = |(i, &(n, prompt)): (usize, &(u32, u32))| {
        let ids = (0..n).map(|t| bits.bits(100 * i as u32 + t) % VOCAB).collect();
        Example::new(ids, (0..n).map(|t| t >= prompt).collect()).with_condition(Some(&[
            0.5,
            n as f32 / 9.0,
            -1.0,
        ]))
    };
    let examples: Vec<Example> = [(12, 5), (9, 4)].iter().enumerate().map(example).collect();
    Batch::new(&examples.iter().collect::<Vec<_>>(), method.framing(), 0, model.device()).unwrap()
}

fn pass(adapter: &Adapter, batch: &Batch) -> Pass {
    let pass = Pass::new(batch.units.clone()).with_labels(batch.labels.clone());
    pass.with_adapters(adapter.sites().clone())
}

fn logits(model: &Model, adapter: &Adapter, batch: &Batch) -> Vec<f32> {
    let step = Step { valid: Some(&batch.valid), ..Step::default() };
    let run = || model.logits(&model.forward(&batch.ids, &pass(adapter, batch), step)?);
    let all = no_grad(run).unwrap().to_f32().unwrap();
    // Padding is nobody's: what it chooses does not count.
    let real = batch.weights.to_f32().unwrap();
    let rows = all.chunks(VOCAB as usize).zip(real).filter(|(_, real)| *real > 0.0);
    rows.flat_map(|(row, _)| row.to_vec()).collect()
}

fn counted(model: &Model, adapter: &Adapter, batch: &Batch) -> Usage {
    let mut usage = Usage::new(adapter, model).unwrap();
    let loss = count_usage(model, adapter, batch, &mut usage).unwrap();
    assert_eq!(loss, loss_of(model, adapter, batch).unwrap());
    usage
}

fn method(name: &str, options: Value) -> Method {
    crate::common::method(name, options)
}

#[test]
fn rows_that_nothing_chose_leave_no_trace() {
    let model = tiny();
    let cond = |more: Value| {
        let mut all = json!({ "r": 3, "num_factors": 24, "cfs_form": null });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    for (name, options) in [
        ("mixlora-cond", cond(json!({}))),
        ("mixlora-cond", cond(json!({ "independent_rank": false }))),
        ("mixlora-cond", cond(json!({ "mix_lora_a": false }))),
        ("mixlora-cond", cond(json!({ "mix_start_layer": 1 }))),
        ("mixlora-cond", cond(json!({ "router_input": "condition", "condition_width": 3 }))),
        ("mixlora-cond", cond(json!({ "use_contrastive_instr_token": true }))),
        ("mixlora-cond-gated", cond(json!({}))),
        ("mixlora-cond-gated", cond(json!({ "independent_rank": false, "gate_scale": "none" }))),
        ("vt-nlp", cond(json!({}))),
        ("smora", json!({ "r": 96, "top_k": 2 })),
        ("rank-wise", json!({ "r": 96, "top_k": 2 })),
        ("rank-wise", json!({ "r": 96, "top_k": 3, "gated": false })),
        ("flylora", json!({ "r": 96, "top_k": 2 })),
    ] {
        let what = format!("{name} {options}");
        let method = method(name, options);
        let adapter = moved(&model, &method);
        let batch = batch(&model, &method);
        let usage = counted(&model, &adapter, &batch);
        let weights = AdapterWeights::of(&adapter, &model, "tiny").unwrap();
        let (pruned, report) = weights.pruned(&usage, Keep::Used).unwrap();
        let [all, left] = report.rows;
        assert!(left < all && report.unused >= all - left, "{what}: {report:?}");
        assert_eq!(report.dropped, [0.0, 0.0], "{what}");
        assert!((pruned.method.options().scale() - method.options().scale()).abs() < 1e-6, "{what}");
        // No row was of zeros: to have been chosen is to matter.
        assert_eq!(weights.pruned(&usage, Keep::From(1e-12)).unwrap().0.matrices, pruned.matrices, "{what}");
        let dir = tempfile::tempdir().unwrap();
        pruned.save(dir.path()).unwrap();
        let smaller = Adapter::load(dir.path(), &model).unwrap();
        assert!(smaller.trainable_values() < adapter.trainable_values(), "{what}");
        assert!(logits(&model, &smaller, &batch) == logits(&model, &adapter, &batch), "{what}");
        // One row less is one that was chosen.
        let less = weights.pruned(&usage, Keep::Best(left - 1)).unwrap();
        let less = less.0.attach(&model, &AdapterOptions::default()).unwrap();
        assert!(logits(&model, &less, &batch) != logits(&model, &adapter, &batch), "{what}");
    }
}

/// Where scores depend on all rows of a pool, others may be chosen afterwards; the adapter is one nevertheless.
#[test]
fn pools_whose_scores_hang_together_are_pruned_too() {
    let model = tiny();
    for (name, options) in [
        ("mixlora-cond", json!({ "r": 3, "num_factors": 24 })),
        ("mixlora-cond-gated", json!({ "r": 3, "num_factors": 24, "cfs_form": "choice" })),
        ("vt-nlp", json!({ "r": 3, "num_factors": 24 })),
        ("mora-cl", json!({ "r": 24, "top_k": 3, "threshold": 0.06 })),
    ] {
        let method = method(name, options);
        let adapter = moved(&model, &method);
        let batch = batch(&model, &method);
        let usage = counted(&model, &adapter, &batch);
        let weights = AdapterWeights::of(&adapter, &model, "tiny").unwrap();
        let (pruned, report) = weights.pruned(&usage, Keep::Best(20)).unwrap();
        assert_eq!(report.rows, [24, 20], "{name}");
        let smaller = pruned.attach(&model, &AdapterOptions::default()).unwrap();
        let loss = |a: &Adapter| loss_of(&model, a, &batch).unwrap() / batch.trained as f64;
        assert!((loss(&smaller) - loss(&adapter)).abs() < 0.5, "{name}");
        let (same, report) = weights.pruned(&usage, Keep::Best(24)).unwrap();
        assert_eq!((report.dropped, &same.matrices), ([0.0, 0.0], &weights.matrices), "{name}");
    }
}

#[test]
fn the_rows_that_stay_are_those_that_act_most() {
    let model = tiny();
    let method = method("smora", json!({ "r": 12, "top_k": 2 }));
    let adapter = moved(&model, &method);
    let batch = batch(&model, &method);
    let record = Choices::record();
    let step = Step { valid: Some(&batch.valid), ..Step::default() };
    no_grad(|| model.forward(&batch.ids, &pass(&adapter, &batch).with_choices(record.clone()), step))
        .unwrap();
    let weights = AdapterWeights::of(&adapter, &model, "tiny").unwrap();
    let (pruned, _) = weights.pruned(&counted(&model, &adapter, &batch), Keep::Best(4)).unwrap();
    let real = batch.weights.to_f32().unwrap();
    let norm = |row: &[f32]| row.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
    // The down projection of the last layer is alone at its site.
    let path = "model.layers.1.mlp.down_proj";
    let (_, kept) =
        record.all().into_iter().find(|(site, _)| site.contains("1") && site.contains("down")).unwrap();
    let idx = kept.choice.to_u32().unwrap();
    let gates = kept.gates.unwrap().to_f32().unwrap();
    let part = |what: &str| weights.matrix(&format!("{path}.{what}")).unwrap();
    let row = |what: &str, e: usize| part(what).values[e * part(what).cols..][..part(what).cols].to_vec();
    let mut importance: Vec<(f64, usize)> = (0..12)
        .map(|e| {
            let acts = (0..idx.len()).filter(|i| idx[*i] as usize == e && real[i / 2] > 0.0);
            let m: f64 = acts.map(|i| f64::from(gates[i])).sum();
            (m * norm(&row("lora_a", e)) * norm(&row("lora_b", e)), e)
        })
        .collect();
    importance.sort_by(|a, b| b.0.total_cmp(&a.0));
    let mut stay: Vec<usize> = importance[..4].iter().map(|(_, e)| *e).collect();
    stay.sort_unstable();
    for what in ["lora_a", "lora_b", "router"] {
        let want: Vec<f32> = stay.iter().flat_map(|&e| row(what, e)).collect();
        assert_eq!(pruned.matrix(&format!("{path}.{what}")).unwrap().values, want, "{what}");
    }
    let bias: Vec<f32> = stay.iter().map(|&e| part("bias").values[e]).collect();
    assert_eq!(pruned.matrix(&format!("{path}.bias")).unwrap().values, bias);
}

#[test]
fn what_cannot_be_pruned_says_why() {
    let model = tiny();
    for (name, options, word) in [
        ("lora", json!({ "r": 4 }), "no pools"),
        ("mola", json!({ "r": 4, "experts_by_layer": [2] }), "no pools"),
        ("mixlora-cond", json!({ "r": 2, "router_input": "random", "cfs_form": null }), "drawn"),
        ("mora-cl", json!({ "r": 12, "top_k": 2, "frozen_rows": 4 }), "frozen"),
    ] {
        let adapter = moved(&model, &method(name, options));
        let error = Usage::new(&adapter, &model).unwrap_err().to_string();
        assert!(error.contains(name) && error.contains(word), "{error}");
    }
    let method = method("smora", json!({ "r": 12, "top_k": 3 }));
    let adapter = moved(&model, &method);
    let weights = AdapterWeights::of(&adapter, &model, "tiny").unwrap();
    let usage = counted(&model, &adapter, &batch(&model, &method));
    for (keep, word) in [
        (Keep::Best(0), "keep"),
        (Keep::Best(13), "at most 12"),
        (Keep::Best(2), "top_k"),
        (Keep::From(1.5), "below"),
        (Keep::From(f64::NAN), "below"),
    ] {
        let error = weights.pruned(&usage, keep).unwrap_err().to_string();
        assert!(error.contains(word), "{keep:?}: {error}");
    }
    let none = Usage::new(&adapter, &model).unwrap();
    assert!(weights.pruned(&none, Keep::Best(4)).unwrap_err().to_string().contains("nothing was chosen"));
}

#[cfg(all(feature = "cli", feature = "tokenizer"))]
#[test]
fn a_user_prunes_an_adapter() {
    use crate::common::cli::answer_to as run;
    let dir = tempfile::tempdir().unwrap();
    crate::common::tiny::write_text_model(&dir.path().join("model"));
    crate::common::tiny::write_data(&dir.path().join("data"), 24);
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let [model, data, valid, out] = ["model", "data", "data/valid.jsonl", "smaller"].map(path);
    let train = |method: &str, more: &[&str]| {
        let dir = path(method);
        let args = [
            "train", "--model", &model, "--data", &data, "--out", &dir, "--method", method, "--device", "cpu",
        ];
        run(&[&args[..], &["--steps", "6", "--set", "train.learning_rate=1e-2"], more].concat(), "", 0);
        dir
    };
    let adapter =
        train("mixlora-cond", &["--set", "num_factors=12", "--set", "r=2", "--set", "cfs_form=null"]);
    let prune = |adapter: &str, out: &str, more: &[&str], code: i32| {
        let args = ["prune", "--model", &model, "--adapter", adapter, "--data", &valid, "--out", out];
        run(&[&args[..], &["--device", "cpu"], more].concat(), "", code)
    };
    let (said, _) = prune(&adapter, &out, &["--keep", "4"], 0);
    assert!(said.contains("4 of 12 rows in each of 28 pools") && said.contains("loss"), "{said}");
    let eval = ["eval", "--model", &model, "--adapter", &out, "--data", &valid, "--device", "cpu", "--json"];
    let loss: Value = serde_json::from_str(&run(&eval, "", 0).0).unwrap();
    assert!(said.contains(&format!("{:.4} after", loss["loss"].as_f64().unwrap())), "{said} {loss}");
    let (_, err) = prune(&adapter, &out, &["--keep", "4"], 3);
    assert!(err.contains("exists"), "{err}");
    let (said, _) = prune(&adapter, &path("unused"), &["--unused"], 0);
    let losses: Vec<&str> =
        said.lines().last().unwrap().split(' ').filter(|word| word.contains('.')).collect();
    assert_eq!(losses[0], losses[1], "{said}");
    // Training goes on from it, with pools of its size.
    let further = path("further");
    let args = ["train", "--model", &model, "--data", &data, "--out", &further, "--method", "mixlora-cond"];
    let sizes =
        ["--set", "num_factors=4", "--set", "r=2", "--set", "cfs_form=null", "--set", "lora_alpha=24"];
    run(&[&args[..], &sizes, &["--start-from", &out, "--steps", "2", "--device", "cpu"]].concat(), "", 0);
    let none = path("none");
    for (more, code, word) in [
        (&["--keep", "13"][..], 3, "at most 12"),
        (&["--keep", "1"], 3, "num_factors"),
        (&["--below", "2"], 3, "a share"),
        (&[], 2, "--keep"),
    ] {
        let (_, err) = prune(&adapter, &none, more, code);
        assert!(err.contains(word), "{err}");
    }
    let (_, err) = prune(&train("lora", &[]), &none, &["--keep", "4"], 3);
    assert!(err.contains("lora has no rows to prune") && !std::path::Path::new(&none).exists(), "{err}");
}
