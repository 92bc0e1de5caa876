//! `mixlora inspect`

use crate::{Failure, out};
use mixlora::adapter::locate;
use mixlora::io::{Checkpoint, GgufFile, Scan, read_json, read_text};
use mixlora::model::{ModelConfig, ModelPlace, model_config};
use mixlora::{Error, Format};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(after_help = "\
Takes a .gguf file or its folder, a Hugging Face directory, a .safetensors file, an adapter directory or the folder of \
a training run. Only headers are read, unless --check looks at every value.

Example: mixlora inspect SmolLM2-135M-Instruct.Q4_1.gguf --tensors")]
pub struct Args {
    /// What to look at.
    path: PathBuf,
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

/// What was found, in lines and in JSON.
struct Report {
    about: Vec<(String, Value)>,
    entries: Vec<Entry>,
}

/// A look at all values of a tensor by name.
type Values<'a> = Box<dyn Fn(&str) -> Result<Scan, Error> + 'a>;

pub fn run(args: &Args) -> Result<(), Failure> {
    let path = &args.path;
    if path.is_dir() && path.join("config.json").exists() {
        let file = Checkpoint::open(path)?;
        let mut report = of_checkpoint(&file, "Hugging Face model");
        report.about.extend(configuration(model_config(path)));
        let has = |name: &str| path.join(name).exists();
        report.about.push(("tokenizer.json".into(), has("tokenizer.json").into()));
        let text = read_text(&path.join("tokenizer_config.json")).unwrap_or_default();
        let template = has("chat_template.jinja") || text.contains("\"chat_template\"");
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
    if path.is_dir() || ["best", "last"].iter().any(|n| path.ends_with(n)) {
        return adapter(args, &locate(path)?);
    }
    let mut magic = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut f| std::io::Read::read_exact(&mut f, &mut magic));
    if read.is_ok() && &magic == b"GGUF" {
        return gguf(args, path);
    }
    let file = Checkpoint::open(path)?;
    finish(args, of_checkpoint(&file, "safetensors file"), Box::new(move |name| file.raw(name)?.scan(None)))
}

/// The configuration of a model, its parameters, or why it is not one that can be used here.
fn configuration(read: Result<ModelConfig, Error>) -> Vec<(String, Value)> {
    match read {
        Ok(c) => vec![
            ("configuration".into(), c.to_json(Format::F32)),
            ("parameters".into(), c.parameters().into()),
        ],
        Err(e) => vec![("not usable here".into(), e.to_string().into())],
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
        let format = file.format(name).map_or("other".to_string(), |f| f.name().to_string());
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
    about.retain(|(_, v)| !v.is_null());
    if file.str("general.type").ok() != Some("adapter") {
        about.extend(configuration(ModelConfig::of_gguf(file)));
        about.push(("tokenizer".into(), text("tokenizer.ggml.model")));
        about.push(("pre-tokenizer".into(), text("tokenizer.ggml.pre")));
        let tokens = file.strings("tokenizer.ggml.tokens").map_or(0, <[String]>::len);
        about.push(("tokens".into(), tokens.into()));
        about.push(("chat template".into(), file.str("tokenizer.chat_template").is_ok().into()));
    }
    let entry = |(name, t): (&String, &mixlora::io::gguf::TensorInfo)| Entry {
        name: name.clone(),
        dims: t.dims.iter().rev().copied().collect(),
        format: t.kind.name().to_string(),
        bytes: t.bytes,
    };
    Report { about, entries: file.tensors().iter().map(entry).collect() }
}

fn finish(args: &Args, report: Report, values: Values<'_>) -> Result<(), Failure> {
    let Report { mut about, entries } = report;
    let count = |dims: &[usize]| dims.iter().product::<usize>();
    let parameters: usize = entries.iter().map(|e| count(&e.dims)).sum();
    let mut formats: BTreeMap<&str, (usize, usize)> = BTreeMap::new();
    for e in &entries {
        let f = formats.entry(&e.format).or_default();
        (f.0, f.1) = (f.0 + 1, f.1 + e.bytes);
    }
    about.push(("tensors".into(), entries.len().into()));
    about.push(("values".into(), parameters.into()));
    let mut problems = Vec::new();
    if args.check {
        for e in entries.iter().filter(|e| e.format != "other" && e.bytes > 0) {
            out::progress(&format!("reading {}", e.name));
            problems.extend(problem(&e.name, &values(&e.name)?));
        }
    }
    if args.json {
        let list =
            |e: &Entry| json!({ "name": e.name, "dims": e.dims, "format": e.format, "bytes": e.bytes });
        let mut json: Value = about.into_iter().collect::<serde_json::Map<_, _>>().into();
        json["formats"] = json!(
            formats
                .iter()
                .map(|(f, (n, b))| json!({ "format": f, "tensors": n, "bytes": b }))
                .collect::<Vec<_>>()
        );
        if args.tensors {
            json["list"] = entries.iter().map(list).collect();
        }
        if args.check {
            json["problems"] = json!(problems);
        }
        out::json(&json)?;
    } else {
        let mut text = String::new();
        for (key, value) in &about {
            text += &lines(key, value);
        }
        for (format, (n, bytes)) in &formats {
            text += &format!("{format}: {n} tensors, {bytes} bytes\n");
        }
        if args.tensors {
            let rows: Vec<Vec<String>> = entries
                .iter()
                .map(|e| vec![e.name.clone(), format!("{:?}", e.dims), e.format.clone(), e.bytes.to_string()])
                .collect();
            text += &out::table(&["tensor", "shape", "format", "bytes"], &rows);
        }
        problems.iter().for_each(|p| text += &format!("{p}\n"));
        if args.check && problems.is_empty() {
            text += "every value is finite, and no tensor is all zeros\n";
        }
        out::text(&text)?;
    }
    if problems.is_empty() { Ok(()) } else { Err(Failure::Check) }
}

/// `key: value`, and a section where the value has names of its own.
fn lines(key: &str, value: &Value) -> String {
    match value.as_object() {
        None => format!("{key}: {}\n", value.as_str().map_or_else(|| value.to_string(), String::from)),
        Some(map) => {
            let indented = |text: String| format!("  {}\n", text.trim_end().replace('\n', "\n  "));
            let inner = map.iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| indented(lines(k, v)));
            format!("{key}:\n") + &inner.collect::<String>()
        }
    }
}

/// What is odd about the values of a tensor.
fn problem(name: &str, seen: &Scan) -> Option<String> {
    // A fresh adapter's B is zero on purpose, a bias may be.
    let usual = ["lora_b", "lora_B", "factors_b", "bias"].iter().any(|s| name.contains(s));
    let remark = seen.remark().filter(|_| seen.nonfinite.is_some() || !usual)?;
    Some(format!("tensor '{name}': {remark}"))
}
