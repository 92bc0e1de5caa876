//! `mixlora study`

use crate::device_args::describe;
use crate::model_path::model_path;
use crate::settings::read_file;
use crate::{Failure, out, signals};
use mixlora::study::{Cell, FINAL, Part, Progress, Study, StudyFolder, StudyObserver, StudyRun, TUNING};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::Instant;

#[derive(clap::Args)]
#[command(after_help = "\
FILE (TOML or JSON) has a title, [run] with the settings of a run that all share (model, data, train, text, device), \
learning_rates, tuning_seeds, seeds, baselines, parts, and [[methods]] with name, method, options and, if they differ, \
learning_rates and seeds. The data is a folder with train.jsonl, tuning.jsonl, final.jsonl and one file for each further \
part; every sample says its task. docs/STUDY.md has an example.

Each method is trained at all learning rates with the tuning seeds; the rate with the most right answers to tuning.jsonl is \
then trained with all seeds, and final.jsonl tells. Every finished run is a small file in OUT/cells, which can be checked \
in: nothing is trained twice, in another clone neither. OUT/report.md, report.json and the pictures are written anew after \
every run.

Example: mixlora study study.toml --dry-run
Example: mixlora study study.toml --jobs 2")]
pub struct Args {
    /// The study's file.
    file: PathBuf,
    /// The model, instead of the one that the file names.
    #[arg(long, value_parser = model_path())]
    model: Option<PathBuf>,
    /// The folder of the data, instead of the one that the file names.
    #[arg(long)]
    data: Option<PathBuf>,
    /// The folder of the study; by default that of the file without its ending.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Runs at the same time, each with its share of the threads. Results do not depend on it, times do.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=256))]
    jobs: u64,
    /// Say what would be trained and how long it takes, and write the report of what is there.
    #[arg(long)]
    dry_run: bool,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

/// Says how far a study is, run by run.
struct Shown<'a> {
    run: &'a StudyRun<'a>,
    began: Instant,
    /// Runs that were finished before.
    before: usize,
}

impl StudyObserver for Shown<'_> {
    fn cell(&self, cell: &Cell, done: usize, all: usize) {
        let exact = |part: &str| {
            cell.parts.get(part).map_or("-".into(), |part| format!("{:.1} %", 100.0 * right(part)))
        };
        let each = self.began.elapsed().as_secs_f64() / (done - self.before).max(1) as f64;
        out::note(&format!(
            "run {done} of {all}: {}, rate {:e}, seed {}: tuning {}, final {}; {} left",
            cell.name,
            cell.learning_rate,
            cell.seed,
            exact(TUNING),
            exact(FINAL),
            time(each * (all - done) as f64)
        ));
        if let Err(error) = self.run.report() {
            out::note(&format!("the report was not written: {error}"));
        }
    }
}

/// Exact match of a part, the mean over its tasks.
fn right(part: &Part) -> f64 {
    let of_task = |right: &String| right.matches('1').count() as f64 / right.len().max(1) as f64;
    part.tasks.values().map(|task| of_task(&task.right)).sum::<f64>() / part.tasks.len().max(1) as f64
}

/// Hours and minutes.
fn time(seconds: f64) -> String {
    let minutes = (seconds / 60.0).round() as u64;
    format!("{}:{:02} h", minutes / 60, minutes % 60)
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let (_, mut tree) = read_file(&args.file)?;
    for (key, path) in [("model", &args.model), ("data", &args.data)] {
        let Some(path) = path else { continue };
        let text = path.to_str().ok_or_else(|| Failure::Usage(format!("--{key}: {path:?} is not UTF-8")))?;
        if tree["run"].is_null() {
            tree["run"] = json!({});
        }
        tree["run"][key] = Value::from(text);
    }
    let study = Study::new(&tree).map_err(|error| in_file(args, &error))?;
    let folder = args.out.clone().unwrap_or_else(|| args.file.with_extension(""));
    let asked = args.jobs as usize;
    let jobs = StudyRun::jobs_that_fit(&study, asked)?;
    if jobs < asked {
        out::note(&format!("{jobs} runs at a time: memory has no room for {asked}"));
    }
    let run = StudyRun::new(&study, StudyFolder::open(&folder)?, jobs)?;
    let options = &study.rows[0].config.device;
    out::note(&describe(&options.open()?, &options.name));
    let Progress { finished, left, later } = run.progress()?;
    let open = left.len() + later;
    out::note(&format!("{} runs are finished, {open} are left", finished.len()));
    if args.dry_run {
        for place in &left {
            out::note(&format!("to train: {}", study.file_name(place).trim_end_matches(".json")));
        }
        if later > 0 {
            out::note(&format!("and {later} at the best learning rates, once these are known"));
        }
        if let Some(seconds) = run.seconds_of_a_cell()? {
            let how = if finished.is_empty() {
                "by its first steps, without the questions"
            } else {
                "as those before"
            };
            let all = time(seconds * open as f64 / jobs as f64);
            out::note(&format!("a run takes {seconds:.0} s, {how}; all together {all}"));
        }
    } else {
        let (stop, received) = signals::stop_on_signals(None)?;
        let shown = Shown { run: &run, began: Instant::now(), before: finished.len() };
        if !run.go(&stop, &shown)? {
            out::note("stopped: the same command goes on with the runs that are not finished");
            return Err(Failure::Signal(received.received().unwrap_or(2)));
        }
    }
    let (report, paths) = run.report()?;
    paths.iter().for_each(|path| out::note(&format!("written: {}", path.display())));
    let text = if args.json { report.json() } else { report.markdown() };
    Ok(out::text(&text)?)
}

/// An error with the file that it is in.
fn in_file(args: &Args, error: &mixlora::Error) -> mixlora::Error {
    mixlora::Error::File { path: args.file.clone(), what: error.to_string() }
}
