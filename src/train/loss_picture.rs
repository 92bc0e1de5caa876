//! The picture of runs: losses, and below them learning rate and gradient norm.

use super::curve::{Axis, COLORS, Chart, Line, Range, stacked};
use super::metrics::{Metrics, Points};
use crate::Result;
use std::path::Path;

/// How much of the smoothed loss is that of the steps before, where nothing else is said.
pub const SMOOTH: f64 = 0.9;
/// Heights of the panels.
const LOSS: f64 = 400.0;
const SMALL: f64 = 150.0;

/// Points with names for the legend.
struct Curves<'a> {
    metrics: &'a Metrics,
    colour: &'static str,
    smoothed: Option<Points>,
    training: String,
    validation: String,
    best: Option<usize>,
}

impl<'a> Curves<'a> {
    fn new(name: &str, metrics: &'a Metrics, colour: &'static str, smooth: f64) -> Self {
        let smoothed = (smooth > 0.0).then(|| smoothed(&metrics.losses, smooth));
        let validations = &metrics.validation_losses;
        let best = (0..validations.len()).min_by(|&a, &b| validations[a].1.total_cmp(&validations[b].1));
        let figure = best.map(|best| validations[best]);
        let figure =
            figure.map_or_else(String::new, |(step, loss)| format!(", best {loss:.4} at step {step}"));
        let [training, validation] = if name.is_empty() {
            let kind = if smooth > 0.0 { ", smoothed" } else { "" };
            [format!("training loss{kind}"), format!("validation loss{figure}")]
        } else {
            [name.into(), format!("{name}, validation{figure}")]
        };
        Curves { metrics, colour, smoothed, training, validation, best }
    }

    fn losses(&self) -> Vec<Line<'_>> {
        let raw = Line { colour: self.colour, points: &self.metrics.losses, ..Line::default() };
        let validation = Line {
            label: &self.validation,
            colour: self.colour,
            points: &self.metrics.validation_losses,
            dashed: true,
            dotted: true,
            ringed: self.best,
            ..Line::default()
        };
        let training = match &self.smoothed {
            Some(points) => vec![
                Line { faint: true, ..raw },
                Line { label: &self.training, colour: self.colour, points, ..Line::default() },
            ],
            None => vec![Line { label: &self.training, ..raw }],
        };
        training.into_iter().chain([validation]).collect()
    }
}

/// The exponential moving average of values, without the pull of its beginning at 0: divided by the sum of the weights.
fn smoothed(points: &[(f64, f64)], smooth: f64) -> Points {
    let mut sum = 0.0;
    let mut weights = 0.0;
    let next = |&(step, value): &(f64, f64)| {
        sum = smooth * sum + (1.0 - smooth) * value;
        weights = smooth * weights + (1.0 - smooth);
        (step, sum / weights)
    };
    points.iter().map(next).collect()
}

/// A line for each run, without a label: the legend is that of the losses.
fn lines<'a>(all: &'a [Curves<'a>], points: fn(&'a Metrics) -> &'a Points) -> Vec<Line<'a>> {
    let line = |curves: &Curves<'a>| Line {
        colour: curves.colour,
        points: points(curves.metrics),
        ..Line::default()
    };
    all.iter().map(line).collect()
}

/// The picture of runs, each with a name for the legend, as SVG. A single one needs no name. `smooth`, at least 0 and below
/// 1, is the share of the steps before in the strong line of the training loss; with 0 the loss itself is the strong line.
pub fn loss_picture(runs: &[(String, Metrics)], title: &str, smooth: f64) -> String {
    let curves = |(number, (name, metrics))| {
        let name: &String = name;
        // A name that stands alone tells nothing apart.
        let name = if runs.len() > 1 { name.as_str() } else { "" };
        Curves::new(name, metrics, COLORS[number % COLORS.len()], smooth)
    };
    let all: Vec<Curves<'_>> =
        runs.iter().map(|(name, metrics)| (name, metrics)).enumerate().map(curves).collect();
    let losses: Vec<Line<'_>> = all.iter().flat_map(Curves::losses).collect();
    let rates = lines(&all, |metrics| &metrics.learning_rates);
    let norms = lines(&all, |metrics| &metrics.gradient_norms);
    let chart = |title, range, lines| Chart {
        title,
        across: Axis { label: "", range: Range::Whole },
        up: Axis { label: "", range },
        lines,
        dots: false,
        beside: true,
    };
    let mut panels = vec![(chart(title, Range::FromZero, &losses), LOSS)];
    let has = |lines: &[Line<'_>]| lines.iter().any(|line| !line.points.is_empty());
    if has(&rates) {
        panels.push((chart("learning rate", Range::FromZero, &rates), SMALL));
    }
    if has(&norms) {
        panels.push((chart("gradient norm, logarithmic", Range::Powers, &norms), SMALL));
    }
    if let Some((last, _)) = panels.last_mut() {
        last.across.label = "step";
    }
    stacked(&panels)
}

/// The picture of one log.
///
/// # Errors
/// As [`Metrics::read`].
pub fn loss_curve(path: &Path, title: &str) -> Result<String> {
    Ok(loss_picture(&[(String::new(), Metrics::read(path)?)], title, SMOOTH))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(losses: &[f64], validation: &[f64]) -> Metrics {
        let points = |values: &[f64]| values.iter().enumerate().map(|(i, v)| ((i + 1) as f64, *v)).collect();
        let learning_rates = points(&[1e-3, 5e-4, 2e-5]);
        let gradient_norms = points(&[2.0, 1.0, 0.5]);
        let title = None;
        let losses = points(losses);
        Metrics { title, losses, validation_losses: points(validation), learning_rates, gradient_norms }
    }

    /// Of 4, 2 and 8 with 0.5: 4; (4 / 2 + 2) / (1 / 2 + 1); (4 / 4 + 2 / 2 + 8) / (1 / 4 + 1 / 2 + 1).
    #[test]
    fn the_average_has_no_pull_to_zero() {
        let found = smoothed(&[(1.0, 4.0), (2.0, 2.0), (5.0, 8.0)], 0.5);
        let expected = [(1.0, 4.0), (2.0, 8.0 / 3.0), (5.0, 40.0 / 7.0)];
        for (found, expected) in found.iter().zip(expected) {
            assert!(found.0 == expected.0 && (found.1 - expected.1).abs() < 1e-14, "{found:?} {expected:?}");
        }
        let same = smoothed(&[(1.0, 3.0), (2.0, 3.0)], 0.9);
        assert!(same.iter().all(|p| (p.1 - 3.0).abs() < 1e-14), "{same:?}");
    }

    #[test]
    fn a_run_is_drawn_with_all_that_its_log_has() {
        let run = |name: &str, m: Metrics| (name.to_string(), m);
        let all = metrics(&[4.0, 2.0, 3.0], &[5.0, 2.5, 2.75]);
        let one = loss_picture(&[run("a", all.clone())], "method on model", 0.9);
        for text in [
            "method on model",
            ">training loss, smoothed<",
            ">validation loss, best 2.5000 at step 2<",
            ">learning rate<",
            ">gradient norm, logarithmic<",
            ">step<",
        ] {
            assert_eq!(one.matches(text).count(), 1, "{text}: {one}");
        }
        let count = |picture: &str, text: &str| picture.matches(text).count();
        assert_eq!(count(&one, "<polyline"), 5, "raw, smoothed, validation, rate, norm");
        assert_eq!((count(&one, "stroke-opacity"), count(&one, " r=\"7\"")), (1, 1));
        // Without smoothing the loss itself is the strong line.
        let plain = loss_picture(&[run("a", all.clone())], "", 0.0);
        assert_eq!((count(&plain, "<polyline"), count(&plain, "stroke-opacity")), (4, 0));
        let two = loss_picture(&[run("a<b", all.clone()), run("c", metrics(&[1.0], &[]))], "", 0.9);
        assert!(
            two.contains(">a&lt;b<") && two.contains(">a&lt;b, validation, best 2.5000 at step 2<"),
            "{two}"
        );
        assert!(
            two.contains(">c<") && !two.contains("c, validation") && !two.contains("training loss"),
            "{two}"
        );
        assert!(two.contains(COLORS[0]) && two.contains(COLORS[1]) && !two.contains("NaN"));
        let bare = Metrics { losses: all.losses, ..Metrics::default() };
        let bare = loss_picture(&[run("a", bare)], "", 0.9);
        assert!(!bare.contains("learning rate") && !bare.contains("gradient norm"), "{bare}");
    }
}
