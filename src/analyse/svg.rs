//! Heat maps and clouds of points as SVG text.

use super::Scores;
pub(crate) use crate::train::COLORS;
use crate::train::escaped;
use std::fmt::Write;

const CELL: f64 = 46.0;
const GAP: f64 = 24.0;
/// Width of a letter of labels.
const LETTER: f64 = 7.0;
const TITLE: f64 = 22.0;
const CAPTION: f64 = 22.0;
const CLOUD: f64 = 420.0;

/// What colours stand for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    /// From 0 to 1: white to blue.
    Share,
    /// From -1 through 0 to 1: red through white to blue. What is beyond has the colour of its end.
    Signed,
}

/// Figures in rows and columns that have names.
pub struct HeatMap<'a> {
    pub title: String,
    pub caption: String,
    pub rows: &'a [String],
    pub columns: &'a [String],
    pub scores: &'a Scores,
    pub scale: Scale,
}

/// Points in the plane, coloured by task.
pub struct Scatter<'a> {
    pub title: String,
    pub caption: String,
    pub tasks: &'a [String],
    /// The task of each point.
    pub of: &'a [usize],
    pub points: &'a [[f64; 2]],
}

/// A part of a picture.
pub enum Panel<'a> {
    HeatMap(HeatMap<'a>),
    Scatter(Scatter<'a>),
}

/// An SVG picture of panels, row by row. Text and shapes alone: no script, no font, no link.
///
/// ```
/// use mixlora::analyse::{HeatMap, Panel, Scale, Scores, page};
/// let scores = Scores(vec![vec![Some(1.0), None], vec![Some(-0.5), Some(1.0)]]);
/// let tasks = ["sums".to_string(), "dates".to_string()];
/// let map = HeatMap {
///     title: "A".into(),
///     caption: String::new(),
///     rows: &tasks,
///     columns: &tasks,
///     scores: &scores,
///     scale: Scale::Signed,
/// };
/// let picture = page(&[vec![Panel::HeatMap(map)]]);
/// assert!(picture.starts_with("<svg") && picture.contains("-0.50") && picture.contains("dates"));
/// ```
pub fn page(rows: &[Vec<Panel<'_>>]) -> String {
    let mut body = String::new();
    let mut width = 0.0f64;
    let mut y = GAP;
    for row in rows {
        let mut x = GAP;
        let mut height = 0.0f64;
        for panel in row {
            let [w, h] = panel.size();
            panel.draw(&mut body, x, y);
            x += w + GAP;
            height = height.max(h);
        }
        width = width.max(x);
        y += height + GAP;
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {y:.0}\" width=\"{width:.0}\" \
         font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{body}</svg>\n"
    )
}

/// Width of the longest label.
fn labels(tasks: &[String]) -> f64 {
    LETTER * tasks.iter().map(|task| task.chars().count()).max().unwrap_or(0) as f64 + 8.0
}

fn text(body: &mut String, x: f64, y: f64, attributes: &str, text: &str) {
    let shown = escaped(text);
    // Writing to a string cannot fail.
    let _ = writeln!(body, "<text x=\"{x:.1}\" y=\"{y:.1}\"{attributes}>{shown}</text>");
}

impl Panel<'_> {
    /// Width and height.
    fn size(&self) -> [f64; 2] {
        let [title, caption, width, height] = match self {
            Panel::HeatMap(map) => {
                let width = labels(map.rows) + CELL * map.columns.len() as f64;
                let height = labels(map.columns) + CELL * map.rows.len() as f64;
                [length(&map.title), length(&map.caption), width, height]
            }
            Panel::Scatter(cloud) => {
                let width = CLOUD + labels(cloud.tasks) + 24.0;
                [length(&cloud.title), length(&cloud.caption), width, CLOUD]
            }
        };
        [width.max(title).max(caption), TITLE + height + CAPTION]
    }

    fn draw(&self, body: &mut String, x: f64, y: f64) {
        let [title, caption] = match self {
            Panel::HeatMap(map) => [&map.title, &map.caption],
            Panel::Scatter(cloud) => [&cloud.title, &cloud.caption],
        };
        text(body, x, y + 14.0, " font-size=\"14\"", title);
        text(body, x, y + self.size()[1] - 4.0, " fill=\"#555\"", caption);
        match self {
            Panel::HeatMap(map) => map.draw(body, x, y + TITLE),
            Panel::Scatter(cloud) => cloud.draw(body, x, y + TITLE),
        }
    }
}

fn length(text: &str) -> f64 {
    LETTER * text.chars().count() as f64
}

impl HeatMap<'_> {
    fn draw(&self, body: &mut String, x: f64, y: f64) {
        let left = labels(self.rows);
        let above = labels(self.columns);
        let middle = |i: usize| (i as f64 + 0.5) * CELL;
        for i in 0..self.rows.len().max(self.columns.len()) {
            if let Some(name) = self.rows.get(i) {
                text(body, x + left - 6.0, y + above + middle(i) + 4.0, " text-anchor=\"end\"", name);
            }
            if let Some(name) = self.columns.get(i) {
                let at = [x + left + middle(i) + 4.0, y + above - 6.0];
                let turned = format!(" transform=\"rotate(-90 {:.1} {:.1})\"", at[0], at[1]);
                text(body, at[0], at[1], &turned, name);
            }
        }
        for (i, row) in self.scores.0.iter().enumerate() {
            for (j, cell) in row.iter().enumerate() {
                let x = x + left + j as f64 * CELL;
                let y = y + above + i as f64 * CELL;
                let fill = cell.map_or("#eeeeee".into(), |value| self.scale.color(value));
                let _ = writeln!(
                    body,
                    "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{CELL}\" height=\"{CELL}\" fill=\"{fill}\" stroke=\"white\"/>"
                );
                let dark = cell.is_some_and(|value| value.abs() > 0.6);
                let color =
                    if dark { " text-anchor=\"middle\" fill=\"white\"" } else { " text-anchor=\"middle\"" };
                let shown = cell.map_or("-".into(), |value| format!("{value:.2}"));
                text(body, x + CELL / 2.0, y + CELL / 2.0 + 4.0, color, &shown);
            }
        }
    }
}

impl Scale {
    /// The colour of a value.
    fn color(self, value: f64) -> String {
        let strength = match self {
            Scale::Share => value.clamp(0.0, 1.0),
            Scale::Signed => value.clamp(-1.0, 1.0),
        };
        let end = if strength < 0.0 { [178.0, 24.0, 43.0] } else { [33.0, 102.0, 172.0] };
        let part = |end: f64| (255.0 + (end - 255.0) * strength.abs()).round() as u8;
        format!("#{:02x}{:02x}{:02x}", part(end[0]), part(end[1]), part(end[2]))
    }
}

impl Scatter<'_> {
    fn draw(&self, body: &mut String, x: f64, y: f64) {
        let _ = writeln!(
            body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{CLOUD}\" height=\"{CLOUD}\" fill=\"none\" stroke=\"#bbb\"/>"
        );
        let far = self.points.iter().flatten().fold(0.0f64, |far, v| far.max(v.abs()));
        let scale = if far > 0.0 { 0.47 * CLOUD / far } else { 0.0 };
        for (point, task) in self.points.iter().zip(self.of) {
            let px = x + CLOUD / 2.0 + scale * point[0];
            let py = y + CLOUD / 2.0 - scale * point[1];
            mark(body, px, py, *task);
        }
        for (number, task) in self.tasks.iter().enumerate() {
            let at = y + 12.0 + 18.0 * number as f64;
            mark(body, x + CLOUD + 14.0, at - 4.0, number);
            text(body, x + CLOUD + 24.0, at, "", task);
        }
    }
}

/// The sign of a task: ten colours, first as discs, then as squares.
fn mark(body: &mut String, x: f64, y: f64, task: usize) {
    let color = COLORS[task % COLORS.len()];
    let _ = if (task / COLORS.len()).is_multiple_of(2) {
        writeln!(body, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"{color}\" fill-opacity=\"0.7\"/>")
    } else {
        let x = x - 3.5;
        let y = y - 3.5;
        writeln!(
            body,
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"7\" height=\"7\" fill=\"{color}\" fill-opacity=\"0.7\"/>"
        )
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_has_every_figure_and_its_colour() {
        let scores = Scores(vec![vec![Some(1.0), Some(-0.25)], vec![None, Some(1.0)]]);
        let tasks = ["a<b".to_string(), "c".into()];
        let map = HeatMap {
            title: "t & u".into(),
            caption: "c".into(),
            rows: &tasks,
            columns: &tasks,
            scores: &scores,
            scale: Scale::Signed,
        };
        let picture = page(&[vec![Panel::HeatMap(map)]]);
        assert_eq!(picture.matches(">1.00<").count(), 2);
        assert!(picture.contains(">-0.25<") && picture.contains(">-<") && picture.contains("#eeeeee"));
        assert!(picture.contains("a&lt;b") && picture.contains("t &amp; u") && !picture.contains("NaN"));
        assert_eq!(Scale::Signed.color(0.0), "#ffffff");
        assert_eq!(Scale::Signed.color(-7.0), "#b2182b");
        assert_eq!(Scale::Share.color(1.0), "#2166ac");
    }

    #[test]
    fn sides_of_a_map_may_differ() {
        let rows = ["one".to_string()];
        let columns = ["a".to_string(), "b".into(), "c".into()];
        let scores = Scores(vec![vec![Some(0.5), None, Some(0.25)]]);
        let map = HeatMap {
            title: String::new(),
            caption: String::new(),
            rows: &rows,
            columns: &columns,
            scores: &scores,
            scale: Scale::Share,
        };
        let panel = Panel::HeatMap(map);
        let [width, height] = panel.size();
        assert_eq!([width, height], [29.0 + 3.0 * CELL, TITLE + 15.0 + CELL + CAPTION]);
        let picture = page(&[vec![panel]]);
        assert!(
            [">one<", ">a<", ">b<", ">c<", ">0.25<"].iter().all(|text| picture.matches(text).count() == 1)
        );
    }

    #[test]
    fn every_point_is_drawn_inside() {
        let tasks = ["a".to_string(), "b".into()];
        let points = [[-3.0, 1.0], [3.0, -1.0], [0.0, 0.0]];
        let cloud = Scatter {
            title: String::new(),
            caption: String::new(),
            tasks: &tasks,
            of: &[0, 1, 1],
            points: &points,
        };
        let picture = page(&[vec![Panel::Scatter(cloud)]]);
        // Three points, two in the legend.
        assert_eq!(picture.matches("<circle").count(), 5);
        let xs = picture.split("cx=\"").skip(1).take(3).map(|rest| rest.split('"').next().unwrap());
        let xs: Vec<f64> = xs.map(|x| x.parse().unwrap()).collect();
        assert!(
            xs.iter().all(|x| (GAP..GAP + CLOUD).contains(x)) && xs[0] < xs[2] && xs[2] < xs[1],
            "{xs:?}"
        );
    }
}
