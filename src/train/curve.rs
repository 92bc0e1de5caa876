//! Curves as an SVG picture: the loss of a run, and whatever else is drawn over an axis.

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 45.0;
/// Width of a letter of labels.
const LETTER: f64 = 7.0;
/// More marks than this do not fit on an axis.
const MOST_TICKS: usize = 12;

/// One line of the picture: a label, a colour, and points `(step, value)`.
#[derive(Default)]
pub struct Line<'a> {
    pub label: &'a str,
    pub colour: &'a str,
    pub points: &'a [(f64, f64)],
    pub dashed: bool,
    /// The number of a point that is ringed.
    pub ringed: Option<usize>,
}

/// Lines in a frame.
pub(crate) struct Chart<'a> {
    pub title: &'a str,
    pub across: Axis<'a>,
    pub up: Axis<'a>,
    pub lines: &'a [Line<'a>],
    pub dots: bool,
    /// The legend is beside the frame, else in its upper right corner.
    pub beside: bool,
}

pub(crate) struct Axis<'a> {
    pub label: &'a str,
    pub range: Range,
}

/// What an axis shows of values.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Range {
    /// From the lowest to the highest, with marks at whole numbers.
    Whole,
    /// From 0 or the lowest to above the highest.
    FromZero,
    /// From below the lowest to above the highest.
    Around,
    /// The same in powers; values that are not above 0 are left out.
    Powers,
}

impl Range {
    pub fn shows(self, value: f64) -> bool {
        value.is_finite() && (self != Range::Powers || value > 0.0)
    }

    /// The ends of the axis for values that it shows.
    pub fn ends(self, values: impl Iterator<Item = f64>) -> [f64; 2] {
        let wide = |[low, high]: [f64; 2], value: f64| [low.min(value), high.max(value)];
        let [low, high] = values.fold([f64::MAX, f64::MIN], wide);
        let [low, high] = match self {
            Range::Powers if low > high => [0.1, 1.0],
            _ if low > high => [0.0, 1.0],
            _ => [low, high],
        };
        match self {
            Range::Whole => [low, high.max(low + 1.0)],
            Range::FromZero => {
                let low = low.min(0.0);
                [low, high.max(low + 1e-6) + 0.05 * (high - low)]
            }
            Range::Around => {
                let margin = (0.06 * (high - low)).max(1e-3 * high.abs()).max(1e-6);
                [low - margin, high + margin]
            }
            Range::Powers => {
                let margin = (0.06 * (high.ln() - low.ln())).exp().max(1.05);
                [(low / margin).max(f64::MIN_POSITIVE), (high * margin).min(f64::MAX)]
            }
        }
    }

    /// Where a value is between the ends: from 0 to 1.
    pub fn place(self, value: f64, [low, high]: [f64; 2]) -> f64 {
        match self {
            Range::Powers => (value.ln() - low.ln()) / (high.ln() - low.ln()),
            _ => (value - low) / (high - low),
        }
    }

    pub fn ticks(self, [low, high]: [f64; 2]) -> Vec<f64> {
        match self {
            Range::Powers => powers(low, high),
            Range::Whole => ticks(low, high).into_iter().filter(|v| v.fract() == 0.0).collect(),
            _ => ticks(low, high),
        }
    }

    /// The number at a mark.
    pub fn text(self, value: f64) -> String {
        if self == Range::Powers && !(1e-2..1e5).contains(&value) {
            format!("{value:e}")
        } else {
            short(value)
        }
    }
}

/// Numbers for ticks: 1, 2 or 5 times a power of ten apart, four to nine of them.
fn ticks(low: f64, high: f64) -> Vec<f64> {
    let raw = (high - low).max(1e-9) / 6.0;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|s| *s >= raw).unwrap_or(raw);
    let first = (low / step).ceil() as i64;
    let last = (high / step + 1e-9).floor() as i64;
    (first..=last).map(|i| i as f64 * step).collect()
}

/// Numbers for ticks of an axis in powers: 1, 2 and 5 times powers of ten, or the powers alone where those are many.
fn powers(low: f64, high: f64) -> Vec<f64> {
    let exponents = low.log10().floor() as i32..=high.log10().ceil() as i32;
    // Parsed from text, the number is the nearest to what is written.
    let number = |text: String| text.parse().unwrap_or(f64::NAN);
    let marks = |digits: &[u8]| -> Vec<f64> {
        let all = exponents.clone().flat_map(|e| digits.iter().map(move |digit| format!("{digit}e{e}")));
        all.map(number).filter(|v| (low..=high).contains(v)).collect()
    };
    let fine = marks(&[1, 2, 5]);
    if fine.len() < 2 {
        return ticks(low, high);
    }
    if fine.len() <= MOST_TICKS {
        return fine;
    }
    let coarse = marks(&[1]);
    let every = coarse.len().div_ceil(MOST_TICKS).max(1);
    coarse.into_iter().step_by(every).collect()
}

/// A number as short as it can be read.
fn short(v: f64) -> String {
    let text = format!("{v:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// The picture of one or more lines; values that are not finite are left out.
pub fn svg(title: &str, lines: &[Line<'_>]) -> String {
    let across = Axis { label: "step", range: Range::Whole };
    let up = Axis { label: "", range: Range::FromZero };
    Chart { title, across, up, lines, dots: false, beside: false }.svg()
}

impl Chart<'_> {
    /// The picture.
    pub fn svg(&self) -> String {
        let across = self.across.range;
        let up = self.up.range;
        let shown = |p: &&(f64, f64)| across.shows(p.0) && up.shows(p.1);
        let all = || self.lines.iter().flat_map(|l| l.points).filter(shown);
        let xs = across.ends(all().map(|p| p.0));
        let ys = up.ends(all().map(|p| p.1));
        let x = |v: f64| LEFT + across.place(v, xs) * (WIDTH - LEFT - RIGHT);
        let y = |v: f64| HEIGHT - BOTTOM - up.place(v, ys) * (HEIGHT - TOP - BOTTOM);
        let drawn = || self.lines.iter().filter(|l| !l.points.is_empty());
        let longest = drawn().map(|l| l.label.chars().count()).max().unwrap_or(0) as f64;
        let [whole, height] = if self.beside {
            let rows = TOP + 18.0 * drawn().count() as f64 + 10.0;
            [
                (WIDTH + 36.0 + LETTER * longest).max(LEFT + LETTER * self.title.chars().count() as f64),
                rows.max(HEIGHT),
            ]
        } else {
            [WIDTH, HEIGHT]
        };

        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {whole} {height}\" font-family=\"sans-serif\" \
             font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        let mut add = |text: String| {
            out += &text;
            out.push('\n');
        };
        add(format!("<text x=\"{LEFT}\" y=\"18\" font-size=\"14\">{}</text>", escaped(self.title)));
        for v in up.ticks(ys) {
            let at = y(v);
            let right = WIDTH - RIGHT;
            add(format!(
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>"
            ));
            add(format!(
                "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
                LEFT - 6.0,
                at + 4.0,
                up.text(v)
            ));
        }
        let base = HEIGHT - BOTTOM;
        for v in across.ticks(xs) {
            let at = x(v);
            add(format!(
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{base}\" y2=\"{}\" stroke=\"#888\"/>",
                base + 5.0
            ));
            add(format!(
                "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                base + 18.0,
                across.text(v)
            ));
        }
        add(format!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            WIDTH / 2.0,
            HEIGHT - 8.0,
            escaped(self.across.label)
        ));
        if !self.up.label.is_empty() {
            let middle = (TOP + base) / 2.0;
            add(format!(
                "<text x=\"14\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {middle})\">{}</text>",
                escaped(self.up.label)
            ));
        }
        for (i, line) in drawn().enumerate() {
            let dash = if line.dashed { " stroke-dasharray=\"6 3\"" } else { "" };
            let points = line.points.iter().filter(shown);
            let path: Vec<String> = points.map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
            add(format!(
                "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"{dash} points=\"{}\"/>",
                line.colour,
                path.join(" ")
            ));
            for (number, p) in line.points.iter().enumerate().filter(|(_, p)| self.dots && shown(p)) {
                add(disc(x(p.0), y(p.1), line.colour, line.ringed == Some(number)));
            }
            let at = if self.beside { WIDTH } else { WIDTH - RIGHT - 150.0 };
            let row = TOP + 8.0 + 18.0 * i as f64;
            add(format!(
                "<line x1=\"{at}\" x2=\"{}\" y1=\"{row}\" y2=\"{row}\" stroke=\"{}\" stroke-width=\"3\"{dash}/>",
                at + 20.0,
                line.colour
            ));
            add(format!("<text x=\"{}\" y=\"{}\">{}</text>", at + 26.0, row + 4.0, escaped(line.label)));
        }
        out + "</svg>\n"
    }
}

/// A point, with a ring around it or without.
fn disc(x: f64, y: f64, colour: &str, ringed: bool) -> String {
    let at = format!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\"");
    let ring = format!("{at} r=\"7\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"1.5\"/>");
    format!("{at} r=\"3\" fill=\"{colour}\"/>{}", if ringed { ring.as_str() } else { "" })
}

/// Text as it may stand in a picture: XML has no control characters.
pub(crate) fn escaped(text: &str) -> String {
    text.replace(char::is_control, " ").replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_point_is_drawn() {
        let points = [(1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0)];
        let line = Line { label: "a<b", colour: "#123456", points: &points, ..Line::default() };
        let picture = svg("loss & more", &[line]);
        let drawn = picture.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(drawn.split(' ').count(), 2);
        assert!(picture.contains("a&lt;b") && picture.contains("loss &amp; more"));
        assert!(!picture.contains("NaN"));
        assert!(!svg("nothing", &[]).contains("NaN"));
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(ticks(0.0, 6.0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
        assert_eq!(ticks(1.0, 100.0), [20.0, 40.0, 60.0, 80.0, 100.0]);
        assert_eq!(short(0.25), "0.25");
        assert_eq!(short(3.0), "3");
    }

    #[test]
    fn powers_are_as_far_apart_as_their_exponents() {
        let ends = Range::Powers.ends([1e-4, 1e-2].into_iter());
        let middle = Range::Powers.place(1e-3, ends);
        assert!((middle - 0.5).abs() < 1e-12, "{middle}");
        assert_eq!(powers(9e-5, 1.1e-2), [1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2]);
        assert_eq!(powers(0.5e-4, 3e4).len(), 9, "powers of ten alone");
        assert!((2..=MOST_TICKS).contains(&powers(1e-300, 1e300).len()));
        assert!(powers(0.071, 0.079).len() > 2, "no power lies between these");
        assert_eq!([1e-4, 0.005, 2.0].map(|v| Range::Powers.text(v)), ["1e-4", "5e-3", "2"]);
    }

    #[test]
    fn a_chart_without_values_has_a_frame() {
        for range in [Range::Whole, Range::FromZero, Range::Around, Range::Powers] {
            let points = [(0.0, f64::NAN), (-1.0, f64::INFINITY)];
            let lines = [Line { label: "a", colour: "red", points: &points, ..Line::default() }];
            let axis = || Axis { label: "b", range };
            let chart =
                Chart { title: "c", across: axis(), up: axis(), lines: &lines, dots: true, beside: true };
            let picture = chart.svg();
            assert!(
                !picture.contains("NaN") && !picture.contains("inf") && !picture.contains("<circle"),
                "{picture}"
            );
        }
    }
}
