//! `mixlora config init` and `mixlora config check`

use crate::settings::read_file;
use crate::{Failure, out};
use mixlora::mixture::{Field, Methods, methods};
use mixlora::train::RunConfig;
use serde_json::Value;
use std::path::PathBuf;

#[derive(clap::Subcommand)]
pub enum Config {
    /// Print every setting of a run with its default, as a file to edit.
    Init(InitArgs),
    /// Read a file of settings and list everything that is wrong with it.
    Check(CheckArgs),
}

#[derive(clap::Args)]
#[command(after_help = "Example: mixlora config init --method mixlora-cond > run.toml")]
pub struct InitArgs {
    /// Whose defaults; see `mixlora methods`. vt-nlp sets everything as its authors released it.
    #[arg(long, default_value = methods::STANDARD.name)]
    method: String,
}

#[derive(clap::Args)]
#[command(after_help = "Example: mixlora config check run.toml")]
pub struct CheckArgs {
    /// A TOML or JSON file.
    file: PathBuf,
}

pub fn run(command: &Config) -> Result<(), Failure> {
    match command {
        Config::Init(args) => {
            let config = RunConfig::defaults(Methods::builtin().find(&args.method)?)?;
            Ok(out::text(&toml_text(&config)?)?)
        }
        Config::Check(args) => {
            let layers = [read_file(&args.file)?];
            let config = RunConfig::checked(&layers, &Methods::builtin()).map_err(Failure::of_all)?;
            config.method.notes().iter().for_each(|text| out::note(&format!("note: {text}")));
            Ok(out::text(&format!("{} is fine: method {}", args.file.display(), config.method.name()))?)
        }
    }
}

/// Settings as TOML with a comment for each; settings without a default are commented out.
fn toml_text(config: &RunConfig) -> mixlora::Result<String> {
    let tree = config.tree()?;
    let options = config.method.options().fields();
    let mut plain =
        String::from("# Settings of `mixlora train --config`. What is left out has the value shown.\n\n");
    let mut sections = String::new();
    for (key, value) in tree.as_object().into_iter().flatten() {
        match value.as_object() {
            None => plain += &setting(about(key), key, value),
            Some(_) if key == "options" => {
                sections += &format!("\n[options]\n# of {}\n", config.method.name());
                options.iter().for_each(|field| sections += &option(field));
            }
            Some(section) => {
                sections += &format!("\n[{key}]\n");
                for (name, value) in section {
                    sections += &setting(about(&format!("{key}.{name}")), name, value);
                }
            }
        }
    }
    Ok(plain + &sections)
}

/// An option of a method with its type and range.
fn option(field: &Field) -> String {
    let range = if field.range.is_full() { String::new() } else { format!(", {}", field.range) };
    setting(&format!("{} ({}{range})", field.doc, field.type_text()), field.name, &field.value)
}

fn about(path: &str) -> &'static str {
    ABOUT.iter().find(|(known, _)| *known == path).map_or("", |(_, about)| about)
}

fn setting(about: &str, name: &str, value: &Value) -> String {
    // Numbers, strings, booleans and lists of strings are written alike in JSON and TOML.
    match value {
        Value::Null => format!("# {about}\n# {name} =\n"),
        Value::String(text) if text.is_empty() => format!("# {about}\n# {name} = \"...\"\n"),
        value => format!("# {about}\n{name} = {value}\n"),
    }
}

/// Descriptions of settings.
const ABOUT: &[(&str, &str)] = &[
    ("model", "a .gguf file or a Hugging Face directory"),
    ("vision", "the vision part of a model that has none: a GGUF file (mmproj), or a directory with a tower"),
    (
        "data",
        "a file (.jsonl, .json, .csv, .tsv, .txt), or a folder with train.jsonl and, if you like, valid.jsonl",
    ),
    ("method", "see `mixlora methods`"),
    ("target_modules", "projections that get an adapter"),
    ("experts", "folders of trained LoRAs that the method mixes, each DIR or NAME=DIR"),
    ("start_from", "an adapter of the same method, or a run, whose values the run starts with"),
    ("task", "the task of samples that name none"),
    (
        "stages",
        "runs one after the other, as [[stages]] with data, steps and task; each starts from the one before",
    ),
    ("train.steps", "optimizer steps; by default what epochs gives"),
    ("train.epochs", "times that every example is seen"),
    ("train.micro_batch", "examples that go through the model together"),
    ("train.grad_accumulation", "micro-batches of one optimizer step"),
    ("train.learning_rate", "of AdamW, after the warm-up"),
    (
        "train.projector_learning_rate",
        "of the projector of a model that sees, which is then trained whole and kept with the adapter",
    ),
    (
        "train.align_epochs",
        "passes in which a new projector learns alone, on its tower's features, before the first step; 0: none",
    ),
    ("train.warmup_steps", "steps of linear warm-up; by default 3 % of the run"),
    ("train.schedule", "cosine, linear or constant"),
    ("train.max_grad_norm", "gradients are clipped to this norm; 0: never"),
    ("train.weight_decay", "of AdamW"),
    ("train.seed", "of initial values, order of examples and dropout"),
    ("train.recompute", "gradient checkpointing: less memory, a third more time"),
    ("train.bucket_steps", "sort the examples of so many steps by length, so that less is padded; 0: off"),
    ("train.valid_share", "share of the samples that validate, where the data has none for that"),
    ("train.eval_every", "steps between validations; by default 5 % of the run"),
    ("train.save_every", "steps between checkpoints; by default as eval_every"),
    (
        "train.answers",
        "validation samples with short answers that are answered at the end, for exact match; 0: none",
    ),
    ("train.keep", "checkpoints kept besides the best one"),
    ("train.max_skipped", "steps with a loss or gradient that is not finite that may be left out"),
    ("text.tokenizer", "a tokenizer.json, instead of the model's"),
    ("text.template", "chatml, or a Jinja file, instead of the model's chat template"),
    ("text.max_length", "longest example, in tokens"),
    ("text.loss_on_all", "train every token, not only the assistant's"),
    ("text.allow_untrained_eos", "accept assistant turns without an end token"),
    ("text.max_untrained", "share of examples that may be left out for having no trained token"),
    ("text.columns", "keys or columns of the data that stand for others, each as \"question=prompt\""),
    (
        "text.image_folder",
        "folder that relative paths of pictures are of; that of the data file where it is not set",
    ),
    ("text.on_bad_image", "what becomes of samples with a picture that cannot be read: error, or skip"),
    ("text.feature_memory", "bytes of pictures' features that stay in memory; more go to files"),
    (
        "text.feature_cache",
        "a folder where pictures' features are kept for other runs; what is above feature_memory is written in any case",
    ),
    ("device.name", "auto (the best GPU, else the CPU), cpu, gpu, or part of an adapter's name"),
    ("device.threads", "threads of the CPU device; by default one per core"),
    ("device.memory_budget", "bytes that the device may hold, such as \"6GiB\""),
    ("device.keep_quantised", "keep quantised weights as they are in memory: less memory"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_is_described_and_the_text_is_read_back() {
        for &method in Methods::builtin().all() {
            let defaults = RunConfig::defaults(method).unwrap();
            let mut paths = Vec::new();
            for (key, value) in defaults.tree().unwrap().as_object().unwrap() {
                match value.as_object() {
                    None => paths.push(key.clone()),
                    Some(_) if key == "options" => {}
                    Some(section) => paths.extend(section.keys().map(|name| format!("{key}.{name}"))),
                }
            }
            let mut described: Vec<String> = ABOUT.iter().map(|(path, _)| path.to_string()).collect();
            paths.sort();
            described.sort();
            assert_eq!(paths, described);
            assert!(defaults.method.options().fields().iter().all(|field| !field.doc.is_empty()));
            let read: Value = toml::from_str(&toml_text(&defaults).unwrap()).unwrap();
            let again = RunConfig::layered(&[("text".into(), read)], &Methods::builtin()).unwrap();
            assert_eq!(again, defaults, "{}", method.name);
        }
    }
}
