//! The report of a model that learned to see.

use super::super::base::Base;
use super::super::report::{cell, percent, quoted};
use super::super::set::SYSTEM;
use crate::out;
use mixlora::train::{Aligned, Questions, TaskScore};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// The answers to all questions, and how long they took.
pub struct Answered {
    pub answers: Vec<Option<String>>,
    pub scores: Vec<TaskScore>,
    pub seconds: f64,
}

pub struct Report<'a> {
    pub base: &'a Base,
    pub tower: PathBuf,
    pub adapter: PathBuf,
    pub questions: &'a Questions,
    /// Before training, after it, with a grey picture, with another sample's picture.
    pub answers: &'a [Answered],
    pub trained_values: usize,
    pub steps: usize,
    pub seed: u64,
    pub training: f64,
    pub seconds: f64,
    pub device: String,
    pub aligned: Option<Aligned>,
    /// Mean cross-entropy of the held-out answers before training and after it, where it was measured.
    pub held_out_loss: Option<[f64; 2]>,
}

/// The columns of the answers.
const COLUMNS: [&str; 4] = ["before", "after", "grey", "shuffled"];

/// What is known of a task.
struct Task<'a> {
    name: &'a str,
    questions: usize,
    /// Share of the commonest answer, and of the commonest to each question.
    commonest: f64,
    by_question: f64,
    shares: Vec<f64>,
}

impl Report<'_> {
    fn tasks(&self) -> Vec<Task<'_>> {
        let Some(first) = self.answers.first() else { return Vec::new() };
        let task = |(i, score): (usize, &'_ TaskScore)| Task {
            name: self.name(&score.task),
            questions: score.questions,
            commonest: score.commonest as f64 / score.questions.max(1) as f64,
            by_question: self.by_question(&score.task),
            shares: self.answers.iter().map(|a| a.scores[i].exact_match()).collect(),
        };
        first.scores.iter().enumerate().map(task).collect()
    }

    fn name(&self, task: &str) -> &str {
        let mut names = self.questions.list.iter().map(|question| question.task_name());
        names.find(|name| *name == task).unwrap_or_default()
    }

    /// What always giving the commonest answer to a question's text would get.
    fn by_question(&self, task: &str) -> f64 {
        let mut all: BTreeMap<&str, BTreeMap<&str, usize>> = BTreeMap::new();
        for question in self.questions.list.iter().filter(|question| question.task_name() == task) {
            let answers = all.entry(&question.shown).or_default();
            *answers.entry(question.reference.trim()).or_default() += 1;
        }
        let right: usize = all.values().filter_map(|answers| answers.values().max()).sum();
        let questions: usize = all.values().flat_map(BTreeMap::values).sum();
        right as f64 / questions.max(1) as f64
    }

    pub fn text(&self) -> String {
        let tasks = self.tasks();
        let row = |task: &Task<'_>| {
            let shares = [task.commonest, task.by_question].into_iter().chain(task.shares.iter().copied());
            let start = [task.name.to_string(), task.questions.to_string()];
            start.into_iter().chain(shares.map(percent)).collect::<Vec<String>>()
        };
        let mut rows: Vec<Vec<String>> = tasks.iter().map(row).collect();
        let mean = |of: &dyn Fn(&Task<'_>) -> f64| {
            percent(tasks.iter().map(of).sum::<f64>() / tasks.len().max(1) as f64)
        };
        let asked = tasks.iter().map(|task| task.questions).sum::<usize>().to_string();
        let mut last = vec!["mean".into(), asked, mean(&|t| t.commonest), mean(&|t| t.by_question)];
        last.extend((0..COLUMNS.len()).map(|i| mean(&|t| t.shares.get(i).copied().unwrap_or(0.0))));
        rows.push(last);
        let head = ["task", "questions", "commonest", "commonest by question"];
        let head: Vec<&str> = head.into_iter().chain(COLUMNS).collect();
        let mut text = self
            .base
            .because
            .as_ref()
            .map_or_else(String::new, |why| format!("{why}; these are the figures of a tiny model.\n\n"));
        text += "exact match on questions about pictures that were not trained:\n\n";
        text += &out::table(&head, &rows);
        text += "'grey' shows a grey picture instead, 'shuffled' that of another sample of the task.\n\n";
        text += &self.examples();
        if let Some(aligned) = self.aligned {
            text += &format!(
                "\nprojector aligned on {} examples: loss {:.2} -> {:.2}",
                aligned.examples, aligned.first_loss, aligned.last_loss
            );
        }
        if let Some([before, after]) = self.held_out_loss {
            text += &format!("\nloss of the held-out answers: {before:.3} -> {after:.3}");
        }
        let asking: f64 = self.answers.iter().map(|answered| answered.seconds).sum();
        text += &format!(
            "\n{} trained values, {} steps in {:.0} s, asking {asking:.0} s, everything {:.0} s on {}\n\n",
            self.trained_values, self.steps, self.training, self.seconds, self.device
        );
        let [model, tower, adapter] = [&self.base.path, &self.tower, &self.adapter].map(|path| quoted(path));
        text += &format!(
            "Next:\n\x20 mixlora chat --model {model} --vision {tower} --adapter {adapter} --system '{SYSTEM}' \
             --image PICTURE\n\x20     and say, for example: What shape is in the image?\n"
        );
        text
    }

    /// The first question of each task with the answers.
    fn examples(&self) -> String {
        let list = &self.questions.list;
        let firsts = self
            .tasks()
            .into_iter()
            .filter_map(|task| list.iter().position(|question| question.task_name() == task.name));
        let rows: Vec<Vec<String>> = firsts
            .map(|at| {
                let said = self.answers.iter().map(|a| cell(a.answers[at].as_deref().unwrap_or("-")));
                let question = [cell(&list[at].shown), cell(&list[at].reference)];
                question.into_iter().chain(said).collect()
            })
            .collect();
        let head: Vec<&str> = ["question", "wanted"].into_iter().chain(COLUMNS).collect();
        out::table(&head, &rows)
    }

    pub fn json(&self) -> Value {
        let task = |task: &Task<'_>| {
            let mut figures = json!({
                "questions": task.questions, "commonest": task.commonest,
                "commonest_by_question": task.by_question,
            });
            for (name, share) in COLUMNS.into_iter().zip(&task.shares) {
                figures[name] = json!(share);
            }
            (task.name.to_string(), figures)
        };
        let tasks: serde_json::Map<String, Value> = self.tasks().iter().map(task).collect();
        let held_out_loss =
            self.held_out_loss.map(|[before, after]| json!({ "before": before, "after": after }));
        json!({
            "held_out_loss": held_out_loss,
            "model": self.base.path.display().to_string(), "tiny": self.base.tiny,
            "fallback_because": self.base.because, "tower": self.tower.display().to_string(),
            "adapter": self.adapter.display().to_string(), "seed": self.seed, "device": self.device,
            "trained_values": self.trained_values, "steps": self.steps, "aligned": self.aligned,
            "training_seconds": self.training, "seconds": self.seconds, "tasks": tasks,
        })
    }
}
