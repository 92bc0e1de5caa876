//! What routers make of pictures: pooling of text or pictures alone, a mixture on the projector, and the place in front.
#![cfg(all(feature = "images", feature = "tokenizer", feature = "cli"))]

use crate::common::cli::{mixlora, output};
use crate::common::seeing::{copy, golden, picture_data};
use mixlora::adapter::{ALL_LINEAR, Adapter, Conversation};
use mixlora::check::{GRADCHECK_BOUND, gradcheck_directions};
use mixlora::data::{Batch, Example};
use mixlora::io::Checkpoint;
use mixlora::mixture::{Method, Pool};
use mixlora::model::vision::{PictureFeatures, VisionModel};
use mixlora::model::{LoadOptions, Model, Step, Weights};
use mixlora::nn::{Choices, Param, Pass};
use mixlora::train::{loss_of, losses_by_sample};
use mixlora::{Device, Stream, Tensor, no_grad};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::sync::Arc;

/// A LLaVA with samples about one picture, two pictures and none.
struct Scene {
    model: Arc<Model>,
    vision: Arc<VisionModel>,
    image: u32,
}

impl Scene {
    fn new(device: &Device) -> Self {
        let folder = golden().join("vlm_llava15_new_names");
        let model = Model::open_f32(&folder, device).unwrap();
        let options = &LoadOptions::from(Weights::F32);
        let vision = Arc::new(VisionModel::open(&folder, &model, options, false).unwrap().unwrap());
        let image = vision.config().image_token;
        Scene { model, vision, image }
    }

    /// A sample with so many pictures behind its second token, and a condition.
    fn example(&self, pictures: usize, condition: f32) -> Example {
        let rows = pictures * self.vision.config().rows();
        let ids: Vec<u32> = [1, 7].into_iter().chain(vec![self.image; rows]).chain([9, 12, 15, 2]).collect();
        let n = ids.len();
        let trained = (0..n).map(|t| t + 2 >= n).collect();
        Example::new(ids, trained).with_condition(Some(&[condition, 1.0 - condition, 0.5]))
    }

    /// What a tower might make of so many pictures, of which the first has this number.
    fn features(&self, first: usize, pictures: usize) -> Tensor {
        let config = self.vision.config();
        let (rows, width) = (config.rows(), config.projector_places()[0].d_in);
        let of = |i| Stream::new(40 + i as u64).normal_vec(rows * width, 1.0);
        let values: Vec<f32> = (first..first + pictures).flat_map(of).collect();
        Tensor::from_f32(self.model.device(), &[pictures, rows, width], &values).unwrap()
    }

    fn batch(&self, examples: &[Example], pool: Pool, first: usize, pictures: usize) -> Batch {
        let examples: Vec<&Example> = examples.iter().collect();
        let batch = Batch::new(&examples, pool, 0, self.model.device()).unwrap();
        if pictures == 0 {
            return batch;
        }
        batch.with_pictures(&self.vision, self.features(first, pictures)).unwrap()
    }

    /// An adapter in the middle of training: no parameter is where it was drawn.
    fn adapter(&self, method: &Method) -> Adapter {
        let places = self.vision.config().projector_places();
        let targets = [ALL_LINEAR.to_string()];
        let adapter = Adapter::attach_beside(&self.model, &places, method, &targets, Stream::new(3)).unwrap();
        for param in adapter.trainable() {
            let value = param.value();
            let noise = Stream::new(8).named(&param.name()).normal_vec(value.len(), 0.3);
            let noise = Tensor::from_f32(self.model.device(), value.dims(), &noise).unwrap();
            param.set(value.add(&noise).unwrap()).unwrap();
        }
        adapter
    }
}

/// `mixlora-cond-gated` with a mixture on the projector.
fn mixed(name: &str) -> Method {
    let options = json!({ "r": 2, "num_factors": 6, "mix_mm_projector": true, "condition": "vector",
                          "condition_width": 3 });
    crate::common::method(name, options)
}

fn close(a: f64, b: f64, bound: f64) {
    assert!((a - b).abs() <= bound * a.abs().max(1.0), "{a} {b}");
}

#[test]
fn each_picture_takes_the_condition_of_its_sample() {
    let mut by_device = Vec::new();
    for device in [Device::reference(), Device::cpu()].into_iter().chain(crate::common::gpu()) {
        let scene = Scene::new(&device);
        let adapter = scene.adapter(&mixed("mixlora-cond-gated"));
        let samples = [scene.example(1, 0.9), scene.example(0, 0.4), scene.example(2, -3.0)];
        let together = loss_of(&scene.model, &adapter, &scene.batch(&samples, Pool::Real, 0, 3)).unwrap();
        let [a, b, c] = &samples;
        let alone = |example: &Example, first, pictures| {
            let batch = scene.batch(std::slice::from_ref(example), Pool::Real, first, pictures);
            loss_of(&scene.model, &adapter, &batch).unwrap()
        };
        let sum = alone(a, 0, 1) + alone(b, 0, 0) + alone(c, 1, 2);
        close(together, sum, 1e-5);
        // Another condition chooses other factors for the pictures, and none for a text.
        assert!((alone(c, 1, 2) - alone(&scene.example(2, 0.9), 1, 2)).abs() > 1e-3);
        assert_eq!(alone(b, 0, 0), alone(&scene.example(0, 0.9), 0, 0));
        by_device.push(together);
    }
    by_device.iter().for_each(|loss| close(by_device[0], *loss, 1e-5));
}

#[test]
fn the_mixture_of_the_projector_has_the_gradient_of_its_loss() {
    let device = Device::reference();
    let scene = Scene::new(&device);
    let adapter = scene.adapter(&mixed("mixlora-cond-gated"));
    let samples = [scene.example(1, 0.9), scene.example(2, -3.0)];
    let batch = |features: &Tensor| {
        let samples: Vec<&Example> = samples.iter().collect();
        let batch = Batch::new(&samples, Pool::Real, 0, &device).unwrap();
        batch.with_pictures(&scene.vision, features.clone())
    };
    let run = |features: &Tensor, choices: &Choices| {
        let batch = batch(features)?;
        let pass = Pass::new(batch.units.clone()).with_labels(batch.labels.clone());
        let pass = pass.with_adapters(adapter.sites().clone()).with_choices(choices.clone());
        losses_by_sample(&scene.model, &batch, &pass)
    };
    let params: Vec<Param> = adapter.trainable().into_iter().filter(of_projector).collect();
    // Of each linear A, B, and the routers that gates train.
    assert!(params.len() >= 6, "{:?}", params.iter().map(Param::name).collect::<Vec<_>>());
    for error in gradcheck_directions(&params, &scene.features(0, 3), run).unwrap() {
        assert!(error.error <= GRADCHECK_BOUND && error.largest > 1e-6, "{error:?}");
    }
}

fn of_projector(param: &Param) -> bool {
    param.parts().iter().all(|(name, _)| name.starts_with("multi_modal_projector."))
}

#[test]
fn routers_look_at_the_text_or_at_the_pictures() {
    let device = Device::cpu();
    let scene = Scene::new(&device);
    let method =
        crate::common::method("mixlora-cond", json!({ "r": 1, "num_factors": 24, "cfs_form": null }));
    let adapter = scene.adapter(&method);
    let chosen = |pool: Pool, first: usize, text: u32| {
        let mut sample = scene.example(1, 0.0);
        sample.ids[1] = text;
        let batch = scene.batch(&[sample], pool, first, 1);
        let record = Choices::record();
        let pass = Pass::new(batch.units.clone()).with_adapters(adapter.sites().clone());
        let pass = pass.with_choices(record.clone());
        let x = no_grad(|| batch.embedded(&scene.model, &pass)).unwrap().unwrap();
        let step = Step { valid: Some(&batch.valid), ..Step::default() };
        no_grad(|| scene.model.forward(&x, &pass, step)).unwrap();
        record.get("layers.0.qkv").unwrap().to_u32().unwrap()
    };
    // The first layer's routers see what they pool of the embedded input, and nothing else.
    let differ = |pool, pictures: bool| {
        let (firsts, texts): (Vec<usize>, Vec<u32>) =
            if pictures { ((0..6).collect(), vec![7; 6]) } else { (vec![0; 6], (20..26).collect()) };
        let all: Vec<_> =
            firsts.iter().zip(&texts).map(|(&first, &text)| chosen(pool, first, text)).collect();
        all.iter().any(|choice| *choice != all[0])
    };
    assert!(differ(Pool::Image, true) && !differ(Pool::Image, false));
    assert!(differ(Pool::Text, false) && !differ(Pool::Text, true));
    assert!(differ(Pool::PromptMask, true));
}

#[test]
fn a_conversation_reads_pictures_as_training_does() {
    let device = Device::cpu();
    let scene = Scene::new(&device);
    let front = json!({ "r": 2, "num_factors": 6, "use_contrastive_instr_token": true, "pool": "image" });
    for method in [
        crate::common::method("mixlora-cond-gated", front),
        crate::common::method("mixlora-cond-gated", json!({ "r": 2, "num_factors": 6, "pool": "text" })),
        mixed("mixlora-cond"),
    ] {
        let adapter = scene.adapter(&method);
        let sample = scene.example(2, 0.8);
        let prompt = Example { trained: vec![false; sample.ids.len()], prompt: sample.ids.len(), ..sample };
        let batch = Batch::new(&[&prompt], method.framing(), 0, &device).unwrap();
        let features = scene.features(3, 2);
        let batch = batch.with_pictures(&scene.vision, features.clone()).unwrap();
        let pass = Pass::new(batch.units.clone()).with_labels(batch.labels.clone());
        let pass = pass.with_adapters(adapter.sites().clone());
        let x = no_grad(|| batch.embedded(&scene.model, &pass)).unwrap().unwrap();
        let step = Step { valid: Some(&batch.valid), ..Step::default() };
        let states = no_grad(|| scene.model.forward(&x, &pass, step)).unwrap();
        let want = no_grad(|| scene.model.logits(&states)).unwrap().to_f32().unwrap();
        let want = &want[want.len() - scene.model.config().vocab_size..];

        let mut conversation = Conversation::new(&scene.model, &adapter, 1)
            .with_conditions(&[vec![0.8, 1.0 - 0.8, 0.5]])
            .unwrap();
        let pictures = PictureFeatures { vision: scene.vision.clone(), features };
        conversation.push_with_pictures(&prompt.ids, &pictures).unwrap();
        let worst = want
            .iter()
            .zip(conversation.logits(0))
            .fold(0f32, |worst, (want, got)| worst.max((want - got).abs()));
        assert!(worst < 1e-4, "{}: {worst}", method.name());
        conversation.push(&[5]).unwrap();
        assert!(conversation.logits(0).iter().all(|l| l.is_finite()));
    }
}

/// Data about two pictures whose samples have conditions, and a model.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        picture_data(place.0.path());
        std::fs::create_dir(place.path("model")).unwrap();
        copy("vlm_llava15_new_names", &place.path("model"));
        for name in ["data/train.json", "data/valid.json"] {
            let mut samples: Value =
                serde_json::from_slice(&std::fs::read(place.path(name)).unwrap()).unwrap();
            for sample in samples.as_array_mut().unwrap() {
                let other = sample["task_name"] == "two";
                sample["condition"] = if other { "Say its colour." } else { "Name what you see." }.into();
            }
            std::fs::write(place.path(name), samples.to_string()).unwrap();
        }
        place
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }
    fn train(&self, out: &str, more: &[&str], code: i32) -> (String, String) {
        let (model, data, out) = (self.text("model"), self.text("data"), self.text(out));
        let args =
            ["train", "--model", &model, "--data", &data, "--lr", "2e-2", "--steps", "8", "--out", &out];
        let own = ["--quiet", "--method", "mixlora-cond", "--set", "r=2", "--set", "num_factors=4"];
        output(mixlora(&[&args[..], &own, more].concat()), code)
    }
    fn last(&self, run: &str) -> PathBuf {
        mixlora::adapter::pointed(&self.path(run).join("last")).unwrap()
    }
}

#[test]
fn a_user_mixes_the_projector() {
    let place = Place::new();
    let mix = ["--set", "mix_mm_projector=true"];
    place.train("run", &mix, 0);
    let stored = Checkpoint::open(place.last("run").join("adapter_model.safetensors")).unwrap();
    for linear in ["linear_1", "linear_2"] {
        let name = format!("base_model.model.multi_modal_projector.{linear}.factors_b");
        assert!(stored.values_f32(&name).unwrap().iter().any(|b| *b != 0.0), "{name} was trained");
    }
    assert!(!place.last("run").join("projector.safetensors").exists(), "the projector is as it was");

    // A run that stops and goes on ends with the same bytes.
    place.train("parts", &[&mix[..], &["--stop-at", "3"]].concat(), 0);
    output(mixlora(&["train", "--resume", &place.text("parts"), "--quiet"]), 0);
    let bytes = |run: &str| std::fs::read(place.last(run).join("adapter_model.safetensors")).unwrap();
    assert!(bytes("run") == bytes("parts"));

    let adapter = place.last("run").to_string_lossy().into_owned();
    let (model, data) = (place.text("model"), place.text("data"));
    let (out, _) =
        output(mixlora(&["eval", "--model", &model, "--data", &data, "--adapter", &adapter, "--json"]), 0);
    let loss = serde_json::from_str::<Value>(&out).unwrap()["loss"].as_f64().unwrap();
    let log = std::fs::read_to_string(place.path("run/metrics.jsonl")).unwrap();
    let mut lines = log.lines().rev().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let at_end = lines.find(|line| line["t"] == "eval").unwrap()["loss"].as_f64().unwrap();
    close(at_end, loss, 1e-4);

    let red = place.text("data/red.png");
    let ask =
        ["generate", "--model", &model, "--adapter", &adapter, "--image", &red, "-n", "3", "What is it?"];
    output(mixlora(&[&ask[..], &["--condition", "Say its colour."]].concat()), 0);
    let (_, e) = output(mixlora(&ask), 2);
    assert!(e.contains("--condition"), "{e}");
}

#[test]
fn a_mixture_needs_a_projector_that_is_left_alone() {
    let place = Place::new();
    let mix = ["--set", "mix_mm_projector=true"];
    let (_, e) = place.train("a", &[&mix[..], &["--projector-lr", "1e-3"]].concat(), 3);
    assert!(e.contains("train.projector_learning_rate") && e.contains("mix_mm_projector"), "{e}");
    let text = r#"[{"condition": "x", "conversations": [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "no"}]}]"#;
    std::fs::write(place.path("text.json"), text).unwrap();
    for (model, why) in
        [(place.text("model"), "no sample of"), ("data/tiny".into(), "data/tiny has no vision part")]
    {
        let args =
            ["train", "--model", &model, "--data", &place.text("text.json"), "--out", &place.text("a")];
        let (_, e) = output(mixlora(&[&args[..], &["--method", "mixlora-cond"], &mix].concat()), 3);
        assert!(e.contains("options.mix_mm_projector") && e.contains(why), "{e}");
    }
    assert!(!place.path("a").exists());
    // An adapter in memory.
    let scene = Scene::new(&Device::cpu());
    let attached = Adapter::attach(&scene.model, &mixed("mixlora-cond"), &["q_proj".into()], Stream::new(1));
    assert!(attached.is_err_and(|e| e.to_string().contains("mix_mm_projector")));
}
