//! Models that see: towers and whole models against transformers, on every device; damaged folders; typed commands.

#[cfg(all(feature = "images", feature = "cli"))]
use crate::common::cli::answer_to;
#[cfg(feature = "cli")]
use crate::common::cli::{mixlora, output};
use crate::common::edit::Edit;
#[cfg(all(feature = "images", feature = "tokenizer"))]
use crate::common::seeing::picture_data;
use crate::common::seeing::{copy, golden};
use mixlora::adapter::{ALL_LINEAR, Adapter};
use mixlora::check::golden::{Replay, find_files, replay};
use mixlora::data::{Batch, Example};
use mixlora::io::{Checkpoint, GgufFile};
use mixlora::mixture::{Pool, Units};
use mixlora::model::vision::{Feature, ProjectorKind, TowerConfig, VisionConfig, VisionFiles};
use mixlora::model::{LoadOptions, Model, Weights, vision::VisionModel};
use mixlora::nn::Pass;
use mixlora::train::{Decay, Schedule, Session, TrainConfig};
use mixlora::{Device, Stream, Tensor, no_grad};
#[cfg(all(feature = "images", feature = "tokenizer"))]
use mixlora::{
    mixture::find,
    train::{End, Run, RunConfig, Stop},
};
use serde_json::{Value, json};
#[cfg(all(feature = "images", feature = "cli"))]
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;

fn files() -> Vec<PathBuf> {
    let all = find_files(&[golden()]).unwrap();
    let name = |path: &PathBuf| path.file_name().unwrap().to_string_lossy().into_owned();
    all.into_iter()
        .filter(|path| name(path).starts_with("tower_") || name(path).starts_with("expected"))
        .collect()
}

fn all_hold(device: &Device) {
    let files = files();
    assert_eq!(files.len(), 4);
    for path in files {
        let r = replay(&path, device).unwrap();
        assert!(r.holds() && r.errors.len() >= 6, "{}: {r:?}", device.name());
    }
}

#[test]
fn the_reference_holds() {
    all_hold(&Device::reference());
}

#[test]
fn the_cpu_holds() {
    all_hold(&Device::cpu());
}

#[test]
fn the_gpu_holds() {
    if let Some(gpu) = crate::common::gpu() {
        all_hold(&gpu);
    }
}

#[test]
fn a_changed_value_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let measured = |r: &Replay, name: &str| {
        let of_name = r.errors.iter().find(|measured| measured.name == name);
        of_name.is_some_and(|measured| !measured.holds())
    };
    for name in ["hidden_states", "pooled", "feature", "grad.pixel_values", "grad.embeddings.class_embedding"]
    {
        let tower = golden().join("tower_clip_w32_p8_24_at_40x32.safetensors");
        let changed = Edit::open(&tower).value(name, 3, |v| 1.5 * v + 0.1).write(folder.path(), "tower");
        let r = replay(&changed, &Device::cpu()).unwrap();
        assert!(measured(&r, name), "{name}: {r:?}");
    }
    copy("vlm_llava15_new_names", folder.path());
    let expected = folder.path().join("expected.safetensors");
    for name in
        ["image_features", "logits", "first_logits_grey", "grad.model.multi_modal_projector.linear_1.bias"]
    {
        Edit::open(&golden().join("vlm_llava15_new_names/expected.safetensors"))
            .value(name, 3, |v| 1.5 * v + 1.0)
            .write(folder.path(), "expected");
        let r = replay(&expected, &Device::cpu()).unwrap();
        assert!(measured(&r, name), "{name}: {r:?}");
    }
}

#[test]
fn defaults_are_those_of_the_class() {
    let of = |value: Value| match TowerConfig::from_json(&value).unwrap() {
        TowerConfig::Vit(vit) => vit,
        other => panic!("{other:?}"),
    };
    let clip = of(json!({ "model_type": "clip_vision_model" }));
    assert_eq!((clip.image_size, clip.patch_size, clip.layers.num_hidden_layers), (224, 32, 12));
    assert_eq!((clip.grid(), clip.rows(49), clip.patch_values()), (7, 50, 3072));
    let siglip = of(json!({ "model_type": "siglip_vision_model" }));
    assert_eq!((siglip.patch_size, siglip.class_token, siglip.layers.norm.eps), (16, false, 1e-6));
    let idefics3 = of(json!({ "model_type": "idefics3_vision" }));
    assert_eq!((idefics3.layers.hidden_size, idefics3.layers.head_dim), (1152, 72));

    // A LLaVA that says nothing is LLaVA-1.5: CLIP-L/14 at 336 pixels, the states before the last layer, no class token.
    let llava = VisionConfig::from_json(&json!({ "model_type": "llava" }), 4096).unwrap().unwrap();
    assert_eq!((llava.rows(), llava.feature.layer, llava.image_token), (576, 23, 32_000));
    assert!(matches!(llava.projector, ProjectorKind::Mlp(_)) && !llava.feature.class_token);
    let small = json!({ "model_type": "smolvlm", "scale_factor": 4, "image_token_id": 49_190,
        "vision_config": { "model_type": "smolvlm_vision", "hidden_size": 768, "num_attention_heads": 12, "image_size": 512, "patch_size": 16 } });
    assert_eq!(VisionConfig::from_json(&small, 576).unwrap().unwrap().rows(), 64);
    assert_eq!(VisionConfig::from_json(&json!({ "model_type": "llama" }), 64).unwrap(), None);
}

#[test]
fn decoders_have_the_defaults_of_their_class() {
    // transformers 4.57: LlamaConfig's, also in Idefics3 and SmolVLM; its epsilon is another where nothing is said.
    let folder = tempfile::tempdir().unwrap();
    let of = |value: Value| {
        std::fs::write(folder.path().join("config.json"), value.to_string()).unwrap();
        mixlora::model::model_config(folder.path()).unwrap()
    };
    let given = json!({ "model_type": "llama", "hidden_size": 64, "num_attention_heads": 4 });
    for (kind, eps) in [("llava", 1e-6), ("idefics3", 1e-5), ("smolvlm", 1e-5)] {
        let whole = of(json!({ "model_type": kind }));
        let sizes = [whole.hidden_size, whole.intermediate_size, whole.num_key_value_heads, whole.vocab_size];
        assert_eq!((sizes, whole.norm.eps), ([4096, 11_008, 32, 32_000], eps), "{kind}");
        let part = of(json!({ "model_type": kind, "text_config": given }));
        let sizes = [part.hidden_size, part.intermediate_size, part.num_key_value_heads, part.vocab_size];
        assert_eq!((sizes, part.norm.eps), ([64, 11_008, 4, 32_000], 1e-6), "{kind}");
    }
}

#[test]
fn configurations_that_cannot_be_name_the_field() {
    let refused = |value: Value, field: &str| {
        let e = VisionConfig::from_json(&value, 64).unwrap_err().to_string();
        assert!(e.contains(field), "{e}");
    };
    let llava = |more: Value| {
        let mut all = json!({ "model_type": "llava" });
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    refused(llava(json!({ "vision_config": { "model_type": "dinov2" } })), "dinov2");
    refused(llava(json!({ "vision_config": { "patch_size": 0 } })), "patch_size");
    refused(llava(json!({ "vision_config": { "patch_size": "14" } })), "vision_config");
    refused(llava(json!({ "vision_config": { "num_channels": 1 } })), "num_channels");
    refused(llava(json!({ "vision_feature_layer": [-2, -5] })), "vision_feature_layer");
    refused(llava(json!({ "vision_feature_layer": -26 })), "vision_feature_layer");
    refused(llava(json!({ "vision_feature_select_strategy": "cls" })), "vision_feature_select_strategy");
    refused(llava(json!({ "image_token_index": -200 })), "image_token_index");
    refused(json!({ "model_type": "idefics3", "scale_factor": 4 }), "scale_factor");
}

#[test]
fn damaged_folders_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    copy("vlm_llava15_new_names", folder.path());
    let config = folder.path().join("config.json");
    let original: Value = serde_json::from_str(&std::fs::read_to_string(&config).unwrap()).unwrap();
    let refused = |edit: fn(&mut Value), text: &str| {
        let mut value = original.clone();
        edit(&mut value);
        std::fs::write(&config, value.to_string()).unwrap();
        let model = Model::open(folder.path(), &Device::cpu()).unwrap();
        let Err(e) = VisionModel::open(folder.path(), &model, &LoadOptions::default(), false) else {
            panic!("{text}")
        };
        assert!(e.to_string().contains(text), "{e}");
    };
    refused(
        |c| c["vision_config"]["intermediate_size"] = 64.into(),
        "fc1.weight' is [56, 24], expected [64, 24]",
    );
    refused(
        |c| c["vision_config"]["image_size"] = 32.into(),
        "position_embedding.weight' is [10, 24], expected [17, 24]",
    );
    refused(|c| c["vision_config"]["num_hidden_layers"] = 3.into(), "layers.2.");
    refused(|c| c["image_token_index"] = 334.into(), "the image token is 334");
    // The decoder reads its own part of the configuration.
    let mut value = original.clone();
    value["text_config"]["hidden_size"] = 64.into();
    std::fs::write(&config, value.to_string()).unwrap();
    assert!(Model::open(folder.path(), &Device::cpu()).is_err());

    let file = Checkpoint::open(golden().join("png_rgba_60x45.safetensors")).unwrap();
    let e = VisionFiles::of_checkpoint(file).unwrap_err().to_string();
    assert!(e.contains("no vision tower"), "{e}");
    let decoder = crate::common::edit::golden().join("models/qwen3-b/model-f16.gguf");
    if decoder.is_file() {
        let e = VisionConfig::of_gguf(&GgufFile::open(&decoder).unwrap(), 0).unwrap_err().to_string();
        assert!(e.contains("no vision file"), "{e}");
    }
}

/// A few steps of a mixture and of the projector on two samples with pictures: what they end with.
fn trained(device: &Device, recompute: bool) -> (Vec<f64>, Vec<Vec<f32>>) {
    let folder = golden().join("vlm_llava15_new_names");
    let model = Model::open_f32(&folder, device).unwrap();
    let options = &LoadOptions::from(Weights::F32);
    let vision = Arc::new(VisionModel::open(&folder, &model, options, true).unwrap().unwrap());
    let file = Checkpoint::open(folder.join("expected.safetensors")).unwrap();
    let [tiles, c, h, w] = file.dims("pixel_values").unwrap()[..] else { panic!() };
    let [_, s] = file.dims("input_ids").unwrap()[..] else { panic!() };
    let tokens = file.indices("input_ids", &[3, s], 334).unwrap();
    let labels = file.integers("labels", &[3, s]).unwrap();
    let counts = file.indices("tiles", &[3], tiles + 1).unwrap();
    let rows: Vec<usize> = (0..3).filter(|&row| counts[row] > 0).collect();
    let example = |&row: &usize| {
        let of = row * s..(row + 1) * s;
        Example::new(tokens[of.clone()].to_vec(), labels[of].iter().map(|&l| l >= 0).collect())
    };
    let examples: Vec<Example> = rows.iter().map(example).collect();
    let pixels =
        Tensor::from_f32(device, &[tiles, c, h, w], &file.values_f32("pixel_values").unwrap()).unwrap();
    let features = no_grad(|| vision.tower().forward(&pixels, &Pass::new(Units::tokens(0)), None)).unwrap();
    let batch = || {
        let examples: Vec<&Example> = examples.iter().collect();
        let batch = Batch::new(&examples, Pool::PromptMask, 0, device).unwrap();
        batch.with_pictures(&vision, features.clone()).unwrap()
    };
    let method = crate::common::method("mixlora-cond-gated", json!({ "num_factors": 4, "r": 2 }));
    let adapter = Adapter::attach(&model, &method, &[ALL_LINEAR.to_string()], Stream::new(3)).unwrap();
    let schedule =
        Schedule { learning_rate: 2e-3, warmup_steps: 0, decay: Decay::Constant, ..Schedule::default() };
    let config = TrainConfig { schedule, steps: 4, recompute, ..TrainConfig::default() };
    let mut session =
        Session::new(model.clone(), adapter, config).unwrap().with_projector(&vision, 0.5).unwrap();
    let losses = (0..4).map(|_| session.step(&[batch()]).unwrap().loss).collect();
    // Copies have the pictures of each.
    let once = session.evaluate(&[batch()]).unwrap();
    let twice = session.evaluate(&[batch().repeated(2).unwrap()]).unwrap();
    assert!((once - twice).abs() < 1e-5, "{once} {twice}");
    let params = session.optimizer.params().iter().map(|p| p.value().to_f32().unwrap()).collect();
    (losses, params)
}

#[test]
fn a_mixture_and_the_projector_learn_from_pictures() {
    let device = |threads: usize| Device::cpu_with_threads(threads).unwrap();
    let (losses, first) = trained(&device(1), false);
    assert!(losses[3] < 0.9 * losses[0], "{losses:?}");
    for (threads, recompute) in [(2, false), (3, false), (1, true)] {
        let (_, params) = trained(&device(threads), recompute);
        assert!(first == params, "{threads} threads, recompute {recompute}");
    }
    let (want, _) = trained(&Device::reference(), false);
    for device in [Device::cpu()].into_iter().chain(crate::common::gpu()) {
        let (got, _) = trained(&device, false);
        let near = |(got, want): (&f64, &f64)| (got - want).abs() < 2e-4 * want;
        assert!(got.iter().zip(&want).all(near), "{}: {got:?} {want:?}", device.name());
    }
}

#[test]
fn pictures_must_be_as_many_as_their_places() {
    let folder = golden().join("vlm_idefics3");
    let cpu = Device::cpu();
    let model = Model::open_f32(&folder, &cpu).unwrap();
    let vision = VisionModel::open(&folder, &model, &LoadOptions::default(), false).unwrap().unwrap();
    let token = vision.config().image_token;
    let rows = Tensor::zeros(&cpu, &[4, 48]).unwrap();
    let e = vision.splice(&model, &[1, token, token, 2], [1, 4], Some(&rows)).err().unwrap().to_string();
    assert!(e.contains("2 image tokens for 4 rows"), "{e}");
    let e = vision.splice(&model, &[1, token], [1, 2], None).err().unwrap().to_string();
    assert!(e.contains("1 image tokens for 0 rows"), "{e}");
    let pixels = Tensor::zeros(&cpu, &[1, 3, 32, 30]).unwrap();
    let e = vision.rows(&pixels, &Pass::new(Units::tokens(0))).err().unwrap().to_string();
    assert!(e.contains("multiples of the patch of 8"), "{e}");
}

#[cfg(feature = "cli")]
#[test]
fn inspect_says_what_sees() {
    let folder = golden().join("vlm_idefics3");
    let about = |path: PathBuf| output(mixlora(&["inspect", &path.to_string_lossy()]), 0).0;
    let whole = about(folder.clone());
    let tower = "idefics3_vision: 2 layers, pictures of 32 pixels, 4 x 4 features of 32";
    assert!(whole.contains(tower) && whole.contains("Shuffle"), "{whole}");
    let part = about(folder.join("mmproj.gguf"));
    assert!(part.contains("idefics3_vision") && !part.contains("not usable"), "{part}");
}

#[test]
fn layers_behind_the_features_are_not_needed() {
    let config =
        TowerConfig::from_json(&json!({ "model_type": "clip_vision_model", "num_hidden_layers": 4 }))
            .unwrap();
    let names = |layer: i64| {
        let feature = Feature::behind(&config, layer, false).unwrap();
        config.tensors(feature).into_iter().map(|e| e.name).collect::<Vec<_>>()
    };
    let two = names(-3);
    assert!(two.iter().any(|n| n.contains("layers.1.")) && !two.iter().any(|n| n.contains("layers.2.")));
    assert!(!names(-1).iter().any(|n| n.contains("post_layernorm")));
}

/// The first picture of a model's samples, as a file.
#[cfg(all(feature = "images", feature = "cli"))]
fn picture(folder: &Path) -> String {
    let file = Checkpoint::open(golden().join("vlm_idefics3/expected.safetensors")).unwrap();
    let path = folder.join("picture.png");
    std::fs::write(&path, file.tensor_bytes("image.0.0").unwrap()).unwrap();
    path.to_string_lossy().into_owned()
}

#[cfg(all(feature = "images", feature = "cli"))]
#[test]
fn a_user_asks_about_a_picture() {
    let folder = tempfile::tempdir().unwrap();
    let picture = picture(folder.path());
    let model = golden().join("vlm_idefics3").to_string_lossy().into_owned();
    let ask = |more: &[&str]| {
        let args = ["generate", "--model", &model, "-n", "8", "How many shapes are there?"];
        output(mixlora(&[&args[..], more].concat()), 0)
    };
    let (seen, note) = ask(&["--image", &picture]);
    // 6 tiles of 4 rows each, their tags, and the question.
    assert!(note.contains("prompt 61 tokens"), "{note}");
    assert_ne!(seen, ask(&[]).0, "the picture changes the answer");
    let (two, note) = ask(&["--image", &picture, "--image", &picture]);
    assert!(two != seen && note.contains("tokens"), "{note}");

    let args = ["chat", "--model", &model, "-n", "8"];
    let question = format!("/image {picture}\nHow many shapes are there?\n/image /nowhere.png\nAnd now?\n");
    let (said, notes) = answer_to(&args, &question, 0);
    assert_eq!(said.lines().next(), seen.lines().next(), "a chat sees what generate sees");
    assert!(notes.contains("/nowhere.png"), "{notes}");
    let (again, _) =
        answer_to(&[&args[..], &["--image", &picture]].concat(), "How many shapes are there?\n", 0);
    assert_eq!(again, seen);
}

#[cfg(all(feature = "images", feature = "cli"))]
#[test]
fn pictures_that_cannot_be_seen_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let picture = picture(folder.path());
    let seeing = golden().join("vlm_idefics3").to_string_lossy().into_owned();
    let refused = |model: &str, more: &[&str], text: &str| {
        let args = [&["generate", "--model", model, "-n", "2"][..], more].concat();
        let (out, err) = output(mixlora(&args), 3);
        assert!(out.is_empty() && err.contains(text), "{err}");
    };
    refused(&seeing, &["--image", "/nowhere.png", "What?"], "/nowhere.png");
    refused(&seeing, &["--image", &picture, "--raw", "What <image> and <image>?"], "2 places of pictures");
    refused(&seeing, &["What <image> is it?"], "1 places of pictures");
}

#[cfg(all(feature = "images", feature = "cli"))]
#[test]
fn a_user_trains_on_pictures() {
    let folder = tempfile::tempdir().unwrap();
    let data = picture_data(folder.path());
    let model = golden().join("vlm_idefics3").to_string_lossy().into_owned();
    let place = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    let train = |out: &str, more: &[&str]| {
        let args = ["train", "--model", &model, "--data", &data, "--method", "mixlora-cond", "--steps", "10"];
        let small = ["--set", "num_factors=4", "--set", "r=2", "--lr", "5e-3", "--out", out, "--quiet"];
        output(mixlora(&[&args[..], &small, more].concat()), 0)
    };
    train(&place("whole"), &[]);

    let loss = |more: &[&str]| {
        let args = ["eval", "--model", &model, "--data", &data, "--json"];
        let (out, notes) = output(mixlora(&[&args[..], more].concat()), 0);
        assert!(notes.contains("asking: 2 questions"), "{notes}");
        serde_json::from_str::<Value>(&out).unwrap()["loss"].as_f64().unwrap()
    };
    let adapter = ["--adapter", &place("whole")];
    assert!(loss(&adapter) < 0.6 * loss(&[]), "{} {}", loss(&adapter), loss(&[]));
    let analyse = |what: &str| {
        let args = ["analyse", what, "--model", &model, "--data", &data, "--split", "train", "--json"];
        let (out, notes) = output(mixlora(&[&args[..], &adapter].concat()), 0);
        assert!(notes.contains("1 samples of") && notes.contains("have no task"), "{notes}");
        serde_json::from_str::<Value>(&out).unwrap()["adapters"][0].clone()
    };
    // Each task has the same pictures with the same answers.
    let score = &analyse("interference")["interference"]["sides"][1]["of_means"];
    assert!((score[0][1].as_f64().unwrap() - 1.0).abs() < 1e-3, "{score}");
    let routing = &analyse("routing")["routing"];
    assert_eq!(routing["instances"], json!([0, 0, 1, 1]));
    assert_eq!(routing["overlap"][0][0], routing["overlap"][1][1]);
    // The other picture has another answer.
    let say = |picture: &str| {
        let picture = Path::new(&data).join(picture).to_string_lossy().into_owned();
        let args = ["generate", "--model", &model, "--image", &picture, "-n", "3", "What is it?"];
        output(mixlora(&[&args[..], &adapter].concat()), 0).0
    };
    assert_ne!(say("red.png"), say("blue.png"));

    let mut cut = std::fs::read(Path::new(&data).join("blue.png")).unwrap();
    cut.truncate(cut.len() / 2);
    std::fs::write(Path::new(&data).join("blue.png"), cut).unwrap();
    let out = place("bad");
    let args =
        ["train", "--model", &model, "--data", &data, "--method", "lora", "--steps", "2", "--out", &out];
    let (_, err) = output(mixlora(&args), 3);
    assert!(err.contains("blue.png") && !Path::new(&out).exists(), "{err}");
}

#[cfg(all(feature = "images", feature = "tokenizer"))]
#[test]
fn a_run_on_pictures_goes_on_where_it_was_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let mut config = RunConfig::defaults(find("mixlora-cond-gated").unwrap()).unwrap();
    config.method = config.method.with("num_factors", 4).unwrap().with("r", 2).unwrap();
    config.model = golden().join("vlm_idefics3");
    config.data = picture_data(folder.path()).into();
    config.device.name = "cpu".into();
    config.train.steps = Some(6);
    let adapter = |name: &str, stops: &[usize]| {
        let place = folder.path().join(name);
        for &stop in stops {
            let mut run = Run::open(config.clone(), Some(&place), &mut ()).unwrap();
            assert_eq!(run.go(&Stop::at(Some(stop)), &mut ()).unwrap(), End::Stopped);
        }
        let mut run = Run::open(config.clone(), Some(&place), &mut ()).unwrap();
        assert_eq!(run.go(&Stop::default(), &mut ()).unwrap(), End::Finished);
        run.session.adapter.to_safetensors().unwrap()
    };
    assert!(adapter("whole", &[]) == adapter("parts", &[2, 3]));
}
