//! What a model that sees takes of a device's memory, planned and measured by the device's own counters.
#![cfg(all(feature = "cli", feature = "tokenizer", feature = "images"))]

mod common;

use common::cli::{mixlora, output};
use common::seeing;
use mixlora::io::{Named, safetensors_bytes};
use mixlora::mixture::Units;
use mixlora::mixture::{Methods, find};
use mixlora::model::vision::{Feature, ProjectorKind, Tower, TowerConfig, TowerShape};
use mixlora::nn::Pass;
use mixlora::picture::Picture;
use mixlora::train::{Inputs, PlannedPictures, Run, RunConfig};
use mixlora::{Device, Stream, Tensor, no_grad};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn clip(hidden: usize, inner: usize, image: usize, patch: usize) -> Value {
    json!({
        "model_type": "clip_vision_model", "hidden_size": hidden, "intermediate_size": inner, "num_hidden_layers": 3,
        "num_attention_heads": 4, "image_size": image, "patch_size": patch,
    })
}

fn siglip(hidden: usize, inner: usize, image: usize, patch: usize) -> Value {
    let mut config = clip(hidden, inner, image, patch);
    config["model_type"] = json!("siglip_vision_model");
    config
}

fn lite0(image: usize) -> Value {
    json!({ "model_type": "efficientnet-lite0", "image_size": image })
}

/// What is planned over what is measured, where that is not near 1.
fn far(planned: f64, measured: f64, what: &str) -> Option<String> {
    let ratio = planned / measured;
    println!("{what}: planned / measured = {ratio:.3} of {measured}");
    (!(0.9..1.1).contains(&ratio))
        .then(|| format!("{what}: {planned} planned, {measured} measured, {ratio:.3}"))
}

#[test]
fn a_tower_takes_what_is_planned_while_it_looks() {
    let mut wrong = Vec::new();
    for (config, tiles) in [
        (clip(192, 768, 112, 16), 1),
        (clip(192, 768, 112, 16), 5),
        (clip(128, 512, 64, 16), 1),
        (siglip(192, 768, 128, 16), 3),
        (siglip(144, 300, 96, 8), 2),
        (lite0(96), 1),
        (lite0(224), 1),
        (lite0(128), 4),
    ] {
        let what = format!("{config} x {tiles}");
        let config = TowerConfig::from_json(&config).unwrap();
        let feature = Feature::last(&config);
        let projector = ProjectorKind::Linear;
        let shape = TowerShape { name: String::new(), config, feature, projector };
        let device = Device::cpu();
        let memory = device.memory().unwrap();
        let tower = Tower::of_shape(&shape, &device).unwrap();
        let loaded = memory.current();
        let side = tower.config().image_size();
        let pixels = Stream::new(1).normal_vec(tiles * 3 * side * side, 1.0);
        memory.reset_peak();
        let pixels = Tensor::from_f32(&device, &[tiles, 3, side, side], &pixels).unwrap();
        let features = no_grad(|| tower.forward(&pixels, &Pass::new(Units::tokens(0)), None)).unwrap();
        assert_eq!(features.dims()[0], tiles);
        let mut planned = PlannedPictures::of_shape(&shape, 64);
        planned.tiles.picture = tiles;
        wrong.extend(far(planned.weights as f64, loaded as f64, &format!("weights of {what}")));
        let looking = 4.0 * 1.04 * planned.looking();
        wrong.extend(far(looking, (memory.peak() - loaded) as f64, &what));
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// A folder with a tower of random weights.
fn write_tower(dir: &Path, config: &Value) {
    std::fs::create_dir_all(dir).unwrap();
    let tower = TowerConfig::from_json(config).unwrap();
    let draw = |name: &str, dims: &[usize]| {
        let values = Stream::new(3).named(name).normal_vec(dims.iter().product(), 0.05);
        // Variances are not negative.
        if name.ends_with("running_var") { values.iter().map(|v| 1.0 + v.abs()).collect() } else { values }
    };
    let named = |e: mixlora::model::Expected| {
        let dims: Vec<usize> = e.axes.iter().map(|axis| axis.0).collect();
        Named { values: draw(&e.name, &dims), name: e.name, dims }
    };
    let tensors = tower.tensors(Feature::last(&tower)).into_iter().map(named).collect();
    std::fs::write(dir.join("model.safetensors"), safetensors_bytes(tensors).unwrap()).unwrap();
    std::fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let side = config["image_size"].as_u64().unwrap();
    let processor = json!({
        "image_processor_type": "CLIPImageProcessor", "size": { "shortest_edge": side },
        "crop_size": { "height": side, "width": side },
    });
    std::fs::write(dir.join("preprocessor_config.json"), processor.to_string()).unwrap();
}

struct Place(tempfile::TempDir);

impl Place {
    /// Eight pictures, each with a question that has a long answer.
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        std::fs::create_dir(place.path("data")).unwrap();
        let mut lines = String::new();
        for i in 0..8u8 {
            let picture = Picture::filled(50, 40, [30 * i, 200, 100]).unwrap().to_png().unwrap();
            std::fs::write(place.path(&format!("data/{i}.png")), picture).unwrap();
            let turns = json!([
                { "role": "user", "content": "<image>What?" },
                { "role": "assistant", "content": "x".repeat(160) },
            ]);
            lines += &json!({ "images": [format!("{i}.png")], "messages": turns }).to_string();
            lines += "\n";
        }
        std::fs::write(place.path("data/train.jsonl"), lines).unwrap();
        place
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn config(&self, model: &Path, tower: Option<&Path>, changes: &[(&str, Value)]) -> RunConfig {
        let spec = find("mixlora-cond").unwrap();
        let mut layers = vec![(
            "test".to_string(),
            json!({
                "model": model, "vision": tower, "data": self.path("data"), "method": spec.name,
                "text": { "max_length": 512, "allow_untrained_eos": true },
                "train": { "steps": 4, "micro_batch": 4 },
            }),
        )];
        for (key, value) in changes {
            layers.push(("test".into(), RunConfig::setting(spec, key, value.clone()).unwrap()));
        }
        RunConfig::layered(&layers, &Methods::builtin()).unwrap()
    }
    /// What was planned over the peak of two steps, where that is not near 1.
    fn far(&self, config: &RunConfig, what: &str) -> Option<String> {
        let device = Device::cpu();
        let inputs = Inputs::read(config.clone()).unwrap();
        let plan = inputs.plan(None).unwrap();
        let seen = plan.pictures.expect("there are pictures");
        assert_eq!((seen.pictures, plan.shape.0), (8, config.train.micro_batch));
        let mut run = Run::start(inputs.load(&device, false).unwrap(), None).unwrap();
        run.step(&mut ()).unwrap();
        run.step(&mut ()).unwrap();
        far(plan.total() as f64, device.memory().unwrap().peak() as f64, &format!("{what}: {plan:?}"))
    }
}

#[test]
fn runs_with_pictures_take_what_is_planned() {
    let place = Place::new();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/tiny");
    let mut wide = siglip(256, 32_768, 112, 16);
    wide["num_hidden_layers"] = json!(1);
    let towers = [
        ("clip", clip(192, 768, 112, 16)),
        ("siglip", siglip(144, 300, 96, 16)),
        ("lite0", lite0(96)),
        // More than the steps need.
        ("wide", wide),
    ];
    let learns = ("projector_learning_rate", json!(1e-3));
    let mut wrong = Vec::new();
    for (name, config) in towers {
        let dir = place.path(name);
        write_tower(&dir, &config);
        let small = |n: usize| vec![learns.clone(), ("recompute", json!(true)), ("micro_batch", json!(n))];
        let changes = if name == "wide" { vec![small(1)] } else { vec![vec![learns.clone()], small(8)] };
        for more in changes {
            let config = place.config(&tiny, Some(&dir), &more);
            wrong.extend(place.far(&config, &format!("{name} {more:?}")));
        }
    }
    for model in ["vlm_idefics3", "vlm_llava15_new_names"] {
        for more in [vec![], vec![learns.clone()]] {
            let config = place.config(&seeing::golden().join(model), None, &more);
            wrong.extend(place.far(&config, &format!("{model} {more:?}")));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Sizes alone are enough: of shapes by name, and of folders that hold config.json and nothing else.
#[test]
fn models_are_planned_by_their_sizes() {
    let place = Place::new();
    let plan = |args: &[&str], code: i32| {
        let all = [&["plan", "--device", "cpu", "--memory-budget", "64GiB"][..], args].concat();
        output(mixlora(&all), code)
    };
    let json =
        |args: &[&str]| -> Value { serde_json::from_str(&plan(&[args, &["--json"]].concat(), 0).0).unwrap() };
    let bare = place.path("bare");
    std::fs::create_dir(&bare).unwrap();
    let from = seeing::golden().join("vlm_idefics3");
    std::fs::copy(from.join("config.json"), bare.join("config.json")).unwrap();
    let whole = json(&["--model", from.to_str().unwrap()]);
    let alone = json(&["--model", bare.to_str().unwrap()]);
    for what in ["base weights", "tower weights", "projector"] {
        assert!(whole["bytes"][what].as_u64().unwrap() > 0);
        assert_eq!(whole["bytes"][what], alone["bytes"][what], "{what}");
    }
    // Without preprocessor_config.json nothing says into how many tiles a picture is cut.
    assert_eq!((&whole["pictures"]["tiles"], &alone["pictures"]["tiles"]), (&json!(5), &json!(1)));
    let half = json(&["--model", bare.to_str().unwrap(), "--weights", "f16"]);
    let base = |plan: &Value| plan["bytes"]["base weights"].as_u64().unwrap();
    assert!(base(&half) < base(&alone));
    let llava = json(&[
        "--shape",
        "llama-7b-q4",
        "--tower",
        "clip-l14-336",
        "--weights",
        "file",
        "--max-length",
        "704",
    ]);
    assert_eq!(llava["pictures"]["rows"], 576);
    assert_eq!(llava["pictures"]["features"], 576 * 1024 * 4);
    let projector = (1024 * 4096 + 4096 + 4096 * 4096 + 4096) as f64 * 4.0;
    assert!((llava["bytes"]["projector"].as_f64().unwrap() / projector - 1.0).abs() < 0.05);
    let (_, said) = plan(&["--shape", "llama-7b-q4", "--tower", "clip-l14-336", "--max-length", "576"], 3);
    assert!(said.contains("more than 576, the rows of a picture"), "{said}");
    let (said, _) = plan(&["--shape", "smollm2-135m", "--tower", "siglip-b16-512"], 0);
    assert!(
        said.contains("64 of them rows of pictures") && said.contains("features of 1 pictures"),
        "{said}"
    );
    plan(&["--shape", "smollm2-135m", "--tower", "clip"], 2);
    plan(&["--shape", "smollm2-135m", "--weights", "q3"], 2);
}
