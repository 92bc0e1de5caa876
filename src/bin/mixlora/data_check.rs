//! `mixlora data check`

use crate::{Failure, out};
use mixlora::Error;
use mixlora::data::{Body, DataFiles, Sample, oddities, read_samples, shared};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(after_help = "\
Every line of every file is read. Problems of all files are listed as file:line:column, up to 20 a file. What can be \
read but is odd (empty answers, repeated samples, keys that are not read) is a warning.

Example: mixlora data check my-data")]
pub struct Args {
    /// A folder with train.jsonl, valid.jsonl, test.jsonl, or one file.
    path: PathBuf,
    /// Print JSON instead of a table, with the problems of files that cannot be read.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let files = DataFiles::find(&args.path)?;
    files.note().iter().for_each(|text| out::note(&format!("note: {text}")));
    let mut rows = Vec::new();
    let mut bad = Vec::new();
    for path in files.all() {
        match read_samples(path) {
            Ok(samples) => rows.push((path, samples)),
            Err(e) => bad.push((path, e)),
        }
    }
    if args.json {
        let read = rows.iter().map(|(path, samples)| {
            json!({
                "path": path.display().to_string(),
                "samples": samples.len(),
                "kinds": kinds(samples),
                "tasks": tasks(samples),
                "warnings": warnings(path, samples, &rows),
            })
        });
        out::json(&read.chain(bad.iter().map(|(path, e)| problems(path, e))).collect())?;
    } else if bad.is_empty() {
        out::text(&table(&rows))?;
    }
    if bad.is_empty() { Ok(()) } else { Err(Failure::of_all(bad.into_iter().map(|(_, e)| e).collect())) }
}

/// The files as a table, with their warnings.
fn table(rows: &[(&Path, Vec<Sample>)]) -> String {
    let list = |counts: BTreeMap<String, usize>| match counts.len() {
        0 => "-".to_string(),
        _ => counts.iter().map(|(name, count)| format!("{name}: {count}")).collect::<Vec<_>>().join(", "),
    };
    let row = |(path, samples): &(&Path, Vec<Sample>)| {
        vec![
            path.display().to_string(),
            samples.len().to_string(),
            list(kinds(samples)),
            list(tasks(samples)),
        ]
    };
    let cells: Vec<Vec<String>> = rows.iter().map(row).collect();
    let mut text = out::table(&["file", "samples", "kinds", "tasks"], &cells);
    for (path, samples) in rows {
        for warning in warnings(path, samples, rows) {
            text += &format!("warning: {}: {warning}\n", path.display());
        }
    }
    text
}

/// The problems of a file that cannot be read. Line and column are 0 where one concerns the whole file or line.
fn problems(path: &Path, error: &Error) -> Value {
    let place =
        |line: usize, column: usize, what: &str| json!({ "line": line, "column": column, "what": what });
    let (list, more) = match error {
        Error::Data { problems, more, .. } => {
            (problems.iter().map(|p| place(p.line, p.column, &p.what)).collect(), *more)
        }
        Error::File { what, .. } => (vec![place(0, 0, what)], 0),
        other => (vec![place(0, 0, &other.to_string())], 0),
    };
    json!({ "path": path.display().to_string(), "problems": list, "more_problems": more })
}

/// Oddities of a file, and the number of samples that it shares with earlier files.
fn warnings(path: &Path, samples: &[Sample], all: &[(&Path, Vec<Sample>)]) -> Vec<String> {
    let mut found = oddities(samples);
    for (other, before) in all.iter().take_while(|(other, _)| *other != path) {
        let n = shared(before, samples);
        if n > 0 {
            found.push(format!("{n} of {} samples are also in {}", samples.len(), other.display()));
        }
    }
    found
}

fn count<'a>(names: impl Iterator<Item = &'a str>) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for name in names {
        *counts.entry(name.to_string()).or_insert(0) += 1;
    }
    counts
}

fn kinds(samples: &[Sample]) -> BTreeMap<String, usize> {
    count(samples.iter().map(|sample: &Sample| Body::kind(&sample.body)))
}

fn tasks(samples: &[Sample]) -> BTreeMap<String, usize> {
    count(samples.iter().filter_map(|sample| sample.task.as_deref()))
}
