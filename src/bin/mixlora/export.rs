//! `mixlora export`

use crate::device_args::CheckArgs;
use crate::model_path::model_path;
use crate::{Failure, out};
use mixlora::{Device, Error};
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
Only a plain LoRA can be written for other programs: a mixture's update depends on the input, and no other program \
routes. An adapter directory of a plain LoRA is Hugging Face PEFT's own format and needs no export.

Example: mixlora export --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter run --gguf-lora adapter.gguf")]
pub struct Args {
    /// A .gguf file, or a Hugging Face directory.
    #[arg(long, value_parser = model_path())]
    model: PathBuf,
    /// An adapter directory, or the folder of a training run.
    #[arg(long)]
    adapter: PathBuf,
    /// Write a GGUF adapter, for llama.cpp's --lora.
    #[arg(long, value_name = "FILE", required = true)]
    gguf_lora: PathBuf,
    #[command(flatten)]
    checks: CheckArgs,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if args.gguf_lora.exists() {
        let what = "exists; give another file name".to_string();
        return Err(Error::File { path: args.gguf_lora.clone(), what }.into());
    }
    let model = args.checks.model(&args.model, &Device::cpu(), false)?;
    let adapter = args.checks.adapter(&args.adapter, &model)?;
    adapter.export_gguf(&model, &args.gguf_lora)?;
    Ok(out::text(&format!("GGUF adapter in {}", args.gguf_lora.display()))?)
}
