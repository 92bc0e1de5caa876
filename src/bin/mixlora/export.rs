//! `mixlora export`

use crate::device_args::CheckArgs;
use crate::model_path::model_path;
use crate::{Failure, out};
use mixlora::adapter::Adapter;
use mixlora::model::{Model, Weights};
use mixlora::{Device, Error};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(after_help = "\
Of adapters only a plain LoRA can be written for other programs: a mixture's update depends on the input, and no other \
program routes. An adapter directory of a plain LoRA is Hugging Face PEFT's own format and needs no export.

--mmproj writes the vision tower and the projector of a model that sees, with the projector that an adapter was trained \
with, for llama.cpp's --mmproj.

Example: mixlora export --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter run --gguf-lora adapter.gguf
         mixlora export --model SmolVLM-256M-Instruct --adapter run --mmproj mmproj.gguf")]
pub struct Args {
    /// A .gguf file, or a Hugging Face directory.
    #[arg(long, value_parser = model_path())]
    model: PathBuf,
    /// An adapter directory, or the folder of a training run.
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// Write a GGUF adapter, for llama.cpp's --lora.
    #[arg(long, value_name = "FILE", requires = "adapter")]
    #[cfg_attr(feature = "images", arg(required_unless_present = "mmproj"))]
    #[cfg_attr(not(feature = "images"), arg(required = true))]
    gguf_lora: Option<PathBuf>,
    /// Write tower and projector, for llama.cpp's --mmproj.
    #[cfg(feature = "images")]
    #[arg(long, value_name = "FILE")]
    mmproj: Option<PathBuf>,
    /// The vision part of a model that has none of its own: a directory with a vision tower alone, or a GGUF file.
    #[cfg(feature = "images")]
    #[arg(long, value_name = "PATH")]
    vision: Option<PathBuf>,
    #[command(flatten)]
    checks: CheckArgs,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    #[cfg(feature = "images")]
    let mmproj = args.mmproj.as_deref();
    #[cfg(not(feature = "images"))]
    let mmproj: Option<&Path> = None;
    if let Some(path) = args.gguf_lora.as_deref().into_iter().chain(mmproj).find(|path| path.exists()) {
        return Err(Error::File { path: path.into(), what: "exists; give another file name".into() }.into());
    }
    let model = args.checks.model(&args.model, &Device::cpu(), Weights::File)?;
    let adapter = args.adapter.as_deref().map(|dir| args.checks.adapter(dir, &model)).transpose()?;
    if let (Some(path), Some(adapter)) = (&args.gguf_lora, &adapter) {
        adapter.export_gguf(&model, path)?;
        out::text(&format!("GGUF adapter in {}", path.display()))?;
    }
    match mmproj {
        Some(path) => write_mmproj(args, &model, adapter.as_ref(), path),
        None => Ok(()),
    }
}

#[cfg(not(feature = "images"))]
fn write_mmproj(_: &Args, _: &Model, _: Option<&Adapter>, _: &Path) -> Result<(), Failure> {
    Ok(())
}

/// Writes what sees, with the projector of the adapter where it has one.
#[cfg(feature = "images")]
fn write_mmproj(args: &Args, model: &Model, adapter: Option<&Adapter>, path: &Path) -> Result<(), Failure> {
    use crate::model_args::open_sight;
    use mixlora::model::vision::VisionPlace;
    use mixlora::train::TextOptions;
    let vision = args.vision.as_deref();
    let text = TextOptions::default().open(Some(&args.model), vision)?;
    let sight = open_sight(&args.model, vision, model, &text)?;
    sight.take_from(&adapter.into(), args.checks.force)?;
    let place = VisionPlace::of(&args.model, vision)?;
    if let Some(place) = &place {
        sight.vision.export_gguf(place, &sight.processor, path)?;
    }
    let own = adapter.and_then(Adapter::vision).is_some_and(|vision| !vision.projector().is_empty());
    let whose = if own { "the adapter's projector" } else { "the model's own projector" };
    Ok(out::text(&format!("tower and {whose} in {}", path.display()))?)
}
