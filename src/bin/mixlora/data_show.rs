//! `mixlora data show`

use crate::data_text::TextArgs;
use crate::{Failure, out};
use mixlora::data::{DataFiles, Encoded, Sample, read_samples};
use mixlora::text::Tokenizer;
use serde_json::json;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
Shows samples as the model reads them. Trained text is inverted on a terminal, and stands in [[double brackets]] \
elsewhere.

Example: mixlora data show my-data --model my-model -n 2")]
pub struct Args {
    /// A folder with train.jsonl, valid.jsonl, test.jsonl (the first that is there is shown), or one file.
    path: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    /// How many samples.
    #[arg(short = 'n', long, default_value_t = 3)]
    number: usize,
    /// Print JSON: tokens, and which of them are trained.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let options = args.text.options();
    let side = options.open(args.text.model.as_deref())?;
    out::notes(&side.notes);
    let encoder = options.encoder(&side)?;
    let files = DataFiles::find(&args.path)?;
    let Some(path) = files.all().next() else { return Ok(()) };
    let samples = read_samples(path)?;
    let shown = samples.iter().take(args.number);
    let shown = shown.map(|sample| encoder.sample(path, sample).map(|encoded| (sample, encoded)));
    let shown = shown.collect::<Result<Vec<_>, mixlora::Error>>()?;
    if args.json {
        let list = shown.iter().map(|(sample, encoded)| {
            json!({
                "line": sample.line,
                "task": sample.task,
                "ids": encoded.example.ids,
                "trained": encoded.example.trained,
                "truncated": encoded.truncated,
                "parts": parts(&side.tokenizer, encoded),
            })
        });
        return Ok(out::json(&json!(list.collect::<Vec<_>>()))?);
    }
    let mut text = Vec::new();
    for (index, (sample, encoded)) in shown.iter().enumerate() {
        let space = if index > 0 { "\n" } else { "" };
        text.push((false, format!("{space}{}", head(&path.display().to_string(), sample, encoded))));
        text.extend(parts(&side.tokenizer, encoded));
        text.push((false, "\n".into()));
    }
    Ok(out::marked(&text)?)
}

fn head(path: &str, sample: &Sample, encoded: &Encoded) -> String {
    let tokens = encoded.example.ids.len();
    let trained = encoded.example.trained_tokens();
    let task = sample.task.as_ref().map_or(String::new(), |task| format!(", task {task}"));
    let cut = if encoded.truncated { ", cut to fit" } else { "" };
    format!("--- {path}:{}{task}: {tokens} tokens, {trained} trained{cut}\n", sample.line)
}

/// The text in runs of trained and untrained tokens. A character of several tokens belongs to the last one.
fn parts(tokenizer: &Tokenizer, encoded: &Encoded) -> Vec<(bool, String)> {
    let mut parts: Vec<(bool, String)> = Vec::new();
    let mut add = |trained: bool, text: Option<String>| {
        let Some(text) = text else { return };
        match parts.last_mut() {
            Some((same, part)) if *same == trained => part.push_str(&text),
            _ => parts.push((trained, text)),
        }
    };
    let mut decoder = tokenizer.decoder(&[], false);
    let mut last = false;
    for (&id, &trained) in encoded.example.ids.iter().zip(&encoded.example.trained) {
        add(trained, decoder.push(id));
        last = trained;
    }
    add(last, decoder.finish());
    parts
}
