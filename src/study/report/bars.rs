//! Bars with intervals as an SVG picture.

use crate::train::{Range, escaped};
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

/// A value with its interval, drawn from 0 on.
pub(super) struct Bar {
    pub label: String,
    pub colour: &'static str,
    /// The interval's low end, the value, and the high end.
    pub ends: Option<[f64; 3]>,
    pub dots: Vec<f64>,
    /// Whether the value is a difference: figures have signs.
    pub signed: bool,
    /// What stands in the place of a bar without a value.
    pub missing: &'static str,
}

/// Bars below each other over one axis.
pub(super) struct Bars {
    pub title: String,
    pub label: &'static str,
    pub bars: Vec<Bar>,
    /// The ends of the axis; none: around all intervals and 0.
    pub range: Option<[f64; 2]>,
}

/// Panels of bars below each other.
pub(super) fn column(panels: &[Bars]) -> String {
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
            escaped(&self.title)
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
                escaped(&bar.label)
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
            let figures = if bar.signed {
                format!("{value:+.2} [{low:+.2}, {high:+.2}]")
            } else {
                format!("{value:.1} [{low:.1}, {high:.1}]")
            };
            let beside = left + FRAME + 10.0;
            let _ = writeln!(body, "<text x=\"{beside:.1}\" y=\"{:.1}\">{figures}</text>", at + 4.0);
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
