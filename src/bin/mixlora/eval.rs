//! `mixlora eval`

use crate::model_args::ModelArgs;
use crate::progress::Progress;
use crate::{Failure, out};
use mixlora::data::{Batch, DataFiles, read_samples};
use mixlora::train::{Questions, TextOptions, mean_exact_match};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
Loss and perplexity are over the trained tokens of all samples. Exact match is the share of answers, each the most \
likely one token by token, that equal the sample's last assistant turn (or completion) but for white space around; \
samples with longer answers than --max-tokens are left out of it. 'commonest' is what always giving a task's most \
frequent answer would get.

Example: mixlora eval --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter run --data my_data --show 5")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A JSONL file, or a folder with test.jsonl or valid.jsonl.
    #[arg(long)]
    data: PathBuf,
    /// Which file of a folder; test where there is one, else valid, when it is not given.
    #[arg(long, value_parser = ["train", "valid", "test"])]
    split: Option<String>,
    /// Samples at most.
    #[arg(long)]
    limit: Option<usize>,
    /// Longest reference that exact match looks at, in tokens; 0 measures no exact match.
    #[arg(long, default_value_t = 32)]
    max_tokens: usize,
    /// Samples that go through the model together for the loss.
    #[arg(long, default_value_t = 8)]
    micro_batch: usize,
    /// Longest sample, in tokens.
    #[arg(long, default_value_t = TextOptions::default().max_length)]
    max_length: usize,
    /// Show this many wrong answers of each task.
    #[arg(long, default_value_t = 0)]
    show: usize,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Loss of a task.
#[derive(Default)]
struct Loss {
    sum: f64,
    tokens: usize,
    samples: usize,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let files = DataFiles::find(&args.data)?;
    let path = match args.split.as_deref() {
        Some("train") => files.train.clone(),
        Some("valid") => files.valid.clone(),
        Some(_) => files.test.clone(),
        None => files.test.clone().or(files.valid.clone()).or(files.train.clone()),
    };
    let Some(path) = path else {
        let what = format!("has no {}.jsonl", args.split.as_deref().unwrap_or("test"));
        return Err(mixlora::Error::File { path: args.data.clone(), what }.into());
    };
    let mut samples = read_samples(&path)?;
    samples.truncate(args.limit.unwrap_or(usize::MAX));
    let opened = args.model.open()?;
    // What is longer than the model's context is cut, from the start of the sample.
    let max_length = args.max_length.min(opened.model.config().max_positions());
    let options = TextOptions { max_length, ..TextOptions::default() };
    let data = options.encoder(&opened.text)?.dataset(&path, &samples)?;
    let notes = files.note().into_iter().chain(data.counts.note("samples", max_length));
    notes.for_each(|text| out::note(&format!("note: {text}")));
    data.check_rows(&path, opened.model.config().vocab_size)?;

    let pool = opened.adapter.as_ref().and_then(|a| a.method().options().instance()).map(|i| i.pool);
    let mut losses: BTreeMap<String, Loss> = BTreeMap::new();
    let all: Vec<usize> = (0..data.examples.len()).collect();
    // Samples of one task go together, so that its loss is known.
    let mut by_task: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for &i in &all {
        by_task.entry(data.tasks[i].clone().unwrap_or_else(|| "-".into())).or_default().push(i);
    }
    let measured = Progress::new("measuring the loss", all.len(), "samples");
    for (task, ids) in &by_task {
        for chunk in ids.chunks(args.micro_batch.max(1)) {
            let examples: Vec<_> = chunk.iter().map(|&i| &data.examples[i]).collect();
            let batch = Batch::new(
                &examples,
                pool,
                opened.text.tokenizer.pad_within(opened.model.config().vocab_size),
                opened.model.device(),
            )?;
            let loss = losses.entry(task.clone()).or_default();
            loss.sum += mixlora::train::loss_of(&opened.model, opened.adapter.as_ref(), &batch)?;
            loss.tokens += batch.trained;
            loss.samples += chunk.len();
            measured.steps(chunk.len());
        }
    }
    drop(measured);
    let questions = match args.max_tokens {
        0 => None,
        n => {
            let mut questions = Questions::new(&opened.text, &samples, n)?;
            questions.route = opened.route;
            let unasked = questions.limit(usize::MAX, n);
            unasked.iter().for_each(|text| out::note(&format!("note: {text}")));
            Some(questions)
        }
    };
    let answers = questions.as_ref().map(|q| {
        let asked = Progress::new("asking", q.list.len(), "questions");
        q.answer(&opened.model, opened.adapter.as_ref(), &mut |done| {
            asked.reach(done);
            true
        })
    });
    let answers = answers.transpose()?.unwrap_or_default();
    let silent = answers.iter().filter(|a| a.is_none()).count();
    if silent > 0 {
        out::note(&format!(
            "note: {silent} prompts are longer than the model's context and were not answered"
        ));
    }
    report(args, &path.display().to_string(), &losses, questions.as_ref(), &answers)
}

fn report(
    args: &Args,
    path: &str,
    losses: &BTreeMap<String, Loss>,
    questions: Option<&Questions>,
    answers: &[Option<String>],
) -> Result<(), Failure> {
    let scores = questions.map_or_else(Vec::new, |q| q.score(answers));
    let (sum, tokens) = losses.values().fold((0.0, 0), |(s, t), l| (s + l.sum, t + l.tokens));
    let (loss, exact) = (sum / tokens.max(1) as f64, mean_exact_match(&scores));
    if args.json {
        let tasks: serde_json::Map<_, _> = losses
            .iter()
            .map(|(task, l)| {
                let mut entry =
                    json!({ "loss": l.sum / l.tokens as f64, "tokens": l.tokens, "samples": l.samples });
                if let Some(s) = scores.iter().find(|s| s.task == *task) {
                    entry["right"] = json!(s.right);
                    entry["questions"] = json!(s.questions);
                    entry["exact_match"] = json!(s.exact_match());
                    entry["commonest"] = json!(s.commonest as f64 / s.questions as f64);
                }
                (task.clone(), entry)
            })
            .collect();
        let exact = (!scores.is_empty()).then_some(exact);
        return Ok(out::json(&json!({
            "data": path, "loss": loss, "perplexity": loss.exp(), "tokens": tokens, "exact_match": exact,
            "tasks": tasks,
        }))?);
    }
    let percent = |n: usize, of: usize| format!("{:.1} %", 100.0 * n as f64 / of.max(1) as f64);
    let rows: Vec<Vec<String>> = losses
        .iter()
        .map(|(task, l)| {
            let loss = l.sum / l.tokens as f64;
            let mut row =
                vec![task.clone(), l.samples.to_string(), format!("{loss:.4}"), format!("{:.2}", loss.exp())];
            match scores.iter().find(|s| s.task == *task) {
                Some(s) => row.extend([percent(s.right, s.questions), percent(s.commonest, s.questions)]),
                None => row.extend(["-".into(), "-".into()]),
            }
            row
        })
        .collect();
    let mut text = out::table(&["task", "samples", "loss", "perplexity", "exact match", "commonest"], &rows);
    text += &format!("loss {loss:.4}, perplexity {:.2} over {tokens} tokens of {path}", loss.exp());
    if !scores.is_empty() {
        text += &format!("; exact match {:.1} %, the mean over {} tasks", 100.0 * exact, scores.len());
    }
    text += "\n";
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    for (q, answer) in questions.iter().flat_map(|q| &q.list).zip(answers) {
        let Some(answer) = answer.as_ref().filter(|a| a.trim() != q.reference.trim()) else { continue };
        let left = left.entry(&q.task).or_insert(args.show);
        if *left > 0 {
            *left -= 1;
            text += &format!(
                "{}: {:?} -> {:?}, wanted {:?}\n",
                q.task,
                q.shown,
                answer.trim(),
                q.reference.trim()
            );
        }
    }
    Ok(out::text(&text)?)
}
