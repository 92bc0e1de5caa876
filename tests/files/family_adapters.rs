//! An adapter of every method on tiny models of every family: gradients of the model's loss against differences in f64.
//! `MIXLORA_GOLDEN_MODELS` names a folder of more models; docs in tests/golden/README.md.

use crate::common::families::models;
use mixlora::adapter::{ALL_LINEAR, Adapter};
use mixlora::check::{GRADCHECK_BOUND, gradcheck_directions};
use mixlora::mixture::{Hook, Method, Methods, RouterGradient, Select, SitePart, Units, find};
use mixlora::model::{Input, Model, Step, experts_by_tag};
use mixlora::nn::{Choices, Labels, Pass};
use mixlora::{Device, Format, Result, Stream, Tensor, no_grad};
use serde_json::json;
use std::cell::OnceCell;
use std::path::PathBuf;
use std::sync::Arc;

/// Two instances of four tokens.
const BATCH: [usize; 2] = [2, 4];

/// Every method with sizes that fit the smallest model.
fn methods() -> Vec<Method> {
    let sizes = json!({
        "r": 2, "lora_alpha": null, "lora_dropout": 0.0, "num_factors": 4, "num_experts": 2, "top_k": 2, "density": 0.5,
        "aux_loss_coef": 0.5, "experts_by_layer": [2], "frozen_rows": 0, "tasks": ["a", "b"], "sparsity_width": 8,
        "condition_width": 3, "train_experts": true,
        "kernels": [2, 3], "temperature": 1.0, "generic_tasks": ["b"], "adapt_router": true,
    });
    let small = |method: Method| {
        let own = method.spec().option_names();
        let sizes = sizes.as_object().unwrap().clone().into_iter();
        method.set(&sizes.filter(|(name, _)| own.contains(&name.as_str())).collect()).unwrap()
    };
    Methods::builtin().all().iter().map(|spec| small(spec.defaults())).collect()
}

/// The adapter of a method with values in place of its zeros; none where the method takes gated MLPs or experts and the
/// model has none.
fn attach(model: &Model, method: &Method) -> Option<Adapter> {
    let config = model.config();
    let gated = (0..config.num_hidden_layers).any(|layer| config.has_gated_mlp(layer));
    let adapter = match Adapter::attach(model, method, &[ALL_LINEAR.into()], Stream::new(1)) {
        Ok(adapter) => adapter,
        Err(error) => {
            let experts = method.options().takes(SitePart::Expert) && config.experts.is_none();
            assert!(experts || method.spec().hook == Hook::Mlp && !gated, "{error}");
            assert!(error.to_string().contains("this model has none"), "{error}");
            return None;
        }
    };
    for param in adapter.trainable() {
        let value = param.value();
        let mut values = Stream::new(3).named(&param.name()).normal_vec(value.len(), 0.1);
        // Differences do not cross the kink of a ReLU that stays on.
        if param.name().ends_with("sparsity_1_bias") {
            values.iter_mut().for_each(|v| *v += 8.0);
        }
        param.set(Tensor::from_f32(value.device(), value.dims(), &values).unwrap()).unwrap();
    }
    Some(adapter)
}

/// The worst error of a method's adapter on a model, and how many tensors were compared.
fn check(label: &str, model: &Arc<Model>, method: &Method, adapter: &Adapter) -> (f64, usize) {
    let device = model.device();
    let [batch, length] = BATCH;
    let tokens: Vec<u32> = (0..batch * length).map(|i| (3 + 41 * i % 200) as u32).collect();
    let target = |i: usize| if i % length + 1 < length { tokens[i + 1] } else { u32::MAX };
    let targets: Vec<u32> = (0..tokens.len()).map(target).collect();
    let targets = Tensor::from_u32(device, &[tokens.len()], &targets).unwrap();
    let tokens = Tensor::from_u32(device, &BATCH, &tokens).unwrap();
    let x = no_grad(|| model.embed(&tokens)).unwrap();
    // The experts of the model itself are not forced: they must stay what they were.
    let chosen: OnceCell<Vec<Vec<u32>>> = OnceCell::new();
    let run = |x: &Tensor, choices: &Choices| {
        let units = Units::instances(device, batch, length)?;
        let pass = Pass::training(units, Stream::new(5)).with_choices(choices.clone());
        let tasks = (0..batch).map(|i| Some(if i % 2 == 0 { "a" } else { "b" }.into())).collect();
        let conditions: Vec<f32> = (0..3 * batch).map(|i| i as f32 - 2.0).collect();
        let conditions = Some(Tensor::from_f32(device, &[batch, 3], &conditions)?);
        let pass = pass.with_labels(Labels { tasks, conditions, ..Labels::default() });
        let pass = pass.with_adapters(adapter.sites().clone());
        let mut experts = Vec::new();
        let step = Step { experts: Some(&mut experts), ..Step::default() };
        let rows = model.forward(Input::Embeddings(x), &pass, step)?;
        let experts: Vec<Vec<u32>> = experts.iter().map(Tensor::to_u32).collect::<Result<_>>()?;
        assert_eq!(&experts, chosen.get_or_init(|| experts.clone()), "{label}: a step crosses a choice");
        let rows = rows.reshape(&[batch * length, model.config().hidden_size])?;
        let mut losses = vec![model.loss(&rows, &targets)?];
        losses.extend(pass.take_aux()?);
        Ok(losses)
    };
    let errors = gradcheck_directions(&adapter.trainable(), &x, run).unwrap();
    let mut worst = 0f64;
    for error in &errors {
        // Ten times the bound of one layer: a whole model bends more within a step.
        assert!(error.error <= 10.0 * GRADCHECK_BOUND, "{label}: {error:?}");
        let router = ["router", "choice_embed", "sparsity"].iter().any(|part| error.name.contains(part));
        // Where one expert acts for every token, its router has no gradient on paper.
        let may_be_alone = method.options().rule().select == Select::Support;
        let learns = !router || method.options().router_gradient() == RouterGradient::Yes && !may_be_alone;
        // Nor has an expert of the model that no token chose.
        let may_be_idle = error.name.contains(".experts.");
        assert!(error.largest > 1e-6 || !learns || may_be_idle, "{label}: nothing flows to {}", error.name);
        worst = worst.max(error.error);
    }
    (worst, errors.len())
}

#[test]
fn every_method_trains_on_every_family() {
    for path in models() {
        let model = Model::open_f32(&path, &Device::reference()).unwrap();
        let family = path.file_name().unwrap().to_string_lossy();
        let start = std::time::Instant::now();
        let mut line = String::new();
        for method in methods() {
            let name = method.name();
            let Some(adapter) = attach(&model, &method) else {
                line += &format!(" {name} not taken,");
                continue;
            };
            let (worst, compared) = check(&format!("{name} on {family}"), &model, &method, &adapter);
            line += &format!(" {name} {compared} tensors {worst:.1e},");
        }
        println!("{family} {:.1} s:{line}", start.elapsed().as_secs_f64());
    }
}

fn experts() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/qwen2_moe-a")
}

/// Logits of 24 tokens, and the experts that they chose in each layer.
fn logits(model: &Model, adapter: Option<&Adapter>) -> (Vec<f64>, Vec<Tensor>) {
    let ids: Vec<u32> = (0..24).map(|i| 3 + 41 * i % 200).collect();
    let ids = Tensor::from_u32(model.device(), &[1, 24], &ids).unwrap();
    let pass = Pass::new(Units::instances(model.device(), 1, 24).unwrap());
    let pass = pass.with_adapters(adapter.map(|adapter| adapter.sites().clone()));
    let mut chosen = Vec::new();
    let step = Step { experts: Some(&mut chosen), ..Step::default() };
    let run = || model.logits(&model.forward(&ids, &pass, step)?)?.to_f64();
    (no_grad(run).unwrap(), chosen)
}

#[test]
fn uni_moe_merges_into_the_experts() {
    let model = Model::open_f32(&experts(), &Device::cpu()).unwrap();
    for adapt_router in [false, true] {
        let method = find("uni-moe").unwrap().defaults();
        let method = method.with("r", 2).unwrap().with("adapt_router", adapt_router).unwrap();
        let fresh = Adapter::attach(&model, &method, &[ALL_LINEAR.into()], Stream::new(1)).unwrap();
        let base = logits(&model, None).0;
        assert_eq!(logits(&model, Some(&fresh)).0, base, "it starts as no change");
        let config = model.config();
        let experts = config.experts.unwrap();
        let layers = (0..config.num_hidden_layers).filter(|&layer| config.has_experts(layer)).count();
        let on_experts = |name: &str| name.contains(".mlp.experts.") && name.ends_with("lora_a");
        let parts = fresh.params().iter().flat_map(|p| p.parts().to_vec()).collect::<Vec<_>>();
        assert_eq!(parts.iter().filter(|part| on_experts(&part.0)).count(), 3 * layers * experts.count);
        let on_router = parts.iter().any(|part| part.0.ends_with(".mlp.gate.lora_a"));
        assert_eq!(on_router, adapt_router);

        let adapter = attach(&model, &method).unwrap();
        let (with, _) = logits(&model, Some(&adapter));
        let folder = tempfile::tempdir().unwrap();
        adapter.merge(&model, folder.path(), Format::F32).unwrap();
        let merged = Model::open_f32(folder.path(), &Device::cpu()).unwrap();
        let (alone, _) = logits(&merged, None);
        let largest = with.iter().fold(0f64, |most, v| most.max(v.abs()));
        let worst =
            |other: &[f64]| with.iter().zip(other).fold(0f64, |w, (a, b)| w.max((a - b).abs())) / largest;
        assert!(worst(&alone) < 1e-5 && worst(&base) > 1e-2, "{} {}", worst(&alone), worst(&base));
        let error = adapter.export_gguf(&model, &folder.path().join("adapter.gguf")).unwrap_err().to_string();
        assert!(error.contains("experts"), "{error}");
    }
}

#[test]
fn experts_are_counted_by_modality() {
    let model = Model::open_f32(&experts(), &Device::cpu()).unwrap();
    let experts = model.config().experts.unwrap();
    let tags: Vec<u32> = (0..24).map(|i| u32::from(i % 3 == 2)).collect();
    let (_, chosen) = logits(&model, None);
    assert!(!chosen.is_empty());
    for chosen in &chosen {
        let counts = experts_by_tag(chosen, &tags, experts.count).unwrap();
        let rows: Vec<u64> = counts.iter().map(|counts| counts.iter().sum()).collect();
        assert_eq!(rows, [16, 8].map(|rows| rows * experts.chosen as u64));
        println!("text {:?}, image {:?}", counts[0], counts[1]);
    }
    assert!(experts_by_tag(&chosen[0], &tags[1..], experts.count).is_err());
    assert!(experts_by_tag(&chosen[0], &tags, 1).is_err());
}

#[test]
fn uni_moe_needs_experts() {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("data/tiny");
    let model = Model::open_f32(&path, &Device::cpu()).unwrap();
    let method = find("uni-moe").unwrap().defaults();
    let error = Adapter::attach(&model, &method, &[ALL_LINEAR.into()], Stream::new(1)).err().unwrap();
    let text = error.to_string();
    assert!(text.contains("mixture of experts") && text.contains("this model has none"), "{text}");
}

/// Weights that stay in q8_0 give every method what the same values in f32 give it.
#[test]
fn every_method_takes_quantised_weights() {
    let path = experts().with_file_name("smollm3-a").join("model-q8_0.gguf");
    for path in [path, experts().join("model-q8_0.gguf")] {
        let packed = Model::open(&path, &Device::cpu()).unwrap();
        let plain = Model::open_f32(&path, &Device::cpu()).unwrap();
        for method in methods() {
            let Some(adapter) = attach(&plain, &method) else { continue };
            let run = |model: &Model, adapter: &Adapter| {
                let ids = Tensor::from_u32(model.device(), &[1, 6], &[3, 44, 85, 126, 167, 8]).unwrap();
                let pass = Pass::training(Units::instances(model.device(), 1, 6).unwrap(), Stream::new(1));
                let conditions = Some(Tensor::from_f32(model.device(), &[1, 3], &[1.0, -2.0, 0.5]).unwrap());
                let labels = Labels { tasks: vec![Some("a".into())], conditions, ..Labels::default() };
                let pass = pass.with_labels(labels).with_adapters(adapter.sites().clone());
                let hidden = model.forward(Input::Embeddings(&embedded(model, &ids)), &pass, Step::default());
                let gradients = hidden.unwrap().sum().unwrap().backward().unwrap();
                let gradient = |p: &mixlora::nn::Param| p.gradient(&gradients).map(|g| g.to_f64().unwrap());
                adapter.trainable().iter().map(gradient).collect::<Vec<_>>()
            };
            let other = attach(&packed, &method).unwrap();
            for (got, want) in run(&packed, &other).iter().zip(run(&plain, &adapter)) {
                let (Some(got), Some(want)) = (got, &want) else {
                    assert_eq!(got.is_some(), want.is_some());
                    continue;
                };
                let largest = want.iter().fold(1e-3f64, |most, v| most.max(v.abs()));
                let apart = got.iter().zip(want).fold(0f64, |worst, (a, b)| worst.max((a - b).abs()));
                assert!(apart < 1e-3 * largest, "{}: {:.1e}", method.name(), apart / largest);
            }
        }
    }
}

fn embedded(model: &Model, ids: &Tensor) -> Tensor {
    no_grad(|| model.embed(ids)).unwrap()
}
