//! The loss curve of a run as an SVG picture.

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 400.0;
const LEFT: f64 = 60.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 30.0;
const BOTTOM: f64 = 45.0;

/// One line of the picture: a label, a colour, and points `(step, value)`.
pub struct Line<'a> {
    pub label: &'a str,
    pub colour: &'a str,
    pub points: &'a [(f64, f64)],
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

/// A number as short as it can be read.
fn short(v: f64) -> String {
    let text = format!("{v:.6}");
    text.trim_end_matches('0').trim_end_matches('.').to_string()
}

/// The picture of one or more lines; values that are not finite are left out.
pub fn svg(title: &str, lines: &[Line<'_>]) -> String {
    let all = || lines.iter().flat_map(|l| l.points).filter(|p| p.1.is_finite());
    let bound = |f: fn(f64, f64) -> f64, of: fn(&(f64, f64)) -> f64, start: f64| all().map(of).fold(start, f);
    let (mut x0, mut x1) = (bound(f64::min, |p| p.0, f64::MAX), bound(f64::max, |p| p.0, f64::MIN));
    let (mut y0, mut y1) = (bound(f64::min, |p| p.1, 0.0), bound(f64::max, |p| p.1, f64::MIN));
    if x0 > x1 {
        (x0, x1, y0, y1) = (0.0, 1.0, 0.0, 1.0);
    }
    x1 = x1.max(x0 + 1.0);
    y1 = y1.max(y0 + 1e-6) + 0.05 * (y1 - y0);
    let x = |v: f64| LEFT + (v - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
    let y = |v: f64| HEIGHT - BOTTOM - (v - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);

    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let mut add = |text: String| {
        out += &text;
        out.push('\n');
    };
    add(format!("<text x=\"{LEFT}\" y=\"18\" font-size=\"14\">{}</text>", escaped(title)));
    for v in ticks(y0, y1) {
        let at = y(v);
        let right = WIDTH - RIGHT;
        add(format!("<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>"));
        add(format!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 6.0,
            at + 4.0,
            short(v)
        ));
    }
    let base = HEIGHT - BOTTOM;
    for v in ticks(x0, x1).into_iter().filter(|v| v.fract() == 0.0) {
        let at = x(v);
        add(format!(
            "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{base}\" y2=\"{}\" stroke=\"#888\"/>",
            base + 5.0
        ));
        add(format!("<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>", base + 18.0, short(v)));
    }
    add(format!("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">step</text>", WIDTH / 2.0, HEIGHT - 8.0));
    for (i, line) in lines.iter().filter(|l| !l.points.is_empty()).enumerate() {
        let points = line.points.iter().filter(|p| p.1.is_finite());
        let path: Vec<String> = points.map(|p| format!("{:.1},{:.1}", x(p.0), y(p.1))).collect();
        add(format!(
            "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\" points=\"{}\"/>",
            line.colour,
            path.join(" ")
        ));
        let at = WIDTH - RIGHT - 150.0;
        let row = TOP + 8.0 + 18.0 * i as f64;
        add(format!(
            "<line x1=\"{at}\" x2=\"{}\" y1=\"{row}\" y2=\"{row}\" stroke=\"{}\" stroke-width=\"3\"/>",
            at + 20.0,
            line.colour
        ));
        add(format!("<text x=\"{}\" y=\"{}\">{}</text>", at + 26.0, row + 4.0, escaped(line.label)));
    }
    out + "</svg>\n"
}

/// Text as it may stand in a picture.
pub(crate) fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_finite_point_is_drawn() {
        let points = [(1.0, 2.0), (2.0, f64::NAN), (3.0, 1.0)];
        let line = Line { label: "a<b", colour: "#123456", points: &points };
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
}
