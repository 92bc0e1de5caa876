//! Adapters that travel: between this crate and PEFT, between GGUF files and Hugging Face folders, from VT-NLP's
//! release, into merged weights and GGUF adapters.

use crate::common::families::{VOCAB, adapted_logits, copy, fixture, logits, open, stored, worst};
use mixlora::adapter::{ALL_LINEAR, Adapter};
use mixlora::data::{Batch, Example};
use mixlora::io::{Checkpoint, GgufFile};
use mixlora::mixture::{CfsForm, Method};
use mixlora::model::Model;
use mixlora::train::{Decay, Schedule, Session, TrainConfig};
use mixlora::{Device, Format, Stream, Tensor};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Measured: at most 5e-6, for logits of up to 8.
const BOUND: f32 = 1e-4;

fn method(name: &str) -> Method {
    let r = if name == "lora" { 4 } else { 2 };
    crate::common::method(name, json!({ "r": r, "num_factors": 4, "num_experts": 3, "top_k": 2 }))
}

/// A model with an adapter of a few real training steps.
fn trained(place: &str, method: &Method) -> Session {
    let model = open(place);
    let targets = vec![ALL_LINEAR.to_string()];
    let adapter = Adapter::attach(&model, method, &targets, Stream::new(3)).unwrap();
    let schedule =
        Schedule { learning_rate: 2e-2, warmup_steps: 0, decay: Decay::Constant, ..Schedule::default() };
    let mut s =
        Session::new(model, adapter, TrainConfig { schedule, steps: 4, ..TrainConfig::default() }).unwrap();
    let bits = Stream::new(5);
    let ids = (0..14).map(|t| bits.bits(t) % VOCAB as u32).collect();
    let example = Example::new(ids, (0..14).map(|t| t >= 5).collect());
    let pool = method.options().instance().map(|i| i.pool);
    for _ in 0..4 {
        let batch = Batch::new(&[&example], pool, 0, s.model.device()).unwrap();
        s.step(&[batch]).unwrap();
    }
    s
}

/// Logits of the first stored sequence of llama2.
fn first(model: &Model, adapter: Option<&Adapter>) -> Vec<f32> {
    adapted_logits(model, adapter, &stored("llama2")[0].0).unwrap()
}

fn loaded(place: &str, adapter: &Path) -> (std::sync::Arc<Model>, Adapter) {
    let model = open(place);
    let adapter = Adapter::load(adapter, &model).unwrap();
    (model, adapter)
}

#[test]
fn loras_of_peft_give_the_logits_of_peft() {
    for (name, family) in [("lora", "llama2"), ("rslora", "qwen2")] {
        let folder = fixture("peft").join(name);
        let want =
            Checkpoint::open(folder.join("logits.safetensors")).unwrap().f32("logits", &[24, VOCAB]).unwrap();
        let (ids, plain) = stored(family).swap_remove(0);
        assert!(worst(&plain, &want) > 0.1, "the adapter changes something");
        for place in [family.to_string(), format!("{family}.gguf")] {
            let (model, adapter) = loaded(&place, &folder);
            let got = adapted_logits(&model, Some(&adapter), &ids).unwrap();
            assert!(worst(&got, &want) < BOUND, "{name} on {place}: {}", worst(&got, &want));
        }
    }
}

/// `ours` was written by this crate; its logits are those that PEFT computed with it.
#[test]
fn peft_computes_our_logits_with_our_lora() {
    let folder = fixture("peft/ours");
    let want =
        Checkpoint::open(folder.join("logits.safetensors")).unwrap().f32("logits", &[24, VOCAB]).unwrap();
    let (model, adapter) = loaded("llama2", &folder);
    let got = first(&model, Some(&adapter));
    assert!(worst(&got, &want) < BOUND, "{}", worst(&got, &want));
    assert!(worst(&stored("llama2")[0].1, &want) > 0.1, "the adapter changes something");
    // What is written today is what PEFT was given then.
    let dir = tempfile::tempdir().unwrap();
    adapter.save(dir.path(), &model, "llama2").unwrap();
    let read = |dir: &Path, name: &str| std::fs::read(dir.join(name)).unwrap();
    let config = |dir: &Path| -> Value { serde_json::from_slice(&read(dir, "adapter_config.json")).unwrap() };
    assert_eq!(config(dir.path()), config(&folder));
    let tensors = "adapter_model.safetensors";
    assert!(read(dir.path(), tensors) == read(&folder, tensors), "names, shapes or values differ");
}

/// What PEFT was given is what training gives: on other processors single values may take another small step, so means
/// are compared. With `MIXLORA_WRITE_FIXTURES` set it is written anew, for fixtures/make_peft.py.
#[test]
fn our_lora_for_peft_is_what_training_gives() {
    let s = trained("llama2", &method("lora"));
    let (dir, folder) = (tempfile::tempdir().unwrap(), fixture("peft/ours"));
    let write = std::env::var_os("MIXLORA_WRITE_FIXTURES").is_some();
    let to = if write { folder.as_path() } else { dir.path() };
    s.adapter.save(to, &s.model, "llama2").unwrap();
    let open = |dir: &Path| Checkpoint::open(dir.join("adapter_model.safetensors")).unwrap();
    let (got, want) = (open(to), open(&folder));
    assert!(got.names().eq(want.names()) && got.names().count() > 0);
    for name in want.names() {
        assert_eq!(got.dims(name).unwrap(), want.dims(name).unwrap(), "{name}");
        let (g, w) = (got.values_f32(name).unwrap(), want.values_f32(name).unwrap());
        let mean = g.iter().zip(&w).map(|(g, w)| (g - w).abs()).sum::<f32>() / w.len() as f32;
        assert!(mean < 1e-3, "{name}: {mean}");
    }
}

#[test]
fn adapters_move_between_gguf_files_and_folders() {
    for name in ["lora", "mixlora-cond"] {
        for (from, to) in [("llama2.gguf", "llama2"), ("llama2", "llama2.gguf")] {
            let s = trained(from, &method(name));
            let dir = tempfile::tempdir().unwrap();
            s.adapter.save(dir.path(), &s.model, "tiny").unwrap();
            let (model, adapter) = loaded(to, dir.path());
            let (there, here) = (first(&s.model, Some(&s.adapter)), first(&model, Some(&adapter)));
            assert!(worst(&there, &stored("llama2")[0].1) > 0.05, "{name} trains");
            assert!(worst(&there, &here) < BOUND, "{name}, {from} -> {to}: {}", worst(&there, &here));
        }
    }
}

/// Rewrites an adapter of ours with the names and the layout of the release.
fn release(ours: &Path, to: &Path, split: bool) {
    let file = Checkpoint::open(ours.join("adapter_model.safetensors")).unwrap();
    let mut out: BTreeMap<String, (Vec<usize>, Vec<f32>)> = BTreeMap::new();
    for name in file.names() {
        let (dims, v) = (file.dims(name).unwrap().to_vec(), file.values_f32(name).unwrap());
        let (path, what) = name.rsplit_once('.').unwrap();
        let cfs = file.has(&format!("{path}.router_cfs"));
        let second = if cfs { "cmoa_loarB_extra_selector" } else { "cmoa_selector" };
        let side = if what == "factors_a" { "A" } else { "B" };
        match what {
            // One A for all instances, and layers of an ordinary LoRA.
            "factors_a" | "lora_a" | "lora_b" if dims[0] == 2 => {
                let side = if what.ends_with('a') { "A" } else { "B" };
                out.insert(format!("{path}.lora_{side}.default.0"), (dims, v));
            }
            "factors_a" | "factors_b" => v.chunks(dims[1]).enumerate().for_each(|(e, row)| {
                out.insert(format!("{path}.lora_{side}.default.{e}"), (vec![1, dims[1]], row.to_vec()));
            }),
            "router_a" => drop(out.insert(format!("{path}.cmoa_selector.loraA_selector.weight"), (dims, v))),
            "router_b" => drop(out.insert(format!("{path}.{second}.loraB_selector.weight"), (dims, v))),
            // [E, r * d_in]: one row per expert, its slots one behind the other.
            "router_cfs" => {
                let name = format!("{path}.cmoa_loarB_extra_selector.loraA_param2loraB_selector.weight");
                out.insert(name, (vec![4, dims[0] / 4 * dims[1]], v));
            }
            other => panic!("{other}"),
        }
    }
    let write = |name: &str, take: &dyn Fn(&str) -> bool| {
        let views = out.iter().filter(|(n, _)| take(n)).map(|(n, (dims, v))| {
            (n.as_str(), TensorView::new(Dtype::F32, dims.clone(), bytemuck::cast_slice(v)).unwrap())
        });
        std::fs::write(to.join(name), safetensors::serialize(views, None).unwrap()).unwrap();
    };
    write("adapter_model.safetensors", &|n| !split || n.contains(".lora_"));
    if split {
        write("non_lora_trainables.safetensors", &|n| !n.contains(".lora_"));
    }
}

fn release_config(cond_type: &str) -> Value {
    json!({
        "peft_type": "LORA", "r": 2, "n_experts": 4, "lora_alpha": 8, "lora_dropout": 0.05, "cond_type": cond_type,
        "independent_rank": true, "mix_loraA": true, "mix_start_layer": 0, "add_noise": false, "ifs_weight": 1.0,
        "target_modules": ["k_proj", "down_proj"], "bias": "none",
    })
}

#[test]
fn adapters_of_the_release_load() {
    for (cfs_form, cond_type, split) in [
        (Some(CfsForm::SumProduct), "input_lora_a_param", true),
        (Some(CfsForm::SumProduct), "input_lora_a_param", false),
        (None, "input", false),
    ] {
        let form = cfs_form.map(CfsForm::word);
        let method = method("vt-nlp").with("cfs_form", form).and_then(|m| m.with("lora_alpha", 8.0)).unwrap();
        let s = trained("llama2", &method);
        let (ours, theirs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        s.adapter.save(ours.path(), &s.model, "tiny").unwrap();
        release(ours.path(), theirs.path(), split);
        let write = |c: &Value| {
            std::fs::write(theirs.path().join("adapter_config.json"), c.to_string()).unwrap();
        };
        write(&release_config(cond_type));
        let (model, adapter) = loaded("llama2", theirs.path());
        assert_eq!(adapter.method(), s.adapter.method());
        assert_eq!(first(&model, Some(&adapter)), first(&s.model, Some(&s.adapter)), "{cond_type}");
        assert!(worst(&first(&model, Some(&adapter)), &stored("llama2")[0].1) > 0.05, "B is not zero");
        // What is not computed is refused by name.
        for (key, value, expected) in [
            ("independent_rank", json!("no"), "independent_rank is \"no\", expected true or false"),
            ("used_scored_weight", json!(true), "used_scored_weight is not false"),
            ("use_contrastive_instr_token", json!(true), "use_contrastive_instr_token is not false"),
            ("n_experts", json!(8), "n_experts is 8, but the tensors have 4"),
            ("cond_type", json!("task_def"), "cond_type 'task_def'"),
            ("mix_start_layer", json!(1), "tensors"),
            ("mix_start_layer", json!("all"), "mix_start_layer is \"all\", expected a number"),
        ] {
            let mut c = release_config(cond_type);
            c[key] = value;
            write(&c);
            let e = Adapter::load(theirs.path(), &open("llama2")).err().unwrap().to_string();
            assert!(e.contains(expected), "{e}");
        }
        if split {
            write(&release_config(cond_type));
            std::fs::remove_file(theirs.path().join("non_lora_trainables.safetensors")).unwrap();
            let e = Adapter::load(theirs.path(), &open("llama2")).err().unwrap().to_string();
            assert!(e.contains("42 tensors are missing") && e.contains("cmoa_selector.loraA"), "{e}");
            assert!(e.contains("convert that: t = torch.load('pytorch_model.bin'"), "{e}");
        }
    }
}

/// Every option of the release that is computed, with its names and layout.
#[test]
fn options_of_the_release_load() {
    for (cond_type, theirs_say, ours) in [
        ("input", json!({ "independent_rank": false }), json!({ "independent_rank": false })),
        ("instr", json!({ "mix_loraA": false }), json!({ "mix_lora_a": false, "pool": "instr" })),
        ("input", json!({ "mix_start_layer": 1 }), json!({ "mix_start_layer": 1 })),
        ("input", json!({ "add_noise": true }), json!({ "add_noise": true })),
        (
            "input_lora_a_param",
            json!({ "add_noise": true, "independent_rank": false }),
            json!({ "add_noise": true, "cfs_form": "sum_product" }),
        ),
        (
            "random",
            json!({ "add_noise": true, "independent_rank": false, "mix_start_layer": 1 }),
            json!({ "router_input": "random", "mix_start_layer": 1 }),
        ),
        ("task_embed", json!({}), json!({ "router_input": "condition" })),
    ] {
        let model = open("llama2");
        let width = if cond_type == "task_embed" { model.config().hidden_size } else { 0 };
        let plain = json!({ "cfs_form": null, "lora_alpha": 8.0, "condition_width": width });
        let ours = plain.as_object().unwrap().clone().into_iter().chain(ours.as_object().unwrap().clone());
        let method = method("vt-nlp").set(&ours.collect()).unwrap();
        let targets = ["k_proj", "down_proj"].map(String::from);
        let adapter = Adapter::attach(&model, &method, &targets, Stream::new(3)).unwrap();
        for param in adapter.params() {
            let values = Stream::new(4).named(&param.name()).normal_vec(param.value().len(), 0.1);
            param.set(Tensor::from_f32(model.device(), param.value().dims(), &values).unwrap()).unwrap();
        }
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [from, to] = [dirs[0].path(), dirs[1].path()];
        adapter.save(from, &model, "tiny").unwrap();
        release(from, to, false);
        let mut config = release_config(cond_type);
        config.as_object_mut().unwrap().extend(theirs_say.as_object().unwrap().clone());
        std::fs::write(to.join("adapter_config.json"), config.to_string()).unwrap();
        let (other, read) = loaded("llama2", to);
        assert_eq!(read.method(), adapter.method(), "{cond_type} {theirs_say}");
        for (param, stored) in read.params().iter().zip(adapter.params()) {
            assert_eq!(param.parts(), stored.parts());
            assert_eq!(param.value().to_f32().unwrap(), stored.value().to_f32().unwrap(), "{}", param.name());
        }
        if width == 0 {
            assert_eq!(first(&other, Some(&read)), first(&model, Some(&adapter)), "{cond_type} {theirs_say}");
        }
    }
}

#[test]
fn merged_weights_give_the_adapters_logits() {
    for place in ["llama2", "llama2.gguf"] {
        let s = trained(place, &method("lora"));
        // Rounded weights: measured 0.03 and 0.22, for logits of up to 8.
        for (format, bound) in [(Format::F32, BOUND), (Format::F16, 0.1), (Format::Bf16, 0.8)] {
            let dir = tempfile::tempdir().unwrap();
            s.adapter.merge(&s.model, dir.path(), format).unwrap();
            let merged = Model::open(dir.path(), &Device::cpu()).unwrap();
            let e = worst(&first(&merged, None), &first(&s.model, Some(&s.adapter)));
            assert!(e < bound, "{place} in {}: {e}", format.name());
            assert_eq!(merged.head().format(), format);
        }
    }
    // Scaled frequencies, biases and windows survive.
    for place in ["llama3", "mistral.gguf", "qwen2.gguf"] {
        let s = trained(place, &method("lora"));
        let dir = tempfile::tempdir().unwrap();
        s.adapter.merge(&s.model, dir.path(), Format::F32).unwrap();
        let merged = Model::open(dir.path(), &Device::cpu()).unwrap();
        let ids = stored(place.strip_suffix(".gguf").unwrap_or(place)).swap_remove(0).0;
        let e = worst(
            &logits(&merged, &ids).unwrap(),
            &adapted_logits(&s.model, Some(&s.adapter), &ids).unwrap(),
        );
        assert!(e < BOUND, "{place}: {e}");
        assert_eq!(merged.config().max_positions(), s.model.config().max_positions());
    }
    // Heads of 8 have one frequency between the fast and the slow ones: it could be anybody's.
    let s = trained("llama3.gguf", &method("lora"));
    let dir = tempfile::tempdir().unwrap();
    let e = s.adapter.merge(&s.model, dir.path(), Format::F32).unwrap_err().to_string();
    assert!(e.contains("rope_scaling") && e.contains("give the Hugging Face directory"), "{e}");
    let s = trained("llama2", &method("mixlora-cond"));
    let dir = tempfile::tempdir().unwrap();
    let e = s.adapter.merge(&s.model, dir.path(), Format::F32).unwrap_err().to_string();
    assert!(e.contains("mixlora-cond chooses its factors by the input") && e.contains("--adapter"), "{e}");
}

/// The update of the exported file, added to the file's own weights, is the update of the adapter.
#[test]
fn a_gguf_adapter_has_the_row_order_of_gguf_files() {
    let s = trained("llama2", &method("lora"));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.gguf");
    s.adapter.export_gguf(&s.model, &path).unwrap();
    let file = GgufFile::open(&path).unwrap();
    assert_eq!(file.str("general.type").unwrap(), "adapter");
    assert_eq!(file.str("adapter.type").unwrap(), "lora");
    assert_eq!(file.str("general.architecture").unwrap(), "llama");
    assert_eq!(file.f32("adapter.lora.alpha").unwrap(), 8.0);
    let (base, folder) =
        (GgufFile::open(fixture("families/llama2.gguf")).unwrap(), tempfile::tempdir().unwrap());
    s.adapter.merge(&s.model, folder.path(), Format::F32).unwrap();
    let merged = Checkpoint::open(folder.path()).unwrap();
    let mut seen = 0;
    for (name, info) in base.tensors().iter().filter(|(n, _)| n.contains("blk.") && !n.contains("norm")) {
        let (a, b) = (format!("{name}.lora_a"), format!("{name}.lora_b"));
        let (d_in, d_out) = (info.cols(), info.rows());
        assert_eq!(file.tensor(&a).unwrap().dims, [d_in, 4], "{a}");
        assert_eq!(file.tensor(&b).unwrap().dims, [4, d_out], "{b}");
        let (a, b) = (file.values_f32(&a).unwrap(), file.values_f32(&b).unwrap());
        let mut w = base.values_f32(name).unwrap();
        for (o, row) in w.chunks_mut(d_in).enumerate() {
            for (i, w) in row.iter_mut().enumerate() {
                *w += 8.0 / 4.0 * (0..4).map(|k| b[o * 4 + k] * a[k * d_in + i]).sum::<f32>();
            }
        }
        // The same matrix in the other order of rows, written out: the two halves of each head of 8.
        let hf = |o: usize| match name.contains("attn_q") || name.contains("attn_k") {
            true => o / 8 * 8 + o % 2 * 4 + o % 8 / 2,
            false => o,
        };
        let ours =
            [("attn_q", "self_attn.q_proj"), ("attn_k", "self_attn.k_proj"), ("attn_v", "self_attn.v_proj")];
        let rest = [
            ("attn_output", "self_attn.o_proj"),
            ("ffn_gate", "mlp.gate_proj"),
            ("ffn_up", "mlp.up_proj"),
            ("ffn_down", "mlp.down_proj"),
        ];
        let (_, to) = ours.iter().chain(&rest).find(|(from, _)| name.contains(&format!("{from}."))).unwrap();
        let layer = name.split('.').nth(1).unwrap();
        let want = merged.values_f32(&format!("model.layers.{layer}.{to}.weight")).unwrap();
        for o in 0..d_out {
            let e = worst(&w[o * d_in..][..d_in], &want[hf(o) * d_in..][..d_in]);
            assert!(e < 1e-5, "{name} row {o}: {e}");
        }
        seen += 1;
    }
    assert_eq!(seen, 14);
    let s = trained("llama2", &method("mixlora-cond"));
    let e = s.adapter.export_gguf(&s.model, &dir.path().join("b.gguf")).unwrap_err().to_string();
    assert!(e.contains("a GGUF adapter needs an update that is the same for every input"), "{e}");
}

#[test]
fn what_peft_can_say_and_we_do_not_compute_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("lora");
    copy(&fixture("peft/lora"), &place);
    std::fs::remove_file(place.join("logits.safetensors")).unwrap();
    let path = place.join("adapter_config.json");
    let config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let error = |key: &str, value: Value| {
        let mut c = config.clone();
        c[key] = value;
        std::fs::write(&path, c.to_string()).unwrap();
        Adapter::load(&place, &open("llama2")).err().map(|e| e.to_string()).unwrap_or_default()
    };
    for (key, value, expected) in [
        ("use_dora", json!(true), "use_dora (DoRA)"),
        ("modules_to_save", json!(["lm_head"]), "modules_to_save (modules trained as a whole)"),
        ("layers_to_transform", json!([0]), "layers_to_transform (a LoRA on some layers only)"),
        ("rank_pattern", json!({"q_proj": 8}), "rank_pattern (ranks by place)"),
        ("alpha_pattern", json!({"q_proj": 8}), "alpha_pattern (scales by place)"),
        ("bias", json!("all"), "bias = \"all\" (trained biases)"),
        ("lora_bias", json!(true), "lora_bias (biases of B)"),
        ("init_lora_weights", json!("pissa"), "init_lora_weights = \"pissa\""),
        ("some_new_option", json!(3), "some_new_option = 3"),
        ("target_modules", json!(".*q_proj"), "target_modules is the pattern '.*q_proj'"),
        ("target_modules", json!(["lm_head"]), "'lm_head' matches nothing; there are q_proj"),
        (
            "target_modules",
            json!(["q_proj"]),
            "such as 'base_model.model.model.layers.0.mlp.down_proj.lora_A.weight'",
        ),
        ("peft_type", json!("LOHA"), "peft_type 'LOHA' is not supported here"),
        ("peft_type", json!("MIXLORA_RS"), "mixlora.json is missing"),
        ("r", json!("four"), "at 'r'"),
        ("lora_alpha", Value::Null, "lora_alpha"),
    ] {
        let e = error(key, value);
        assert!(e.contains(expected) && e.contains("adapter_"), "{key}: {e}");
    }
    let good = error("init_lora_weights", json!("gaussian"));
    assert_eq!(good, "");
}
