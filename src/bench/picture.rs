//! The roofline as an SVG picture: speed over arithmetic intensity, with logarithmic axes.

use super::{Roof, Row};
use crate::train::escaped;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// The mean width of a letter of a label, at most.
const LETTER: f64 = 5.5;
/// The distance from a point to its label.
const GAP: f64 = 6.0;

/// The whole powers of ten around values.
fn decades(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let logs = values.filter(|value| value.is_finite() && *value > 0.0).map(f64::log10);
    let (low, high) = logs.fold((f64::MAX, f64::MIN), |(low, high), log| (low.min(log), high.max(log)));
    if low > high { (0.0, 1.0) } else { (low.floor(), high.ceil().max(low.floor() + 1.0)) }
}

/// The position and anchor of a point's label: after it, or before it if the picture ends.
fn label_side(x: f64, letters: usize) -> (f64, &'static str) {
    let width = letters as f64 * LETTER;
    if x + GAP + width <= WIDTH { (x + GAP, "start") } else { ((x - GAP).max(width), "end") }
}

/// A row with an intensity.
struct Point {
    intensity: f64,
    gflops: f64,
    label: String,
}

impl Point {
    fn new(row: &Row) -> Option<Self> {
        let work = &row.work;
        let words = [work.op.as_str(), &work.variant, &work.shape, &work.dtype, &work.dir];
        let label = words.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>().join(" ");
        Some(Point { intensity: row.ai_flop_per_byte?, gflops: row.gflops?, label })
    }
}

/// The logarithmic axes: decades of intensity and of speed.
struct Axes {
    intensity: (f64, f64),
    speed: (f64, f64),
}

impl Axes {
    fn new(roof: &Roof, points: &[Point]) -> Self {
        let ridge = roof.fma_gflops / roof.copy_gbps;
        let intensities = points.iter().map(|point| point.intensity);
        let intensity = decades(intensities.chain([ridge / 4.0, ridge * 4.0]));
        let speeds = points.iter().map(|point| point.gflops);
        let speed = decades(speeds.chain([roof.fma_gflops, roof.at(10f64.powf(intensity.0))]));
        Axes { intensity, speed }
    }
    fn x(&self, intensity: f64) -> f64 {
        let (low, high) = self.intensity;
        LEFT + (intensity.log10() - low) / (high - low) * (WIDTH - LEFT - RIGHT)
    }
    fn y(&self, speed: f64) -> f64 {
        let (low, high) = self.speed;
        HEIGHT - BOTTOM - (speed.log10() - low) / (high - low) * (HEIGHT - TOP - BOTTOM)
    }

    /// Lines and labels of the powers of ten, and the units.
    fn grid(&self) -> String {
        let mut out = String::new();
        for power in self.intensity.0 as i32..=self.intensity.1 as i32 {
            let value = 10f64.powi(power);
            let at = self.x(value);
            let base = HEIGHT - BOTTOM;
            let label = base + 18.0;
            out += &format!(
                "<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{base}\" stroke=\"#ddd\"/>\n\
                 <text x=\"{at:.1}\" y=\"{label}\" text-anchor=\"middle\">{value}</text>\n"
            );
        }
        for power in self.speed.0 as i32..=self.speed.1 as i32 {
            let value = 10f64.powi(power);
            let at = self.y(value);
            let right = WIDTH - RIGHT;
            let label = LEFT - 6.0;
            let below = at + 4.0;
            out += &format!(
                "<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\n\
                 <text x=\"{label}\" y=\"{below:.1}\" text-anchor=\"end\">{value}</text>\n"
            );
        }
        let middle = WIDTH / 2.0;
        let foot = HEIGHT - 10.0;
        out += &format!("<text x=\"{middle}\" y=\"{foot}\" text-anchor=\"middle\">FLOP/B</text>\n");
        out + &format!("<text x=\"10\" y=\"{}\">GFLOP/s</text>\n", TOP - 6.0)
    }

    fn roof(&self, roof: &Roof) -> String {
        let ridge = roof.fma_gflops / roof.copy_gbps;
        let first = 10f64.powf(self.intensity.0);
        let last = 10f64.powf(self.intensity.1);
        let corner = |intensity| format!("{:.1},{:.1}", self.x(intensity), self.y(roof.at(intensity)));
        let path = [first, ridge.clamp(first, last), last].map(corner).join(" ");
        format!(
            "<polyline fill=\"none\" stroke=\"#b03a2e\" stroke-width=\"2\" points=\"{path}\"/>\n\
             <text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#b03a2e\">{:.0} GFLOP/s, {:.1} GB/s</text>\n",
            WIDTH - RIGHT - 4.0,
            self.y(roof.fma_gflops) - 6.0,
            roof.fma_gflops,
            roof.copy_gbps
        )
    }

    fn point(&self, point: &Point) -> String {
        let x = self.x(point.intensity);
        let y = self.y(point.gflops);
        let label = escaped(&point.label);
        let (side, anchor) = label_side(x, label.chars().count());
        format!(
            "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"4\" fill=\"#1f618d\"><title>{label}: {:.1} GFLOP/s</title></circle>\n\
             <text x=\"{side:.1}\" y=\"{:.1}\" font-size=\"9\" fill=\"#555\" text-anchor=\"{anchor}\">{label}</text>\n",
            point.gflops,
            y + 3.0
        )
    }
}

/// Draws the measured roof, and every row that has an intensity as a point below it.
pub fn roofline(title: &str, roof: &Roof, rows: &[Row]) -> String {
    let points: Vec<Point> = rows.iter().filter_map(Point::new).collect();
    let axes = Axes::new(roof, &points);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n",
        escaped(title)
    );
    out += &axes.grid();
    out += &axes.roof(roof);
    points.iter().for_each(|point| out += &axes.point(point));
    out + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::bench::{Costs, Place, Timer, Work};

    #[test]
    fn labels_stay_inside_the_picture() {
        for (x, letters) in [(100.0, 20), (700.0, 20), (WIDTH - RIGHT, 5), (LEFT, 120), (600.0, 130)] {
            let (at, anchor) = label_side(x, letters);
            let width = letters as f64 * LETTER;
            let left = if anchor == "end" { at - width } else { at };
            assert!(left >= 0.0 && left + width <= WIDTH, "{x} {letters}: {at} {anchor}");
        }
    }

    #[test]
    fn every_row_with_an_intensity_is_a_point() {
        let device = Device::cpu();
        let roof = Roof { copy_gbps: 20.0, fma_gflops: 100.0, ..Roof::unmeasured(&device) };
        let row = |flops, bytes| {
            let work = Work { op: "a<b".into(), ..Work::default() };
            let row = Row::new(&Place::of(&device), work, Timer::Wall, &[1.0]);
            row.costs(Some(Costs { flops, bytes }), Some(&roof))
        };
        let picture = roofline("x & y", &roof, &[row(1e9, 1e9), row(1e9, 1e6), row(0.0, 1e9)]);
        assert_eq!(picture.matches("<circle").count(), 2);
        assert!(picture.contains("a&lt;b") && picture.contains("x &amp; y") && !picture.contains("NaN"));
        assert!(!roofline("nothing", &roof, &[]).contains("NaN"));
    }
}
