//! The report in pictures.

use super::bars::{Bar, Bars, column};
use super::{Difference, FINAL, Report, Row};
use crate::analyse::{COLORS, HeatMap, Panel, Scale, Scores, page};
use crate::train::{Axis, Chart, Line, Range};

/// A file to be written beside the report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    /// The file's name, as [`Report::markdown`] links it.
    pub file: &'static str,
    pub svg: String,
}

impl Report {
    /// The report in pictures: exact match with intervals, differences to baselines, exact match over the learning rate,
    /// training loss, and exact match by row and task.
    pub fn pictures(&self) -> Vec<Picture> {
        let mut all = vec![
            Picture { file: "rates.svg", svg: self.rates_picture() },
            Picture { file: "final.svg", svg: self.final_picture() },
            Picture { file: "tasks.svg", svg: self.tasks_picture() },
            Picture { file: "loss.svg", svg: self.loss_picture() },
        ];
        if !self.baselines.is_empty() {
            all.insert(2, Picture { file: "differences.svg", svg: self.differences_picture() });
        }
        all
    }

    fn rates_picture(&self) -> String {
        let of_row = |row: &Row| -> Vec<(f64, f64)> {
            let point = |rate: &super::Rate| Some((rate.learning_rate, 100.0 * rate.exact_match?));
            row.tuning.rates.iter().filter_map(point).collect()
        };
        let points: Vec<Vec<(f64, f64)>> = self.rows.iter().map(of_row).collect();
        let mut lines = self.lines(&points);
        for ((line, row), points) in lines.iter_mut().zip(&self.rows).zip(&points) {
            line.ringed = points.iter().position(|point| Some(point.0) == row.tuning.best);
        }
        let chart = Chart {
            title: "Exact match on the tuning questions (ring: the best learning rate)",
            across: Axis { label: "learning rate, logarithmic", range: Range::Powers },
            up: Axis { label: "exact match, %, mean over seeds and tasks", range: Range::Around },
            lines: &lines,
            dots: true,
            beside: true,
        };
        chart.svg()
    }

    fn loss_picture(&self) -> String {
        let of_row = |row: &Row| -> Vec<(f64, f64)> {
            let curve = row.at_best.iter().flat_map(|best| &best.curve);
            curve.map(|&(step, loss)| (step as f64, loss)).collect()
        };
        let points: Vec<Vec<(f64, f64)>> = self.rows.iter().map(of_row).collect();
        let chart = Chart {
            title: "Training loss at the best learning rate",
            across: Axis { label: "step", range: Range::Whole },
            up: Axis { label: "loss, nats per token, logarithmic, mean over seeds", range: Range::Powers },
            lines: &self.lines(&points),
            dots: false,
            beside: true,
        };
        chart.svg()
    }

    /// A line for each row, told apart by colour and, where these do not suffice, by dashes.
    fn lines<'a>(&'a self, points: &'a [Vec<(f64, f64)>]) -> Vec<Line<'a>> {
        let line = |(number, row): (usize, &'a Row)| Line {
            label: &row.name,
            colour: COLORS[number % COLORS.len()],
            points: &points[number],
            dashed: !(number / COLORS.len()).is_multiple_of(2),
            ..Line::default()
        };
        self.rows.iter().enumerate().map(line).collect()
    }

    fn tasks_picture(&self) -> String {
        let tasks = self.parts.iter().filter(|part| part.name == FINAL).flat_map(|part| &part.tasks);
        let tasks: Vec<String> = tasks.map(|task| task.name.clone()).collect();
        let mut rows = Vec::new();
        let mut scores = Vec::new();
        for row in &self.rows {
            let Some(part) = row.at_best.as_ref().and_then(|best| best.parts.get(FINAL)) else { continue };
            rows.push(row.name.clone());
            scores.push(tasks.iter().map(|task| Some(part.tasks.get(task)?.exact_match)).collect());
        }
        page(&[vec![Panel::HeatMap(HeatMap {
            title: "Exact match on the final questions".into(),
            caption: "row: what was trained; column: task; share of questions, mean over seeds".into(),
            rows: &rows,
            columns: &tasks,
            scores: &Scores(scores),
            scale: Scale::Share,
        })]])
    }

    fn final_picture(&self) -> String {
        let bar = |(number, row): (usize, &Row)| {
            let part = row.at_best.as_ref()?.parts.get(FINAL)?;
            let estimate = part.exact_match;
            Some(Bar {
                label: row.name.clone(),
                colour: COLORS[number % COLORS.len()],
                ends: Some([estimate.low, estimate.mean, estimate.high].map(|share| 100.0 * share)),
                dots: part.by_seed.iter().map(|share| 100.0 * share).collect(),
                signed: false,
                missing: "",
            })
        };
        let bars = Bars {
            title: "Exact match on the final questions at the best learning rate".into(),
            label: "exact match, %, mean over seeds and tasks; line: 95 % interval; dots: seeds",
            bars: self.rows.iter().enumerate().filter_map(bar).collect(),
            range: Some([0.0, 100.0]),
        };
        column(&[bars])
    }

    fn differences_picture(&self) -> String {
        let mut panels = Vec::new();
        for baseline in &self.baselines {
            for part in self.shown_parts() {
                let own = |difference: &&Difference| {
                    difference.baseline == *baseline && difference.part == part.name
                };
                let bars: Vec<Bar> =
                    self.differences.iter().filter(own).map(|found| self.difference(found)).collect();
                if !bars.is_empty() {
                    panels.push(Bars {
                        title: format!("Exact match less that of {baseline}, part {}", part.name),
                        label: "percentage points; line: 95 % interval; right of 0: better than the baseline",
                        bars,
                        range: None,
                    });
                }
            }
        }
        if panels.is_empty() {
            let title = "No row can be compared yet".into();
            panels.push(Bars { title, label: "", bars: Vec::new(), range: None });
        }
        column(&panels)
    }

    fn difference(&self, found: &Difference) -> Bar {
        let number = self.rows.iter().position(|row| row.name == found.row).unwrap_or(0);
        Bar {
            label: found.row.clone(),
            colour: COLORS[number % COLORS.len()],
            ends: found.estimate.map(|e| [e.low, e.mean, e.high].map(|share| 100.0 * share)),
            dots: Vec::new(),
            signed: true,
            missing: found.why_none().unwrap_or(""),
        }
    }
}
