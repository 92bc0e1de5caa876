//! The report in pictures.

use super::{Difference, FINAL, Report, Row, TUNING};
use crate::analyse::{COLORS, HeatMap, Panel, Scale, Scores, page};
use crate::train::{Axis, Chart, Line, Range, escaped};
use std::fmt::Write;

/// Width of the frame of bars.
const FRAME: f64 = 520.0;
const BAR: f64 = 26.0;
const TOP: f64 = 34.0;
const BOTTOM: f64 = 46.0;
const MARGIN: f64 = 20.0;
/// Room for the figures beside bars.
const FIGURES: f64 = 170.0;
/// Width of a letter.
const LETTER: f64 = 7.0;

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
        let line = |(number, (row, points)): (usize, (&'a Row, &'a Vec<(f64, f64)>))| Line {
            label: &row.name,
            colour: COLORS[number % COLORS.len()],
            points,
            dashed: !(number / COLORS.len()).is_multiple_of(2),
            ringed: None,
        };
        self.rows.iter().zip(points).enumerate().map(line).collect()
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
                decimals: 1,
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
                        label: "points of %; line: 95 % interval; right of 0: better than the baseline",
                        bars,
                        range: None,
                    });
                }
            }
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
            decimals: 2,
            missing: found.why_none().unwrap_or(""),
        }
    }
}

/// A value with its interval, drawn from 0 on.
struct Bar {
    label: String,
    colour: &'static str,
    /// The interval's low end, the value, and the high end.
    ends: Option<[f64; 3]>,
    dots: Vec<f64>,
    decimals: usize,
    /// What stands in the place of a bar without a value.
    missing: &'static str,
}

/// Bars below each other over one axis.
struct Bars {
    title: String,
    label: &'static str,
    bars: Vec<Bar>,
    /// The ends of the axis; none: around all intervals and 0.
    range: Option<[f64; 2]>,
}

/// Panels of bars below each other.
fn column(panels: &[Bars]) -> String {
    let labels = panels.iter().flat_map(|panel| &panel.bars).map(|bar| bar.label.chars().count());
    let left = MARGIN + LETTER * labels.max().unwrap_or(0) as f64 + 8.0;
    let titles = panels.iter().map(|panel| MARGIN + LETTER * panel.title.chars().count() as f64);
    let width = titles.fold(left + FRAME + FIGURES, f64::max);
    let mut body = String::new();
    let mut y = 0.0;
    for panel in panels {
        panel.draw(&mut body, left, y);
        y += TOP + BAR * panel.bars.len() as f64 + BOTTOM;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {y:.0}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

impl Bars {
    // Writing to a string cannot fail.
    fn draw(&self, body: &mut String, left: f64, y: f64) {
        let values = self.bars.iter().flat_map(|bar| bar.ends).flatten().chain([0.0]);
        let ends = self.range.unwrap_or_else(|| Range::Around.ends(values));
        let x = |value: f64| left + FRAME * Range::Around.place(value.clamp(ends[0], ends[1]), ends);
        let top = y + TOP;
        let base = top + BAR * self.bars.len() as f64;
        let _ = writeln!(
            body,
            "<text x=\"{MARGIN}\" y=\"{:.1}\" font-size=\"14\">{}</text>",
            y + 20.0,
            clean(&self.title)
        );
        for tick in Range::Around.ticks(ends) {
            let at = x(tick);
            let shade = if tick == 0.0 { "#555" } else { "#ddd" };
            let _ = writeln!(
                body,
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{top:.1}\" y2=\"{base:.1}\" stroke=\"{shade}\"/>\n\
                 <text x=\"{at:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{}</text>",
                base + 15.0,
                Range::Around.text(tick)
            );
        }
        let middle = left + FRAME / 2.0;
        let _ = writeln!(
            body,
            "<text x=\"{middle:.1}\" y=\"{:.1}\" text-anchor=\"middle\" fill=\"#555\">{}</text>",
            base + 33.0,
            self.label
        );
        for (number, bar) in self.bars.iter().enumerate() {
            let at = top + BAR * (number as f64 + 0.5);
            let _ = writeln!(
                body,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                left - 8.0,
                at + 4.0,
                clean(&bar.label)
            );
            match bar.ends {
                Some(ends) => bar.draw(body, at, &x, ends),
                None => {
                    let text = format!("no pair: {}", bar.missing);
                    let _ = writeln!(
                        body,
                        "<text x=\"{:.1}\" y=\"{:.1}\" fill=\"#555\">{text}</text>",
                        left + 6.0,
                        at + 4.0
                    );
                }
            }
            let Some([low, value, high]) = bar.ends else { continue };
            let decimals = bar.decimals;
            let _ = writeln!(
                body,
                "<text x=\"{:.1}\" y=\"{:.1}\">{value:.decimals$} [{low:.decimals$}, {high:.decimals$}]</text>",
                left + FRAME + 10.0,
                at + 4.0
            );
        }
    }
}

impl Bar {
    fn draw(&self, body: &mut String, at: f64, x: &impl Fn(f64) -> f64, [low, value, high]: [f64; 3]) {
        let from = x(0.0).min(x(value));
        let width = (x(value) - x(0.0)).abs();
        let _ = writeln!(
            body,
            "<rect x=\"{from:.1}\" y=\"{:.1}\" width=\"{width:.1}\" height=\"{:.1}\" fill=\"{}\" fill-opacity=\"0.55\"/>",
            at - 0.35 * BAR,
            0.7 * BAR,
            self.colour
        );
        for dot in &self.dots {
            let _ = writeln!(
                body,
                "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"2.5\" fill=\"{}\" stroke=\"white\" stroke-width=\"0.5\"/>",
                x(*dot),
                at + 0.22 * BAR,
                self.colour
            );
        }
        let _ = writeln!(
            body,
            "<path d=\"M{0:.1} {2:.1}H{1:.1}M{0:.1} {3:.1}V{4:.1}M{1:.1} {3:.1}V{4:.1}\" stroke=\"black\" fill=\"none\"/>",
            x(low),
            x(high),
            at,
            at - 4.0,
            at + 4.0
        );
    }
}

/// Names may hold what XML must not.
fn clean(text: &str) -> String {
    escaped(&text.replace(char::is_control, " "))
}
