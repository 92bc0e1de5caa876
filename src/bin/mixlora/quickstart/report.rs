//! What the quickstart prints.

use super::base::Base;
use super::lesson::{Learned, Lesson, Measured};
use super::set::SYSTEM;
use crate::out;
use mixlora::train::{TaskScore, mean_exact_match};
use serde_json::{Value, json};
use std::path::Path;

/// Longest text of a cell, in characters.
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
        let mut text = base.because.as_ref().map_or_else(String::new, |why| {
            format!("SmolLM2 could not be had ({why}); these are the figures of a tiny model.\n\n")
        });
        text += &format!("exact match on questions that were not trained, {}:\n\n", base.name());
        text += &self.tasks();
        text += "'somewhere' counts an answer that holds the wanted text; all else must be equal to it.\n\n";
        text += &(self.runs() + "\n");
        text += &(self.examples() + "\n");
        text + &self.next()
    }

    /// Right answers by task.
    fn tasks(&self) -> String {
        let mut head = vec!["task", "questions", "commonest answer", "before, somewhere", "before"];
        head.extend(self.learned.iter().map(|l| l.method.as_str()));
        let rights = |s: &TaskScore| percent(s.exact_match());
        let mut rows: Vec<Vec<String>> = Vec::new();
        for (i, s) in self.before.scores.iter().enumerate() {
            let commonest = percent(s.commonest as f64 / s.questions.max(1) as f64);
            let somewhere = percent(self.somewhere(&s.task));
            let mut row = vec![s.task.clone(), s.questions.to_string(), commonest, somewhere, rights(s)];
            row.extend(self.learned.iter().map(|l| rights(&l.after.scores[i])));
            rows.push(row);
        }
        let asked: usize = self.before.scores.iter().map(|s| s.questions).sum();
        let mut last = vec!["mean".into(), asked.to_string(), "-".into(), "-".into()];
        let all = [&self.before].into_iter().chain(self.learned.iter().map(|l| &l.after));
        last.extend(all.clone().map(|m| percent(mean_exact_match(&m.scores))));
        rows.push(last);
        let mut loss = vec!["held-out loss".into(), "-".into(), "-".into(), "-".into()];
        loss.extend(all.map(|m| format!("{:.3}", m.loss)));
        rows.push(loss);
        out::table(&head, &rows)
    }

    /// Share of a task's questions where the base model says the wanted text somewhere in its answer: what it knows,
    /// apart from how it is used to answer.
    fn somewhere(&self, task: &str) -> f64 {
        let all = self.lesson.questions.list.iter().zip(&self.before.answers).filter(|(q, _)| q.task == task);
        let holds = |text: &str, part: &str| text.to_lowercase().contains(&part.trim().to_lowercase());
        let (mut there, mut n) = (0, 0);
        for (q, answer) in all {
            there += usize::from(answer.as_deref().is_some_and(|a| holds(a, &q.reference)));
            n += 1;
        }
        there as f64 / n.max(1) as f64
    }

    /// What training took.
    fn runs(&self) -> String {
        let mut text = String::new();
        for l in &self.learned {
            text += &format!(
                "{}: {} trained values, {} steps, {} tokens in {:.0} s ({:.0} tok/s), training loss {:.3} -> {:.3}{}\n",
                l.method,
                l.trained_values,
                l.steps,
                l.tokens,
                l.seconds,
                l.tokens as f64 / l.seconds.max(1e-9),
                l.first_loss,
                l.last_loss,
                l.device_peak
                    .map_or_else(String::new, |b| format!(", {} MiB on the device at most", b >> 20)),
            );
        }
        let asking = self.before.seconds + self.learned.iter().map(|l| l.after.seconds).sum::<f64>();
        text += &format!("asking took {asking:.0} s, everything {:.0} s on {}", self.seconds, self.device);
        text + &peak_memory().map_or_else(String::new, |b| format!("; peak memory {} MiB", b >> 20)) + "\n"
    }

    /// The first question of each task, with what was said.
    fn examples(&self) -> String {
        let mut head = vec!["question", "wanted", "before"];
        head.extend(self.learned.iter().map(|l| l.method.as_str()));
        let list = &self.lesson.questions.list;
        let firsts = self.before.scores.iter().filter_map(|s| list.iter().position(|q| q.task == s.task));
        let rows: Vec<Vec<String>> = firsts
            .map(|i| {
                let said = |m: &Measured| cell(m.answers[i].as_deref().unwrap_or("-"));
                let mut row = vec![cell(&list[i].shown), cell(&list[i].reference), said(&self.before)];
                row.extend(self.learned.iter().map(|l| said(&l.after)));
                row
            })
            .collect();
        out::table(&head, &rows)
    }

    /// What to type next.
    fn next(&self) -> String {
        let Some(first) = self.learned.first() else { return String::new() };
        let (model, adapter) = (quoted(&self.lesson.base.path), quoted(&first.adapter));
        let data = quoted(&self.out.join("data"));
        format!(
            "The adapter is in {adapter}. Next:\n\
             \x20 mixlora chat --model {model} --adapter {adapter} --system '{SYSTEM}'\n\
             \x20     and say, for example: Kind of thing: trumpet (then /reset: the first turn chooses the factors)\n\
             \x20 mixlora eval --model {model} --adapter {adapter} --data {data} --dequantise --show 3\n\
             \x20 mixlora train --model {model} --data YOUR_DATA --out YOUR_RUN\n"
        )
    }

    pub fn json(&self) -> Value {
        let base: &Base = self.lesson.base;
        let runs: Vec<Value> = self
            .learned
            .iter()
            .map(|l| {
                json!({
                    "method": l.method, "adapter": l.adapter, "trained_values": l.trained_values, "steps": l.steps,
                    "tokens": l.tokens, "seconds": l.seconds, "tok_s": l.tokens as f64 / l.seconds.max(1e-9),
                    "loss_first": l.first_loss, "loss_last": l.last_loss, "device_peak_bytes": l.device_peak,
                    "after": measured(&l.after),
                })
            })
            .collect();
        let tasks = self.before.scores.iter().map(|s| (s.task.clone(), json!(self.somewhere(&s.task))));
        let somewhere: serde_json::Map<String, Value> = tasks.collect();
        json!({
            "before_somewhere": somewhere, "model": base.path, "tiny": base.tiny, "fallback_because": base.because, "seed": self.seed,
            "device": self.device, "data": self.out.join("data"), "seconds": self.seconds,
            "peak_memory_bytes": peak_memory(), "before": measured(&self.before), "runs": runs,
        })
    }
}

fn measured(m: &Measured) -> Value {
    json!({
        "held_out_loss": m.loss, "exact_match": mean_exact_match(&m.scores), "tasks": m.scores, "seconds": m.seconds,
    })
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// One line that is not too long.
fn cell(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    match line.chars().count() > CELL {
        true => line.chars().take(CELL - 3).collect::<String>() + "...",
        false => line,
    }
}

/// A path as a shell takes it.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    match text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-+\\:".contains(c)) {
        true => text,
        false => format!("'{}'", text.replace('\'', "'\\''")),
    }
}

/// The most memory that this process had, where the system says so (Linux).
fn peak_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
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
