//! `mixlora eval`

use crate::data_text::{FeatureArgs, SampleArgs};
use crate::measured::{Asked, Measured};
use crate::model_args::{ModelArgs, Opened};
use crate::progress::Progress;
use crate::{Failure, out};
use mixlora::data::{Batch, Dataset};
use mixlora::train::{
    Forgotten, GeneralPrompts, NO_TASK, Questions, TaskScore, TextOptions, mean_exact_match,
};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
Loss and perplexity are over the trained tokens of all samples. Exact match is the share of answers, each the most \
likely one token by token, that equal the sample's last assistant turn (or completion) but for white space around; \
samples with longer answers than --max-tokens are left out of it. 'commonest' is what always giving a task's most \
frequent answer would get.

With --forgotten the base model's likeliest answers to 64 general prompts, up to 24 tokens, are compared with those of the \
model with its adapter: how many changed, and the mean of KL(base || adapted) over the tokens of the base model's answers.

Example: mixlora eval --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter run --data my_data --show 5")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A data file, or a folder with test.jsonl or valid.jsonl.
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
    #[command(flatten)]
    reading: SampleArgs,
    #[command(flatten)]
    features: FeatureArgs,
    /// Ask 64 general prompts too: how far the adapter has moved answers that its training was not about.
    #[arg(long)]
    forgotten: bool,
    /// Show this many wrong answers of each task.
    #[arg(long, default_value_t = 0)]
    show: usize,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// The loss of a task.
#[derive(Default)]
struct Loss {
    sum: f64,
    tokens: usize,
    samples: usize,
}

impl Loss {
    fn mean(&self) -> f64 {
        self.sum / self.tokens as f64
    }
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let options = TextOptions { max_length: args.max_length, ..TextOptions::default() };
    let options = args.features.over(args.reading.over(options));
    let mut measured = Measured::read(&args.data, args.split.as_deref(), options)?;
    measured.samples.truncate(args.limit.unwrap_or(usize::MAX));
    let opened = args.model.open()?;
    let asked = Asked {
        rows_in_front: opened.bank.framing().rows_in_front(),
        conditions: opened.bank.chooses_by_condition(),
    };
    let (encoder, data) = measured.encode(&opened, &asked)?;
    let losses = measure_losses(&opened, &data, args.micro_batch.max(1))?;
    let mut questions = None;
    if args.max_tokens > 0 {
        let mut asked = Questions::new(&opened.text, &encoder, &measured.samples, args.max_tokens)?;
        asked.show(&data);
        asked.route = opened.route;
        let unasked = asked.limit(usize::MAX, args.max_tokens);
        unasked.iter().for_each(|text| out::note(&format!("note: {text}")));
        questions = Some(asked);
    }
    let answers =
        questions.as_ref().map(|questions| ask(&opened, questions)).transpose()?.unwrap_or_default();
    let scores = questions.as_ref().map_or_else(Vec::new, |questions| questions.score(&answers));
    let general =
        args.forgotten.then(|| GeneralPrompts::new(&opened.model, &opened.text, &encoder)).transpose()?;
    let forgotten = general.map(|general| general.forgotten(&opened.model, &opened.bank)).transpose()?;
    let path = measured.path.display().to_string();
    if args.json {
        let mut report = json_report(&path, &losses, &scores);
        if let Some(forgotten) = forgotten {
            report["forgotten"] = json!(forgotten);
        }
        return Ok(out::json(&report)?);
    }
    let mut text = text_report(&path, &losses, &scores);
    if let Some(Forgotten { prompts, kl, unchanged }) = forgotten {
        let changed = 100.0 * (1.0 - unchanged);
        text += &format!(
            "{changed:.1} % of the answers to {prompts} general prompts changed, by {kl:.4} nats a token\n"
        );
    }
    if let Some(questions) = &questions {
        text += &wrong_answers(questions, &answers, args.show);
    }
    Ok(out::text(&text)?)
}

/// The loss of every task. Samples of one task are batched together, so that the loss of the task is known.
fn measure_losses(
    opened: &Opened,
    data: &Dataset,
    micro_batch: usize,
) -> Result<BTreeMap<String, Loss>, Failure> {
    let framing = opened.bank.framing();
    let pad = opened.text.tokenizer.pad_within(opened.model.config().vocab_size);
    let mut by_task: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for (index, task) in data.tasks.iter().enumerate() {
        by_task.entry(task.clone().unwrap_or_else(|| NO_TASK.into())).or_default().push(index);
    }
    let measured = Progress::new("measuring the loss", data.examples.len(), "samples");
    let mut losses: BTreeMap<String, Loss> = BTreeMap::new();
    for (task, ids) in &by_task {
        for chunk in ids.chunks(micro_batch) {
            let examples: Vec<_> = chunk.iter().map(|&index| &data.examples[index]).collect();
            let batch = Batch::new(&examples, framing, pad, opened.model.device())?;
            let loss = losses.entry(task.clone()).or_default();
            loss.sum += mixlora::train::loss_of(&opened.model, &opened.bank, &batch)?;
            loss.tokens += batch.trained;
            loss.samples += chunk.len();
            measured.steps(chunk.len());
        }
    }
    Ok(losses)
}

fn ask(opened: &Opened, questions: &Questions) -> Result<Vec<Option<String>>, Failure> {
    let asked = Progress::new("asking", questions.list.len(), "questions");
    let answers = questions.answer(&opened.model, &opened.bank, &mut |done| {
        asked.reach(done);
        true
    })?;
    drop(asked);
    let silent = answers.iter().filter(|answer| answer.is_none()).count();
    if silent > 0 {
        out::note(&format!(
            "note: {silent} prompts are longer than the model's context and were not answered"
        ));
    }
    Ok(answers)
}

/// The mean loss over all tokens, and their number.
fn total(losses: &BTreeMap<String, Loss>) -> (f64, usize) {
    let sum = losses.values().fold(0.0, |sum, loss| sum + loss.sum);
    let tokens = losses.values().map(|loss| loss.tokens).sum::<usize>();
    (sum / tokens.max(1) as f64, tokens)
}

fn json_report(path: &str, losses: &BTreeMap<String, Loss>, scores: &[TaskScore]) -> Value {
    let (loss, tokens) = total(losses);
    let task = |(task, loss): (&String, &Loss)| {
        let mut entry = json!({ "loss": loss.mean(), "tokens": loss.tokens, "samples": loss.samples });
        if let Some(score) = scores.iter().find(|score| score.task == *task) {
            entry["right"] = json!(score.right);
            entry["questions"] = json!(score.questions);
            entry["exact_match"] = json!(score.exact_match());
            entry["commonest"] = json!(score.commonest as f64 / score.questions as f64);
        }
        (task.clone(), entry)
    };
    let tasks: serde_json::Map<_, _> = losses.iter().map(task).collect();
    let exact = (!scores.is_empty()).then_some(mean_exact_match(scores));
    json!({
        "data": path, "loss": loss, "perplexity": loss.exp(), "tokens": tokens, "exact_match": exact,
        "tasks": tasks,
    })
}

fn text_report(path: &str, losses: &BTreeMap<String, Loss>, scores: &[TaskScore]) -> String {
    let (loss, tokens) = total(losses);
    let percent = |part: usize, whole: usize| format!("{:.1} %", 100.0 * part as f64 / whole.max(1) as f64);
    let row = |(task, loss): (&String, &Loss)| {
        let mean = loss.mean();
        let score = scores.iter().find(|score| score.task == *task);
        let exact = score.map_or("-".into(), |score| percent(score.right, score.questions));
        let commonest = score.map_or("-".into(), |score| percent(score.commonest, score.questions));
        let samples = loss.samples.to_string();
        vec![task.clone(), samples, format!("{mean:.4}"), format!("{:.2}", mean.exp()), exact, commonest]
    };
    let rows: Vec<Vec<String>> = losses.iter().map(row).collect();
    let mut text = out::table(&["task", "samples", "loss", "perplexity", "exact match", "commonest"], &rows);
    text += &format!("loss {loss:.4}, perplexity {:.2} over {tokens} tokens of {path}", loss.exp());
    if !scores.is_empty() {
        let exact = 100.0 * mean_exact_match(scores);
        text += &format!("; exact match {exact:.1} %, the mean over {} tasks", scores.len());
    }
    text + "\n"
}

/// Up to `show` wrong answers of each task.
fn wrong_answers(questions: &Questions, answers: &[Option<String>], show: usize) -> String {
    let mut text = String::new();
    let mut left: BTreeMap<&str, usize> = BTreeMap::new();
    for (question, answer) in questions.list.iter().zip(answers) {
        let wanted = question.reference.trim();
        let Some(answer) = answer.as_deref().map(str::trim).filter(|answer| *answer != wanted) else {
            continue;
        };
        let left = left.entry(question.task_name()).or_insert(show);
        if *left > 0 {
            *left -= 1;
            let (task, shown) = (question.task_name(), &question.shown);
            text += &format!("{task}: {shown:?} -> {answer:?}, wanted {wanted:?}\n");
        }
    }
    text
}
