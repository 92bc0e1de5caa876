//! `mixlora merge`

use crate::device_args::CheckArgs;
use crate::model_path::model_path;
use crate::{Failure, out};
use mixlora::adapter::Adapter;
use mixlora::atomic;
use mixlora::io::read_json;
use mixlora::model::vision::VisionConfig;
use mixlora::model::{Model, ModelPlace, Weights};
use mixlora::text::ModelText;
use mixlora::{Device, Error, Format};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(after_help = "\
Only a plain LoRA can be merged: a mixture's update depends on the input. The result is a Hugging Face directory, also \
from a GGUF model, whose quantised weights become the values that they stand for; or a GGUF file for llama.cpp and \
Ollama, with tokenizer, chat template and end tokens, in any format that this program reads. Of a model that sees it is \
the decoder; --vision with the model's directory stands beside it.

Example: mixlora merge --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter run --out merged
Example: mixlora merge --model Llama-3.2-1B-Instruct --adapter run --out mine/mine-q4_k.gguf --dtype q4_k --modelfile")]
pub struct Args {
    /// A .gguf file, or a Hugging Face directory.
    #[arg(long, value_parser = model_path())]
    model: PathBuf,
    /// An adapter directory, or the folder of a training run.
    #[arg(long)]
    adapter: PathBuf,
    /// The new directory, or a GGUF file where the name ends with .gguf; it must not exist.
    #[arg(long)]
    out: PathBuf,
    /// Format of the written weights: f32, f16 or bf16, for a GGUF file also q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1 or q4_0;
    /// by default the model's, or f16 where it is quantised.
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    dtype: Option<Format>,
    /// With a GGUF file: write a Modelfile for Ollama beside it.
    #[arg(long)]
    modelfile: bool,
    #[command(flatten)]
    checks: CheckArgs,
}

/// A format by its name.
fn format(name: &str) -> Result<Format, String> {
    Format::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
        let known = Format::ALL.map(Format::name).join(", ");
        format!("there is no format '{name}'; the formats are {known}")
    })
}

fn fail(path: &Path, what: impl Into<String>) -> Failure {
    Error::File { path: path.into(), what: what.into() }.into()
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if args.out.exists() {
        return Err(fail(&args.out, "exists; merging writes a new directory and never over another"));
    }
    let gguf = args.out.extension().is_some_and(|end| end.eq_ignore_ascii_case("gguf"));
    if let Some(format) = args.dtype.filter(|format| !gguf && format.block_len() > 1) {
        let what =
            format!("--dtype: {} is for a GGUF file: give --out a name that ends with .gguf", format.name());
        return Err(Failure::Usage(what));
    }
    let modelfile = args.out.with_file_name("Modelfile");
    if args.modelfile && !gguf {
        return Err(Failure::Usage(
            "--modelfile: is for a GGUF file: give --out a name that ends with .gguf".into(),
        ));
    }
    if args.modelfile && modelfile.exists() {
        return Err(fail(&modelfile, "exists; give --out another folder"));
    }
    let model = args.checks.model(&args.model, &Device::cpu(), Weights::File)?;
    let format = args.dtype.unwrap_or(match model.head().format() {
        format @ (Format::F32 | Format::Bf16) => format,
        _ => Format::F16,
    });
    let adapter = args.checks.adapter(&args.adapter, &model)?;
    // A method that cannot be merged is refused before anything is written.
    adapter.check_mergeable()?;
    if adapter.vision().is_some_and(|vision| !vision.projector().is_empty()) {
        let what = "was trained with a projector, which a merged decoder would leave behind: keep it as an adapter beside \
                    the model, or give llama.cpp both with mixlora export --gguf-lora and --mmproj";
        return Err(fail(&args.adapter, what));
    }
    if gguf {
        let text = match ModelPlace::of(&args.model)? {
            ModelPlace::Folder(dir) => ModelText::gguf_metadata(&dir, model.config().vocab_size)?,
            // Its own stays.
            ModelPlace::Gguf(_) => Vec::new(),
        };
        if let Some(folder) = args.out.parent() {
            std::fs::create_dir_all(folder)
                .map_err(|error| fail(folder, format!("cannot be created: {error}")))?;
        }
        adapter.merge_gguf(&model, &args.out, format, text)?;
        if args.modelfile {
            let name = args.out.file_name().unwrap_or_default().to_string_lossy();
            let text = ModelText::open(&args.out)?.modelfile(&format!("./{name}"))?;
            atomic::write(&modelfile, text.as_bytes())?;
        }
        return Ok(out::text(&format!("merged model in {}, {} weights", args.out.display(), format.name()))?);
    }
    let name = args.out.file_name().ok_or_else(|| fail(&args.out, "is not the name of a directory"))?;
    let unfinished = args.out.with_file_name(format!(".{}.unfinished", name.to_string_lossy()));
    // An interrupted merge may have left this folder.
    let _ = std::fs::remove_dir_all(&unfinished);
    std::fs::create_dir_all(&unfinished)
        .map_err(|error| fail(&unfinished, format!("cannot be created: {error}")))?;
    let done = write(args, &model, &adapter, format, &unfinished).and_then(|()| {
        std::fs::rename(&unfinished, &args.out)
            .map_err(|error| fail(&args.out, format!("cannot be renamed into place: {error}")))
    });
    if let Err(error) = done {
        let _ = std::fs::remove_dir_all(&unfinished);
        return Err(error);
    }
    Ok(out::text(&format!("merged model in {}, {} weights", args.out.display(), format.name()))?)
}

fn write(args: &Args, model: &Model, adapter: &Adapter, format: Format, dir: &Path) -> Result<(), Failure> {
    adapter.merge(model, dir, format)?;
    match ModelPlace::of(&args.model)? {
        ModelPlace::Folder(model) => copy_side_files(&model, dir),
        ModelPlace::Gguf(model) => write_text_files(&model, dir),
    }
}

fn write_json(path: &Path, value: &Value) -> Result<(), Failure> {
    Ok(atomic::write(path, format!("{value:#}\n").as_bytes())?)
}

/// Copies the files of a Hugging Face directory besides the weights; config.json gets the new type of the weights.
fn copy_side_files(from: &Path, to: &Path) -> Result<(), Failure> {
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "tokenizer.model",
        "vocab.json",
        "merges.txt",
        "added_tokens.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
    ] {
        let path = from.join(name);
        if path.is_file() {
            std::fs::copy(&path, to.join(name))
                .map_err(|error| fail(&path, format!("cannot be copied: {error}")))?;
        }
    }
    if !to.join("tokenizer.json").exists() {
        out::note("note: the model has no tokenizer.json, so the merged one has none either");
    }
    let mut config: Value = read_json(&from.join("config.json"))?;
    if VisionConfig::is_described_by(&config) {
        // What is written describes the decoder.
        out::note(&format!(
            "note: the model sees, and this is its decoder: for pictures give --vision {} beside it",
            from.display()
        ));
        return Ok(());
    }
    let written: Value = read_json(&to.join("config.json"))?;
    // Newer files say dtype.
    let key = if config.get("dtype").is_some() { "dtype" } else { "torch_dtype" };
    config[key] = written["torch_dtype"].clone();
    // Weights are written as plain values, whatever they were.
    config.as_object_mut().map(|c| c.remove("quantization_config"));
    write_json(&to.join("config.json"), &config)
}

/// The tokenizer and template of a GGUF file, as files.
fn write_text_files(model: &Path, to: &Path) -> Result<(), Failure> {
    let text = match ModelText::open(model) {
        Ok(text) => text,
        Err(error) => {
            out::note(&format!("note: no tokenizer files are written, copy the base model's: {error}"));
            return Ok(());
        }
    };
    out::notes(&text.notes);
    let tokenizer = &text.tokenizer;
    let ends = tokenizer.end_tokens();
    let pad = tokenizer.pad();
    let mut config: Value = read_json(&to.join("config.json"))?;
    config["bos_token_id"] = json!(tokenizer.bos());
    config["eos_token_id"] = json!(ends);
    write_json(&to.join("config.json"), &config)?;
    // Other programs end an answer where this file says, and nowhere else.
    let generation = json!({ "bos_token_id": tokenizer.bos(), "eos_token_id": ends, "pad_token_id": pad });
    write_json(&to.join("generation_config.json"), &generation)?;
    let Some(json) = tokenizer.to_json()? else {
        out::note(
            "note: a SentencePiece vocabulary cannot be written as tokenizer.json: copy the base model's",
        );
        return Ok(());
    };
    atomic::write(&to.join("tokenizer.json"), json.as_bytes())?;
    let mut config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "add_bos_token": tokenizer.add_bos(),
        "clean_up_tokenization_spaces": false, "pad_token": tokenizer.token(pad),
        "chat_template": text.template.as_ref().map(|t| t.source()),
    });
    for (name, token) in tokenizer.special_tokens().named() {
        config[name] = json!(token);
    }
    write_json(&to.join("tokenizer_config.json"), &config)
}
