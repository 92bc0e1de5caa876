//! `mixlora bench`: one file per kind, and their common device, report and comparison.

mod layer;
mod model;
mod ops;
mod sight;
mod tower;
mod train;

use crate::device_args::{CheckArgs, DeviceArgs, WeightsArgs};
use crate::model_path::model_path;
use crate::{Failure, out};
use clap::{Subcommand, ValueEnum};
use mixlora::bench::{Roof, Rounds, Row, Style, changes, parse_rows, roofline, write};
use mixlora::model::{Model, ModelShape, Weights};
use mixlora::{Device, Error};
use std::path::{Path, PathBuf};

/// The kinds of measurements.
#[derive(Subcommand)]
pub enum Bench {
    /// Measure how fast the device copies memory and multiplies and adds.
    Roof(RoofArgs),
    /// Time operations, forward and backward.
    Ops(ops::Args),
    /// Time a layer of each method beside its frozen linear.
    Layer(layer::Args),
    /// Time training steps of a model beside its dense products.
    Train(train::Args),
    /// Time a model on a prompt and in generation.
    Model(model::Args),
    /// Time a vision tower beside its dense products.
    Tower(tower::Args),
}

pub fn run(bench: &Bench) -> Result<(), Failure> {
    match bench {
        Bench::Roof(args) => roof(args),
        Bench::Ops(args) => ops::run(args),
        Bench::Layer(args) => layer::run(args),
        Bench::Train(args) => train::run(args),
        Bench::Model(args) => model::run(args),
        Bench::Tower(args) => tower::run(args),
    }
}

#[derive(clap::Args)]
#[command(after_help = "\
The best of several samples counts. The result is kept in MIXLORA_CACHE, else in the user's cache folder, for each \
device, driver and version of this program; `bench ops` and `bench layer` take it from there.

Example: mixlora bench roof --device gpu")]
pub struct RoofArgs {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    report: ReportArgs,
    /// Measure again, also when a result is kept.
    #[arg(long)]
    fresh: bool,
}

fn roof(args: &RoofArgs) -> Result<(), Failure> {
    let report = args.report.open()?;
    let (roof, file) = Roof::of(&open(&args.device)?, args.fresh)?;
    report.print(&roof.rows())?;
    match file {
        Some(file) => out::note(&format!("kept in {}", file.display())),
        None => out::note("note: it could not be kept: there is no cache folder that can be written"),
    }
    Ok(())
}

/// The device to time.
fn open(args: &DeviceArgs) -> Result<Device, Failure> {
    match args.open()? {
        Device::Reference => {
            let text = "--device reference is the specification, not a lane to time; use cpu or a GPU";
            Err(Failure::Usage(text.into()))
        }
        device => Ok(device),
    }
}

/// The model to time.
#[derive(clap::Args)]
pub struct BaseArgs {
    /// A .gguf file, or a Hugging Face directory.
    #[arg(long, short, required_unless_present = "shape", value_parser = model_path())]
    model: Option<PathBuf>,
    /// Random weights of a published model's sizes instead of a file: smollm2-135m, llama-1b, llama-8b or llama-7b, in bf16, or
    /// with a format behind it as in llama-7b-q4_k.
    #[arg(long, value_name = "NAME[-FORMAT]", conflicts_with = "model")]
    shape: Option<String>,
    #[command(flatten)]
    checks: CheckArgs,
}

impl BaseArgs {
    fn open(&self, device: &Device, weights: Option<Weights>) -> Result<std::sync::Arc<Model>, Failure> {
        if let Some(name) = &self.shape {
            if weights.is_some() {
                let what = "--weights: a shape says its format behind its name, as in llama-7b-q4_k";
                return Err(Failure::Usage(what.into()));
            }
            let shape = ModelShape::parse(name).map_err(|error| usage("--shape", &error))?;
            out::progress(&format!("making a model of {} parameters", shape.config.parameters()));
            return Ok(Model::of_shape(&shape, device)?);
        }
        let path = self.model.as_deref().unwrap_or(Path::new(""));
        self.checks.model(path, device, weights.unwrap_or_default())
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum Format {
    /// The columns that matter most.
    Md,
    /// Every column that has values.
    Wide,
    Csv,
    Json,
    Jsonl,
}

impl Format {
    fn style(self) -> Style {
        match self {
            Format::Md => Style::Markdown,
            Format::Wide => Style::Wide,
            Format::Csv => Style::Csv,
            Format::Json => Style::Json,
            Format::Jsonl => Style::JsonLines,
        }
    }
}

#[derive(clap::Args)]
pub struct ReportArgs {
    /// How the report is written.
    #[arg(long, short, default_value = "md")]
    format: Format,
    /// The same as --format json.
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// Write the report into this file instead of to stdout.
    #[arg(long, short)]
    out: Option<PathBuf>,
    /// Compare with this JSON report of the same command; exit code 1 when a median is more than 10 % worse and
    /// outside both bands from p20 to p80.
    #[arg(long, value_name = "REPORT")]
    compare: Option<PathBuf>,
}

/// The destination of a report, with an old one to compare with.
pub struct Report {
    style: Style,
    out: Option<PathBuf>,
    old: Option<Vec<Row>>,
}

impl ReportArgs {
    /// Reads the old report first, so that a malformed file does not cost a measurement.
    fn open(&self) -> Result<Report, Failure> {
        let old = match &self.compare {
            Some(path) => {
                let text = std::fs::read_to_string(path).map_err(|error| Error::File {
                    path: path.clone(),
                    what: format!("cannot be read: {error}"),
                })?;
                Some(parse_rows(path, &text)?)
            }
            None => None,
        };
        if let Some(name) = self.out.as_deref().and_then(|path| path.to_str())
            && Format::from_str(name, true).is_ok()
        {
            let text = format!("--out {name} would be a file of that name; the format is --format {name}");
            return Err(Failure::Usage(text));
        }
        let style = if self.json { Style::Json } else { self.format.style() };
        Ok(Report { style, out: self.out.clone(), old })
    }
}

impl Report {
    /// Writes the rows and the comparison. A computation that was wrong, or a regression, is a failed check.
    fn print(&self, rows: &[Row]) -> Result<(), Failure> {
        let text = write(rows, self.style);
        match &self.out {
            Some(path) => mixlora::atomic::write(path, text.as_bytes())?,
            None => out::text(&text)?,
        }
        let mut holds = rows.iter().all(|row| row.verified != Some(false));
        if let Some(old) = &self.old {
            let (text, fine) = comparison(rows, old);
            holds &= fine;
            // Machine-readable output is the only one on stdout.
            let is_text = matches!(self.style, Style::Markdown | Style::Wide);
            if is_text || self.out.is_some() {
                out::text(&format!("\n{text}"))?;
            } else {
                out::note(&text);
            }
        }
        if holds { Ok(()) } else { Err(Failure::Check) }
    }
}

fn comparison(new: &[Row], old: &[Row]) -> (String, bool) {
    let changes = changes(new, old);
    let rows: Vec<Vec<String>> = changes
        .iter()
        .map(|change| {
            let work = &change.new.work;
            let name = [work.op.as_str(), &work.variant, &work.shape, &work.dtype, &work.dir];
            let name: Vec<&str> = name.into_iter().filter(|part| !part.is_empty()).collect();
            let verdict = if change.is_regression() { "WORSE" } else { "ok" };
            vec![
                name.join(" "),
                format!("{:.1}", change.old.median_us),
                format!("{:.1}", change.new.median_us),
                format!("{:.3}", change.ratio()),
                verdict.into(),
            ]
        })
        .collect();
    let worse = changes.iter().filter(|change| change.is_regression()).count();
    let mut text = out::table(&["what", "old us", "new us", "ratio", "verdict"], &rows);
    text += &format!("{} of {} rows compared, {worse} worse\n", changes.len(), new.len());
    (text, worse == 0)
}

/// The duration of a measurement.
#[derive(clap::Args)]
pub struct RoundsArgs {
    /// Samples of each row at least.
    #[arg(long, short, default_value_t = 10)]
    rounds: usize,
    /// Seconds of samples of each row at least.
    #[arg(long, value_name = "SECONDS", default_value_t = 0.1)]
    min_time: f64,
    /// Take the host's clock, also where the device has timestamps.
    #[arg(long)]
    wall: bool,
}

impl RoundsArgs {
    fn rounds(&self) -> Result<Rounds, Failure> {
        if self.rounds == 0 {
            return Err(Failure::Usage("--rounds: is 0, must be at least 1".into()));
        }
        if !(0.0..=3600.0).contains(&self.min_time) {
            return Err(Failure::Usage(format!("--min-time: is {}, must be in 0..=3600", self.min_time)));
        }
        Ok(Rounds { rounds: self.rounds, min_seconds: self.min_time, sample_seconds: 0.002 })
    }
}

/// A percentage of the roof above which the roof must have been measured too low.
const ABOVE_THE_ROOF: f64 = 105.0;

/// Measures the roof (which takes some seconds the first time) and the rows, draws the roofline if asked for, and prints
/// the report.
fn beside_roof(
    (device, report): (&DeviceArgs, &ReportArgs),
    (plot, title): (Option<&Path>, &str),
    measured: impl FnOnce(&Device, &Roof) -> mixlora::Result<Vec<Row>>,
) -> Result<(), Failure> {
    let report = report.open()?;
    let device = open(device)?;
    out::progress("roof");
    let mut roof = Roof::of(&device, false)?.0;
    let mut rows = measured(&device, &roof)?;
    let above =
        |rows: &[Row]| rows.iter().any(|row| row.roof_pct.is_some_and(|share| share > ABOVE_THE_ROOF));
    if above(&rows) {
        out::note("the kept roof is below what was reached: measuring it again");
        roof = Roof::of(&device, true)?.0;
        rows = rows.into_iter().map(|row| row.under(&roof)).collect();
        if above(&rows) {
            out::note("note: rows still are above the roof: the machine is busy, or its speed changes");
        }
    }
    if let Some(path) = plot {
        let title = format!("{title} on {}", roof.place.adapter);
        mixlora::atomic::write(path, roofline(&title, &roof, &rows).as_bytes())?;
        out::note(&format!("roofline in {}", path.display()));
    }
    report.print(&rows)
}

/// Checks that the values of an option are at least 1.
fn positive(option: &str, values: &[usize]) -> Result<(), Failure> {
    if values.contains(&0) {
        return Err(Failure::Usage(format!("{option}: is 0, must be at least 1")));
    }
    Ok(())
}

/// Turns the library's error about an option's value into wrong usage.
fn usage(option: &str, error: &Error) -> Failure {
    match error.field() {
        Some(_) => Failure::Usage(error.clone().rename(|_| option.into()).to_string()),
        None => Failure::Usage(format!("{option}: {error}")),
    }
}
