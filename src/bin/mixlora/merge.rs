//! `mixlora merge`

use crate::{Failure, out};
use mixlora::adapter::Adapter;
use mixlora::model::Llama;
use mixlora::text::ModelText;
use mixlora::{Device, Error, Format};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(after_help = "\
Only a plain LoRA can be merged: a mixture's update depends on the input. The result is a Hugging Face directory, also \
from a GGUF model, whose quantised weights become the values that they stand for.

Example: mixlora merge --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter run --out merged")]
pub struct Args {
    /// A .gguf file, or a Hugging Face directory.
    #[arg(long)]
    model: PathBuf,
    /// An adapter directory, or the folder of a training run.
    #[arg(long)]
    adapter: PathBuf,
    /// The new directory; it must be empty or not exist.
    #[arg(long)]
    out: PathBuf,
    /// Format of the written weights; by default the model's, or f16 where it is quantised.
    #[arg(long, value_parser = ["f32", "f16", "bf16"])]
    dtype: Option<String>,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let fail = |path: &Path, what: String| Error::File { path: path.into(), what };
    if std::fs::read_dir(&args.out).is_ok_and(|mut d| d.next().is_some()) || args.out.is_file() {
        return Err(fail(&args.out, "is not empty; merging writes a new directory".into()).into());
    }
    let mut model = Llama::open(&args.model, &Device::cpu(), false)?;
    let format = match args.dtype.as_deref() {
        Some("f32") => Format::F32,
        Some("bf16") => Format::Bf16,
        Some(_) => Format::F16,
        None => match model.head().format() {
            f @ (Format::F32 | Format::Bf16) => f,
            _ => Format::F16,
        },
    };
    let adapter = Adapter::load(&args.adapter, &mut model)?;
    // Refused before anything is made.
    adapter.check_mergeable()?;
    std::fs::create_dir_all(&args.out).map_err(|e| fail(&args.out, format!("cannot be created: {e}")))?;
    adapter.merge(&model, &args.out, format)?;
    match args.model.is_dir() {
        true => copy_text_files(&args.model, &args.out)?,
        false => write_text_files(&ModelText::open(&args.model)?, &args.out)?,
    }
    Ok(out::text(&format!("merged model in {}", args.out.display()))?)
}

/// Everything of a Hugging Face directory that is about text.
fn copy_text_files(from: &Path, to: &Path) -> Result<(), Failure> {
    for name in [
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "generation_config.json",
    ] {
        let path = from.join(name);
        if path.is_file() {
            std::fs::copy(&path, to.join(name))
                .map_err(|e| Error::File { path, what: format!("cannot be copied: {e}") })?;
        }
    }
    Ok(())
}

/// The tokenizer and template of a GGUF file, as files.
fn write_text_files(text: &ModelText, to: &Path) -> Result<(), Failure> {
    let tokenizer = &text.tokenizer;
    let Some(json) = tokenizer.to_json()? else {
        out::note(
            "note: a SentencePiece vocabulary cannot be written as tokenizer.json: copy the base model's",
        );
        return Ok(());
    };
    mixlora::io::atomic::write(&to.join("tokenizer.json"), json.as_bytes())?;
    let token = |id: Option<u32>| id.and_then(|id| tokenizer.token(id));
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": token(tokenizer.bos()),
        "eos_token": token(tokenizer.eos()), "pad_token": tokenizer.token(tokenizer.pad()),
        "add_bos_token": tokenizer.add_bos(),
        "chat_template": text.template.as_ref().map(|t| t.source()),
    });
    Ok(mixlora::io::atomic::write(&to.join("tokenizer_config.json"), format!("{config:#}\n").as_bytes())?)
}
