//! The contrastive instruction token of Conditional MixLoRA: a learned vector in front of each sample, and its loss.

use crate::common::tiny::write_model;
use mixlora::adapter::{ALL_LINEAR, Adapter, AdapterWeights, Bank, Conversation};
use mixlora::check::{GRADCHECK_BOUND, gradcheck_directions};
use mixlora::data::{Batch, Example};
use mixlora::mixture::losses::sup_con;
use mixlora::mixture::{DecodeRoute, Framing, Method, Pool};
use mixlora::model::{Input, Model, Step};
use mixlora::nn::{Choices, Param, Pass};
use mixlora::train::{Decay, Schedule, Session, TrainConfig, loss_of};
use mixlora::{Device, Stream, Tensor, backward, no_grad};
use serde_json::{Value, json};
use std::path::Path;
use std::sync::Arc;

const VOCAB: u32 = 50;
const METHODS: [&str; 3] = ["mixlora-cond", "mixlora-cond-gated", "vt-nlp"];

fn method(name: &str, more: Value) -> Method {
    let own = json!({ "r": 2, "num_factors": 4, "use_contrastive_instr_token": true });
    let mut options = own.as_object().unwrap().clone();
    options.extend(more.as_object().unwrap().clone());
    crate::common::method(name, Value::Object(options))
}

fn tiny(device: &Device, positions: usize) -> Arc<Model> {
    let dir = tempfile::tempdir().unwrap();
    write_model(dir.path(), VOCAB as usize, positions);
    Model::open(dir.path(), device).unwrap()
}

/// An adapter in the middle of training: no parameter is where it was drawn.
fn moved(model: &Model, method: &Method) -> Adapter {
    let adapter = Adapter::attach(model, method, &[ALL_LINEAR.into()], Stream::new(3)).unwrap();
    for param in adapter.trainable() {
        let value = param.value();
        let noise = Stream::new(8).named(&param.name()).normal_vec(value.len(), 0.2);
        let noise = Tensor::from_f32(model.device(), value.dims(), &noise).unwrap();
        param.set(value.add(&noise).unwrap()).unwrap();
    }
    adapter
}

/// Samples of different lengths; their tasks in turns.
fn examples(tasks: &[&str]) -> Vec<Example> {
    let bits = Stream::new(5);
    let lengths = [(12, 5), (9, 4), (15, 7), (7, 3), (10, 6)];
    let example = |(i, &(n, prompt)): (usize, &(u32, u32))| {
        let ids = (0..n).map(|t| bits.bits(100 * i as u32 + t) % VOCAB).collect();
        Example::new(ids, (0..n).map(|t| t >= prompt).collect())
            .with_task(tasks.get(i % tasks.len().max(1)).copied())
    };
    lengths.iter().enumerate().map(example).collect()
}

fn batch(device: &Device, framing: impl Into<Framing>, examples: &[Example]) -> Batch {
    Batch::new(&examples.iter().collect::<Vec<_>>(), framing, 0, device).unwrap()
}

fn session(device: &Device, method: &Method, steps: usize) -> Session {
    let model = tiny(device, 64);
    let adapter = Adapter::attach(&model, method, &[ALL_LINEAR.into()], Stream::new(3)).unwrap();
    let schedule =
        Schedule { learning_rate: 1e-2, warmup_steps: 1, decay: Decay::Cosine, ..Schedule::default() };
    Session::new(model, adapter, TrainConfig { schedule, steps, seed: 7, ..TrainConfig::default() }).unwrap()
}

fn named(adapter: &Adapter, part: &str) -> Param {
    adapter.params().into_iter().find(|p| p.parts().iter().any(|(name, _)| name == part)).unwrap()
}

fn hidden(model: &Model, adapter: &Adapter, batch: &Batch) -> Vec<f64> {
    let pass = Pass::new(batch.units.clone()).with_labels(batch.labels.clone());
    let pass = pass.with_adapters(adapter.sites().clone());
    let step = Step { valid: Some(&batch.valid), ..Step::default() };
    no_grad(|| model.forward(&batch.ids, &pass, step)).unwrap().to_f64().unwrap()
}

/// The supervised contrast as its authors write it, in plain loops.
fn contrast(states: &[Vec<f64>], tasks: &[&str], tau: f64) -> f64 {
    let unit = |v: &Vec<f64>| {
        let norm = v.iter().map(|x| x * x).sum::<f64>().sqrt();
        v.iter().map(|x| x / norm).collect::<Vec<f64>>()
    };
    let z: Vec<Vec<f64>> = states.iter().map(unit).collect();
    let exp = |i: usize, j: usize| (z[i].iter().zip(&z[j]).map(|(a, b)| a * b).sum::<f64>() / tau).exp();
    let mut sum = 0.0;
    let mut anchors = 0;
    for i in 0..z.len() {
        let others: Vec<usize> = (0..z.len()).filter(|&j| j != i).collect();
        let positives: Vec<usize> = others.iter().copied().filter(|&j| tasks[j] == tasks[i]).collect();
        if positives.is_empty() {
            continue;
        }
        anchors += 1;
        let all: f64 = others.iter().map(|&j| exp(i, j)).sum();
        sum -= positives.iter().map(|&p| (exp(i, p) / all).ln()).sum::<f64>() / positives.len() as f64;
    }
    if anchors == 0 { 0.0 } else { sum / anchors as f64 }
}

#[test]
fn the_contrast_is_that_of_its_authors() {
    let device = Device::reference();
    for (tasks, alone) in [
        (vec!["a", "b", "a", "b", "c"], false),
        (vec!["a", "a", "a", "b"], false),
        (vec!["a", "b", "c"], true),
        (vec!["a"], true),
    ] {
        let n = tasks.len();
        let values = Stream::new(2).normal_vec(n * 6, 1.0);
        let states = Tensor::from_f32(&device, &[n, 6], &values).unwrap().leaf();
        let loss = sup_con(&states, &tasks, 0.5).unwrap();
        let rows: Vec<Vec<f64>> =
            values.chunks(6).map(|row| row.iter().map(|v| f64::from(*v)).collect()).collect();
        let want = contrast(&rows, &tasks, 0.5);
        assert!((loss.item().unwrap() - want).abs() < 1e-6, "{tasks:?}: {} {want}", loss.item().unwrap());
        assert_eq!(want == 0.0, alone, "{tasks:?}");
    }
    let states = Tensor::zeros(&device, &[3, 6]).unwrap();
    assert!(sup_con(&states, &["a", "b"], 0.5).is_err());
}

/// What a step trains: `exp(-v1) C + exp(-v0) L + (v0 + v1) / 2`, from the pieces that it is made of.
fn total(
    model: &Model,
    adapter: &Adapter,
    batch: &Batch,
    x: &Tensor,
    choices: &Choices,
) -> mixlora::Result<Tensor> {
    let mut pass = Pass::training(batch.units.clone(), Stream::new(1))
        .with_choices(choices.clone())
        .with_labels(batch.labels.clone())
        .with_adapters(adapter.sites().clone());
    pass.valid = Some((batch.weights.clone(), batch.tokens));
    let step = Step { valid: Some(&batch.valid), ..Step::default() };
    let states = model.forward(Input::Embeddings(x), &pass, step)?;
    let rows = states.reshape(&[batch.targets.len(), model.config().hidden_size])?;
    let loss = model.loss(&rows, &batch.targets)?.scale(1.0 / batch.trained as f32)?;
    let factor = adapter.sites().before().unwrap().loss_factor()?.unwrap();
    let mut aux = pass.take_aux()?;
    assert_eq!(aux.len(), 1);
    loss.mul(&factor)?.add(&aux.swap_remove(0))
}

#[test]
fn derivatives_are_those_of_the_combined_loss() {
    let device = Device::reference();
    let mut worst = 0f64;
    for name in METHODS {
        for pool in ["prompt_mask", "instr"] {
            let method = method(name, json!({ "pool": pool }));
            let model = tiny(&device, 64);
            let adapter = moved(&model, &method);
            let batch = batch(&device, method.framing(), &examples(&["a", "b"]));
            let x = model.embed(&batch.ids).unwrap();
            let run = |x: &Tensor, choices: &Choices| Ok(vec![total(&model, &adapter, &batch, x, choices)?]);
            for error in gradcheck_directions(&adapter.params(), &x, run).unwrap() {
                assert!(error.error <= GRADCHECK_BOUND, "{name} {pool}: {error:?}");
                worst = worst.max(error.error);
                let trained = ["instr_token", "log_variance"].iter().any(|part| error.name.contains(part));
                assert!(!trained || error.largest > 1e-4, "{name} {pool}: {error:?}");
            }
        }
    }
    println!("worst {worst:.1e}");
}

#[test]
fn a_step_trains_the_combined_loss_and_reports_the_plain_one() {
    let device = Device::reference();
    let tasks = ["a", "b"];
    let method = method("mixlora-cond-gated", json!({ "contrast_temperature": 0.5 }));
    let mut s = session(&device, &method, 3);
    s.adapter = moved(&s.model, &method);
    s.config.max_grad_norm = None;
    let mut s = Session::new(s.model.clone(), s.adapter.clone(), s.config.clone()).unwrap();
    let [v0, v1] = [0.7, -0.4f64];
    let variances = named(&s.adapter, "log_variance_lm");
    variances.set(Tensor::from_f32(&device, &[2, 1], &[v0 as f32, v1 as f32]).unwrap()).unwrap();
    let samples = examples(&tasks);
    let b = batch(&device, method.framing(), &samples);
    let states = hidden(&s.model, &s.adapter, &b);
    let d = s.model.config().hidden_size;
    let seq = b.ids.shape().last();
    let of_token: Vec<Vec<f64>> = (0..samples.len()).map(|i| states[i * seq * d..][..d].to_vec()).collect();
    let of: Vec<&str> = (0..samples.len()).map(|i| tasks[i % 2]).collect();
    let [v0, v1] = [f64::from(v0 as f32), f64::from(v1 as f32)];
    let want = (-v1).exp() * contrast(&of_token, &of, 0.5) + (v0 + v1) / 2.0;
    let plain = loss_of(&s.model, &s.adapter, &b).unwrap() / b.trained as f64;
    let x = s.model.embed(&b.ids).unwrap();
    let whole = total(&s.model, &s.adapter, &b, &x, &Choices::Free).unwrap();
    assert!((whole.item().unwrap() - want - (-v0).exp() * plain).abs() < 1e-6);
    let gradients = backward(&[(&whole, Tensor::full(&device, &[], 1.0).unwrap())]).unwrap();
    let of_each = s.adapter.trainable();
    let squares = of_each.iter().filter_map(|p| p.gradient(&gradients));
    let squares = squares.map(|g| g.to_f64().unwrap().iter().map(|g| g * g).sum::<f64>());
    let norm = squares.sum::<f64>().sqrt();
    let report = s.step(&[batch(&device, method.framing(), &samples)]).unwrap();
    assert!((report.loss - plain).abs() < 1e-9, "{} {plain}", report.loss);
    assert!((report.aux_loss - want).abs() < 1e-6, "{} {want}", report.aux_loss);
    assert!((report.grad_norm / norm - 1.0).abs() < 1e-6, "{} {norm}", report.grad_norm);
    assert!(
        (s.evaluate(&[batch(&device, method.framing(), &samples)]).unwrap() - plain).abs() > 1e-6,
        "it moved"
    );
}

#[test]
fn without_two_samples_of_a_task_there_is_no_contrast() {
    let cpu = Device::cpu();
    let method = method("mixlora-cond", json!({}));
    let mut s = session(&cpu, &method, 2);
    let of_task = |name| examples(&[name]).into_iter().take(1);
    let apart: Vec<Example> = of_task("a").chain(of_task("b")).collect();
    assert_eq!(s.step(&[batch(&cpu, method.framing(), &apart)]).unwrap().aux_loss, 0.0);
}

#[test]
fn it_saves_and_loads_to_the_same_outputs() {
    let cpu = Device::cpu();
    for name in METHODS {
        let method = method(name, json!({}));
        let mut s = session(&cpu, &method, 5);
        let b = || batch(&cpu, method.framing(), &examples(&["a", "b"]));
        let losses: Vec<f64> = (0..5).map(|_| s.step(&[b()]).unwrap().loss).collect();
        assert!(losses[4] < 0.98 * losses[0], "{name}: {losses:?}");
        let dir = tempfile::tempdir().unwrap();
        s.adapter.save(dir.path(), &s.model, "tiny").unwrap();
        let other = tiny(&cpu, 64);
        let loaded = Adapter::load(dir.path(), &other).unwrap();
        assert_eq!(hidden(&other, &loaded, &b()), hidden(&s.model, &s.adapter, &b()), "{name}");
        for part in ["instr_token", "log_variance_lm", "log_variance_contrast"] {
            let of = |a: &Adapter| named(a, part).value().to_f32().unwrap();
            assert_eq!(of(&loaded), of(&s.adapter), "{name} {part}");
        }
        assert_ne!(named(&loaded, "log_variance_lm").value().to_f32().unwrap(), [0.0, 0.0], "{name}");
        // Without a model, too; and a file without the token is refused by its name.
        let mut weights = AdapterWeights::of(&loaded, &other, "tiny").unwrap();
        weights.matrices.retain(|m| m.name != "instr_token");
        let error = weights.attach(&other, &Default::default()).err().unwrap().to_string();
        assert!(error.contains("instr_token"), "{error}");
    }
}

#[test]
fn threads_and_recomputation_change_no_bit() {
    for name in METHODS {
        let method = method(name, json!({ "lora_dropout": 0.1 }));
        let bytes = |threads: usize, recompute: bool| {
            let device = Device::cpu_with_threads(threads).unwrap();
            let mut s = session(&device, &method, 3);
            s.config.recompute = recompute;
            for _ in 0..3 {
                s.step(&[batch(&device, method.framing(), &examples(&["a", "b"]))]).unwrap();
            }
            s.adapter.to_safetensors().unwrap()
        };
        let first = bytes(1, false);
        for (threads, recompute) in [(2, false), (3, false), (1, true)] {
            assert!(first == bytes(threads, recompute), "{name}: {threads} threads, recompute {recompute}");
        }
    }
}

#[test]
fn lanes_agree() {
    let method = method("mixlora-cond-gated", json!({ "contrast_temperature": 0.5 }));
    let reports = |device: &Device| {
        let mut s = session(device, &method, 2);
        s.adapter = moved(&s.model, &method);
        let mut s = Session::new(s.model.clone(), s.adapter.clone(), s.config.clone()).unwrap();
        let mut step = || s.step(&[batch(device, method.framing(), &examples(&["a", "b"]))]).unwrap();
        [step(), step()].map(|r| [r.loss, r.aux_loss, r.grad_norm])
    };
    let want = reports(&Device::reference());
    for device in [Device::cpu()].into_iter().chain(crate::common::gpu()) {
        for (got, want) in reports(&device).iter().flatten().zip(want.iter().flatten()) {
            assert!((got - want).abs() < 2e-4 * want.abs().max(1.0), "{}: {got} {want}", device.name());
        }
    }
}

#[test]
fn decoding_puts_the_token_in_front_once() {
    let cpu = Device::cpu();
    for name in METHODS {
        for pool in ["all", "prompt_mask", "instr", "last_token"] {
            let method = method(name, json!({ "pool": pool, "decode_route": "freeze_prefill" }));
            let model = tiny(&cpu, 24);
            let adapter = moved(&model, &method);
            let prompts = [[4u32, 8, 15, 16], [23, 42, 7, 9]];
            let mut both = Conversation::new(&model, &adapter, 2);
            assert_eq!(both.room(), 23, "{name}: one position is the token's");
            both.push(&prompts.concat()).unwrap();
            assert_eq!((both.len(), both.room()), (5, 19));
            let mut said = prompts.map(|p| p.to_vec());
            for _ in 0..5 {
                let best = |logits: &[f32]| {
                    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap()
                };
                let next = [0, 1].map(|row| best(both.logits(row)) as u32);
                for (row, said) in said.iter_mut().enumerate() {
                    // Without a cache: all at once, the choice that of the prompt.
                    let mut prompt = Conversation::new(&model, &adapter, 1);
                    prompt.push(&prompts[row]).unwrap();
                    let choices = prompt.choices().next().unwrap().freeze();
                    let example = Example::new(said.clone(), vec![false; said.len()]);
                    let b = batch(&cpu, method.framing(), &[example]);
                    let pass = Pass::new(b.units.clone()).with_labels(b.labels.clone());
                    let pass = pass.with_adapters(adapter.sites().clone()).with_choices(choices);
                    let states = no_grad(|| model.forward(&b.ids, &pass, Step::default())).unwrap();
                    let logits = no_grad(|| model.logits(&states)).unwrap().to_f32().unwrap();
                    let last = &logits[logits.len() - VOCAB as usize..];
                    let worst =
                        last.iter().zip(both.logits(row)).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
                    assert!(worst < 1e-4, "{name} {pool}: {worst}");
                    assert_eq!(best(last) as u32, next[row], "{name} {pool}");
                    said.push(next[row]);
                }
                both.push(&next).unwrap();
            }
            // Read again from the start, as a conversation is.
            let before = both.logits(1).to_vec();
            both.restart();
            both.push(&said.concat()).unwrap();
            let worst = before.iter().zip(both.logits(1)).fold(0f32, |w, (a, b)| w.max((a - b).abs()));
            assert!(both.len() == 10 && worst < 1e-4, "{name} {pool}: {worst}");
            assert!(both.push(&[1; 30]).unwrap_err().to_string().contains("context is full"));
        }
    }
}

#[test]
fn a_token_is_what_routers_see_first() {
    let cpu = Device::cpu();
    let method = method("mixlora-cond", json!({ "pool": "instr" }));
    let model = tiny(&cpu, 64);
    let adapter = moved(&model, &method);
    let chosen = |examples: &[Example]| {
        let b = batch(&cpu, method.framing(), examples);
        let record = Choices::record();
        let pass = Pass::new(b.units.clone()).with_labels(b.labels.clone()).with_choices(record.clone());
        let pass = pass.with_adapters(adapter.sites().clone());
        no_grad(|| model.forward(&b.ids, &pass, Step::default())).unwrap();
        record.all().into_iter().map(|(_, kept)| kept.choice.to_u32().unwrap()).collect::<Vec<_>>()
    };
    let all = examples(&["a"]);
    // Nothing stands before it: all samples choose alike, whatever they say.
    assert_eq!(chosen(&all[..1]), chosen(&all[1..2]));
    let before = chosen(&all[..1]);
    let token = named(&adapter, "instr_token");
    let other = Stream::new(77).normal_vec(64, 1.0);
    token.set(Tensor::from_f32(&cpu, &[1, 64], &other).unwrap()).unwrap();
    assert_ne!(chosen(&all[..1]), before, "and another vector chooses otherwise");
}

#[test]
fn what_cannot_work_says_what_to_do() {
    let cpu = Device::cpu();
    let on = method("mixlora-cond", json!({}));
    let mut s = session(&cpu, &on, 2);
    let samples = examples(&["a", "b"]);
    let refused = |e: mixlora::Error, words: &[&str]| {
        let text = e.to_string();
        assert!(words.iter().all(|word| text.contains(word)), "{text}");
    };
    refused(s.step(&[batch(&cpu, Pool::PromptMask, &samples)]).unwrap_err(), &["framing"]);
    let none = batch(&cpu, on.framing(), &examples(&[]));
    refused(s.step(&[none]).unwrap_err(), &["use_contrastive_instr_token", "'task'"]);
    assert_eq!(s.steps_done(), 0);
    let framed = batch(&cpu, on.framing(), &samples);
    refused(loss_of(&s.model, None, &framed).unwrap_err(), &["no adapter"]);
    let plain = method("mixlora-cond", json!({ "use_contrastive_instr_token": false }));
    let other = Adapter::attach(&s.model, &plain, &[ALL_LINEAR.into()], Stream::new(3)).unwrap();
    refused(Bank::from(&s.adapter).with(other.clone(), 1.0).err().unwrap(), &["alone"]);
    refused(Bank::from(&other).with(s.adapter.clone(), 1.0).err().unwrap(), &["alone"]);
    assert!(plain.framing() == Framing::from(Pool::PromptMask) && !plain.options().needs_tasks());
    let route = method("vt-nlp", json!({})).options().instance().unwrap().decode_route;
    assert_eq!(route, DecodeRoute::PerStep);
}

/// Samples of four tasks whose tokens come from overlapping ranges of the vocabulary.
fn of_tasks(seed: u64, each: usize) -> Vec<Example> {
    let example = |i: usize| {
        let task = (i % 4) as u32;
        let bits = Stream::new(seed).fork(i as u64);
        let ids = (0..14).map(|t| 100 + 120 * task + bits.bits(t) % 160).collect();
        let name = ["a", "b", "c", "d"][task as usize];
        Example::new(ids, (0..14).map(|t| t >= 10).collect()).with_task(Some(name))
    };
    (0..4 * each).map(example).collect()
}

/// Share of held-out samples whose token's state is nearest to the mean of their own task's, of all samples trained on.
fn told_apart(s: &Session, method: &Method) -> f64 {
    let d = s.model.config().hidden_size;
    let states = |examples: &[Example]| -> Vec<Vec<f64>> {
        let b = batch(s.model.device(), method.framing(), examples);
        let all = hidden(&s.model, &s.adapter, &b);
        let unit = |row: &[f64]| {
            let norm = row.iter().map(|v| v * v).sum::<f64>().sqrt();
            row.iter().map(|v| v / norm).collect()
        };
        all.chunks(b.ids.shape().last() * d).map(|sample| unit(&sample[..d])).collect()
    };
    let mut means = vec![vec![0.0; d]; 4];
    for (i, state) in states(&of_tasks(1, 32)).iter().enumerate() {
        means[i % 4].iter_mut().zip(state).for_each(|(m, v)| *m += v);
    }
    let held_out = states(&of_tasks(2, 32));
    let near = |state: &Vec<f64>, mean: &Vec<f64>| -> f64 {
        state.iter().zip(mean).map(|(a, b)| a * b / 32.0).sum()
    };
    let distance = |state: &Vec<f64>, mean: &Vec<f64>| -> f64 {
        mean.iter().map(|m| (m / 32.0).powi(2)).sum::<f64>() - 2.0 * near(state, mean)
    };
    let best = |state: &Vec<f64>| {
        (0..4).min_by(|&a, &b| distance(state, &means[a]).total_cmp(&distance(state, &means[b])))
    };
    let right = held_out.iter().enumerate().filter(|(i, state)| best(state) == Some(i % 4)).count();
    right as f64 / held_out.len() as f64
}

/// The contrast makes the vector's state say more of the task than the language model's loss alone does. It stands before all tokens
/// and sees none of them: what it knows of a sample are the factors that the sample chose.
#[test]
fn its_state_tells_tasks_apart() {
    const STEPS: usize = 150;
    let cpu = Device::cpu();
    let accuracy = |temperature: f64| {
        let options = json!({ "r": 4, "num_factors": 16, "contrast_temperature": temperature });
        let method = method("mixlora-cond-gated", options);
        let model = Model::open(Path::new("data/tiny"), &cpu).unwrap();
        let adapter = Adapter::attach(&model, &method, &[ALL_LINEAR.into()], Stream::new(3)).unwrap();
        let schedule =
            Schedule { learning_rate: 2e-3, warmup_steps: 5, decay: Decay::Cosine, ..Schedule::default() };
        let config = TrainConfig { schedule, steps: STEPS, seed: 7, ..TrainConfig::default() };
        let mut s = Session::new(model, adapter, config).unwrap();
        let all = of_tasks(1, 32);
        for step in 0..STEPS {
            let some = &all[16 * (step % 8)..][..16];
            s.step(&[batch(&cpu, method.framing(), some)]).unwrap();
        }
        told_apart(&s, &method)
    };
    // Without the contrast's gradient: similarities are divided by so much that none is left.
    let without = accuracy(1e6);
    let with = accuracy(0.07);
    println!("held-out samples told apart: {without:.3} without, {with:.3} with");
    assert!(with > 0.75 && with > without + 0.1, "{without} {with}");
}

#[cfg(all(feature = "cli", feature = "tokenizer"))]
#[test]
fn a_user_trains_measures_and_asks_with_it() {
    use crate::common::cli::answer_to as run;
    let dir = tempfile::tempdir().unwrap();
    crate::common::tiny::write_text_model(&dir.path().join("model"));
    crate::common::tiny::write_data(&dir.path().join("data"), 24);
    let path = |name: &str| dir.path().join(name).to_str().unwrap().to_string();
    let [model, data, out, bare] = ["model", "data", "run", "bare.jsonl"].map(path);
    let on = [
        "--method",
        "mixlora-cond",
        "--set",
        "r=2",
        "--set",
        "num_factors=4",
        "--steps",
        "4",
        "--device",
        "cpu",
    ];
    let train = |data: &str, out: &str, code: i32| {
        let args = ["train", "--model", &model, "--data", data, "--out", out];
        run(&[&args[..], &on, &["--set", "use_contrastive_instr_token=true"]].concat(), "", code)
    };
    train(&data, &out, 0);
    let eval = ["eval", "--model", &model, "--adapter", &out, "--data", &data, "--device", "cpu", "--json"];
    let measured: Value = serde_json::from_str(&run(&eval, "", 0).0).unwrap();
    assert!(measured["loss"].as_f64().unwrap() > 0.0, "{measured}");
    let ask = ["generate", "--model", &model, "--adapter", &out, "--prompt", "2xx?", "--device", "cpu"];
    let said = run(&[&ask[..], &["--max-tokens", "5"]].concat(), "", 0).0;
    assert_eq!(said, run(&[&ask[..], &["--max-tokens", "5"]].concat(), "", 0).0);
    std::fs::write(&bare, "{\"prompt\":\"1?\",\"completion\":\"ab\"}\n").unwrap();
    let none = path("none");
    let (_, err) = train(&bare, &none, 3);
    assert!(err.contains("field 'task'") && !Path::new(&none).exists(), "{err}");
}
