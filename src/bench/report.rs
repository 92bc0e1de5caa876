//! Reports as Markdown, CSV, JSON and JSON lines.

use super::{Row, Work};
use crate::{Error, Result};
use serde_json::{Map, Value};
use std::path::Path;

/// The style of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// A table of the most important columns, below lines about the machine and the common values of all rows.
    Markdown,
    /// A table of every column with values.
    Wide,
    /// All columns, with a line of names.
    Csv,
    /// One array of objects.
    Json,
    /// One object per line.
    JsonLines,
}

/// Columns that a Markdown report states in the line above its table.
const OF_THE_PLACE: [&str; 8] =
    ["commit", "crate_version", "date", "os", "backend", "adapter", "driver", "device_type"];

/// The report of rows.
pub fn write(rows: &[Row], style: Style) -> String {
    let objects: Vec<Map<String, Value>> = rows.iter().filter_map(object).collect();
    match style {
        Style::Markdown => markdown(rows, objects.into_iter().map(banded).collect(), &brief(rows)),
        Style::Wide => markdown(rows, objects, &columns()),
        Style::Csv => csv(&objects),
        Style::Json => format!("{:#}\n", Value::Array(objects.into_iter().map(Value::Object).collect())),
        Style::JsonLines => {
            objects.into_iter().map(|object| Value::Object(object).to_string() + "\n").collect()
        }
    }
}

fn object(row: &Row) -> Option<Map<String, Value>> {
    match serde_json::to_value(row) {
        Ok(Value::Object(object)) => Some(object),
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
        Some(Value::String(text)) => text.clone(),
        Some(Value::Bool(flag)) => if *flag { "yes" } else { "no" }.into(),
        Some(number) => number.to_string(),
    }
}

/// A number with three significant digits, or all digits of its integer part.
fn short(column: &str, value: Option<&Value>) -> String {
    let Some(number) = value.filter(|value| value.is_f64()).and_then(Value::as_f64) else {
        return cell(value);
    };
    match column {
        "verified_nmse" => format!("{number:.1e}"),
        _ if number == 0.0 => "0".into(),
        _ => {
            let digits = (2 - number.abs().log10().floor() as i32).clamp(0, 6);
            format!("{number:.*}", digits as usize)
        }
    }
}

/// The band of a ratio as one cell of a short table.
const BAND: &str = "p20-p80";

fn banded(mut object: Map<String, Value>) -> Map<String, Value> {
    if let (Some(low), Some(high)) = (object["ratio_p20"].as_f64(), object["ratio_p80"].as_f64()) {
        object.insert(BAND.into(), format!("{low:.2}-{high:.2}").into());
    }
    object
}

/// The columns of a short table.
fn brief(rows: &[Row]) -> Vec<&'static str> {
    let mut all = vec!["op", "variant", "shape", "dtype", "dir", "ratio", BAND, "median_us"];
    if rows.iter().any(|row| row.work.bench != "layer") {
        all.extend(["gflops", "gbps", "roof_pct", "tok_s", "peak_mem_mib", "peak_rss_mib", "loss"]);
    }
    if rows.iter().any(|row| row.total_us.is_some()) {
        all.push("total_us");
    }
    if rows.iter().any(|row| row.verified == Some(false)) {
        all.push("verified");
    }
    all
}

/// Columns of text that are stated above the table if all rows have the same value.
const SHARED: [&str; 5] = ["variant", "shape", "dtype", "dir", "timer"];

fn markdown(rows: &[Row], objects: Vec<Map<String, Value>>, columns: &[&'static str]) -> String {
    let Some(place) = rows.first().map(|row| &row.place) else { return "nothing was measured\n".into() };
    let mut text = format!(
        "{} ({}, {}, {}) on {}, mixlora {} ({})\n",
        place.adapter,
        place.backend,
        place.driver,
        place.device_type,
        place.os,
        place.crate_version,
        place.commit
    );
    let used = |column: &&str| {
        !OF_THE_PLACE.contains(column) && objects.iter().any(|object| !cell(object.get(*column)).is_empty())
    };
    let first = objects.first();
    let same = |column: &&str| {
        SHARED.contains(column)
            && objects.iter().all(|object| object.get(*column) == first.and_then(|first| first.get(*column)))
    };
    let columns = columns.iter().copied().filter(used);
    let (shared, own): (Vec<&str>, Vec<&str>) = columns.partition(|column| rows.len() > 1 && same(column));
    if !shared.is_empty() {
        let each = shared
            .iter()
            .map(|column| format!("{column} {}", cell(first.and_then(|first| first.get(*column)))));
        text += &format!("all rows: {}\n", each.collect::<Vec<_>>().join(", "));
    }
    text += "\n";
    let costs: String = rows.iter().filter_map(|row| cost(row, rows)).collect();
    if !costs.is_empty() {
        text += &(costs + "\n");
    }
    text + &markdown_table(&objects, &own)
}

/// A sentence about the cost of a layer relative to its frozen one.
fn cost(row: &Row, all: &[Row]) -> Option<String> {
    let Work { bench, op, variant, shape, dir, .. } = &row.work;
    let ratio = row.ratio.filter(|_| bench == "layer" && dir == "sum")?;
    let band = row.ratio_p20.zip(row.ratio_p80).map(|(low, high)| format!(" ({low:.2} to {high:.2})"));
    let band = band.unwrap_or_default();
    let alike = all.iter().filter(|row| row.work.op == *op && row.work.dir == *dir).count();
    let which = if alike > 1 { format!(" ({variant}, {shape})") } else { String::new() };
    Some(format!("{op}{which} costs {ratio:.2}x of its frozen layer{band}, forward and backward.\n"))
}

fn markdown_table(objects: &[Map<String, Value>], columns: &[&str]) -> String {
    let table: Vec<Vec<String>> = objects
        .iter()
        .map(|object| columns.iter().map(|column| short(column, object.get(*column))).collect())
        .collect();
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let width = |column: usize| {
        let cells = table.iter().map(|row| row[column].chars().count());
        // At least two characters: the rule of a column of numbers is `-:`.
        cells.chain([columns[column].len(), 2]).max().unwrap_or(2)
    };
    let widths: Vec<usize> = (0..columns.len()).map(width).collect();
    let number: Vec<bool> = columns
        .iter()
        .map(|column| objects.iter().any(|object| object.get(*column).is_some_and(Value::is_number)))
        .collect();
    let padded = |cells: &[String]| -> Vec<String> {
        let each = cells.iter().zip(&widths).zip(&number);
        let pad = |((cell, &width), &right): ((&String, &usize), &bool)| {
            if right { format!("{cell:>width$}") } else { format!("{cell:<width$}") }
        };
        each.map(pad).collect()
    };
    let rule = |(&width, &right): (&usize, &bool)| "-".repeat(width - 1) + if right { ":" } else { "-" };
    let mut text = line(&padded(&columns.iter().map(|column| column.to_string()).collect::<Vec<_>>()));
    text += &line(&widths.iter().zip(&number).map(rule).collect::<Vec<_>>());
    table.iter().for_each(|row| text += &line(&padded(row)));
    text
}

fn csv(objects: &[Map<String, Value>]) -> String {
    let quoted = |text: String| {
        if text.contains([',', '"', '\n']) { format!("\"{}\"", text.replace('"', "\"\"")) } else { text }
    };
    let columns = columns();
    let mut text = columns.join(",") + "\n";
    for object in objects {
        let cells: Vec<String> = columns.iter().map(|column| quoted(cell(object.get(*column)))).collect();
        text += &(cells.join(",") + "\n");
    }
    text
}

/// Parses the rows of a report in JSON or JSON lines; messages use `path`.
///
/// # Errors
/// The text is neither.
pub fn parse_rows(path: &Path, text: &str) -> Result<Vec<Row>> {
    let rows = if text.trim_start().starts_with('[') {
        serde_json::from_str(text)
    } else {
        text.lines().filter(|line| !line.trim().is_empty()).map(serde_json::from_str).collect()
    };
    rows.map_err(|error| Error::file(path, format!("is no JSON report of mixlora bench: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::bench::{Costs, Place, Summary, Timer};

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
        assert!(!table.contains("| n |") && write(&rows, Style::Wide).contains("| std_us |"));
        let bars: Vec<usize> =
            table.lines().filter(|line| line.starts_with('|')).map(|line| line.chars().count()).collect();
        assert!(bars.windows(2).all(|pair| pair[0] == pair[1]), "{table}");
        assert!(parse_rows(Path::new("x"), "no").is_err());
        assert_eq!(parse_rows(Path::new("x"), "").unwrap(), []);
    }

    #[test]
    fn a_layer_is_summed_up_first_and_what_all_rows_share_is_said_once() {
        let row = |op: &str, dir: &str| {
            let mut row = rows().swap_remove(1);
            let text = String::from;
            row.work = Work {
                bench: text("layer"),
                op: text(op),
                variant: text("r 4"),
                shape: text("8x8"),
                dir: text(dir),
                ..row.work
            };
            row
        };
        let adapted = row("lora", "sum").ratio(Summary {
            n: 3,
            median: 1.06,
            p20: 1.05,
            p80: 1.07,
            min: 1.0,
            std: 0.1,
        });
        let table = write(&[row("frozen linear", "sum"), adapted], Style::Markdown);
        let sentence = "lora costs 1.06x of its frozen layer (1.05 to 1.07), forward and backward.";
        let at = |text: &str| table.find(text).unwrap_or_else(|| panic!("no {text} in\n{table}"));
        assert!(at("all rows: variant r 4, shape 8x8, dir sum") < at(sentence) && at(sentence) < at("| op "));
        assert!(table.contains("| 1.05-1.07 |") && !table.contains("verified"), "{table}");
        let mut wrong = row("lora", "");
        wrong.verified = Some(false);
        assert!(write(&[wrong], Style::Markdown).contains("| verified |"));
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
