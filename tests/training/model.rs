//! A tiny decoder (2 layers, width 64) written as a Hugging Face directory: lanes, cache, adapters, training.

use crate::common::tiny::write_model;
use mixlora::adapter::{ALL_LINEAR, Adapter, Conversation};
use mixlora::data::{Batch, Example};
use mixlora::mixture::methods::ALL;
use mixlora::mixture::{DecodeRoute, Method, Pool, SitePart, Units};
use mixlora::model::{Model, Step};
use mixlora::nn::{Choices, Pass};
use mixlora::train::{Decay, Schedule, Session, TrainConfig, loss_of, losses_by_sample};
use mixlora::{Device, Stream, Tensor, backward, no_grad};
use serde_json::json;

const VOCAB: usize = 50;

fn model_on(device: &Device) -> std::sync::Arc<Model> {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), VOCAB, 64);
    Model::open(dir.path(), device).unwrap()
}

fn examples() -> Vec<Example> {
    let lengths = [(12, 5), (9, 4), (15, 7), (7, 3)];
    let bits = Stream::new(5);
    let example = |(i, &(n, prompt)): (usize, &(u32, u32))| {
        let ids = (0..n).map(|t| bits.bits(100 * i as u32 + t) % VOCAB as u32).collect();
        let task = ["a", "b"][i % 2];
        Example::new(ids, (0..n).map(|t| t >= prompt).collect())
            .with_task(Some(task))
            .with_condition(Some(&[0.5, -1.0, n as f32]))
    };
    lengths.iter().enumerate().map(example).collect()
}

fn targets() -> Vec<String> {
    vec![ALL_LINEAR.to_string()]
}

/// Options that make every method small enough for the tiny model.
fn method(name: &str) -> Method {
    let r = if name.contains("cond") || name == "vt-nlp" { 2 } else { 8 };
    let sizes = json!({
        "r": r, "num_factors": 4, "num_experts": 3, "top_k": 2, "tasks": ["a", "b"], "experts_by_layer": [2, 3],
        "condition_width": 3, "train_experts": true, "size": 8,
    });
    crate::common::method(name, sizes)
}

fn session(name: &str, device: &Device, steps: usize) -> Session {
    let model = model_on(device);
    let adapter = Adapter::attach(&model, &method(name), &targets(), Stream::new(3)).unwrap();
    let schedule =
        Schedule { learning_rate: 1e-2, warmup_steps: 1, decay: Decay::Cosine, ..Schedule::default() };
    let config = TrainConfig { schedule, steps, max_grad_norm: Some(1.0), seed: 7, ..TrainConfig::default() };
    Session::new(model, adapter, config).unwrap()
}

fn batch(device: &Device, pool: Pool, which: &[usize]) -> Batch {
    let all = examples();
    let some: Vec<&Example> = which.iter().map(|&i| &all[i]).collect();
    Batch::new(&some, pool, 0, device).unwrap()
}

fn hidden(model: &Model, adapter: Option<&Adapter>, b: &Batch) -> Vec<f64> {
    let step = Step { valid: Some(&b.valid), ..Step::default() };
    let pass = Pass::new(b.units.clone()).with_labels(b.labels.clone());
    let pass = pass.with_adapters(adapter.map(|a| a.sites().clone()));
    no_grad(|| model.forward(&b.ids, &pass, step)).unwrap().to_f64().unwrap()
}

fn largest(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).fold(0.0, |w, (a, b)| w.max((a - b).abs()))
}

#[test]
fn lanes_agree() {
    let want =
        hidden(&model_on(&Device::reference()), None, &batch(&Device::reference(), Pool::Real, &[0, 1, 2]));
    for device in [Device::cpu()].into_iter().chain(crate::common::gpu()) {
        let got = hidden(&model_on(&device), None, &batch(&device, Pool::Real, &[0, 1, 2]));
        assert!(largest(&got, &want) < 1e-4, "{}: {}", device.name(), largest(&got, &want));
    }
}

#[test]
fn the_cache_gives_the_logits_of_the_whole_sequence() {
    let cpu = Device::cpu();
    let model = model_on(&cpu);
    let ids = examples()[2].ids.clone();
    let whole = no_grad(|| {
        let t = Tensor::from_u32(&cpu, &[1, ids.len()], &ids)?;
        let pass = Pass::new(Units::instances(&cpu, 1, ids.len())?);
        model.logits(&model.forward(&t, &pass, Step::default())?)?.to_f32()
    })
    .unwrap();
    let mut c = Conversation::new(&model, None, 1);
    c.push(&ids[..4]).unwrap();
    for (i, &id) in ids.iter().enumerate().skip(4) {
        let want = &whole[(i - 1) * VOCAB..i * VOCAB];
        let worst = want.iter().zip(c.logits(0)).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
        assert!(worst < 1e-4, "position {i}: {worst}");
        c.push(&[id]).unwrap();
    }
    assert_eq!((c.len(), c.room()), (ids.len(), 64 - ids.len()));
    assert!(Conversation::new(&model, None, 1).push(&[1; 65]).is_err(), "longer than the context");
    assert!(Conversation::new(&model, None, 1).push(&[]).is_err());
    assert!(Conversation::new(&model, None, 2).push(&[1; 3]).is_err());
}

/// What a prompt chooses in training, with its answer and padding behind it, it chooses alone in generation.
#[test]
fn prompts_route_in_generation_as_in_training() {
    let cpu = Device::cpu();
    let all = examples();
    let (short, long) = (&all[1], &all[2]);
    for pool in [Pool::PromptMask, Pool::Instr, Pool::LastToken] {
        let model = model_on(&cpu);
        let method = method("mixlora-cond-gated").with("pool", pool.word()).unwrap();
        let adapter = Adapter::attach(&model, &method, &targets(), Stream::new(3)).unwrap();
        let record = Choices::record();
        let b = Batch::new(&[short, long], pool, 0, &cpu).unwrap();
        let pass =
            Pass::new(b.units.clone()).with_choices(record.clone()).with_adapters(adapter.sites().clone());
        no_grad(|| model.forward(&b.ids, &pass, Step { valid: Some(&b.valid), ..Step::default() })).unwrap();
        let mut c = Conversation::new(&model, &adapter, 1);
        c.push(&short.ids[..short.prompt]).unwrap();
        for (site, kept) in c.choices().next().unwrap().all() {
            let [l, p, g, k] = *record.get(&site).unwrap().dims() else { panic!() };
            let trained = record.get(&site).unwrap().to_u32().unwrap();
            let first: Vec<u32> =
                (0..l * p).flat_map(|i| trained[i * g * k..i * g * k + k].iter().copied()).collect();
            assert_eq!(kept.choice.to_u32().unwrap(), first, "{site} {pool:?}");
        }
        assert_eq!(c.choices().next().unwrap().all().len(), 8);
    }
}

#[test]
fn a_batch_of_prompts_says_what_each_says_alone() {
    let cpu = Device::cpu();
    for (name, route) in [
        ("mixlora-cond", DecodeRoute::FreezePrefill),
        ("mixlora-cond", DecodeRoute::PerStep),
        ("smora", DecodeRoute::FreezePrefill),
    ] {
        let mut s = session(name, &cpu, 2);
        s.step(&[batch(&cpu, s_pool(name), &[0, 1, 2, 3])]).unwrap();
        let prompts = [&examples()[0].ids[..7], &examples()[2].ids[..7]];
        let mut both = Conversation::new(&s.model, &s.adapter, 2).with_route(Some(route));
        both.push(&prompts.concat()).unwrap();
        both.push(&[3, 4]).unwrap();
        both.push(&[5, 6, 7, 8]).unwrap();
        for (row, tokens) in [(0, [3, 5, 6]), (1, [4, 7, 8])] {
            let mut alone = Conversation::new(&s.model, &s.adapter, 1).with_route(Some(route));
            alone.push(prompts[row]).unwrap();
            alone.push(&tokens[..1]).unwrap();
            alone.push(&tokens[1..]).unwrap();
            let worst =
                alone.logits(0).iter().zip(both.logits(row)).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
            assert!(worst < 1e-4, "{name} {route:?} row {row}: {worst}");
        }
    }
}

#[test]
fn decoding_keeps_or_renews_the_choice() {
    let cpu = Device::cpu();
    let mut s = session("mixlora-cond", &cpu, 4);
    for _ in 0..4 {
        s.step(&[batch(&cpu, Pool::PromptMask, &[0, 1, 2, 3])]).unwrap();
    }
    let logits = |route| {
        let mut c = Conversation::new(&s.model, &s.adapter, 1).with_route(Some(route));
        c.push(&examples()[2].ids[..9]).unwrap();
        (10..16).for_each(|t| c.push(&[t]).unwrap());
        c.logits(0).to_vec()
    };
    assert_ne!(logits(DecodeRoute::FreezePrefill), logits(DecodeRoute::PerStep));
    let route = |name: &str| method(name).options().instance().unwrap().decode_route;
    assert_eq!(route("vt-nlp"), DecodeRoute::PerStep);
    assert_eq!(route("mixlora-cond"), DecodeRoute::FreezePrefill);
}

#[test]
fn every_method_trains_saves_and_loads_to_the_same_outputs() {
    let cpu = Device::cpu();
    // The tiny model has no experts to adapt.
    for method in ALL.iter().filter(|method| !(method.options)().takes(SitePart::Expert)) {
        let name = method.name;
        let mut s = session(name, &cpu, 6);
        let b = || [batch(&cpu, s_pool(name), &[0, 1, 2, 3])];
        let before = hidden(&s.model, Some(&s.adapter), &b()[0]);
        assert!(
            largest(&before, &hidden(&model_on(&cpu), None, &b()[0])) < 1e-5,
            "{name}: starts as no change"
        );
        let losses: Vec<f64> = (0..6).map(|_| s.step(&b()).unwrap().loss).collect();
        assert!(losses[5] < 0.95 * losses[0], "{name}: {losses:?}");
        let dir = tempfile::tempdir().unwrap();
        s.adapter.save(dir.path(), &s.model, "tiny").unwrap();
        let other = model_on(&cpu);
        let loaded = Adapter::load(dir.path(), &other).unwrap();
        let here = hidden(&s.model, Some(&s.adapter), &b()[0]);
        assert_eq!(hidden(&other, Some(&loaded), &b()[0]), here, "{name}");
    }
}

fn s_pool(name: &str) -> Pool {
    method(name).options().instance().map_or(Pool::Real, |i| i.pool)
}

#[test]
fn training_twice_gives_the_same_bytes() {
    for name in ["mixlora-cond", "mixlora-cond-gated", "smora"] {
        let bytes = |device: &Device| {
            let mut s = session(name, device, 4);
            for i in 0..4 {
                s.step(&[batch(device, Pool::PromptMask, &[i % 4, (i + 1) % 4])]).unwrap();
            }
            s.adapter.to_safetensors().unwrap()
        };
        let first = bytes(&Device::cpu_with_threads(1).unwrap());
        assert!(first == bytes(&Device::cpu_with_threads(3).unwrap()), "{name}");
    }
}

#[test]
fn recomputing_layers_changes_no_bit() {
    for device in [Device::cpu()].into_iter().chain(crate::common::gpu()) {
        for name in ["mixlora-cond-gated", "mixlora-ffn", "smora", "lora"] {
            let run = |recompute: bool| {
                let mut s = session(name, &device, 3);
                s.config.recompute = recompute;
                let reports: Vec<_> = (0..3)
                    .map(|i| {
                        let r = s.step(&[batch(&device, Pool::PromptMask, &[i, i + 1])]).unwrap();
                        (r.loss, r.aux_loss, r.grad_norm)
                    })
                    .collect();
                (reports, s.adapter.to_safetensors().unwrap())
            };
            let (kept, again) = (run(false), run(true));
            assert_eq!(kept.0, again.0, "{name} on {}", device.name());
            assert!(kept.1 == again.1, "{name} on {}", device.name());
        }
    }
    let peak = |recompute: bool| {
        let cpu = Device::cpu();
        let mut s = session("lora", &cpu, 1);
        s.config.recompute = recompute;
        cpu.memory().unwrap().reset_peak();
        s.step(&[batch(&cpu, Pool::PromptMask, &[0, 1, 2, 3])]).unwrap();
        cpu.memory().unwrap().peak()
    };
    assert!(peak(true) < peak(false), "{} {}", peak(true), peak(false));
}

/// The gradients of four samples of different lengths, one by one and together: 1e-5 of the largest value in f32,
/// 1e-10 in the reference back end. Methods whose statistics are over a batch (mixlora-ffn's balance loss) differ by design.
#[test]
fn accumulated_gradients_are_those_of_one_batch() {
    let gradients = |name: &str, device: &Device, groups: &[&[usize]]| {
        let model = model_on(device);
        let adapter = Adapter::attach(&model, &method(name), &targets(), Stream::new(3)).unwrap();
        // B starts at zero, and A's gradient with it: start elsewhere.
        for p in adapter.trainable() {
            let value = p.value();
            let noise = Stream::new(8).named(&p.name()).normal_vec(value.len(), 0.05);
            p.set(value.add(&Tensor::from_f32(device, value.dims(), &noise).unwrap()).unwrap()).unwrap();
        }
        let mut sum: Vec<Vec<f64>> = adapter.trainable().iter().map(|p| vec![0.0; p.value().len()]).collect();
        for group in groups {
            let b = batch(device, s_pool(name), group);
            let pass = Pass::training(b.units.clone(), Stream::new(1)).with_adapters(adapter.sites().clone());
            let step = Step { valid: Some(&b.valid), ..Step::default() };
            let h = model.forward(&b.ids, &pass, step).unwrap();
            let rows = h.reshape(&[b.targets.len(), 64]).unwrap();
            let loss = rows.head_loss(model.head(), &b.targets, None).unwrap();
            let g = loss.backward().unwrap();
            for (sum, p) in sum.iter_mut().zip(adapter.trainable()) {
                let Some(g) = p.gradient(&g) else { continue };
                sum.iter_mut().zip(g.to_f64().unwrap()).for_each(|(s, g)| *s += g);
            }
        }
        sum
    };
    for name in ["mixlora-cond", "mixlora-cond-gated", "lora", "smora", "rank-wise", "flylora"] {
        for (device, bound) in [(Device::reference(), 1e-10), (Device::cpu(), 1e-5)] {
            let one = gradients(name, &device, &[&[0, 1, 2, 3]]);
            let four = gradients(name, &device, &[&[0], &[1], &[2], &[3]]);
            for (a, b) in one.iter().zip(&four) {
                let most = a.iter().fold(1e-30f64, |m, v| m.max(v.abs()));
                assert!(
                    largest(a, b) <= bound * most,
                    "{name} {}: {:e} of {most:e}",
                    device.name(),
                    largest(a, b)
                );
            }
        }
    }
}

#[test]
fn micro_batches_give_the_step_of_one_batch() {
    let run = |device: &Device, groups: &[&[usize]]| {
        let mut s = session("mixlora-cond", device, 3);
        let reports: Vec<_> = (0..3)
            .map(|_| {
                let batches: Vec<Batch> = groups.iter().map(|g| batch(device, Pool::PromptMask, g)).collect();
                let r = s.step(&batches).unwrap();
                (r.loss, r.grad_norm)
            })
            .collect();
        reports
    };
    for (device, bound) in [(Device::reference(), 1e-10), (Device::cpu(), 1e-4)] {
        let one = run(&device, &[&[0, 1, 2, 3]]);
        let four = run(&device, &[&[0], &[1], &[2], &[3]]);
        for (a, b) in one.iter().zip(&four) {
            let worst = ((a.0 - b.0) / a.0).abs().max(((a.1 - b.1) / a.1).abs());
            assert!(worst < bound, "{}: {a:?} {b:?}", device.name());
        }
    }
}

#[test]
fn the_loss_curve_is_the_same_on_the_cpu_and_the_gpu() {
    let Some(gpu) = crate::common::gpu() else { return };
    let cpu = Device::cpu();
    let (mut a, mut b) = (session("mixlora-cond", &cpu, 10), session("mixlora-cond", &gpu, 10));
    for step in 0..10 {
        let which = [step % 4, (step + 1) % 4];
        let record = Choices::record();
        let on = |d: &Device| [batch(d, Pool::PromptMask, &which)];
        let x = a.step_with(&on(&cpu), std::slice::from_ref(&record)).unwrap().loss;
        let sites = (0..2).flat_map(|l| ["qkv", "o", "gate_up", "down"].map(|s| format!("layers.{l}.{s}")));
        let forced = sites.map(|s| (s.clone(), record.get(&s).unwrap().to_device(&gpu).unwrap()));
        let y = b.step_with(&on(&gpu), &[Choices::force(forced)]).unwrap().loss;
        approx::assert_abs_diff_eq!(x, y, epsilon = 1e-4);
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let cpu = Device::cpu();
    let dir = tempfile::tempdir().unwrap();
    assert!(Model::open(dir.path(), &cpu).err().unwrap().to_string().contains("config.json"));
    write_model(dir.path(), VOCAB, 64);
    let config = std::fs::read_to_string(dir.path().join("config.json")).unwrap();
    for (from, to, expected) in [
        ("\"llama\"", "\"mamba\"", "model_type 'mamba'"),
        ("\"num_key_value_heads\": 2", "\"num_key_value_heads\": 3", "multiple of num_key_value_heads (3)"),
        ("\"hidden_size\": 64", "\"hidden_size\": \"64\"", "invalid type: string"),
        ("\"intermediate_size\": 96", "\"intermediate_size\": 95", "expected [95, 64]"),
        ("\"num_hidden_layers\": 2", "\"num_hidden_layers\": 3", "model.layers.2"),
    ] {
        std::fs::write(dir.path().join("config.json"), config.replace(from, to)).unwrap();
        let e = Model::open(dir.path(), &cpu).err().unwrap().to_string();
        assert!(e.contains(expected), "{to}: {e}");
    }
    let model = model_on(&cpu);
    let no = |targets: &[&str], model: &Model| {
        let targets: Vec<String> = targets.iter().map(|t| t.to_string()).collect();
        Adapter::attach(model, &method("lora"), &targets, Stream::new(0)).err().unwrap().to_string()
    };
    assert!(no(&["q_porj"], &model).contains("q_proj"));
    assert!(no(&[], &model).contains("empty"));
}

#[test]
fn some_projections_alone_can_be_adapted() {
    let cpu = Device::cpu();
    let model = model_on(&cpu);
    let some = ["q_proj", "v_proj"].map(String::from);
    let a = Adapter::attach(&model, &method("lora"), &some, Stream::new(0)).unwrap();
    let names: Vec<String> = a.params().iter().map(|p| p.name()).collect();
    assert!(names.iter().all(|n| n.contains("q_proj") || n.contains("v_proj")) && !names.is_empty());
    let b = batch(&cpu, Pool::Real, &[0, 1]);
    assert!(largest(&hidden(&model, Some(&a), &b), &hidden(&model_on(&cpu), None, &b)) < 1e-5);
}

/// Losses of samples add up to that of their batch, and so do their gradients.
#[test]
fn losses_by_sample_are_parts_of_the_loss() {
    let device = Device::reference();
    let s = session("lora", &device, 1);
    let b = batch(&device, Pool::Real, &[0, 1, 2]);
    let pass = || Pass::new(b.units.clone()).with_adapters(s.adapter.sites().clone());
    let losses = losses_by_sample(&s.model, &b, &pass()).unwrap();
    let values: Vec<f64> = losses.iter().map(|l| l.item().unwrap()).collect();
    assert!(values.len() == 3 && values.iter().all(|v| *v > 0.0), "{values:?}");
    let whole = loss_of(&s.model, Some(&s.adapter), &b).unwrap();
    assert!((values.iter().sum::<f64>() - whole).abs() < 1e-9 * whole, "{values:?} {whole}");
    // Any weights: the gradient of the second sample alone is that of its own batch.
    let one = Tensor::full(&device, losses[1].dims(), 1.0).unwrap();
    let together = backward(&[(&losses[1], one.clone())]).unwrap();
    let single = batch(&device, Pool::Real, &[1]);
    let alone = Pass::new(single.units.clone()).with_adapters(s.adapter.sites().clone());
    let loss = losses_by_sample(&s.model, &single, &alone).unwrap().swap_remove(0);
    let alone = backward(&[(&loss, one)]).unwrap();
    for p in s.adapter.trainable() {
        let (Some(a), Some(b)) = (p.gradient(&together), p.gradient(&alone)) else { continue };
        assert!(largest(&a.to_f64().unwrap(), &b.to_f64().unwrap()) < 1e-9, "{}", p.name());
    }
}
