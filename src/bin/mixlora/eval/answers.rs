//! Samples: the loss of their trained tokens, and answers that are said.

use super::figures::Figures;
use super::{Args, Report};
use crate::measured::{Asked, Measured};
use crate::model_args::Opened;
use crate::progress::Progress;
use crate::{Failure, out};
use mixlora::data::{Batch, Dataset};
use mixlora::study::Figure;
use mixlora::train::{
    Forgotten, GeneralPrompts, Judged, NO_TASK, Questions, SLACK, TaskScore, TextOptions, losses_of,
    mean_exact_match,
};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

/// The samples of a file.
pub struct Samples(Measured);

/// The loss of a sample.
struct Loss {
    task: String,
    sum: f64,
    tokens: usize,
}

/// What was measured of one model.
struct Told {
    path: String,
    losses: Vec<Loss>,
    scores: Vec<TaskScore>,
    figures: Vec<Figures>,
    forgotten: Option<Forgotten>,
}

impl Samples {
    pub fn read(args: &Args) -> Result<Self, Failure> {
        let options = TextOptions { max_length: args.max_length, ..TextOptions::default() };
        let options = args.features.over(args.reading.over(options));
        let mut measured = Measured::read(&args.data, args.split.as_deref(), options)?;
        measured.samples.truncate(args.limit.unwrap_or(usize::MAX));
        Ok(Samples(measured))
    }

    pub fn measure(&self, args: &Args, opened: &Opened, room_for: &[&Opened]) -> Result<Report, Failure> {
        let rows = room_for.iter().map(|opened| opened.bank.framing().rows_in_front());
        let asked = Asked {
            rows_in_front: rows.max().unwrap_or(0),
            conditions: room_for.iter().any(|opened| opened.bank.chooses_by_condition()),
        };
        let (encoder, data) = self.0.encode(opened, &asked)?;
        let losses = measure_losses(opened, &data, args.micro_batch.max(1))?;
        let mut figures = vec![loss_figures(&losses)];
        let mut questions = None;
        if args.max_tokens > 0 {
            let mut asked = Questions::new(&opened.text, &encoder, &self.0.samples, args.max_tokens)?;
            asked.show(&data);
            asked.route = opened.route;
            asked.longest = Some(args.max_tokens.saturating_add(SLACK));
            let unasked = asked.limit(usize::MAX, args.max_tokens);
            unasked.iter().for_each(|text| out::note(&format!("note: {text}")));
            questions = Some(asked);
        }
        let answers = questions.as_ref().map(|questions| ask(opened, questions)).transpose()?;
        let mut scores = Vec::new();
        let mut wrong = String::new();
        if let (Some(questions), Some(answers)) = (&questions, &answers) {
            scores = questions.score(answers);
            figures.extend(answer_figures(questions, &questions.judge(answers)));
            wrong = wrong_answers(questions, answers, args.show);
        }
        let general =
            args.forgotten.then(|| GeneralPrompts::new(&opened.model, &opened.text, &encoder)).transpose()?;
        let forgotten = general.map(|general| general.forgotten(&opened.model, &opened.bank)).transpose()?;
        let path = self.0.path.display().to_string();
        let told = Told { path, losses, scores, figures, forgotten };
        Ok(Report { text: told.text() + &wrong, json: told.json(), figures: told.figures })
    }
}

/// The loss of every example, of one task after the other.
fn measure_losses(opened: &Opened, data: &Dataset, micro_batch: usize) -> Result<Vec<Loss>, Failure> {
    let framing = opened.bank.framing();
    let pad = opened.text.tokenizer.pad_within(opened.model.config().vocab_size);
    let mut by_task: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (index, task) in data.tasks.iter().enumerate() {
        by_task.entry(task.as_deref().unwrap_or(NO_TASK)).or_default().push(index);
    }
    let measured = Progress::new("measuring the loss", data.examples.len(), "samples");
    let mut losses = Vec::with_capacity(data.examples.len());
    for (task, ids) in &by_task {
        for chunk in ids.chunks(micro_batch) {
            let examples: Vec<_> = chunk.iter().map(|&index| &data.examples[index]).collect();
            let batch = Batch::new(&examples, framing, pad, opened.model.device())?;
            let sums = losses_of(&opened.model, &opened.bank, &batch)?;
            let tokens = examples.iter().map(|example| example.trained_tokens());
            let loss = |(sum, tokens)| Loss { task: task.to_string(), sum, tokens };
            losses.extend(sums.into_iter().zip(tokens).map(loss));
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

/// The loss per token, over the tokens of all samples.
fn loss_figures(losses: &[Loss]) -> Figures {
    let figure = |loss: &Loss| {
        let figure = Figure { amount: loss.sum, weight: loss.tokens as f64 };
        (loss.task.clone(), (loss.tokens > 0).then_some(figure))
    };
    let questions = losses.iter().map(figure).collect();
    Figures { key: "loss", name: "loss", is_share: false, by_task: false, questions }
}

/// The figures of answers; all tasks count the same.
fn answer_figures(questions: &Questions, judged: &[Option<Judged>]) -> [Figures; 3] {
    let exact = |judged: &Judged| f64::from(u8::from(judged.exact));
    let figures = |key, name, figure: &dyn Fn(&Judged) -> f64| {
        let judged = judged.iter().map(|judged| judged.as_ref().map(|judged| Figure::once(figure(judged))));
        let tasks = questions.list.iter().map(|question| question.task_name().to_string());
        Figures { key, name, is_share: true, by_task: true, questions: tasks.zip(judged).collect() }
    };
    [
        figures("exact_match", "exact match", &exact),
        figures("f1", "F1", &|judged| judged.f1),
        figures("rouge_l", "ROUGE-L", &|judged| judged.rouge_l),
    ]
}

impl Told {
    /// The mean loss over all tokens, and their number.
    fn total(&self) -> (f64, usize) {
        let sum = self.losses.iter().fold(0.0, |sum, loss| sum + loss.sum);
        let tokens = self.losses.iter().map(|loss| loss.tokens).sum::<usize>();
        (sum / tokens.max(1) as f64, tokens)
    }

    /// The loss, the tokens and the samples of each task.
    fn by_task(&self) -> BTreeMap<&str, (f64, usize, usize)> {
        let mut tasks: BTreeMap<&str, (f64, usize, usize)> = BTreeMap::new();
        for loss in &self.losses {
            let (sum, tokens, samples) = tasks.entry(&loss.task).or_default();
            *sum += loss.sum;
            *tokens += loss.tokens;
            *samples += 1;
        }
        tasks.values_mut().for_each(|(sum, tokens, _)| *sum /= *tokens as f64);
        tasks
    }

    fn score(&self, task: &str) -> Option<&TaskScore> {
        self.scores.iter().find(|score| score.task == task)
    }

    /// The figures of answers.
    fn answers(&self) -> &[Figures] {
        &self.figures[1..]
    }

    fn json(&self) -> Value {
        let (loss, tokens) = self.total();
        let mut tasks = Map::new();
        for (task, (loss, tokens, samples)) in self.by_task() {
            let mut entry = json!({ "loss": loss, "tokens": tokens, "samples": samples });
            if let Some(score) = self.score(task) {
                entry["right"] = json!(score.right);
                entry["questions"] = json!(score.questions);
                entry["commonest"] = json!(score.commonest as f64 / score.questions as f64);
                for figures in self.answers() {
                    entry[figures.key] = json!(figures.of_tasks().get(task));
                }
            }
            tasks.insert(task.into(), entry);
        }
        let exact = (!self.scores.is_empty()).then_some(mean_exact_match(&self.scores));
        let mut report = json!({
            "data": self.path, "loss": loss, "perplexity": loss.exp(), "tokens": tokens, "exact_match": exact,
            "tasks": tasks,
        });
        for figures in self.answers().iter().filter(|figures| figures.key != "exact_match") {
            report[figures.key] = json!(figures.mean());
        }
        if let Some(forgotten) = &self.forgotten {
            report["forgotten"] = json!(forgotten);
        }
        report
    }

    fn text(&self) -> String {
        let (loss, tokens) = self.total();
        let of_tasks: Vec<_> = self.answers().iter().map(|figures| (figures, figures.of_tasks())).collect();
        let row = |(task, (loss, _, samples)): (&str, (f64, usize, usize))| {
            let mut row = vec![task.to_string(), samples.to_string()];
            row.extend([format!("{loss:.4}"), format!("{:.2}", loss.exp())]);
            row.extend(
                of_tasks
                    .iter()
                    .map(|(figures, means)| means.get(task).map_or("-".into(), |mean| figures.shown(*mean))),
            );
            let commonest =
                |score: &TaskScore| 100.0 * score.commonest as f64 / score.questions.max(1) as f64;
            row.push(self.score(task).map_or("-".into(), |score| format!("{:.1} %", commonest(score))));
            row
        };
        let rows: Vec<Vec<String>> = self.by_task().into_iter().map(row).collect();
        let mut head = vec!["task", "samples", "loss", "perplexity"];
        head.extend(self.answers().iter().map(|figures| figures.name));
        head.push("commonest");
        let mut text = out::table(&head, &rows);
        text +=
            &format!("loss {loss:.4}, perplexity {:.2} over {tokens} tokens of {}", loss.exp(), self.path);
        if !self.scores.is_empty() {
            let mean =
                |figures: &Figures| Some(format!("{} {}", figures.name, figures.shown(figures.mean()?)));
            let means: Vec<String> = self.answers().iter().filter_map(mean).collect();
            let tasks = self.scores.len();
            let over = if tasks == 1 { "one task".into() } else { format!("the mean over {tasks} tasks") };
            text += &format!("; {}, {over}", means.join(", "));
        }
        text += "\n";
        if let Some(Forgotten { prompts, kl, unchanged }) = &self.forgotten {
            let changed = 100.0 * (1.0 - unchanged);
            text += &format!(
                "{changed:.1} % of the answers to {prompts} general prompts changed, by {kl:.4} nats a token\n"
            );
        }
        text
    }
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
