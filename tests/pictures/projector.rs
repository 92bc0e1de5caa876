//! The projector of a model that sees: trained by the command, kept with the run, refused where it does not belong.
#![cfg(all(feature = "images", feature = "tokenizer", feature = "cli"))]

use crate::common::cli::{mixlora, output};
use crate::common::edit::Edit;
use crate::common::seeing::{copy, golden, picture_data};
use mixlora::adapter::{Adapter, AdapterWeights};
use mixlora::data::Batch;
use mixlora::io::{Checkpoint, GgufFile};
use mixlora::mixture::{Methods, Units, find};
use mixlora::model::vision::{VisionFiles, VisionModel};
use mixlora::model::{LoadOptions, Model};
use mixlora::nn::Pass;
use mixlora::train::{End, Inputs, Run, RunConfig, Session, Stop, StoredRun};
use mixlora::{Device, Stream, Tensor, no_grad};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// The projector's only tensor, as the adapter's folder and as the model's files have it.
const STORED: &str = "base_model.model.model.connector.modality_projection.proj.weight";
const OWN: &str = "model.connector.modality_projection.proj.weight";

/// A model that sees, data about pictures, and runs.
struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Place(tempfile::tempdir().unwrap());
        picture_data(place.0.path());
        std::fs::create_dir(place.path("model")).unwrap();
        copy("vlm_idefics3", &place.path("model"));
        place
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn text(&self, name: &str) -> String {
        self.path(name).to_string_lossy().into_owned()
    }
    /// `mixlora train` for six steps.
    fn train(&self, out: &str, more: &[&str], code: i32) -> (String, String) {
        let args = ["train", "--model", &self.text("model"), "--data", &self.text("data"), "--lr", "5e-3"];
        let small = ["--steps", "6", "--set", "r=2", "--quiet", "--out", &self.text(out)];
        output(mixlora(&[&args[..], &small, more].concat()), code)
    }
    /// The loss on the validation data, which are about pictures.
    fn loss(&self, more: &[&str], code: i32) -> Result<f64, String> {
        let args = ["eval", "--model", &self.text("model"), "--data", &self.text("data"), "--json"];
        let (out, err) = output(mixlora(&[&args[..], more].concat()), code);
        serde_json::from_str::<Value>(&out).map_or(Err(err), |report| Ok(report["loss"].as_f64().unwrap()))
    }
    fn config(&self, method: &str) -> RunConfig {
        let mut config = RunConfig::defaults(find(method).unwrap()).unwrap();
        config.method = config.method.with("r", 2).unwrap();
        config.model = self.path("model");
        config.data = self.path("data");
        config.device.name = "cpu".into();
        config.train.steps = Some(6);
        config.train.learning_rate = 5e-3;
        config.train.projector_learning_rate = Some(2e-3);
        config
    }
    fn last(&self, run: &str) -> PathBuf {
        mixlora::adapter::pointed(&self.path(run).join("last")).unwrap()
    }
    fn bytes(&self, run: &str, file: &str) -> Vec<u8> {
        std::fs::read(self.last(run).join(file)).unwrap()
    }
    /// The files of an adapter in a folder of their own, where they may be changed.
    fn adapter(&self, run: &str, to: &str) -> PathBuf {
        std::fs::create_dir(self.path(to)).unwrap();
        for entry in std::fs::read_dir(self.last(run)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if !["MANIFEST.json", "state.json", "optimizer.safetensors"].contains(&name.as_str()) {
                std::fs::copy(&path, self.path(to).join(name)).unwrap();
            }
        }
        self.path(to)
    }
    /// Changes `mixlora.json`, `config.json` or another file of JSON.
    fn edit(&self, file: &Path, change: impl FnOnce(&mut Value)) {
        let mut value: Value = serde_json::from_slice(&std::fs::read(file).unwrap()).unwrap();
        change(&mut value);
        std::fs::write(file, value.to_string()).unwrap();
    }
    /// Changes a weight of the model.
    fn change_weight(&self, name: &str) {
        Edit::open(&self.path("model/model.safetensors"))
            .value(name, 3, |v| v + 0.5)
            .write(&self.path("model"), "model");
    }
}

#[test]
fn a_user_trains_the_projector() {
    let place = Place::new();
    place.train("frozen", &["--method", "lora"], 0);
    assert!(!place.last("frozen").join("projector.safetensors").exists());
    place.train("both", &["--method", "lora", "--projector-lr", "5e-3"], 0);
    let trained = Checkpoint::open(place.last("both").join("projector.safetensors")).unwrap();
    assert_eq!(trained.names().collect::<Vec<_>>(), [STORED]);
    let own = Checkpoint::open(place.path("model")).unwrap();
    assert_eq!(trained.dims(STORED).unwrap(), own.dims(OWN).unwrap());
    let moved = trained
        .values_f32(STORED)
        .unwrap()
        .iter()
        .zip(own.values_f32(OWN).unwrap())
        .fold(0f32, |most, (new, old)| most.max((new - old).abs()));
    assert!((1e-3..0.1).contains(&moved), "{moved}");

    // Its rate goes with the adapter's: both are 5e-3 here.
    let log = std::fs::read_to_string(place.path("both").join("metrics.jsonl")).unwrap();
    let steps: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let steps: Vec<&Value> = steps.iter().filter(|line| line["t"] == "step").collect();
    assert!(steps.len() == 6 && steps[5]["lr"].as_f64() < steps[1]["lr"].as_f64());
    assert!(steps.iter().all(|step| step["lr"] == step["projector_lr"]), "{steps:?}");
    // Memory is planned for it: gradient and two moments. Its values are there in any case.
    let plan = |more: &[&str]| {
        let args = [
            "plan",
            "--model",
            &place.text("model"),
            "--data",
            &place.text("data"),
            "--method",
            "lora",
            "--json",
        ];
        let (out, _) = output(mixlora(&[&args[..], more].concat()), 0);
        let plan: Value = serde_json::from_str(&out).unwrap();
        ["projector", "gradients", "optimizer"].map(|what| plan["bytes"][what].as_f64().unwrap())
    };
    let [values, gradients, moments] = plan(&["--projector-lr", "5e-3"]);
    let [same, without, no_moments] = plan(&[]);
    let more = gradients - without + moments - no_moments;
    assert!((more / (12.0 * 48.0 * 128.0) - 1.04).abs() < 1e-3, "{more}");
    assert!(values == same && (values / (4.0 * 48.0 * 128.0) - 1.04).abs() < 1e-3, "{values}");

    // What the run measured at its end is what `eval` measures with its folder.
    let at_end = |run: &str| {
        let log = std::fs::read_to_string(place.path(run).join("metrics.jsonl")).unwrap();
        let mut lines = log.lines().rev().map(|line| serde_json::from_str::<Value>(line).unwrap());
        lines.find(|line| line["t"] == "eval").unwrap()["loss"].as_f64().unwrap()
    };
    let both = place.loss(&["--adapter", &place.text("both")], 0).unwrap();
    assert!((both - at_end("both")).abs() < 1e-5 && both < at_end("frozen"), "{both}");
    // Without its projector it is refused, and not used with the model's, with which it says something else.
    let bare = place.adapter("both", "bare");
    std::fs::remove_file(bare.join("projector.safetensors")).unwrap();
    let e = place.loss(&["--adapter", &place.text("bare")], 3).unwrap_err();
    assert!(e.contains("projector.safetensors: is missing"), "{e}");
    place.edit(&bare.join("mixlora.json"), |file| file["vision"]["projector_trained"] = false.into());
    let bare = place.loss(&["--adapter", &place.text("bare")], 0).unwrap();
    assert!((bare - both).abs() > 1e-3, "{bare}");

    let picture = place.text("data/red.png");
    let say = |more: &[&str]| {
        let args =
            ["generate", "--model", &place.text("model"), "--image", &picture, "-n", "6", "What is it?"];
        output(mixlora(&[&args[..], more].concat()), 0).0
    };
    assert_ne!(say(&["--adapter", &place.text("both")]), say(&[]));
}

/// The command's steps are those of a session with the projector, which is compared with PyTorch's trajectories.
#[test]
fn the_command_trains_as_a_session_does() {
    let place = Place::new();
    let config = place.config("mixlora-cond");
    let mut run = Run::open(config.clone(), Some(&place.path("run")), &mut ()).unwrap();
    assert_eq!(run.go(&Stop::default(), &mut ()).unwrap(), End::Finished);

    let cpu = Device::cpu();
    let parts = Inputs::read(config.clone()).unwrap().load(&cpu, false).unwrap();
    let (vision, _) = parts.vision.unwrap();
    let targets = mixlora::adapter::resolve_targets(&config.target_modules, parts.model.config()).unwrap();
    let stream = Stream::new(config.train.seed).named("adapter");
    let adapter = Adapter::attach(&parts.model, &config.method, &targets, stream).unwrap();
    let session = Session::new(parts.model.clone(), adapter, config.train.session(6)).unwrap();
    let mut session = session.with_projector(&vision, 2e-3 / 5e-3).unwrap();
    let sizes = mixlora::data::SamplerConfig {
        seed: config.train.seed,
        micro_batch: config.train.micro_batch,
        grad_accumulation: 1,
        bucket_steps: 0,
    };
    let train = parts.train;
    let mut sampler = mixlora::data::Sampler::new(train.examples.len(), &train.lengths(), sizes).unwrap();
    for _ in 0..6 {
        let ids = sampler.next_step().concat();
        let examples: Vec<_> = ids.iter().map(|&i| &train.examples[i]).collect();
        let batch = Batch::new(&examples, config.method.framing(), parts.pad, &cpu).unwrap();
        session.step(&[batch]).unwrap();
    }
    let file = Checkpoint::open(place.last("run").join("projector.safetensors")).unwrap();
    let by_hand = vision.projector().params()[0].value().to_f32().unwrap();
    assert!(file.values_f32(STORED).unwrap() == by_hand, "the projectors differ");
    assert!(place.bytes("run", "adapter_model.safetensors") == session.adapter.to_safetensors().unwrap());
}

#[test]
fn a_stopped_run_goes_on_to_the_same_bytes() {
    for (method, model) in [("mixlora-cond-gated", "vlm_idefics3"), ("lora", "vlm_llava15_new_names")] {
        let place = Place::new();
        let mut config = place.config(method);
        config.model = golden().join(model);
        let train = |name: &str, stops: &[usize]| {
            for stop in stops.iter().map(|&stop| Some(stop)).chain([None]) {
                let mut run = Run::open(config.clone(), Some(&place.path(name)), &mut ()).unwrap();
                run.go(&Stop::at(stop), &mut ()).unwrap();
                assert_eq!(run.is_finished(), stop.is_none());
            }
        };
        train("whole", &[]);
        train("parts", &[2, 3]);
        for file in
            ["adapter_model.safetensors", "projector.safetensors", "optimizer.safetensors", "mixlora.json"]
        {
            assert!(place.bytes("whole", file) == place.bytes("parts", file), "{model}: {file}");
        }
        let moments = Checkpoint::open(place.last("parts").join("optimizer.safetensors")).unwrap();
        let of_projector = moments.names().filter(|name| name.contains("proj.") || name.contains("linear_"));
        assert!(of_projector.filter(|name| name.ends_with("exp_avg_sq")).count() > 0);
    }
}

#[test]
fn what_a_resumed_run_may_change() {
    let place = Place::new();
    let config = place.config("lora");
    let mut run = Run::open(config.clone(), Some(&place.path("run")), &mut ()).unwrap();
    run.go(&Stop::at(Some(2)), &mut ()).unwrap();
    drop(run);
    let stored = StoredRun::open(&place.path("run"), &Methods::builtin()).unwrap();
    let changed = |rate: Option<f64>| {
        let mut config = stored.config.clone();
        config.train.projector_learning_rate = rate;
        stored.changes(&config)
    };
    assert_eq!(changed(Some(1e-4)).unwrap(), ["train.projector_learning_rate: 0.002 -> 0.0001"]);
    let e = changed(None).unwrap_err().to_string();
    assert!(e.contains("cannot change") && e.contains("train.projector_learning_rate"), "{e}");
}

#[test]
fn a_projector_goes_on_in_another_run() {
    let place = Place::new();
    place.train("first", &["--method", "lora", "--projector-lr", "5e-3"], 0);
    // It is not trained any more, but still not the model's own.
    place.train("second", &["--method", "lora", "--start-from", &place.text("first")], 0);
    assert!(place.bytes("first", "projector.safetensors") == place.bytes("second", "projector.safetensors"));
    place.train(
        "third",
        &["--method", "lora", "--start-from", &place.text("first"), "--projector-lr", "5e-3"],
        0,
    );
    assert!(place.bytes("first", "projector.safetensors") != place.bytes("third", "projector.safetensors"));
    // A copy without a model keeps it too.
    AdapterWeights::read(&place.path("first"), &Methods::builtin())
        .unwrap()
        .save(&place.path("copy"))
        .unwrap();
    let copied = std::fs::read(place.path("copy/projector.safetensors")).unwrap();
    assert!(copied == place.bytes("first", "projector.safetensors"));
}

#[test]
fn another_tower_processor_or_projector_is_refused() {
    let refused = |trained: bool, change: &dyn Fn(&Place), text: &str| {
        let place = Place::new();
        let more = ["--method", "lora", "--projector-lr", "5e-3"];
        place.train("run", &more[..if trained { 4 } else { 2 }], 0);
        let adapter = place.text("run");
        place.loss(&["--adapter", &adapter], 0).unwrap();
        change(&place);
        let e = place.loss(&["--adapter", &adapter], 3).unwrap_err();
        assert!(e.contains("mixlora.json") && e.contains(text), "{e}");
        // A run that goes on says so as well.
        let args = ["train", "--resume", &adapter, "--set", "train.steps=7", "--quiet"];
        let (_, e) = output(mixlora(&args), 3);
        assert!(e.contains(text), "{e}");
        // Text does not ask for the vision part.
        output(
            mixlora(&["generate", "--model", &place.text("model"), "--adapter", &adapter, "-n", "1", "No?"]),
            0,
        );
        place.loss(&["--adapter", &adapter, "--force"], 0).unwrap();
    };
    for trained in [true, false] {
        let tower = |place: &Place| place.change_weight("model.vision_model.encoder.layers.1.mlp.fc1.bias");
        refused(trained, &tower, "another vision tower: the tower has the same sizes and other weights");
        let activation = |place: &Place| {
            place
                .edit(&place.path("model/config.json"), |c| c["vision_config"]["hidden_act"] = "gelu".into());
        };
        refused(trained, &activation, "hidden_act \"gelu_pytorch_tanh\" there and \"gelu\" here");
        let mean = |place: &Place| {
            place.edit(&place.path("model/preprocessor_config.json"), |c| c["image_mean"][1] = 0.25.into());
        };
        refused(trained, &mean, "prepared in another way: mean [0.5,0.5,0.5] there and [0.5,0.25,0.5] here");
    }
    let projector = |place: &Place| place.change_weight(OWN);
    refused(false, &projector, "another projector between tower and model");
    // One that was trained takes the place of any.
    let place = Place::new();
    place.train("run", &["--method", "lora", "--projector-lr", "5e-3"], 0);
    let before = place.loss(&["--adapter", &place.text("run")], 0).unwrap();
    projector(&place);
    assert_eq!(place.loss(&["--adapter", &place.text("run")], 0).unwrap(), before);
}

#[test]
fn a_copy_in_another_precision_is_the_same_tower() {
    let place = Place::new();
    place.train("frozen", &["--method", "lora"], 0);
    place.train("trained", &["--method", "lora", "--projector-lr", "5e-3"], 0);
    let original = Edit::open(&place.path("model/model.safetensors"));
    type Narrow = fn(f32) -> [u8; 2];
    let copies: [(safetensors::Dtype, Narrow); 2] = [
        (safetensors::Dtype::F16, |v| half::f16::from_f32(v).to_le_bytes()),
        (safetensors::Dtype::BF16, |v| half::bf16::from_f32(v).to_le_bytes()),
    ];
    for (dtype, narrow) in copies {
        let mut copy = original.clone();
        for (kind, _, bytes) in copy.tensors.values_mut() {
            let values = bytes.chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            *bytes = values.flat_map(narrow).collect();
            *kind = dtype;
        }
        copy.write(&place.path("model"), "model");
        for run in ["frozen", "trained"] {
            place.loss(&["--adapter", &place.text(run)], 0).unwrap();
        }
    }
}

#[test]
fn damaged_projectors_are_refused() {
    let place = Place::new();
    place.train("run", &["--method", "lora", "--projector-lr", "5e-3"], 0);
    let file = Edit::open(&place.last("run").join("projector.safetensors"));
    let adapter = place.adapter("run", "adapter");
    let refused = |file: Edit, text: &str| {
        file.write(&adapter, "projector");
        let e = place.loss(&["--adapter", &place.text("adapter")], 3).unwrap_err();
        assert!(e.contains("projector.safetensors") && e.contains(text), "{e}");
    };
    let dims = file.tensors[STORED].1.clone();
    refused(
        file.clone().with("base_model.model.model.other", &[2]),
        "has 'other', which the model's projector has not",
    );
    refused(file.clone().retype(STORED, safetensors::Dtype::F32, &[dims[1], dims[0]]), "expected [48, 128]");
    refused(
        file.clone().without(STORED).with("base_model.model.model.connector.bias", &[4]),
        "has 'connector.bias'",
    );
    std::fs::write(adapter.join("projector.safetensors"), "x").unwrap();
    let e = place.loss(&["--adapter", &place.text("adapter")], 3).unwrap_err();
    assert!(e.contains("projector.safetensors"), "{e}");

    let twice = ["--adapter", &place.text("run"), "--adapter", &place.text("run")];
    let e = place.loss(&twice, 3).unwrap_err();
    assert!(e.contains("several have a projector of their own"), "{e}");
}

#[test]
fn a_rate_without_a_projector_or_a_picture_is_refused() {
    let place = Place::new();
    let rate = ["--method", "lora", "--projector-lr", "1e-3"];
    let text =
        r#"[{"conversations": [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "no"}]}]"#;
    std::fs::write(place.path("text.json"), text).unwrap();
    let args = |model: &str| {
        let args = ["train", "--model", model, "--data", &place.text("text.json"), "--out", &place.text("a")];
        output(mixlora(&[&args[..], &rate].concat()), 3).1
    };
    let e = args(&place.text("model"));
    assert!(
        e.contains("train.projector_learning_rate") && e.contains("no sample of") && e.contains("text.json"),
        "{e}"
    );
    let e = args("data/tiny");
    assert!(e.contains("data/tiny has no vision part"), "{e}");
    for rate in ["0", "-1", "inf"] {
        let (_, e) = place.train("a", &["--method", "lora", "--projector-lr", rate], 3);
        assert!(e.contains("train.projector_learning_rate"), "{e}");
    }
    assert!(!place.path("a").exists());
}

#[test]
fn adapters_of_before_load_as_before() {
    let place = Place::new();
    place.train("run", &["--method", "lora"], 0);
    let now = place.loss(&["--adapter", &place.text("run")], 0).unwrap();
    let adapter = place.adapter("run", "old");
    place.edit(&adapter.join("mixlora.json"), |file| {
        drop(file.as_object_mut().unwrap().remove("vision").unwrap())
    });
    assert_eq!(place.loss(&["--adapter", &place.text("old")], 0).unwrap(), now);
    let model = Model::open(&place.path("model"), &Device::cpu()).unwrap();
    assert!(Adapter::load(&adapter, &model).unwrap().vision().is_none());
    // An adapter that never saw a picture has no word of it.
    let text =
        r#"[{"conversations": [{"from": "human", "value": "Is it?"}, {"from": "gpt", "value": "no"}]}]"#;
    std::fs::write(place.path("text.json"), text).unwrap();
    let args =
        ["train", "--model", &place.text("model"), "--data", &place.text("text.json"), "--method", "lora"];
    output(mixlora(&[&args[..], &["--steps", "1", "--quiet", "--out", &place.text("text")]].concat()), 0);
    assert!(!String::from_utf8(place.bytes("text", "mixlora.json")).unwrap().contains("vision"));
}

#[test]
fn a_changed_picture_is_noticed() {
    let place = Place::new();
    place.train("run", &["--method", "lora", "--stop-at", "3"], 0);
    let resume = |code: i32| output(mixlora(&["train", "--resume", &place.text("run"), "--quiet"]), code).1;
    let picture = place.path("data/red.png");
    let before = std::fs::read(&picture).unwrap();
    std::fs::copy(place.path("data/blue.png"), &picture).unwrap();
    let e = resume(3);
    assert!(e.contains("a picture of the data has other bytes than when this run began"), "{e}");
    std::fs::write(&picture, before).unwrap();
    resume(0);
}

/// The rows of the first samples' pictures.
fn rows(vision: &VisionModel, pictures: &Path) -> Vec<f32> {
    let file = Checkpoint::open(pictures.join("expected.safetensors")).unwrap();
    let dims = file.dims("pixel_values").unwrap();
    let pixels = Tensor::from_f32(vision.tower().device(), dims, &file.values_f32("pixel_values").unwrap());
    let rows = no_grad(|| vision.rows(&pixels.unwrap(), &Pass::new(Units::tokens(0)))).unwrap();
    rows.to_f32().unwrap()
}

/// What is read back from an mmproj file.
fn read_back(path: &Path, cpu: &Device, image_token: u32) -> VisionModel {
    let (files, config) = VisionFiles::open_gguf(GgufFile::open(path).unwrap(), image_token).unwrap();
    VisionModel::load(config, &files, cpu, &LoadOptions::default(), false).unwrap()
}

#[test]
fn an_exported_file_is_that_of_the_converter() {
    let place = Place::new();
    let export = |more: &[&str], code: i32| {
        output(mixlora(&[&["export", "--model", &place.text("model")][..], more].concat()), code)
    };
    let (out, _) = export(&["--mmproj", &place.text("own.gguf")], 0);
    assert!(out.contains("the model's own projector"), "{out}");
    // The reference file was written by llama.cpp's rules from the same model: every entry, every tensor, every byte.
    let ours = GgufFile::open(place.path("own.gguf")).unwrap();
    let theirs = GgufFile::open(golden().join("vlm_idefics3/mmproj.gguf")).unwrap();
    assert_eq!(ours.metadata(), theirs.metadata());
    assert_eq!(ours.tensors().keys().collect::<Vec<_>>(), theirs.tensors().keys().collect::<Vec<_>>());
    for (name, tensor) in theirs.tensors() {
        assert_eq!(ours.tensor(name).unwrap().dims, tensor.dims, "{name}");
        assert!(ours.raw(name).unwrap().bytes == theirs.raw(name).unwrap().bytes, "{name}");
    }

    place.train("run", &["--method", "mixlora-cond", "--set", "num_factors=4", "--projector-lr", "5e-3"], 0);
    let (out, _) = export(&["--adapter", &place.text("run"), "--mmproj", &place.text("run.gguf")], 0);
    assert!(out.contains("the adapter's projector"), "{out}");
    let cpu = Device::cpu();
    let model = Model::open(&place.path("model"), &cpu).unwrap();
    let own =
        VisionModel::open(&place.path("model"), &model, &LoadOptions::default(), false).unwrap().unwrap();
    let before = rows(&own, &place.path("model"));
    assert!(before == rows(&read_back(&place.path("own.gguf"), &cpu, 334), &place.path("model")));
    let adapter = Adapter::load(&place.path("run"), &model).unwrap();
    adapter.vision().unwrap().put_into(&own).unwrap();
    let trained = rows(&own, &place.path("model"));
    assert!(trained != before);
    assert!(trained == rows(&read_back(&place.path("run.gguf"), &cpu, 334), &place.path("model")));

    let (_, e) = export(&["--mmproj", &place.text("run.gguf")], 3);
    assert!(e.contains("exists"), "{e}");
    export(&[], 2);
    let args = ["export", "--model", "data/tiny", "--mmproj", &place.text("none.gguf")];
    let (_, e) = output(mixlora(&args), 3);
    assert!(e.contains("has no vision part") && !place.path("none.gguf").exists(), "{e}");
}

#[test]
fn a_llava_is_exported_as_far_as_files_have_words() {
    let place = Place::new();
    let model = place.path("model");
    copy("vlm_llava15_new_names", &model);
    let config = model.join("config.json");
    let export = |name: &str, code: i32| {
        let args = ["export", "--model", &place.text("model"), "--mmproj", &place.text(name)];
        output(mixlora(&args), code).1
    };
    let e = export("full.gguf", 3);
    assert!(e.contains("features with the class token"), "{e}");
    place.edit(&config, |c| c["vision_feature_select_strategy"] = "default".into());
    for layer in [-1, -2] {
        place.edit(&config, |c| c["vision_feature_layer"] = layer.into());
        let name = format!("layer{layer}.gguf");
        export(&name, 0);
        let cpu = Device::cpu();
        let decoder = Model::open(&model, &cpu).unwrap();
        let own = VisionModel::open(&model, &decoder, &LoadOptions::default(), false).unwrap().unwrap();
        assert!(rows(&own, &model) == rows(&read_back(&place.path(&name), &cpu, 333), &model));
        let file = GgufFile::open(place.path(&name)).unwrap();
        assert_eq!(file.u32("clip.vision.block_count").unwrap() as i32, 3 + layer);
        assert_eq!(file.tensor("v.blk.1.ln1.weight").is_ok(), layer == -1);
        let mean = file.get("clip.vision.image_mean").unwrap();
        let want = mixlora::io::gguf::Array::F32(vec![0.48145466, 0.4578275, 0.40821073]);
        assert_eq!(*mean, mixlora::io::gguf::Value::Array(want));
    }
    let refused = |file: &Path, edit: fn(&mut Value), text: &str| {
        let before = std::fs::read(file).unwrap();
        place.edit(file, edit);
        let e = export("refused.gguf", 3);
        assert!(e.contains(text) && !place.path("refused.gguf").exists(), "{e}");
        std::fs::write(file, before).unwrap();
    };
    refused(&config, |c| c["vision_config"]["hidden_act"] = "gelu".into(), "a tower with the exact GELU");
    refused(&config, |c| c["multimodal_projector_bias"] = false.into(), "an MLP without biases");
    let pictures = model.join("preprocessor_config.json");
    refused(
        &pictures,
        |c| c["crop_size"]["width"] = 32.into(),
        "pictures of 24 x 32 pixels for a tower of 24",
    );
    refused(&pictures, |c| c["rescale_factor"] = 0.01.into(), "a rescale_factor of 0.01");
}
