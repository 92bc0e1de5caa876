//! Questions with answers to choose from.

use super::figures::Figures;
use super::{Args, Report};
use crate::model_args::Opened;
use crate::progress::Progress;
use crate::{Failure, out};
use mixlora::data::{MultipleChoices, read_multiple_choice};
use mixlora::study::Figure;
use mixlora::train::{ChoiceOptions, ChoiceScore, Share, Weighed, weigh_choices};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The questions of a file.
pub struct Questions {
    path: PathBuf,
    asked: MultipleChoices,
}

/// The scores of each task and over all.
struct Scores {
    tasks: BTreeMap<String, ChoiceScore>,
    all: ChoiceScore,
}

impl Questions {
    pub fn read(args: &Args, path: PathBuf) -> Result<Self, Failure> {
        let mut asked = read_multiple_choice(&path, args.choices)?;
        asked.questions.truncate(args.limit.unwrap_or(usize::MAX).max(1));
        let name = path.file_name().unwrap_or(path.as_os_str()).to_string_lossy();
        let shape = asked.shape.name();
        let count = asked.questions.len();
        out::note(&format!(
            "note: {name} is read as questions with answers to choose from, in the shape of {shape}: {count}"
        ));
        Ok(Questions { path, asked })
    }

    /// The task of each question; that of a file without any is its shape.
    fn tasks(&self) -> impl Iterator<Item = String> + '_ {
        let named = |task: &Option<String>| task.clone().unwrap_or_else(|| self.asked.shape.word().into());
        self.asked.questions.iter().map(move |question| named(&question.task))
    }

    pub fn measure(&self, args: &Args, opened: &Opened) -> Result<Report, Failure> {
        let questions = &self.asked.questions;
        let options = ChoiceOptions { in_chat: args.choices_in_chat, together: args.micro_batch };
        let weighing = Progress::new("weighing answers", questions.len(), "questions");
        let weighed =
            weigh_choices(&opened.model, &opened.text, &opened.bank, questions, options, &mut |done| {
                weighing.reach(done);
            })?;
        drop(weighing);
        let cut = weighed.iter().filter(|weighed| weighed.cut > 0).count();
        if cut > 0 {
            let most = opened.model.config().max_positions();
            out::note(&format!(
                "note: {cut} prompts are cut at their start, to fit the model's context of {most} tokens"
            ));
        }
        let right: Vec<[bool; 3]> = questions
            .iter()
            .zip(&weighed)
            .map(|(question, weighed)| {
                let picks =
                    [weighed.best(), weighed.best_by_characters(question), weighed.best_by_bytes(question)];
                picks.map(|pick| pick == question.answer)
            })
            .collect();
        let scores = self.scores(&right);
        Ok(Report {
            text: self.text(&scores),
            json: self.json(&scores, &weighed),
            figures: self.figures(&right),
        })
    }

    fn scores(&self, right: &[[bool; 3]]) -> Scores {
        let mut by_task: BTreeMap<String, Vec<[bool; 3]>> = BTreeMap::new();
        self.tasks().zip(right).for_each(|(task, right)| by_task.entry(task).or_default().push(*right));
        let tasks: BTreeMap<String, ChoiceScore> =
            by_task.into_iter().map(|(task, right)| (task, ChoiceScore::of(&right))).collect();
        let all = ChoiceScore::over(&tasks.values().collect::<Vec<_>>());
        Scores { tasks, all }
    }

    fn figures(&self, right: &[[bool; 3]]) -> Vec<Figures> {
        let ways = [("acc", 0), ("acc_norm", 1)];
        let figures = |(name, way): (&'static str, usize)| {
            let figure = |right: &[bool; 3]| Some(Figure::once(f64::from(u8::from(right[way]))));
            let questions = self.tasks().zip(right.iter().map(figure)).collect();
            Figures { key: name, name, is_share: true, by_task: false, questions }
        };
        ways.map(figures).into()
    }

    fn text(&self, scores: &Scores) -> String {
        let percent = |value: f64| format!("{:.1} %", 100.0 * value);
        let with_error = |share: Share| [percent(share.mean), share.error.map_or("-".into(), percent)];
        let row = |task: &str, score: &ChoiceScore| {
            let mut row = vec![task.to_string(), score.questions.to_string()];
            row.extend(with_error(score.acc));
            row.extend(with_error(score.acc_norm));
            row
        };
        let mut rows: Vec<Vec<String>> = scores.tasks.iter().map(|(task, score)| row(task, score)).collect();
        if rows.len() > 1 {
            rows.push(row("all", &scores.all));
        }
        let head = ["task", "questions", "acc", "error", "acc_norm", "error"];
        let shape = self.asked.shape.name();
        out::table(&head, &rows) + &format!("{}, in the shape of {shape}\n", self.path.display())
    }

    fn json(&self, scores: &Scores, weighed: &[Weighed]) -> Value {
        let score = |score: &ChoiceScore| {
            json!({
                "questions": score.questions,
                "acc": score.acc.mean, "acc_stderr": score.acc.error,
                "acc_norm": score.acc_norm.mean, "acc_norm_stderr": score.acc_norm.error,
                "acc_bytes": score.acc_bytes.mean, "acc_bytes_stderr": score.acc_bytes.error,
            })
        };
        let tasks: Map<_, _> = scores.tasks.iter().map(|(task, own)| (task.clone(), score(own))).collect();
        let answers = self.asked.questions.iter().zip(weighed).map(|(question, weighed)| {
            json!({
                "line": question.line, "answer": question.answer, "log_probabilities": weighed.log_probabilities,
            })
        });
        let mut report = score(&scores.all);
        report["data"] = json!(self.path.display().to_string());
        report["shape"] = json!(self.asked.shape);
        report["tasks"] = Value::Object(tasks);
        report["answers"] = answers.collect();
        report
    }
}
