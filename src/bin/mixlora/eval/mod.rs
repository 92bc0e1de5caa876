//! `mixlora eval`

mod answers;
mod choices;
mod compare;
mod figures;

use crate::data_text::{FeatureArgs, SampleArgs};
use crate::measured::Measured;
use crate::model_args::{ModelArgs, Opened};
use crate::{Failure, out};
use compare::{Compared, compare};
use figures::Figures;
use mixlora::data::ChoiceShape;
use mixlora::train::TextOptions;
use serde_json::Value;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
Loss and perplexity are over the trained tokens of all samples. Answers are the most likely ones, token by token, up to \
their end or --max-tokens, and are compared with the sample's last assistant turn (or completion): exact match is the share \
that equals it but for white space around, F1 that of equal words as SQuAD counts them, ROUGE-L that of words in the same \
order. Samples whose wanted answer is longer than --max-tokens are left out of these. 'commonest' is what always giving a \
task's most frequent answer would get.

Data with answers to choose from, in the shapes of ARC, BoolQ, HellaSwag, MMLU, or with prompt, choices and answer, are \
scored by the loss of each answer behind its prompt, as lm-evaluation-harness does without examples: acc by the \
log-probability, acc_norm by the same per character of the answer. 'error' is the standard error over questions.

--compare measures several adapters on the same questions, and how far each is from the first, with the interval that holds \
95 % of the bootstrap's resamples of questions.

With --forgotten the base model's likeliest answers to 64 general prompts, up to 24 tokens, are compared with those of the \
model with its adapter: how many changed, and the mean of KL(base || adapted) over the tokens of the base model's answers.

More in docs/EVAL.md.

Example: mixlora eval --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter run --data my_data --show 5
Example: mixlora eval --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter run --data arc_easy.jsonl
Example: mixlora eval --model SmolLM2-135M-Instruct.Q4_1.gguf --data my_data --compare base --compare run-1 --compare run-2")]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// A data file, or a folder with test.jsonl or valid.jsonl.
    #[arg(long)]
    data: PathBuf,
    /// Which file of a folder; test where there is one, else valid, when it is not given.
    #[arg(long, value_parser = ["train", "valid", "test"])]
    split: Option<String>,
    /// The data are questions with answers to choose from, of this shape: arc, boolq, hellaswag, mmlu or plain. Known by their
    /// keys where it is not given.
    #[arg(long, value_name = "SHAPE")]
    choices: Option<ChoiceShape>,
    /// Put questions with answers to choose from as a user's turn, with the chat template; else an answer goes on with the
    /// prompt's text.
    #[arg(long)]
    choices_in_chat: bool,
    /// An adapter directory, a run, or 'base' for the model alone. Give it once for each that is compared; the first is what
    /// the others are compared with.
    #[arg(long, value_name = "DIR", conflicts_with_all = ["adapter", "forgotten", "show"])]
    compare: Vec<PathBuf>,
    /// Samples or questions at most.
    #[arg(long)]
    limit: Option<usize>,
    /// Longest wanted answer that is asked for, in tokens; 0 asks for no answers.
    #[arg(long, default_value_t = 32)]
    max_tokens: usize,
    /// Samples that go through the model together for the loss, or answers to choose from.
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

/// What was measured of a model with or without adapters.
struct Report {
    text: String,
    json: Value,
    figures: Vec<Figures>,
}

/// What models are measured on.
enum Subject {
    Answers(Box<answers::Samples>),
    Choices(choices::Questions),
}

impl Subject {
    fn read(args: &Args) -> Result<Self, Failure> {
        let path = Measured::path(&args.data, args.split.as_deref())?;
        let samples = args.choices.is_none() && !args.reading.columns.is_empty();
        if !samples && (args.choices.is_some() || mixlora::data::is_multiple_choice(&path)?) {
            return choices::Questions::read(args, path).map(Subject::Choices);
        }
        if args.choices_in_chat {
            let what = "the data have no answers to choose from; samples are put as their keys say";
            return Err(Failure::Usage(format!("--choices-in-chat: {what}")));
        }
        answers::Samples::read(args).map(|samples| Subject::Answers(Box::new(samples)))
    }

    /// Measures a model. `room_for` are all models that are measured on the same.
    fn measure(&self, args: &Args, opened: &Opened, room_for: &[&Opened]) -> Result<Report, Failure> {
        match self {
            Subject::Answers(samples) => samples.measure(args, opened, room_for),
            Subject::Choices(questions) => questions.measure(args, opened),
        }
    }
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let many = Compared::check(&args.compare)?;
    let subject = Subject::read(args)?;
    if let (Subject::Choices(_), true) = (&subject, args.forgotten || args.show > 0) {
        let option = if args.forgotten { "--forgotten" } else { "--show" };
        return Err(Failure::Usage(format!(
            "{option}: the data have answers to choose from, and none is said"
        )));
    }
    let opened = args.model.open()?;
    if many {
        return compare(args, &subject, opened);
    }
    let report = subject.measure(args, &opened, &[&opened])?;
    if args.json { Ok(out::json(&report.json)?) } else { Ok(out::text(&report.text)?) }
}
