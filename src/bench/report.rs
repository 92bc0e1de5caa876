//! Reports as Markdown, CSV, JSON and JSON lines.

use super::Row;
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// How rows are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A table of the columns that differ or have values, under a line about the machine.
    Markdown,
    /// All columns, with a line of names.
    Csv,
    /// One array of objects.
    Json,
    /// One object a line.
    JsonLines,
}

/// Columns that a Markdown report has in the line above its table.
const OF_THE_PLACE: [&str; 8] =
    ["commit", "crate_version", "date", "os", "backend", "adapter", "driver", "device_type"];

/// The report of rows.
pub fn write(rows: &[Row], style: Style) -> String {
    let objects: Vec<Map<String, Value>> = rows.iter().filter_map(object).collect();
    match style {
        Style::Markdown => markdown(rows, &objects),
        Style::Csv => csv(&objects),
        Style::Json => format!("{:#}\n", Value::Array(objects.into_iter().map(Value::Object).collect())),
        Style::JsonLines => objects.into_iter().map(|o| Value::Object(o).to_string() + "\n").collect(),
    }
}

fn object(row: &Row) -> Option<Map<String, Value>> {
    match serde_json::to_value(row) {
        Ok(Value::Object(o)) => Some(o),
        _ => None,
    }
}

/// Columns in the order of the fields of a row.
fn columns() -> Vec<&'static str> {
    let mut all = OF_THE_PLACE.to_vec();
    all.extend([
        "bench",
        "op",
        "variant",
        "shape",
        "dtype",
        "dir",
        "timer",
        "n",
        "median_us",
        "p20_us",
        "p80_us",
        "min_us",
        "std_us",
        "total_us",
        "gflops",
        "gbps",
        "ai_flop_per_byte",
        "roof_gflops",
        "roof_pct",
        "ratio",
        "ratio_p20",
        "ratio_p80",
        "tok_s",
        "extra_dispatches",
        "submits",
        "readbacks",
        "bound_mib",
        "peak_mem_mib",
        "peak_rss_mib",
        "loss",
        "verified",
        "verified_nmse",
    ]);
    all
}

fn cell(value: Option<&Value>) -> String {
    match value {
        None | Some(Value::Null) => String::new(),
        Some(Value::String(s)) => s.clone(),
        Some(Value::Bool(b)) => if *b { "yes" } else { "no" }.into(),
        Some(v) => v.to_string(),
    }
}

/// Three digits that matter, or as many as the whole number has.
fn short(column: &str, value: Option<&Value>) -> String {
    let Some(v) = value.filter(|v| v.is_f64()).and_then(Value::as_f64) else { return cell(value) };
    match column {
        "verified_nmse" => format!("{v:.1e}"),
        _ if v == 0.0 => "0".into(),
        _ => {
            let digits = (2 - v.abs().log10().floor() as i32).clamp(0, 6);
            format!("{v:.*}", digits as usize)
        }
    }
}

fn markdown(rows: &[Row], objects: &[Map<String, Value>]) -> String {
    let Some(place) = rows.first().map(|r| &r.place) else { return "nothing was measured\n".into() };
    let mut text = format!(
        "{} ({}, {}, {}) on {}, mixlora {} ({})\n\n",
        place.adapter,
        place.backend,
        place.driver,
        place.device_type,
        place.os,
        place.crate_version,
        place.commit
    );
    let used = |c: &&str| !OF_THE_PLACE.contains(c) && objects.iter().any(|o| !cell(o.get(*c)).is_empty());
    let columns: Vec<&str> = columns().into_iter().filter(used).collect();
    let table: Vec<Vec<String>> =
        objects.iter().map(|o| columns.iter().map(|c| short(c, o.get(*c))).collect()).collect();
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let width = |c: usize| {
        let cells = table.iter().map(|row| row[c].chars().count());
        // Two at least: a rule of a column of numbers is `-:`.
        cells.chain([columns[c].len(), 2]).max().unwrap_or(2)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let number: Vec<bool> =
        columns.iter().map(|c| objects.iter().any(|o| o.get(*c).is_some_and(Value::is_number))).collect();
    let padded = |cells: &[String]| -> Vec<String> {
        let each = cells.iter().zip(&widths).zip(&number);
        each.map(|((c, &w), &right)| if right { format!("{c:>w$}") } else { format!("{c:<w$}") }).collect()
    };
    let rule = |(&w, &right): (&usize, &bool)| "-".repeat(w - 1) + if right { ":" } else { "-" };
    text += &line(&padded(&columns.iter().map(|c| c.to_string()).collect::<Vec<_>>()));
    text += &line(&widths.iter().zip(&number).map(rule).collect::<Vec<_>>());
    table.iter().for_each(|row| text += &line(&padded(row)));
    text
}

fn csv(objects: &[Map<String, Value>]) -> String {
    let quoted = |text: String| match text.contains([',', '"', '\n']) {
        true => format!("\"{}\"", text.replace('"', "\"\"")),
        false => text,
    };
    let columns = columns();
    let mut text = columns.join(",") + "\n";
    for o in objects {
        let cells: Vec<String> = columns.iter().map(|c| quoted(cell(o.get(*c)))).collect();
        text += &(cells.join(",") + "\n");
    }
    text
}

/// Rows of a JSON or JSON lines report; `path` is for messages.
///
/// # Errors
/// The text is neither.
pub fn parse_rows(path: &Path, text: &str) -> Result<Vec<Row>> {
    let rows = match text.trim_start().starts_with('[') {
        true => serde_json::from_str(text),
        false => text.lines().filter(|l| !l.trim().is_empty()).map(serde_json::from_str).collect(),
    };
    rows.map_err(|e| Error::file(path, format!("is no JSON report of mixlora bench: {e}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::bench::{Costs, Place, Timer, Work};

    fn rows() -> Vec<Row> {
        let row = |op: &str, dir: &str| {
            let work = Work { bench: "ops".into(), op: op.into(), dir: dir.into(), ..Work::default() };
            Row::new(&Place::of(&Device::cpu()), work, Timer::Wall, &[1.25e-6, 1.5e-6, 1.75e-6])
        };
        vec![row("a,\"b\"", "fwd").costs(Some(Costs { flops: 3.0, bytes: 0.0 }), None), row("c", "bwd")]
    }

    #[test]
    fn every_style_holds_every_row() {
        let rows = rows();
        for style in [Style::Json, Style::JsonLines] {
            let text = write(&rows, style);
            assert_eq!(parse_rows(Path::new("x"), &text).unwrap(), rows);
        }
        let csv = write(&rows, Style::Csv);
        assert_eq!(csv.lines().count(), 3);
        assert!(csv.contains(",\"a,\"\"b\"\"\",") && csv.lines().next().unwrap().ends_with("verified_nmse"));
        let table = write(&rows, Style::Markdown);
        assert!(table.contains("| median_us |") && table.contains("1.50") && !table.contains("ratio"));
        let bars: Vec<usize> = table.lines().skip(2).map(|l| l.chars().count()).collect();
        assert!(bars.windows(2).all(|w| w[0] == w[1]), "{table}");
        assert!(parse_rows(Path::new("x"), "no").is_err());
        assert_eq!(parse_rows(Path::new("x"), "").unwrap(), []);
    }

    #[test]
    fn every_field_has_a_column() {
        let fields = object(&rows()[0]).unwrap();
        let mut names: Vec<&str> = fields.keys().map(String::as_str).collect();
        let mut columns = columns();
        names.sort_unstable();
        columns.sort_unstable();
        assert_eq!(names, columns);
    }

    #[test]
    fn numbers_are_short() {
        let show = |v: f64| short("x", Some(&Value::from(v)));
        assert_eq!(
            [show(1234.5), show(12.345), show(1.2345), show(0.012345)],
            ["1234", "12.3", "1.23", "0.0123"]
        );
    }
}
