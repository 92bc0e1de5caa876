//! The report as Markdown.

use super::{AtBest, Difference, FINAL, Mark, PartResult, Questions, Report, Row, TUNING};
use crate::study::bootstrap::{CONFIDENCE, Estimate};
use serde_json::Value;

/// What stands where there is no figure.
const NONE: &str = "-";

impl Report {
    /// The report as Markdown; the part called measured is its last. Pictures are linked by the names of
    /// [`pictures`](Report::pictures), so that they belong beside it.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n\n{}", plain(&self.title), self.head());
        if self.cells == 0 {
            return text + "\nNo cell is finished.\n\n## Measured\n\nNothing.\n";
        }
        text += &section(
            "Learning rates",
            &[self.about_rates(), self.rates(), picture("rates.svg"), self.correlation()],
        );
        text += &section("Results", &[self.about_results(), self.results(), picture("final.svg")]);
        if !self.baselines.is_empty() {
            let about = self.about_differences();
            text += &section("Differences", &[about, self.differences(), picture("differences.svg")]);
        }
        text += &section("Tasks", &[self.about_tasks(), self.tasks(), picture("tasks.svg")]);
        text += &section("Training", &[about_training(), picture("loss.svg")]);
        text += &section("Measured", &[about_measured(), self.efficiency(), self.cost()]);
        text
    }

    fn head(&self) -> String {
        let seeds = |row: &Row| row.at_best.as_ref().map_or(0, |best| best.seeds.len());
        let devices = self.devices.iter().map(|(name, cells)| format!("{} ({cells})", plain(name)));
        let mut text = format!(
            "{} cells of {} rows, at most {} seeds at a row's best learning rate. Devices, with their cells: {}.\n\n",
            self.cells,
            self.rows.iter().filter(|row| row.method.is_some()).count(),
            self.rows.iter().map(seeds).max().unwrap_or(0),
            Some(devices.collect::<Vec<_>>().join(", "))
                .filter(|text| !text.is_empty())
                .unwrap_or("none".into()),
        );
        let part = |part: &super::PartSize| {
            vec![plain(&part.name), part.tasks.len().to_string(), part.questions.to_string()]
        };
        text += &table(&["part", "tasks", "questions"], self.parts.iter().map(part));
        text
    }

    fn about_rates(&self) -> String {
        format!(
            "Exact match in % on part `{TUNING}` at each rate, the mean over tasks and over the seeds that all rates of the row \
             have; in brackets the loss. The best rate is bold: the highest mean, of equal ones that with the lower loss. \
             *Edge*: no lower or no higher rate was tried, so a better one may lie beyond. *One rate*: nothing was tuned.\n"
        )
    }

    fn rates(&self) -> String {
        let row = |row: &Row| {
            let rate = |rate: &super::Rate| {
                let text = format!(
                    "{:e}: {} ({})",
                    rate.learning_rate,
                    optional(rate.exact_match, percent),
                    optional(rate.loss, loss)
                );
                let best = Some(rate.learning_rate) == row.tuning.best;
                if best { format!("**{text}**") } else { text }
            };
            let rates: Vec<String> = row.tuning.rates.iter().map(rate).collect();
            vec![
                plain(&row.name),
                plain(row.method.as_deref().unwrap_or(NONE)),
                self.own_options(row),
                row.tuning.seeds.len().to_string(),
                if rates.is_empty() { "no cells".into() } else { rates.join(" · ") },
                mark(row),
            ]
        };
        let head =
            ["row", "method", "options in which rows differ", "seeds", "rate: exact match (loss)", "mark"];
        table(&head, self.rows.iter().map(row))
    }

    /// Options of a row for which another row has another value.
    fn own_options(&self, row: &Row) -> String {
        let differs = |key: &str, value: &Value| {
            self.rows.iter().filter_map(|other| other.options.get(key)).any(|other| other != value)
        };
        let own = row.options.iter().filter(|(key, value)| differs(key, value));
        let shown = own.map(|(key, value)| match value {
            Value::String(text) => format!("{key} {text}"),
            other => format!("{key} {other}"),
        });
        plain(&shown.collect::<Vec<_>>().join(", "))
    }

    fn about_results(&self) -> String {
        format!(
            "At the best rate of each row, means over seeds. Exact match in % is the mean over tasks, ± its standard deviation \
             over seeds; in brackets the interval that holds {:.0} % of {} resampled means (bootstrap over seeds, and over \
             questions within tasks{}). With one seed the interval is about questions alone. Loss: per wanted token of part \
             `{FINAL}`. Active values act on one token. Router: share of questions whose group is that of their task. \
             Forgotten: divergence from the base model in nats per token, and share of general prompts with its answer.\n",
            100.0 * CONFIDENCE,
            thousands(self.resamples as u64),
            match self.questions {
                Questions::OfEachSeed => ", drawn anew for each seed",
                Questions::OfAllSeeds => ", drawn once for all seeds",
            },
        )
    }

    fn results(&self) -> String {
        let mut head = vec!["row".to_string(), "rate".into(), "seeds".into()];
        head.extend(self.shown_parts().map(|part| format!("{}, %", plain(&part.name))));
        let rest = ["loss", "trained values", "active values", "router right, %", "KL, nats", "unchanged, %"];
        head.extend(rest.map(String::from));
        let row = |row: &Row| {
            let Some(best) = &row.at_best else {
                let mut line = vec![plain(&row.name)];
                line.resize(head.len(), NONE.into());
                return line;
            };
            let marked = if row.tuning.mark.is_some() { " *" } else { "" };
            let rate = row.tuning.best.map_or(NONE.into(), |rate| format!("{rate:e}{marked}"));
            let mut line = vec![plain(&row.name), rate, seeds(best)];
            line.extend(self.shown_parts().map(|part| optional(best.parts.get(&part.name), exact_match)));
            line.extend([
                optional(best.parts.get(FINAL), |part| loss(part.loss)),
                thousands(best.trained_values),
                thousands(best.active_values),
                optional(best.router, percent),
                optional(best.forgotten.as_ref(), |forgotten| loss(forgotten.kl)),
                optional(best.forgotten.as_ref(), |forgotten| percent(forgotten.unchanged)),
            ]);
            line
        };
        let head: Vec<&str> = head.iter().map(String::as_str).collect();
        let mut text = table(&head, self.rows.iter().map(row));
        if self.rows.iter().any(|row| row.tuning.mark.is_some()) {
            text += "\n\\* The best rate has a mark in the table of learning rates.\n";
        }
        text
    }

    fn about_differences(&self) -> String {
        "Exact match of the row less that of the baseline in percentage points, each at its best rate, with its interval as \
         above. Only cells of the same seed and the same device make a pair, and a question is drawn for both. Bold: 0 is \
         outside of the interval.\n"
            .into()
    }

    fn differences(&self) -> String {
        let line = |difference: &Difference| {
            let figure = match (&difference.estimate, difference.why_none()) {
                (Some(estimate), _) if difference.is_clear() => format!("**{}**", points(estimate)),
                (Some(estimate), _) => points(estimate),
                (None, why) => format!("no pair: {}", why.unwrap_or(NONE)),
            };
            vec![
                plain(&difference.baseline),
                plain(&difference.row),
                plain(&difference.part),
                figure,
                difference.seeds.len().to_string(),
                difference.other_device.len().to_string(),
            ]
        };
        let head = ["baseline", "row", "part", "difference, points", "pairs", "not paired: other device"];
        table(&head, self.differences.iter().map(line))
    }

    fn about_tasks(&self) -> String {
        format!("Exact match in % on part `{FINAL}` by task, the mean over seeds, at the best rate.\n")
    }

    fn tasks(&self) -> String {
        let rows: Vec<(&Row, &PartResult)> =
            self.rows.iter().filter_map(|row| Some((row, row.at_best.as_ref()?.parts.get(FINAL)?))).collect();
        let mut head = vec!["task".to_string(), "questions".into()];
        head.extend(rows.iter().map(|(row, _)| plain(&row.name)));
        let line =
            |task: &super::TaskSize| {
                let mut line = vec![plain(&task.name), task.questions.to_string()];
                line.extend(rows.iter().map(|(_, part)| {
                    optional(part.tasks.get(&task.name), |result| percent(result.exact_match))
                }));
                line
            };
        let tasks = self.parts.iter().filter(|part| part.name == FINAL).flat_map(|part| &part.tasks);
        let head: Vec<&str> = head.iter().map(String::as_str).collect();
        table(&head, tasks.map(line))
    }

    /// Whether what tuning prefers is what is better in the end.
    fn correlation(&self) -> String {
        let correlation = &self.rank_correlation;
        format!(
            "Rank correlation (Spearman) of exact match on `{TUNING}` and on `{FINAL}` over {} cells: {}.\n",
            correlation.cells,
            correlation.spearman.map_or("not defined".into(), |value| format!("{value:.3}"))
        )
    }

    fn efficiency(&self) -> String {
        let line = |row: &super::Efficiency| {
            vec![
                plain(&row.row),
                plain(&row.device),
                row.cells.to_string(),
                optional(row.peak_bytes, |bytes| format!("{:.1}", bytes / (1u64 << 20) as f64)),
                optional(row.utilisation, percent),
                optional(row.step_ms, |ms| format!("{ms:.1}")),
                optional(row.question_ms, |ms| format!("{ms:.1}")),
                optional(row.tokens_per_second, |rate| format!("{rate:.0}")),
                optional(row.joules, |joules| format!("{joules:.0}")),
                optional(row.adapter_bytes, |bytes| format!("{:.1}", bytes / 1024.0)),
            ]
        };
        let head = [
            "row",
            "device",
            "cells",
            "memory, MiB",
            "utilisation, %",
            "step, ms",
            "question, ms",
            "tokens/s",
            "energy, J",
            "adapter, KiB",
        ];
        table(&head, self.measured.rows.iter().map(line))
    }

    fn cost(&self) -> String {
        let joined = |texts: Vec<String>| plain(&texts.join(", "));
        let line = |cost: &super::Cost| {
            vec![
                plain(&cost.device),
                cost.cells.to_string(),
                joined(cost.threads.iter().map(usize::to_string).collect()),
                joined(cost.versions.iter().cloned().collect()),
                format!("{:.2}", cost.train_seconds / 3600.0),
                format!("{:.2}", cost.ask_seconds / 3600.0),
                optional(cost.joules, |joules| format!("{joules:.0}")),
            ]
        };
        let head = ["all cells on", "cells", "threads", "version", "training, h", "asking, h", "energy, J"];
        table(&head, self.measured.cost.iter().map(line))
    }
}

fn about_training() -> String {
    "Training loss at the best rate of each row, the mean over seeds.\n".into()
}

fn about_measured() -> String {
    "Medians over the cells of the best rate: most memory held, share of the threads' time that was computed in, time of a \
     training step and of a question, trained and prompt tokens in a second of training, energy of training where the machine \
     counts it, size of the adapter's file. Two runs of a study on one machine may differ here \
     and nowhere else.\n"
        .into()
}

fn section(title: &str, parts: &[String]) -> String {
    format!("\n## {title}\n\n{}", parts.join("\n"))
}

fn picture(file: &str) -> String {
    format!("![{}]({file})\n", file.trim_end_matches(".svg"))
}

fn seeds(best: &AtBest) -> String {
    match best.devices.len() {
        1 => best.seeds.len().to_string(),
        devices => format!("{} on {devices} devices", best.seeds.len()),
    }
}

fn mark(row: &Row) -> String {
    match row.tuning.mark {
        Some(Mark::OneRate) => "one rate".into(),
        Some(Mark::Lowest) => "edge: lowest".into(),
        Some(Mark::Highest) => "edge: highest".into(),
        None if row.tuning.best.is_none() && !row.tuning.rates.is_empty() => "no seed has all rates".into(),
        None => String::new(),
    }
}

fn exact_match(part: &PartResult) -> String {
    let Estimate { mean, low, high } = part.exact_match;
    let spread = part.deviation.map_or(String::new(), |deviation| format!(" ± {}", percent(deviation)));
    format!("{}{spread} [{}, {}]", percent(mean), percent(low), percent(high))
}

/// A difference of shares in points with its interval.
fn points(estimate: &Estimate) -> String {
    let signed = |share: f64| {
        let text = format!("{:+.2}", 100.0 * share);
        if text == "-0.00" { "+0.00".into() } else { text }
    };
    format!("{} [{}, {}]", signed(estimate.mean), signed(estimate.low), signed(estimate.high))
}

fn percent(share: f64) -> String {
    finite(share, format!("{:.1}", 100.0 * share))
}

fn loss(value: f64) -> String {
    finite(value, format!("{value:.4}"))
}

/// The text of a number that is one: runs may diverge.
fn finite(value: f64, text: String) -> String {
    if value.is_finite() { text } else { "not finite".into() }
}

fn optional<T>(value: Option<T>, text: impl FnOnce(T) -> String) -> String {
    value.map_or(NONE.into(), text)
}

/// A whole number with its digits in threes.
fn thousands(value: u64) -> String {
    let digits = value.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A name as it may stand in a table.
fn plain(text: &str) -> String {
    let mut shown = String::new();
    for sign in text.chars() {
        match sign {
            '|' | '*' | '`' | '[' | '<' | '\\' => shown.extend(['\\', sign]),
            sign if sign.is_control() => shown.push(' '),
            sign => shown.push(sign),
        }
    }
    shown
}

fn table(head: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let names: Vec<String> = head.iter().map(|name| name.to_string()).collect();
    let mut text = line(&names) + &format!("|{}\n", "---|".repeat(head.len()));
    rows.for_each(|row| text += &line(&row));
    text
}
