//! `mixlora data check`

use crate::data_text::SampleArgs;
use crate::model_path::model_path;
use crate::progress::Progress;
use crate::{Failure, out};
use mixlora::Error;
use mixlora::data::{Body, DataFiles, Encoder, Sample, oddities, recognised, shared};
use mixlora::text::PictureTokens;
use mixlora::train::TextOptions;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[cfg(feature = "images")]
use mixlora::data::Pictures;

#[derive(clap::Args)]
#[command(after_help = "\
Every line of every file is read. Problems of all files are listed as file:line:column, up to 20 a file. What can be \
read but is odd (empty answers, repeated samples, keys that are not read) is a warning. The header of every picture is \
read too. With --model the tokens of every sample are counted, those of its pictures with it.

Example: mixlora data check my-data")]
pub struct Args {
    /// A folder with train.jsonl, valid.jsonl, test.jsonl, or one file.
    path: PathBuf,
    /// A model folder or a .gguf file, to count the tokens that samples will have.
    #[arg(long, value_parser = model_path())]
    model: Option<PathBuf>,
    /// The vision part of a model that has none of its own: a GGUF file (mmproj), or a directory with a vision tower alone.
    #[arg(long, visible_alias = "mmproj", value_name = "PATH", requires = "model")]
    vision: Option<PathBuf>,
    /// A built-in template (chatml) or a Jinja file, instead of the model's.
    #[arg(long, requires = "model")]
    template: Option<String>,
    #[command(flatten)]
    reading: SampleArgs,
    /// Decode every picture, to find those that are cut off or damaged behind their header.
    #[cfg(feature = "images")]
    #[arg(long)]
    pixels: bool,
    /// Print JSON instead of a table, with the problems of files that cannot be read.
    #[arg(long)]
    json: bool,
}

/// A file that could be read.
struct Row<'a> {
    path: &'a Path,
    samples: Vec<Sample>,
    #[cfg(feature = "images")]
    pictures: Pictures,
    tokens: Option<Tokens>,
}

/// Tokens of the samples of a file.
struct Tokens {
    all: usize,
    mean: f64,
    /// The most, and where the sample with them begins.
    longest: usize,
    line: usize,
    /// Tokens of pictures in that sample.
    of_pictures: usize,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let files = DataFiles::find(&args.path)?;
    files.note().iter().for_each(|text| out::note(&format!("note: {text}")));
    let encoder = args.model.as_deref().map(|model| encoder(args, model)).transpose()?;
    let mut rows = Vec::new();
    let mut bad = Vec::new();
    for path in files.all() {
        match read(args, path, encoder.as_ref()) {
            Ok(row) => rows.push(row),
            Err(e) => bad.push((path, e)),
        }
    }
    if args.json {
        let read = rows.iter().map(|row| report(row, &rows));
        out::json(&read.chain(bad.iter().map(|(path, e)| problems(path, e))).collect())?;
    } else if bad.is_empty() {
        out::text(&table(&rows))?;
    }
    if bad.is_empty() { Ok(()) } else { Err(Failure::of_all(bad.into_iter().map(|(_, e)| e).collect())) }
}

fn encoder(args: &Args, model: &Path) -> Result<Encoder, Failure> {
    let options = TextOptions {
        template: args.template.clone(),
        // Nothing is cut, and what is odd is said by other commands.
        max_length: usize::MAX,
        max_untrained: 1.0,
        allow_untrained_eos: true,
        ..TextOptions::default()
    };
    let options = args.reading.over(options);
    let vision = args.vision.as_deref();
    let side = options.open(Some(model), vision)?;
    out::notes(&side.notes);
    Ok(options.encoder(&side)?.with_pictures(PictureTokens::of(model, vision, &side.tokenizer)?)?)
}

fn read<'a>(args: &Args, path: &'a Path, encoder: Option<&Encoder>) -> mixlora::Result<Row<'a>> {
    let options = args.reading.over(TextOptions::default());
    let samples = options.read(path)?;
    recognised(path, &options.reading()?, &samples)?
        .iter()
        .for_each(|text| out::note(&format!("note: {text}")));
    #[cfg(feature = "images")]
    let pictures = {
        let any = samples.iter().any(|sample| !sample.pictures.is_empty());
        let looking =
            any.then(|| Progress::new(&format!("looking at {}", path.display()), samples.len(), "samples"));
        let step = || looking.iter().for_each(Progress::step);
        Pictures::of(path, &samples, args.pixels, args.reading.skips(), &step)?
    };
    let count = |encoder: &Encoder| -> mixlora::Result<Option<Tokens>> {
        let counting =
            Progress::new(&format!("counting tokens of {}", path.display()), samples.len(), "samples");
        let data = encoder.dataset_watched(path, &samples, &|| counting.step())?;
        let lengths = data.lengths();
        let all: usize = lengths.iter().sum();
        let longest = (0..lengths.len()).max_by_key(|&at| (lengths[at], std::cmp::Reverse(at)));
        Ok(longest.map(|at| Tokens {
            all,
            mean: all as f64 / lengths.len() as f64,
            longest: lengths[at],
            line: data.lines[at],
            of_pictures: data.examples[at].pictures.iter().map(|picture| picture.span.len()).sum(),
        }))
    };
    let tokens = encoder.map(count).transpose()?.flatten();
    Ok(Row {
        path,
        samples,
        #[cfg(feature = "images")]
        pictures,
        tokens,
    })
}

fn report(row: &Row, rows: &[Row]) -> Value {
    let mut report = json!({
        "path": row.path.display().to_string(),
        "samples": row.samples.len(),
        "kinds": kinds(&row.samples),
        "tasks": tasks(&row.samples),
        "warnings": warnings(row, rows),
    });
    #[cfg(feature = "images")]
    {
        report["pictures"] = json!(row.pictures);
    }
    if let Some(tokens) = &row.tokens {
        report["tokens"] = json!({
            "all": tokens.all, "mean": tokens.mean, "longest": tokens.longest, "line": tokens.line,
            "pictures_of_longest": tokens.of_pictures,
        });
    }
    report
}

/// The files as a table, with their pictures, their longest samples and their warnings.
fn table(rows: &[Row]) -> String {
    let list = |counts: BTreeMap<String, usize>| match counts.len() {
        0 => "-".to_string(),
        _ => counts.iter().map(|(name, count)| format!("{name}: {count}")).collect::<Vec<_>>().join(", "),
    };
    let cells = |row: &Row| {
        vec![
            row.path.display().to_string(),
            row.samples.len().to_string(),
            list(kinds(&row.samples)),
            list(tasks(&row.samples)),
        ]
    };
    let cells: Vec<Vec<String>> = rows.iter().map(cells).collect();
    let mut text = out::table(&["file", "samples", "kinds", "tasks"], &cells);
    for row in rows {
        let path = row.path.display();
        #[cfg(feature = "images")]
        for sentence in row.pictures.sentences() {
            text += &format!("{path}: {sentence}\n");
        }
        if let Some(Tokens { all, mean, longest, line, of_pictures }) = &row.tokens {
            text += &format!(
                "{path}: {all} tokens, {mean:.1} a sample; the longest has {longest}, {of_pictures} of them its pictures' \
                 (line {line})\n"
            );
        }
        for warning in warnings(row, rows) {
            text += &format!("warning: {path}: {warning}\n");
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
fn warnings(row: &Row, all: &[Row]) -> Vec<String> {
    let samples = &row.samples;
    let mut found = oddities(samples);
    for before in all.iter().take_while(|before| before.path != row.path) {
        let n = shared(&before.samples, samples);
        if n > 0 {
            found.push(format!("{n} of {} samples are also in {}", samples.len(), before.path.display()));
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
