//! `mixlora data convert`

use crate::{Failure, out};
use mixlora::data::{
    Columns, DataFiles, MAX_PROBLEMS, ReadOptions, Sample, as_messages, read_samples_with, recognised,
};
use mixlora::{Error, atomic};
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(after_help = "\
Every sample becomes a line with messages: a prompt the user's turn, its completion the assistant's. Tasks, conditions, \
wrong answers and pictures stay; pictures are named by whole paths. Samples of text stay text; a file of plain text is \
refused, since training takes it as it is. Of a folder each part is written under its name.

Example: mixlora data convert questions.csv --columns question=prompt,answer=completion --out data/train.jsonl
Example: mixlora data convert alpaca_data.json --out train.jsonl")]
pub struct Args {
    /// A file, or a folder with train, valid and test files.
    path: PathBuf,
    /// The file to write; for a folder a new folder.
    #[arg(long, short)]
    out: PathBuf,
    /// The format, where a file's name does not say it.
    #[arg(long, value_name = "FORMAT", value_parser = ["jsonl", "json", "csv", "tsv", "txt"])]
    from: Option<String>,
    /// Keys or columns of the data that stand for others, as question=prompt,answer=completion.
    #[arg(long, value_name = "NAME=KEY", value_delimiter = ',')]
    columns: Vec<String>,
    /// Folder that relative paths of pictures are of; by default that of the data file.
    #[arg(long, value_name = "DIR")]
    image_folder: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let columns = Columns::new(&args.columns)?;
    let options = ReadOptions { columns, image_folder: args.image_folder.clone(), ending: args.from.clone() };
    if args.out.exists() {
        let what = "is there already; name another, since nothing is written over";
        return Err(file(&args.out, what.into()).into());
    }
    let files = DataFiles::find(&args.path)?;
    files.note().iter().for_each(|text| out::note(&format!("note: {text}")));
    let mut written = Vec::new();
    for path in files.all() {
        let samples = read_samples_with(path, &options)?;
        recognised(path, &options, &samples)?.iter().for_each(|text| out::note(&format!("note: {text}")));
        let to = if args.path.is_file() { args.out.clone() } else { args.out.join(part(path)) };
        written.push((lines(path, &samples)?, samples.len(), to));
    }
    if !args.path.is_file() {
        let failed = |error: std::io::Error| file(&args.out, format!("cannot be created: {error}"));
        std::fs::create_dir_all(&args.out).map_err(failed)?;
    }
    for (lines, count, to) in written {
        atomic::write(&to, lines.as_bytes())?;
        out::text(&format!("{count} samples in {}", to.display()))?;
    }
    Ok(())
}

fn file(path: &Path, what: String) -> Error {
    Error::File { path: path.into(), what }
}

/// The name of a part's new file: that of the old one up to its first dot.
fn part(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    format!("{}.jsonl", name.split('.').next().unwrap_or(&name))
}

fn lines(path: &Path, samples: &[Sample]) -> Result<String, Error> {
    let mut lines = String::new();
    let mut problems = Vec::new();
    let mut more = 0;
    for sample in samples {
        match as_messages(sample) {
            Ok(object) => {
                lines += &object.to_string();
                lines.push('\n');
            }
            Err(what) if problems.len() < MAX_PROBLEMS => problems.push(sample.problem(what)),
            Err(_) => more += 1,
        }
    }
    if problems.is_empty() { Ok(lines) } else { Err(Error::Data { path: path.into(), problems, more }) }
}
