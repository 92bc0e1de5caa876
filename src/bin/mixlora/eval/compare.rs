//! Several adapters on the same questions, and how far they are from the first.

use super::figures::Figures;
use super::{Args, Report, Subject};
use crate::model_args::Opened;
use crate::{Failure, out};
use mixlora::Stream;
use mixlora::adapter::Bank;
use mixlora::study::{Estimate, RESAMPLES, paired_bootstrap};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

/// What stands for the model without an adapter.
const BASE: &str = "base";

/// A model that is compared, by the name that it was given.
pub struct Compared {
    name: String,
    opened: Opened,
}

impl Compared {
    /// Whether several are compared; refuses what cannot be.
    pub fn check(given: &[PathBuf]) -> Result<bool, Failure> {
        let wrong = |what: String| Err(Failure::Usage(format!("--compare: {what}")));
        if let [one] = given {
            let what =
                "is the only one: give --compare for each that is compared, 'base' for the model alone";
            return wrong(format!("{} {what}", one.display()));
        }
        match given.iter().enumerate().find(|(at, path)| given[..*at].contains(path)) {
            Some((_, twice)) => wrong(format!("{} is given twice", twice.display())),
            None => Ok(!given.is_empty()),
        }
    }

    fn open(args: &Args, opened: &Opened, path: &Path) -> Result<Self, Failure> {
        let bank = if path == Path::new(BASE) {
            Bank::default()
        } else {
            args.model.open_adapter(path, &opened.model)?
        };
        Ok(Compared { name: path.display().to_string(), opened: opened.with_bank(bank) })
    }
}

/// Differences of a model from the first one, figure by figure.
struct Differences<'a> {
    name: &'a str,
    of: Vec<(&'a Figures, Option<Estimate>)>,
}

pub fn compare(args: &Args, subject: &Subject, opened: Opened) -> Result<(), Failure> {
    let open = |path: &PathBuf| Compared::open(args, &opened, path);
    let compared = args.compare.iter().map(open).collect::<Result<Vec<_>, Failure>>()?;
    let all: Vec<&Opened> = compared.iter().map(|compared| &compared.opened).collect();
    let mut reports = Vec::new();
    for Compared { name, opened } in &compared {
        out::note(&format!("measuring {name}"));
        reports.push(subject.measure(args, opened, &all)?);
    }
    let [first, others @ ..] = reports.as_slice() else { return Ok(()) };
    let mut differences = Vec::new();
    for (report, Compared { name, .. }) in others.iter().zip(&compared[1..]) {
        let pairs = report.figures.iter().zip(&first.figures);
        let of = pairs.map(|(own, first)| Ok((own, difference(own, first)?)));
        differences.push(Differences { name, of: of.collect::<mixlora::Result<_>>()? });
    }
    let names: Vec<&str> = compared.iter().map(|compared| compared.name.as_str()).collect();
    if args.json {
        return Ok(out::json(&json_report(&names, &reports, &differences))?);
    }
    Ok(out::text(&text_report(&names, &reports, &differences))?)
}

/// The mean difference with its interval; none where no question was answered by both.
fn difference(own: &Figures, first: &Figures) -> mixlora::Result<Option<Estimate>> {
    let groups = own.less(first).groups();
    if groups.is_empty() {
        return Ok(None);
    }
    paired_bootstrap(&groups, RESAMPLES, Stream::new(0)).map(Some)
}

fn json_report(names: &[&str], reports: &[Report], differences: &[Differences]) -> Value {
    let named = |(name, report): (&&str, &Report)| {
        let mut json = report.json.clone();
        json["adapter"] = json!(name);
        json
    };
    let apart = |differences: &Differences| {
        let of = differences.of.iter().map(|(figures, estimate)| (figures.key.to_string(), json!(estimate)));
        let mut json = Value::Object(of.collect::<Map<_, _>>());
        json["adapter"] = json!(differences.name);
        json["less"] = json!(names[0]);
        json
    };
    let compared: Vec<Value> = names.iter().zip(reports).map(named).collect();
    json!({ "compared": compared, "differences": differences.iter().map(apart).collect::<Vec<_>>() })
}

fn text_report(names: &[&str], reports: &[Report], differences: &[Differences]) -> String {
    let figures = &reports[0].figures;
    let head = |first: &'static str| [&[first][..], &names_of(figures)].concat();
    let row = |(name, report): (&&str, &Report)| {
        let mean = |figures: &Figures| figures.mean().map_or("-".into(), |mean| figures.shown(mean));
        [vec![name.to_string()], report.figures.iter().map(mean).collect()].concat()
    };
    let rows: Vec<Vec<String>> = names.iter().zip(reports).map(row).collect();
    let mut text = out::table(&head("adapter"), &rows);
    let apart = |differences: &Differences| {
        let cell = |(figures, estimate): &(&Figures, Option<Estimate>)| match estimate {
            Some(Estimate { mean, low, high }) => {
                let [mean, low, high] = [*mean, *low, *high].map(|value| figures.signed(value));
                format!("{mean} [{low}, {high}]")
            }
            None => "-".into(),
        };
        [vec![differences.name.to_string()], differences.of.iter().map(cell).collect()].concat()
    };
    let rows: Vec<Vec<String>> = differences.iter().map(apart).collect();
    text += &format!(
        "\ndifference to {}, with the interval that holds 95 % of resamples of the questions; shares in points\n",
        names[0]
    );
    text + &out::table(&head("adapter"), &rows)
}

fn names_of(figures: &[Figures]) -> Vec<&'static str> {
    figures.iter().map(|figures| figures.name).collect()
}
