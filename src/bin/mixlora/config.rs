//! `mixlora config init` and `mixlora config check`

use crate::settings::read_file;
use crate::{Failure, out};
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
    #[arg(long, default_value = "mixlora-cond")]
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
            let config = RunConfig::defaults(&args.method)?;
            Ok(out::text(&toml_text(&config.tree()?))?)
        }
        Config::Check(args) => {
            let config = RunConfig::checked(&[read_file(&args.file)?]).map_err(Failure::of_all)?;
            let method = mixlora::mixture::find(&config.method)?;
            method.notes(&config.options).iter().for_each(|n| out::note(&format!("note: {n}")));
            Ok(out::text(&format!("{} is fine: method {}", args.file.display(), config.method))?)
        }
    }
}

/// A tree of settings as TOML with a comment for each; what has no default is commented out.
fn toml_text(tree: &Value) -> String {
    let mut text =
        String::from("# Settings of `mixlora train --config`. What is left out has the value shown.\n\n");
    let (mut plain, mut sections) = (String::new(), String::new());
    for (key, value) in tree.as_object().into_iter().flatten() {
        match value.as_object() {
            None => plain += &setting(key, key, value),
            Some(section) => {
                sections += &format!("\n[{key}]\n");
                for (name, value) in section {
                    sections += &setting(&format!("{key}.{name}"), name, value);
                }
            }
        }
    }
    text += &plain;
    text + &sections
}

fn setting(path: &str, name: &str, value: &Value) -> String {
    let about = ABOUT.iter().find(|(p, _)| *p == path).map_or("", |(_, about)| about);
    // Numbers, strings, booleans and lists of strings are written alike in JSON and TOML.
    match value {
        Value::Null => format!("# {about}\n# {name} =\n"),
        Value::String(s) if s.is_empty() => format!("# {about}\n# {name} = \"...\"\n"),
        v => format!("# {about}\n{name} = {v}\n"),
    }
}

/// What each setting is, for people.
const ABOUT: &[(&str, &str)] = &[
    ("model", "a .gguf file or a Hugging Face directory"),
    ("data", "a JSONL file, or a folder with train.jsonl and, if you like, valid.jsonl"),
    ("method", "see `mixlora methods`"),
    ("target_modules", "projections that get an adapter"),
    (
        "options.r",
        "rank of the update that an input gets; of an expert, or of the whole pool, in other methods",
    ),
    (
        "options.lora_alpha",
        "the update is scaled by lora_alpha / r; default 2 num_factors in conditional methods, else 2 r",
    ),
    ("options.lora_dropout", "dropout on the input of the adapter, after routing"),
    ("options.num_factors", "rank-1 factors in each pool (conditional methods)"),
    ("options.num_experts", "whole LoRA experts (mixlora-ffn)"),
    ("options.top_k", "experts or ranks per token (token methods)"),
    ("options.cfs_form", "how B's choice looks at A's: linear, sum_product or choice; absent: not at all"),
    ("options.cfs_weight", "weight of that condition"),
    ("options.cfs_gated_input", "the condition sees A's factors times their gates"),
    ("options.gated", "chosen factors are multiplied by gates"),
    ("options.gate_scale", "r: gates sum to r; none: to 1"),
    ("options.pool", "what routers look at: prompt_mask, all, real, instr or last_token"),
    (
        "options.decode_route",
        "generated tokens keep the prompt's choice (freeze_prefill) or route anew (per_step)",
    ),
    ("options.aux_loss_coef", "coefficient of the load-balance loss"),
    ("options.bias_lr", "step of the balancing bias"),
    ("options.density", "share of each frozen A row that is not zero (flylora)"),
    ("train.steps", "optimizer steps; by default what epochs gives"),
    ("train.epochs", "times that every example is seen"),
    ("train.micro_batch", "examples that go through the model together"),
    ("train.grad_accumulation", "micro-batches of one optimizer step"),
    ("train.learning_rate", "of AdamW, after the warm-up"),
    ("train.warmup_steps", "steps of linear warm-up; by default 3 % of the run"),
    ("train.schedule", "cosine, linear or constant"),
    ("train.max_grad_norm", "gradients are clipped to this norm; 0: never"),
    ("train.weight_decay", "of AdamW"),
    ("train.seed", "of initial values, order of examples and dropout"),
    ("train.recompute", "gradient checkpointing: less memory, a third more time"),
    ("train.bucket_steps", "sort the examples of so many steps by length, so that less is padded; 0: off"),
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
        for method in mixlora::mixture::ALL {
            let defaults = RunConfig::defaults(method.name).unwrap();
            let tree = defaults.tree().unwrap();
            let mut paths = Vec::new();
            for (key, value) in tree.as_object().unwrap() {
                match value.as_object() {
                    None => paths.push(key.clone()),
                    Some(s) => paths.extend(s.keys().map(|k| format!("{key}.{k}"))),
                }
            }
            let mut described: Vec<String> = ABOUT.iter().map(|(p, _)| p.to_string()).collect();
            paths.sort();
            described.sort();
            assert_eq!(paths, described);
            let read: Value = toml::from_str(&toml_text(&tree)).unwrap();
            let again = RunConfig::layered(&[("text".into(), read)]).unwrap();
            assert_eq!(again, defaults, "{}", method.name);
        }
    }
}
