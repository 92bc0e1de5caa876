//! `mixlora plot`

use crate::{Failure, out};
use mixlora::Error;
use mixlora::adapter::STAGES;
use mixlora::train::{Metrics, SMOOTH, loss_picture};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

const METRICS: &str = "metrics.jsonl";

#[derive(clap::Args)]
#[command(after_help = "\
Each run has one colour: its training loss faint, smoothed strong, its validation loss dashed with the best step in a ring; \
below that are the learning rate and the norm of the gradient before clipping.

Example: mixlora plot run
Example: mixlora plot run-a run-b run-c --smooth 0.95 --out compared.svg")]
pub struct Args {
    /// Folders of runs, or their metrics.jsonl.
    #[arg(required = true, value_name = "RUN")]
    runs: Vec<PathBuf>,
    /// The SVG file to write; by default loss.svg in the folder of a single run, else in the current one.
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Share of the steps before in the smoothed training loss, at least 0 and below 1; 0 draws the loss as it is.
    #[arg(long, value_name = "SHARE", default_value_t = SMOOTH)]
    smooth: f64,
    /// What stands over the picture; by default the method and the model of a single run.
    #[arg(long, value_name = "TEXT")]
    title: Option<String>,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if !(0.0..1.0).contains(&args.smooth) {
        let text = format!("--smooth: is {}, must be at least 0 and below 1", args.smooth);
        return Err(Failure::Usage(text));
    }
    let logs = args.runs.iter().map(|run| log_of(run)).collect::<Result<Vec<_>, Failure>>()?;
    let names = names(&args.runs, &logs);
    let metrics = logs.iter().map(|log| Metrics::read(log)).collect::<mixlora::Result<Vec<_>>>()?;
    let runs: Vec<(String, Metrics)> = names.into_iter().zip(metrics).collect();
    let own = match runs.as_slice() {
        [(_, metrics)] => metrics.title.as_deref(),
        _ => None,
    };
    let title = args.title.as_deref().or(own).unwrap_or("loss");
    let file = match (&args.out, logs.as_slice()) {
        (Some(file), _) => file.clone(),
        (None, [log]) => log.with_file_name("loss.svg"),
        _ => PathBuf::from("loss.svg"),
    };
    mixlora::atomic::write(&file, loss_picture(&runs, title, args.smooth).as_bytes())?;
    Ok(out::text(&format!("loss curve in {}", file.display()))?)
}

/// The log of a run.
fn log_of(run: &Path) -> Result<PathBuf, Failure> {
    if !run.is_dir() {
        return Ok(run.into());
    }
    let log = run.join(METRICS);
    if log.is_file() {
        return Ok(log);
    }
    let what = if run.join(STAGES).is_file() {
        "holds stages, each of which is a run: name them, as in stage-1 stage-2 in this folder"
    } else {
        "holds no metrics.jsonl; is it the folder of a run?"
    };
    Err(Error::File { path: run.into(), what: what.into() }.into())
}

/// What runs are called in the legend: the names of their folders, or whole paths where two of those are the same.
fn names(runs: &[PathBuf], logs: &[PathBuf]) -> Vec<String> {
    let folder = |log: &PathBuf| -> Option<String> {
        let log = log.canonicalize().ok()?;
        let named_so = log.file_name().is_some_and(|name| name == METRICS);
        let named = if named_so { log.parent()? } else { &log };
        Some(named.file_name()?.to_string_lossy().into_owned())
    };
    let short: Vec<Option<String>> = logs.iter().map(folder).collect();
    let different = short.iter().flatten().collect::<BTreeSet<_>>().len() == runs.len();
    let name = |(short, run): (Option<String>, &PathBuf)| {
        short.filter(|_| different).unwrap_or_else(|| run.display().to_string())
    };
    short.into_iter().zip(runs).map(name).collect()
}
