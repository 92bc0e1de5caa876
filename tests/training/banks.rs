//! Several adapters on one model at once: sums of their updates, with routers, caches and choices of their own.

use mixlora::adapter::{ALL_LINEAR, Adapter, Bank, Conversation};
use mixlora::check::{GRADCHECK_BOUND, gradcheck_params};
use mixlora::mixture::{Units, find};
use mixlora::model::{Input, Model, Step};
use mixlora::nn::{Choices, Member, Param, Pass};
use mixlora::{Device, Error, Result, Stream, Tensor, no_grad};
use std::path::PathBuf;
use std::sync::Arc;

const IDS: [u32; 6] = [4, 8, 15, 16, 23, 42];

fn open(device: &Device) -> Arc<Model> {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/qwen3-b");
    Model::open_f32(&path, device).unwrap()
}

/// An adapter whose update is not zero.
fn adapter(model: &Model, method: &str, targets: &str, seed: u64) -> Adapter {
    let method = find(method).unwrap().defaults();
    let adapter = Adapter::attach(model, &method, &[targets.into()], Stream::new(seed)).unwrap();
    for p in adapter.trainable() {
        let value = p.value();
        let values = Stream::new(seed).named(&p.name()).normal_vec(value.len(), 0.1);
        p.set(Tensor::from_f32(value.device(), value.dims(), &values).unwrap()).unwrap();
    }
    adapter
}

fn logits(model: &Arc<Model>, bank: impl Into<Bank>) -> Vec<f32> {
    let mut c = Conversation::new(model, bank, 1);
    c.push(&IDS).unwrap();
    c.logits(0).to_vec()
}

fn far(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).fold(0.0, |worst, (a, b)| worst.max((a - b).abs()))
}

/// On linears of their own, adapters do not meet: together they are one adapter of both.
#[test]
fn adapters_of_different_linears_act_as_one() {
    let model = open(&Device::cpu());
    let one = adapter(&model, "lora", "q_proj", 1);
    let other = adapter(&model, "lora", "down_proj", 1);
    let method = find("lora").unwrap().defaults();
    let targets = ["q_proj".into(), "down_proj".into()];
    let both = Adapter::attach(&model, &method, &targets, Stream::new(1)).unwrap();
    for p in both.params() {
        let of = one.params().into_iter().chain(other.params()).find(|o| o.name() == p.name());
        p.set(of.unwrap().value()).unwrap();
    }
    let want = logits(&model, &both);
    let bank = Bank::from(&one).with(other.clone(), 1.0).unwrap();
    assert!(far(&logits(&model, bank), &want) < 1e-5);
    let reversed = Bank::from(&other).with(one, 1.0).unwrap();
    assert!(far(&logits(&model, reversed), &want) < 1e-5);
    assert!(far(&logits(&model, None), &want) > 1e-3, "they change the model");
}

/// The update of a LoRA is linear in its scale; on shared linears updates add up.
#[test]
fn scales_weigh_what_adapters_add() {
    let model = open(&Device::cpu());
    let lora = adapter(&model, "lora", ALL_LINEAR, 1);
    let plain = logits(&model, None);
    let whole = logits(&model, &lora);
    let scaled = |scale: f32| logits(&model, Bank::default().with(lora.clone(), scale).unwrap());
    assert_eq!(scaled(1.0), whole, "a single adapter with a scale of 1 is used as it is");
    assert!(far(&scaled(0.0), &plain) < 1e-5);
    let half = || Bank::default().with(lora.clone(), 0.5).unwrap();
    let halves = half().with(lora.clone(), 0.5).unwrap();
    assert!(far(&logits(&model, halves), &whole) < 1e-4);
    assert!(far(&scaled(0.5), &whole) > 1e-3 && far(&scaled(0.5), &plain) > 1e-3);
    let nothing = Bank::from(&lora).with(lora.clone(), -1.0).unwrap();
    assert!(far(&logits(&model, nothing), &plain) < 1e-4);
    let Err(Error::Config { field, .. }) = Bank::default().with(lora, f32::NAN) else { panic!("NaN") };
    assert_eq!(field, "scale");
}

/// An adapter of whole MLP blocks beside one of the linears inside, with instance routing: each keeps its own choices.
#[test]
fn methods_of_different_hooks_share_a_block() {
    let model = open(&Device::cpu());
    let ffn = adapter(&model, "mixlora-ffn", ALL_LINEAR, 1);
    let cond = adapter(&model, "mixlora-cond", ALL_LINEAR, 2);
    let bank = Bank::from(&ffn).with(cond.clone(), 1.0).unwrap();
    let mut c = Conversation::new(&model, &bank, 1);
    c.push(&IDS).unwrap();
    let counts: Vec<usize> = c.choices().map(|choices| choices.all().len()).collect();
    let layers = model.config().num_hidden_layers;
    assert_eq!(counts, [layers, 4 * layers], "choices of MLP blocks, and of groups of linears");
    let alone = logits(&model, &ffn);
    assert!(far(c.logits(0), &alone) > 1e-3 && far(c.logits(0), &logits(&model, &cond)) > 1e-3);
    let silent = Bank::from(&ffn).with(cond, 0.0).unwrap();
    let worst = far(&logits(&model, silent), &alone);
    assert!(worst < 1e-4, "{worst}");
    // Token by token it is what it is at once: every member keeps its prompt's choice.
    let mut whole = Conversation::new(&model, &bank, 1);
    whole.push(&IDS).unwrap();
    for id in [7, 9, 11] {
        whole.push(&[id]).unwrap();
    }
    let mut parts = Conversation::new(&model, &bank, 1);
    parts.push(&IDS).unwrap();
    parts.push(&[7, 9, 11]).unwrap();
    assert!(far(whole.logits(0), parts.logits(0)) < 1e-4);
}

#[test]
fn members_train_together_and_when_blocks_are_computed_again() {
    let model = open(&Device::reference());
    let members = [("mixlora-ffn", 0.7), ("mixlora-cond-gated", 1.0), ("lora", -0.4)];
    let adapters = members.map(|(name, _)| adapter(&model, name, ALL_LINEAR, 3));
    let some: Vec<Param> = adapters.iter().flat_map(|a| a.trainable().into_iter().step_by(31)).collect();
    let d = model.config().hidden_size;
    let x = Tensor::from_f32(model.device(), &[1, 4, d], &Stream::new(2).normal_vec(4 * d, 1.0)).unwrap();
    for recompute in [false, true] {
        // Choices of the first call are kept for the others, for each adapter apart.
        let kept: Vec<Choices> = adapters.iter().map(|_| Choices::record()).collect();
        let forced: Vec<Choices> = kept.iter().map(Choices::replay).collect();
        let first = std::cell::Cell::new(true);
        let run = |x: &Tensor, _: &Choices| -> Result<Vec<Tensor>> {
            let choices = if first.replace(false) { &kept } else { &forced };
            let units = Units::instances(x.device(), 1, 4)?;
            let each =
                adapters.iter().zip(members).zip(choices).map(|((adapter, (_, scale)), choices)| Member {
                    choices: choices.clone(),
                    ..Member::new(adapter.sites().clone(), scale, units.clone())
                });
            let pass = Pass::new(units.clone()).with_bank(each.collect());
            let step = Step { recompute, ..Step::default() };
            Ok(vec![model.forward(Input::Embeddings(x), &pass, step)?])
        };
        for e in gradcheck_params(&some, &x, run).unwrap() {
            assert!(e.error < 10.0 * GRADCHECK_BOUND, "{}: {:.1e}", e.name, e.error);
        }
    }
    let bank = Bank::from(&adapters[1]).with(adapters[2].clone(), 0.5).unwrap();
    assert_eq!(no_grad(|| logits(&model, &bank)).len(), model.config().vocab_size);
}
