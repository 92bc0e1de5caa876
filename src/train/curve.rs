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
/// Up to so many points of a line are drawn as they are.
const FEW: usize = 2000;
/// Colours that are told apart.
pub(crate) const COLORS: [&str; 10] = [
    "#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#999999", "#222222", "#ff9933",
    "#774411",
];

/// One line of the picture: a label for the legend, where it is to be there, a colour, and points `(step, value)`.
#[derive(Clone, Copy, Default)]
pub struct Line<'a> {
    pub label: &'a str,
    pub colour: &'a str,
    pub points: &'a [(f64, f64)],
    pub dashed: bool,
    /// Behind other lines.
    pub faint: bool,
    /// Each of its points is a dot.
    pub dotted: bool,
    /// The number of a dot that is ringed.
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
        } else if value != 0.0 && value.abs() < 1e-3 {
            format!("{value:.1e}").replace(".0e", "e")
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

/// What stands around the panels of a picture as wide and as high as this.
fn page(width: f64, height: f64, panels: &str) -> String {
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n{panels}</svg>\n"
    )
}

/// Charts one below the other, each with its height, over axes from the lowest to the highest value of all.
pub(crate) fn stacked(panels: &[(Chart<'_>, f64)]) -> String {
    let values = panels.iter().flat_map(|(chart, _)| chart.shown().map(|p| p.0));
    let range = panels.first().map_or(Range::Whole, |(chart, _)| chart.across.range);
    let across = range.ends(values);
    let mut width: f64 = 0.0;
    let mut height = 0.0;
    let mut text = String::new();
    for (chart, high) in panels {
        text += &format!("<g transform=\"translate(0 {height})\">\n{}</g>\n", chart.panel(*high, across));
        let [wide, needed] = chart.size(*high);
        width = width.max(wide);
        height += needed;
    }
    page(width, height, &text)
}

impl<'a> Chart<'a> {
    /// The picture.
    pub fn svg(&self) -> String {
        let [width, height] = self.size(HEIGHT);
        let across = self.across.range.ends(self.shown().map(|p| p.0));
        page(width, height, &self.panel(HEIGHT, across))
    }

    /// The points that its axes show.
    fn shown(&self) -> impl Iterator<Item = &'a (f64, f64)> {
        let across = self.across.range;
        let up = self.up.range;
        self.lines.iter().flat_map(|line| line.points).filter(move |p| across.shows(p.0) && up.shows(p.1))
    }

    /// The lines that have something to show.
    fn drawn(&self) -> impl Iterator<Item = &'a Line<'a>> {
        self.lines.iter().filter(|line| !line.points.is_empty())
    }

    /// Width and height with a legend beside the frame, where it is there.
    fn size(&self, height: f64) -> [f64; 2] {
        let labels = || self.drawn().map(|line| line.label.chars().count()).filter(|letters| *letters > 0);
        if !self.beside {
            return [WIDTH, height];
        }
        let longest = labels().max().unwrap_or(0) as f64;
        let legend = if longest > 0.0 { WIDTH + 36.0 + LETTER * longest } else { WIDTH };
        let title = LEFT + LETTER * self.title.chars().count() as f64;
        [legend.max(title), height.max(TOP + 18.0 * labels().count() as f64 + 10.0)]
    }

    /// Frame, lines and legend, as high as this, over an axis with these ends.
    fn panel(&self, height: f64, xs: [f64; 2]) -> String {
        let across = self.across.range;
        let up = self.up.range;
        let shown = |p: &&(f64, f64)| across.shows(p.0) && up.shows(p.1);
        let ys = up.ends(self.shown().map(|p| p.1));
        let base = height - BOTTOM;
        let x = |v: f64| LEFT + across.place(v, xs) * (WIDTH - LEFT - RIGHT);
        let y = |v: f64| base - up.place(v, ys) * (base - TOP);

        let mut out = String::new();
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
        if !self.across.label.is_empty() {
            add(format!(
                "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
                WIDTH / 2.0,
                height - 8.0,
                escaped(self.across.label)
            ));
        }
        if !self.up.label.is_empty() {
            let middle = (TOP + base) / 2.0;
            add(format!(
                "<text x=\"14\" y=\"{middle}\" text-anchor=\"middle\" transform=\"rotate(-90 14 {middle})\">{}</text>",
                escaped(self.up.label)
            ));
        }
        let mut rows = 0;
        for line in self.drawn() {
            let dash = if line.dashed { " stroke-dasharray=\"6 3\"" } else { "" };
            let faint = if line.faint { " stroke-opacity=\"0.3\"" } else { "" };
            let places: Vec<[f64; 2]> = line.points.iter().filter(shown).map(|p| [x(p.0), y(p.1)]).collect();
            let path = thinned(&places).map(|[x, y]| format!("{x:.1},{y:.1}")).collect::<Vec<_>>();
            add(format!(
                "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\"{dash}{faint} points=\"{}\"/>",
                line.colour,
                path.join(" ")
            ));
            // A line of one point is none.
            let dots = self.dots || line.dotted || line.points.len() == 1;
            for (number, p) in line.points.iter().enumerate().filter(|(_, p)| dots && shown(p)) {
                add(disc(x(p.0), y(p.1), line.colour, line.ringed == Some(number)));
            }
            if line.label.is_empty() {
                continue;
            }
            let at = if self.beside { WIDTH } else { WIDTH - RIGHT - 150.0 };
            let row = TOP + 8.0 + 18.0 * rows as f64;
            rows += 1;
            add(format!(
                "<line x1=\"{at}\" x2=\"{}\" y1=\"{row}\" y2=\"{row}\" stroke=\"{}\" stroke-width=\"3\"{dash}/>",
                at + 20.0,
                line.colour
            ));
            add(format!("<text x=\"{}\" y=\"{}\">{}</text>", at + 26.0, row + 4.0, escaped(line.label)));
        }
        out
    }
}

/// Places of a line, of which there are more than a screen has columns: of each column the first, the lowest, the highest
/// and the last, in their order.
fn thinned(places: &[[f64; 2]]) -> impl Iterator<Item = [f64; 2]> {
    let few = places.len() <= FEW;
    let same = move |a: &[f64; 2], b: &[f64; 2]| !few && a[0].floor() == b[0].floor();
    places.chunk_by(same).flat_map(|column| {
        let by_height = |&a: &usize, &b: &usize| column[a][1].total_cmp(&column[b][1]);
        let highest = (0..column.len()).min_by(by_height).unwrap_or(0);
        let lowest = (0..column.len()).max_by(by_height).unwrap_or(0);
        let mut kept = vec![0, highest, lowest, column.len() - 1];
        kept.sort_unstable();
        kept.dedup();
        kept.into_iter().map(|i| column[i])
    })
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

    fn chart<'a>(title: &'a str, lines: &'a [Line<'a>]) -> Chart<'a> {
        let across = Axis { label: "step", range: Range::Whole };
        let up = Axis { label: "", range: Range::FromZero };
        Chart { title, across, up, lines, dots: false, beside: false }
    }

    #[test]
    fn every_finite_point_is_drawn() {
        let points = [(1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0)];
        let line = Line { label: "a<b", colour: "#123456", points: &points, ..Line::default() };
        let picture = chart("loss & more", &[line]).svg();
        let drawn = picture.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        assert_eq!(drawn.split(' ').count(), 2);
        assert!(picture.contains("a&lt;b") && picture.contains("loss &amp; more"));
        assert!(!picture.contains("NaN"));
        assert!(!chart("nothing", &[]).svg().contains("NaN"));
    }

    /// The points of the first line in a picture.
    fn places(picture: &str) -> Vec<[f64; 2]> {
        let list = picture.split("points=\"").nth(1).unwrap().split('"').next().unwrap();
        let place = |pair: &str| {
            let (x, y) = pair.split_once(',').unwrap();
            [x.parse().unwrap(), y.parse().unwrap()]
        };
        list.split(' ').map(place).collect()
    }

    #[test]
    fn many_points_keep_their_extremes() {
        let mut points: Vec<(f64, f64)> =
            (0..100_000).map(|i| (i as f64, 1.0 + (i as f64 * 0.7).sin())).collect();
        points[31_415].1 = 9.0;
        points[27_182].1 = -3.0;
        let line = Line { label: "a", colour: "red", points: &points, ..Line::default() };
        let drawn = places(&chart("", &[line]).svg());
        assert!(drawn.len() < 4 * WIDTH as usize, "{}", drawn.len());
        let [low, high] = Range::FromZero.ends(points.iter().map(|p| p.1));
        let y = |v: f64| HEIGHT - BOTTOM - (v - low) / (high - low) * (HEIGHT - TOP - BOTTOM);
        for value in [9.0, -3.0] {
            assert!(drawn.iter().any(|place| (place[1] - y(value)).abs() < 0.06), "{value}");
        }
        assert_eq!(drawn.first().map(|p| p[0]), Some(LEFT));
        assert_eq!(drawn.last().map(|p| p[0]), Some(WIDTH - RIGHT));
        assert!(drawn.windows(2).all(|pair| pair[0][0] <= pair[1][0]));
    }

    #[test]
    fn stacked_charts_share_their_axis() {
        let above = [(1.0, 1.0), (10.0, 2.0)];
        let below = [(5.0, 1.0)];
        let line = |points| Line { colour: "red", points, ..Line::default() };
        let first = [line(&above)];
        let second = [line(&below)];
        let picture = stacked(&[(chart("one", &first), 400.0), (chart("two", &second), 150.0)]);
        assert!(
            picture.contains("viewBox=\"0 0 720 550\"") && picture.contains("translate(0 400)"),
            "{picture}"
        );
        // Step 5 is 4/9 of the way from 1 to 10; a point alone is a dot.
        let at = LEFT + 4.0 / 9.0 * (WIDTH - LEFT - RIGHT);
        assert!(picture.contains(&format!("<circle cx=\"{at:.1}\"")), "{picture}");
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
