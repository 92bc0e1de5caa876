//! `mixlora inspect`

#[cfg(feature = "images")]
use crate::inspect_image;
use crate::{Failure, out};
use mixlora::adapter::locate;
use mixlora::io::{Checkpoint, GgufFile, Scan, read_json, read_text};
use mixlora::model::vision::VisionConfig;
use mixlora::model::{ModelConfig, ModelPlace, model_config};
use mixlora::{Error, Format};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(after_help = "\
Takes a .gguf file or its folder, a Hugging Face directory, a .safetensors file, an adapter directory or the folder of \
a training run. Only headers are read, unless --check looks at every value. With --image it takes a picture instead and \
says how it is read; with --model too what that model sees of it.

Example: mixlora inspect SmolLM2-135M-Instruct.Q4_1.gguf --tensors
         mixlora inspect --image photo.jpg --model llava-1.5-7b-hf --png seen.png")]
pub struct Args {
    /// What to look at.
    #[cfg_attr(feature = "images", arg(required_unless_present = "image"))]
    #[cfg_attr(not(feature = "images"), arg(required = true))]
    path: Option<PathBuf>,
    #[cfg(feature = "images")]
    #[command(flatten)]
    image: inspect_image::Args,
    /// List the tensors.
    #[arg(long)]
    tensors: bool,
    /// Read every value: name tensors that hold NaN or infinities, or nothing but zeros.
    #[arg(long)]
    check: bool,
    /// Print JSON instead of lines.
    #[arg(long)]
    json: bool,
}

/// A tensor by its header.
struct Entry {
    name: String,
    dims: Vec<usize>,
    format: String,
    bytes: usize,
}

/// The findings, printed as lines or as JSON.
struct Report {
    about: Vec<(String, Value)>,
    entries: Vec<Entry>,
}

/// A scan of all values of a tensor by name.
type Values<'a> = Box<dyn Fn(&str) -> Result<Scan, Error> + 'a>;

pub fn run(args: &Args) -> Result<(), Failure> {
    #[cfg(feature = "images")]
    if let Some(image) = &args.image.image {
        return inspect_image::run(image, &args.image, args.json);
    }
    let Some(path) = &args.path else { return Err(Failure::Usage("give what is to be looked at".into())) };
    if path.is_dir() && path.join("config.json").exists() {
        let file = Checkpoint::open(path)?;
        let mut report = of_checkpoint(&file, "Hugging Face model");
        let decoder = model_config(path);
        let width = decoder.as_ref().map_or(0, |config| config.hidden_size);
        report.about.extend(configuration(decoder));
        report.about.extend(vision(VisionConfig::from_json(&read_json(&path.join("config.json"))?, width)));
        let exists = |name: &str| path.join(name).exists();
        report.about.push(("tokenizer.json".into(), exists("tokenizer.json").into()));
        let text = read_text(&path.join("tokenizer_config.json")).unwrap_or_default();
        let template = exists("chat_template.jinja")
            || exists("chat_template.json")
            || text.contains("\"chat_template\"");
        report.about.push(("chat template".into(), template.into()));
        if !file.unlisted().is_empty() {
            report.about.push(("tensors outside the index".into(), json!(file.unlisted())));
        }
        return finish(args, report, Box::new(move |name| file.raw(name)?.scan(None)));
    }
    if path.is_dir()
        && let Ok(ModelPlace::Gguf(file)) = ModelPlace::of(path)
    {
        return gguf(args, &file);
    }
    if path.is_dir() || ["best", "last"].iter().any(|name| path.ends_with(name)) {
        return adapter(args, &locate(path)?);
    }
    let mut magic = [0; 4];
    let read =
        std::fs::File::open(path).and_then(|mut file| std::io::Read::read_exact(&mut file, &mut magic));
    if read.is_ok() && &magic == b"GGUF" {
        return gguf(args, path);
    }
    let file = Checkpoint::open(path)?;
    finish(args, of_checkpoint(&file, "safetensors file"), Box::new(move |name| file.raw(name)?.scan(None)))
}

/// The configuration of a model and its parameters, or the reason why it cannot be used.
fn configuration(read: Result<ModelConfig, Error>) -> Vec<(String, Value)> {
    match read {
        Ok(config) => vec![
            ("configuration".into(), config.to_json(Format::F32)),
            ("parameters".into(), config.parameters().into()),
        ],
        Err(entry) => vec![("not usable here".into(), entry.to_string().into())],
    }
}

/// The vision part of a model, or the reason why it is not read; nothing of a decoder alone.
fn vision(read: Result<Option<VisionConfig>, Error>) -> Vec<(String, Value)> {
    match read {
        Ok(None) => Vec::new(),
        Ok(Some(vision)) => {
            let tower = &vision.tower;
            let grid = tower.grid(vision.feature);
            let text = format!(
                "{}: {} layers, pictures of {} pixels, {grid} x {grid} features of {}",
                tower.model_type(),
                tower.layers(),
                tower.image_size(),
                tower.width(vision.feature)
            );
            vec![
                ("vision tower".into(), text.into()),
                ("projector".into(), format!("{:?}", vision.projector).into()),
                ("rows of a picture or tile".into(), vision.rows().into()),
            ]
        }
        Err(error) => vec![("vision part not usable here".into(), error.to_string().into())],
    }
}

fn adapter(args: &Args, dir: &Path) -> Result<(), Failure> {
    if !dir.join("adapter_config.json").exists() {
        let what = "holds neither a model (config.json) nor an adapter (adapter_config.json)".into();
        return Err(Error::File { path: dir.into(), what }.into());
    }
    let file = Checkpoint::open(dir.join("adapter_model.safetensors"))?;
    let mut report = of_checkpoint(&file, "adapter");
    report.about.push(("folder".into(), dir.display().to_string().into()));
    for name in ["adapter_config.json", "mixlora.json", "state.json"] {
        let path = dir.join(name);
        if path.is_file() {
            report.about.push((name.into(), read_json(&path)?));
        }
    }
    finish(args, report, Box::new(move |name| file.raw(name)?.scan(None)))
}

fn gguf(args: &Args, path: &Path) -> Result<(), Failure> {
    let file = GgufFile::open(path)?;
    finish(args, of_gguf(&file), Box::new(move |name| file.raw(name)?.scan(None)))
}

fn of_checkpoint(file: &Checkpoint, kind: &str) -> Report {
    let entry = |name: &str| {
        let format = file.format(name).map_or("other".to_string(), |format| format.name().to_string());
        let bytes = file.tensor_bytes(name).map_or(0, <[u8]>::len);
        Entry { name: name.into(), dims: file.dims(name).unwrap_or_default().to_vec(), format, bytes }
    };
    let entries = file.names().map(entry).collect();
    Report { about: vec![("kind".into(), kind.into())], entries }
}

fn of_gguf(file: &GgufFile) -> Report {
    let mut about =
        vec![("kind".to_string(), Value::from("GGUF file")), ("version".into(), file.version().into())];
    let text = |key: &str| file.str(key).map(Value::from).unwrap_or(Value::Null);
    for key in ["general.architecture", "general.name", "general.type", "adapter.type"] {
        about.push((key.into(), text(key)));
    }
    about.retain(|(_, value)| !value.is_null());
    if file.str("general.type").ok() != Some("adapter") {
        // A vision part beside a decoder's file.
        if file.str("general.architecture") == Ok("clip") {
            about.extend(vision(VisionConfig::of_gguf(file, 0).map(Some)));
        } else {
            about.extend(configuration(ModelConfig::of_gguf(file)));
            about.push(("tokenizer".into(), text("tokenizer.ggml.model")));
            about.push(("pre-tokenizer".into(), text("tokenizer.ggml.pre")));
            let tokens = file.strings("tokenizer.ggml.tokens").map_or(0, <[String]>::len);
            about.push(("tokens".into(), tokens.into()));
            about.push(("chat template".into(), file.str("tokenizer.chat_template").is_ok().into()));
        }
    }
    let entry = |(name, tensor): (&String, &mixlora::io::gguf::TensorInfo)| Entry {
        name: name.clone(),
        dims: tensor.dims.iter().rev().copied().collect(),
        format: tensor.kind.name().to_string(),
        bytes: tensor.bytes,
    };
    Report { about, entries: file.tensors().iter().map(entry).collect() }
}

fn finish(args: &Args, report: Report, values: Values<'_>) -> Result<(), Failure> {
    let Report { mut about, entries } = report;
    let count = |dims: &[usize]| dims.iter().product::<usize>();
    let parameters: usize = entries.iter().map(|entry| count(&entry.dims)).sum();
    about.push(("tensors".into(), entries.len().into()));
    about.push(("values".into(), parameters.into()));
    let mut problems = Vec::new();
    if args.check {
        for entry in entries.iter().filter(|entry| entry.format != "other" && entry.bytes > 0) {
            out::progress(&format!("reading {}", entry.name));
            problems.extend(problem(&entry.name, &values(&entry.name)?));
        }
    }
    if args.json {
        out::json(&json_report(args, about, &entries, &problems))?;
    } else {
        out::text(&text_report(args, &about, &entries, &problems))?;
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::Check) }
}

/// The number of tensors and bytes of each format.
fn formats(entries: &[Entry]) -> BTreeMap<&str, (usize, usize)> {
    let mut formats: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for entry in entries {
        let (tensors, bytes) = formats.entry(&entry.format).or_default();
        *tensors += 1;
        *bytes += entry.bytes;
    }
    formats
}

fn json_report(args: &Args, about: Vec<(String, Value)>, entries: &[Entry], problems: &[String]) -> Value {
    let format = |(format, (tensors, bytes))| json!({ "format": format, "tensors": tensors, "bytes": bytes });
    let tensor = |entry: &Entry| json!({ "name": entry.name, "dims": entry.dims, "format": entry.format, "bytes": entry.bytes });
    let mut json: Value = about.into_iter().collect::<serde_json::Map<_, _>>().into();
    json["formats"] = formats(entries).into_iter().map(format).collect();
    if args.tensors {
        json["list"] = entries.iter().map(tensor).collect();
    }
    if args.check {
        json["problems"] = json!(problems);
    }
    json
}

fn text_report(args: &Args, about: &[(String, Value)], entries: &[Entry], problems: &[String]) -> String {
    let mut text: String = about.iter().map(|(key, value)| lines(key, value)).collect();
    for (format, (tensors, bytes)) in formats(entries) {
        text += &format!("{format}: {tensors} tensors, {bytes} bytes\n");
    }
    if args.tensors {
        let row = |entry: &Entry| {
            let dims = format!("{:?}", entry.dims);
            vec![entry.name.clone(), dims, entry.format.clone(), entry.bytes.to_string()]
        };
        let rows: Vec<Vec<String>> = entries.iter().map(row).collect();
        text += &out::table(&["tensor", "shape", "format", "bytes"], &rows);
    }
    problems.iter().for_each(|problem| text += &format!("{problem}\n"));
    if args.check && problems.is_empty() {
        text += "every value is finite, and no tensor is all zeros\n";
    }
    text
}

/// `key: value`, or a section if the value is an object.
fn lines(key: &str, value: &Value) -> String {
    match value.as_object() {
        None => format!("{key}: {}\n", value.as_str().map_or_else(|| value.to_string(), String::from)),
        Some(map) => {
            let indented = |text: String| format!("  {}\n", text.trim_end().replace('\n', "\n  "));
            let inner = map
                .iter()
                .filter(|(_, value)| !value.is_null())
                .map(|(key, value)| indented(lines(key, value)));
            format!("{key}:\n") + &inner.collect::<String>()
        }
    }
}

/// A sentence about oddities in the values of a tensor.
fn problem(name: &str, seen: &Scan) -> Option<String> {
    // The B of a fresh adapter is zero on purpose, and a bias may be zero.
    let usual = ["lora_b", "lora_B", "factors_b", "bias"].iter().any(|name| name.contains(name));
    let remark = seen.remark().filter(|_| seen.nonfinite.is_some() || !usual)?;
    Some(format!("tensor '{name}': {remark}"))
}
