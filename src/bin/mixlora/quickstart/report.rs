//! The report of the quickstart.

use super::base::Base;
use super::lesson::{Learned, Lesson, Measured};
use super::set::SYSTEM;
use crate::out;
use mixlora::train::{Forgotten, TaskScore, mean_exact_match};
use serde_json::{Value, json};
use std::path::Path;

/// The longest text of a cell, in characters.
const CELL: usize = 44;

pub struct Report<'a> {
    pub lesson: &'a Lesson<'a>,
    pub before: Measured,
    pub learned: Vec<Learned>,
    pub out: &'a Path,
    pub seed: u64,
    pub device: String,
    pub seconds: f64,
}

impl Report<'_> {
    pub fn text(&self) -> String {
        let base = self.lesson.base;
        let mut text = base
            .because
            .as_ref()
            .map_or_else(String::new, |why| format!("{why}; these are the figures of a tiny model.\n\n"));
        text += &format!("exact match on questions that were not trained, {}:\n\n", base.name());
        text += &self.tasks();
        text += "'somewhere' counts an answer that holds the wanted text; all else must be equal to it.\n\n";
        text += &(self.forgotten() + "\n");
        text += &(self.runs() + "\n");
        text += &(self.examples() + "\n");
        text + &self.next()
    }

    /// Right answers by task.
    fn tasks(&self) -> String {
        let mut head = vec!["task", "questions", "commonest answer", "before, somewhere", "before"];
        head.extend(self.learned.iter().map(|learned| learned.method.as_str()));
        let exact = |score: &TaskScore| percent(score.exact_match());
        let mut rows: Vec<Vec<String>> = Vec::new();
        for (index, score) in self.before.scores.iter().enumerate() {
            let commonest = percent(score.commonest as f64 / score.questions.max(1) as f64);
            let somewhere = percent(self.somewhere(&score.task));
            let mut row =
                vec![score.task.clone(), score.questions.to_string(), commonest, somewhere, exact(score)];
            row.extend(self.learned.iter().map(|learned| exact(&learned.after.scores[index])));
            rows.push(row);
        }
        let asked: usize = self.before.scores.iter().map(|score| score.questions).sum();
        let mut last = vec!["mean".into(), asked.to_string(), "-".into(), "-".into()];
        let all = [&self.before].into_iter().chain(self.learned.iter().map(|learned| &learned.after));
        last.extend(all.clone().map(|measured| percent(mean_exact_match(&measured.scores))));
        rows.push(last);
        let mut loss = vec!["held-out loss".into(), "-".into(), "-".into(), "-".into()];
        loss.extend(all.map(|measured| format!("{:.3}", measured.loss)));
        rows.push(loss);
        out::table(&head, &rows)
    }

    /// The share of a task's questions for which the base model's answer contains the wanted text. It measures the
    /// knowledge of the model, apart from the form of its answers.
    fn somewhere(&self, task: &str) -> f64 {
        let all = self
            .lesson
            .questions
            .list
            .iter()
            .zip(&self.before.answers)
            .filter(|(question, _)| question.task_name() == task);
        let contains = |text: &str, part: &str| text.to_lowercase().contains(&part.trim().to_lowercase());
        let mut found = 0;
        let mut total = 0;
        for (question, answer) in all {
            found +=
                usize::from(answer.as_deref().is_some_and(|answer| contains(answer, &question.reference)));
            total += 1;
        }
        found as f64 / total.max(1) as f64
    }

    /// What became of answers that training was not about.
    fn forgotten(&self) -> String {
        let line = |learned: &Learned| {
            let Forgotten { prompts, kl, unchanged } = learned.forgotten;
            let changed = percent(1.0 - unchanged);
            format!(
                "{}: {changed} of the answers to {prompts} general prompts changed, by {kl:.2} nats a token\n",
                learned.method
            )
        };
        self.learned.iter().map(line).collect()
    }

    /// The cost of training.
    fn runs(&self) -> String {
        let mut text = String::new();
        for learned in &self.learned {
            text += &format!(
                "{}: {} trained values, {} steps, {} tokens in {:.0} s ({:.0} tok/s), training loss {:.3} -> {:.3}{}\n",
                learned.method,
                learned.trained_values,
                learned.steps,
                learned.tokens,
                learned.seconds,
                learned.tokens as f64 / learned.seconds.max(1e-9),
                learned.first_loss,
                learned.last_loss,
                learned
                    .device_peak
                    .map_or_else(String::new, |bytes| format!(", {} MiB on the device at most", bytes >> 20)),
            );
        }
        let asking =
            self.before.seconds + self.learned.iter().map(|learned| learned.after.seconds).sum::<f64>();
        text += &format!("asking took {asking:.0} s, everything {:.0} s on {}", self.seconds, self.device);
        text + &peak_memory().map_or_else(String::new, |bytes| format!("; peak memory {} MiB", bytes >> 20))
            + "\n"
    }

    /// The first question of each task with the answers.
    fn examples(&self) -> String {
        let mut head = vec!["question", "wanted", "before"];
        head.extend(self.learned.iter().map(|learned| learned.method.as_str()));
        let list = &self.lesson.questions.list;
        let firsts = self
            .before
            .scores
            .iter()
            .filter_map(|score| list.iter().position(|question| question.task_name() == score.task));
        let rows: Vec<Vec<String>> = firsts
            .map(|index| {
                let question = &list[index];
                let answer = |measured: &Measured| cell(measured.answers[index].as_deref().unwrap_or("-"));
                let mut row = vec![cell(&question.shown), cell(&question.reference), answer(&self.before)];
                row.extend(self.learned.iter().map(|learned| answer(&learned.after)));
                row
            })
            .collect();
        out::table(&head, &rows)
    }

    /// Commands to try next.
    fn next(&self) -> String {
        let Some(first) = self.learned.first() else { return String::new() };
        let model = quoted(&self.lesson.base.path);
        let adapter = quoted(&first.adapter);
        let data = quoted(&self.out.join("data"));
        format!(
            "The adapter is in {adapter}. Next:\n\
             \x20 mixlora chat --model {model} --adapter {adapter} --system '{SYSTEM}'\n\
             \x20     and say, for example: Kind of thing: trumpet (then /reset: the first turn chooses the factors)\n\
             \x20 mixlora eval --model {model} --adapter {adapter} --data {data} --show 3\n\
             \x20 mixlora train --model {model} --data YOUR_DATA --out YOUR_RUN\n"
        )
    }

    pub fn json(&self) -> Value {
        let base: &Base = self.lesson.base;
        let runs: Vec<Value> = self
            .learned
            .iter()
            .map(|learned| {
                json!({
                    "method": learned.method, "adapter": learned.adapter, "trained_values": learned.trained_values, "steps": learned.steps,
                    "tokens": learned.tokens, "seconds": learned.seconds, "tok_s": learned.tokens as f64 / learned.seconds.max(1e-9),
                    "loss_first": learned.first_loss, "loss_last": learned.last_loss, "device_peak_bytes": learned.device_peak,
                    "after": measured(&learned.after), "forgotten": learned.forgotten,
                })
            })
            .collect();
        let tasks =
            self.before.scores.iter().map(|score| (score.task.clone(), json!(self.somewhere(&score.task))));
        let somewhere: serde_json::Map<String, Value> = tasks.collect();
        json!({
            "before_somewhere": somewhere, "model": base.path, "tiny": base.tiny, "fallback_because": base.because, "seed": self.seed,
            "device": self.device, "data": self.out.join("data"), "seconds": self.seconds,
            "peak_memory_bytes": peak_memory(), "before": measured(&self.before), "runs": runs,
        })
    }
}

fn measured(measured: &Measured) -> Value {
    json!({
        "held_out_loss": measured.loss, "exact_match": mean_exact_match(&measured.scores), "tasks": measured.scores, "seconds": measured.seconds,
    })
}

pub fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// Text in one line of limited length.
pub fn cell(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if line.chars().count() <= CELL {
        return line;
    }
    line.chars().take(CELL - 3).collect::<String>() + "..."
}

/// A path quoted for a shell.
pub fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |character: char| character.is_ascii_alphanumeric() || "/._-+\\:".contains(character);
    if text.chars().all(is_plain) { text } else { format!("'{}'", text.replace('\'', "'\\''")) }
}

/// The peak resident memory of this process, if the system reports it (Linux).
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|learned| learned.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_fit_their_places() {
        assert_eq!(cell(" two\nlines "), "two lines");
        assert_eq!(cell(&"é".repeat(60)).chars().count(), CELL);
        assert_eq!(quoted(Path::new("a/b.gguf")), "a/b.gguf");
        assert_eq!(quoted(Path::new("it's here")), r"'it'\''s here'");
        assert!(!cfg!(target_os = "linux") || peak_memory().unwrap() > 1 << 20);
    }
}
