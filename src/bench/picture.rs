//! The roofline as an SVG picture: speed over arithmetic intensity, both axes logarithmic.

use super::{Roof, Row};
use crate::train::escaped;

const WIDTH: f64 = 760.0;
const HEIGHT: f64 = 460.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 40.0;
const BOTTOM: f64 = 50.0;
/// Width of a letter of a label, at most in the mean, and from a point to its label.
const LETTER: f64 = 5.5;
const GAP: f64 = 6.0;

/// The whole powers of ten around values.
fn decades(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let logs = values.filter(|v| v.is_finite() && *v > 0.0).map(f64::log10);
    let (low, high) = logs.fold((f64::MAX, f64::MIN), |(l, h), v| (l.min(v), h.max(v)));
    if low > high { (0.0, 1.0) } else { (low.floor(), high.ceil().max(low.floor() + 1.0)) }
}

/// Where the label of a point stands: behind it, or before it where it would run out of the picture.
fn label_side(x: f64, letters: usize) -> (f64, &'static str) {
    let width = letters as f64 * LETTER;
    if x + GAP + width <= WIDTH { (x + GAP, "start") } else { ((x - GAP).max(width), "end") }
}

/// The measured roof, and every row that has an intensity as a point below it.
pub fn roofline(title: &str, roof: &Roof, rows: &[Row]) -> String {
    let points: Vec<(f64, f64, String)> = rows
        .iter()
        .filter_map(|r| {
            let w = &r.work;
            let label: Vec<&str> = [w.op.as_str(), &w.variant, &w.shape, &w.dtype, &w.dir]
                .into_iter()
                .filter(|t| !t.is_empty())
                .collect();
            Some((r.ai_flop_per_byte?, r.gflops?, label.join(" ")))
        })
        .collect();
    let ridge = roof.fma_gflops / roof.copy_gbps;
    let (x0, x1) = decades(points.iter().map(|p| p.0).chain([ridge / 4.0, ridge * 4.0]));
    let (y0, y1) = decades(points.iter().map(|p| p.1).chain([roof.fma_gflops, roof.at(10f64.powf(x0))]));
    let x = |v: f64| LEFT + (v.log10() - x0) / (x1 - x0) * (WIDTH - LEFT - RIGHT);
    let y = |v: f64| HEIGHT - BOTTOM - (v.log10() - y0) / (y1 - y0) * (HEIGHT - TOP - BOTTOM);
    let mut out = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {HEIGHT}\" font-family=\"sans-serif\" \
         font-size=\"12\">\n<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n\
         <text x=\"{LEFT}\" y=\"20\" font-size=\"14\">{}</text>\n",
        escaped(title)
    );
    for power in x0 as i32..=x1 as i32 {
        let at = x(10f64.powi(power));
        let base = HEIGHT - BOTTOM;
        out += &format!("<line x1=\"{at:.1}\" x2=\"{at:.1}\" y1=\"{TOP}\" y2=\"{base}\" stroke=\"#ddd\"/>\n");
        out += &format!(
            "<text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>\n",
            base + 18.0,
            10f64.powi(power)
        );
    }
    for power in y0 as i32..=y1 as i32 {
        let at = y(10f64.powi(power));
        let right = WIDTH - RIGHT;
        out +=
            &format!("<line x1=\"{LEFT}\" x2=\"{right}\" y1=\"{at:.1}\" y2=\"{at:.1}\" stroke=\"#ddd\"/>\n");
        out += &format!(
            "<text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>\n",
            LEFT - 6.0,
            at + 4.0,
            10f64.powi(power)
        );
    }
    let middle = WIDTH / 2.0;
    let foot = HEIGHT - 10.0;
    out += &format!("<text x=\"{middle}\" y=\"{foot}\" text-anchor=\"middle\">FLOP/B</text>\n");
    out += &format!("<text x=\"10\" y=\"{}\">GFLOP/s</text>\n", TOP - 6.0);
    let corners = [10f64.powf(x0), ridge.clamp(10f64.powf(x0), 10f64.powf(x1)), 10f64.powf(x1)];
    let path = corners.map(|ai| format!("{:.1},{:.1}", x(ai), y(roof.at(ai)))).join(" ");
    out += &format!("<polyline fill=\"none\" stroke=\"#b03a2e\" stroke-width=\"2\" points=\"{path}\"/>\n");
    out += &format!(
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" fill=\"#b03a2e\">{:.0} GFLOP/s, {:.1} GB/s</text>\n",
        WIDTH - RIGHT - 4.0,
        y(roof.fma_gflops) - 6.0,
        roof.fma_gflops,
        roof.copy_gbps
    );
    for (ai, speed, label) in &points {
        let label = escaped(label);
        out += &format!(
            "<circle cx=\"{:.1}\" cy=\"{:.1}\" r=\"4\" fill=\"#1f618d\"><title>{label}: {speed:.1} GFLOP/s</title></circle>\n",
            x(*ai),
            y(*speed)
        );
        let (side, anchor) = label_side(x(*ai), label.chars().count());
        out += &format!(
            "<text x=\"{side:.1}\" y=\"{:.1}\" font-size=\"9\" fill=\"#555\" text-anchor=\"{anchor}\">{label}</text>\n",
            y(*speed) + 3.0
        );
    }
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
