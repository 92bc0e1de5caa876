//! What a study compares: methods, options, learning rates and seeds over one data set.

use super::{Description, FINAL, Questions, TUNING};
use crate::mixture::{Methods, Tree};
use crate::train::RunConfig;
use crate::{Error, Result};
use serde::Deserialize;
use serde_json::{Value, json};
use std::path::PathBuf;

/// A study's file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct Written {
    title: String,
    /// Settings of a run, without a method: model, data, train, text, device.
    run: Value,
    learning_rates: Vec<f64>,
    #[serde(default = "first_seed")]
    tuning_seeds: Vec<u64>,
    #[serde(default = "first_seed")]
    seeds: Vec<u64>,
    #[serde(default)]
    baselines: Vec<String>,
    #[serde(default)]
    parts: Vec<String>,
    #[serde(default = "yes")]
    forgotten: bool,
    methods: Vec<WrittenRow>,
}

fn first_seed() -> Vec<u64> {
    vec![0]
}

fn yes() -> bool {
    true
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct WrittenRow {
    name: String,
    method: String,
    #[serde(default)]
    options: Tree,
    learning_rates: Option<Vec<f64>>,
    seeds: Option<Vec<u64>>,
}

/// A study: its rows are trained at each learning rate with the tuning seeds, then at their best one with all seeds.
///
/// ```
/// use mixlora::study::Study;
/// let study = Study::new(&serde_json::json!({
///     "title": "Two ranks",
///     "run": { "model": "data/tiny", "data": "my-data", "train": { "steps": 200 } },
///     "learning_rates": [1e-3, 3e-3],
///     "seeds": [0, 1],
///     "baselines": ["r 4"],
///     "methods": [
///         { "name": "r 4", "method": "lora", "options": { "r": 4 } },
///         { "name": "r 16", "method": "lora", "options": { "r": 16 } },
///     ],
/// }))?;
/// assert_eq!(study.tuning_cells().len(), 4);
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Study {
    pub title: String,
    pub rows: Vec<StudyRow>,
    /// Seeds that learning rates are chosen with.
    pub tuning_seeds: Vec<u64>,
    pub baselines: Vec<String>,
    /// Parts of the data that are asked besides [`TUNING`] and [`FINAL`].
    pub parts: Vec<String>,
    /// Whether general prompts are asked, before and after.
    pub forgotten: bool,
    /// The settings that all runs share, as they are given.
    shared: Value,
}

/// A method with its options.
#[derive(Debug, Clone)]
pub struct StudyRow {
    pub name: String,
    /// The run at no particular learning rate and seed.
    pub config: RunConfig,
    pub learning_rates: Vec<f64>,
    /// Seeds of the comparison, at the best learning rate.
    pub seeds: Vec<u64>,
}

/// One training run of a study.
#[derive(Debug, Clone, PartialEq)]
pub struct Place {
    /// Number of the row.
    pub row: usize,
    pub learning_rate: f64,
    pub seed: u64,
}

impl Study {
    /// Reads a study from the tree of its file.
    ///
    /// # Errors
    /// A key is unknown or missing, a method or an option is unknown, there is nothing to compare, a grid is empty, a name
    /// or a seed comes twice, or a baseline is no row.
    pub fn new(tree: &Value) -> Result<Self> {
        let written: Written = serde_path_to_error::deserialize(tree).map_err(|error| {
            let path = error.path().to_string();
            let field = if path == "." { "study".into() } else { path };
            Error::refused(field, error.into_inner().to_string())
        })?;
        if written.methods.is_empty() {
            return Err(Error::refused("methods", "are none: a study compares at least one"));
        }
        check_seeds("tuning_seeds", &written.tuning_seeds)?;
        let mut rows = Vec::new();
        for (number, row) in written.methods.iter().enumerate() {
            // What all share is named as such.
            let place = |field: &str| match field.strip_prefix("run: ") {
                Some(shared) => format!("run.{shared}"),
                None => format!("methods[{number}].{}", field.trim_start_matches("methods: ")),
            };
            let within = |error: Error| error.rename(place);
            rows.push(StudyRow::new(row, &written).map_err(within)?);
        }
        let study = Study {
            title: written.title,
            rows,
            tuning_seeds: written.tuning_seeds,
            baselines: written.baselines,
            parts: written.parts,
            forgotten: written.forgotten,
            shared: written.run,
        };
        study.check()?;
        Ok(study)
    }

    fn check(&self) -> Result<()> {
        let mut slugs = std::collections::BTreeSet::new();
        for row in &self.rows {
            if !slugs.insert(row.slug()) {
                let what = format!("'{}' comes twice, or differs from another in signs alone", row.name);
                return Err(Error::refused("methods", what));
            }
        }
        if let Some(unknown) =
            self.baselines.iter().find(|name| self.rows.iter().all(|row| row.name != **name))
        {
            return Err(Error::refused(
                "baselines",
                format!("'{unknown}' is the name of no method of the study"),
            ));
        }
        for part in &self.parts {
            if [TUNING, FINAL, "train"].contains(&part.as_str()) || !is_plain(part) {
                let what = format!(
                    "'{part}' cannot be the name of a further part: it is one of the study's own, or no plain word"
                );
                return Err(Error::refused("parts", what));
            }
        }
        Ok(())
    }

    /// The runs that learning rates are chosen by.
    pub fn tuning_cells(&self) -> Vec<Place> {
        let mut places = Vec::new();
        for (row, of) in self.rows.iter().enumerate() {
            for &learning_rate in &of.learning_rates {
                places.extend(self.tuning_seeds.iter().map(|&seed| Place { row, learning_rate, seed }));
            }
        }
        places
    }

    /// The runs of the comparison, for the best learning rate of each row. Seed by seed: runs of one seed are compared, and
    /// only with those of the same kind of processor.
    pub fn final_cells(&self, best: &[f64]) -> Vec<Place> {
        let of_row = |(row, &learning_rate): (usize, &f64)| {
            self.rows[row].seeds.iter().map(move |&seed| Place { row, learning_rate, seed })
        };
        let mut places: Vec<Place> = best.iter().enumerate().flat_map(of_row).collect();
        places.sort_by_key(|place| place.seed);
        places
    }

    /// The run of a place, on the training part of the data.
    ///
    /// # Errors
    /// The data has no such part.
    pub fn training(&self, place: &Place) -> Result<RunConfig> {
        let mut config = self.rows[place.row].config.clone();
        config.train.learning_rate = place.learning_rate;
        config.train.seed = place.seed;
        config.data = self.part_file("train")?;
        Ok(config)
    }

    /// The given settings that results depend on: all but paths and the device. Settings that a later version adds do not
    /// make another study of it.
    pub fn given(&self) -> Value {
        let mut given = self.shared.clone();
        for key in ["model", "data", "vision", "device"] {
            given.as_object_mut().map(|given| given.remove(key));
        }
        given
    }

    /// The file of a part of the data.
    ///
    /// # Errors
    /// It is not there.
    pub fn part_file(&self, part: &str) -> Result<PathBuf> {
        let folder = &self.rows[0].config.data;
        let path = folder.join(format!("{part}.jsonl"));
        if path.is_file() {
            return Ok(path);
        }
        let what = format!(
            "has no {part}.jsonl: a study reads train, {TUNING}, {FINAL} and the parts that its file names"
        );
        Err(Error::file(folder, what))
    }

    /// The name of a cell's file.
    pub fn file_name(&self, place: &Place) -> String {
        format!("{}-{:e}-{}.json", self.rows[place.row].slug(), place.learning_rate, place.seed)
    }

    /// All parts that are asked.
    pub fn all_parts(&self) -> Vec<String> {
        let own = [TUNING, FINAL].map(String::from);
        own.into_iter().chain(self.parts.iter().cloned()).collect()
    }

    /// What a report is told.
    pub fn description(&self) -> Description {
        Description {
            title: self.title.clone(),
            rows: self.rows.iter().map(|row| row.name.clone()).collect(),
            baselines: self.baselines.clone(),
            parts: self.all_parts(),
            // All runs answer the same questions: intervals that draw them anew for each seed are too narrow.
            questions: Questions::OfAllSeeds,
            ..Description::default()
        }
    }
}

impl StudyRow {
    fn new(row: &WrittenRow, written: &Written) -> Result<Self> {
        let own = json!({ "method": row.method, "options": row.options });
        for key in ["method", "options"] {
            if written.run.get(key).is_some() {
                return Err(Error::refused(format!("run.{key}"), "belongs to a row of methods"));
            }
        }
        for key in ["learning_rate", "seed"] {
            if written.run["train"].get(key).is_some() {
                return Err(Error::refused(
                    format!("run.train.{key}"),
                    "is what a study varies: see learning_rates and seeds",
                ));
            }
        }
        let layers = [("run".to_string(), written.run.clone()), ("methods".to_string(), own)];
        let config = RunConfig::layered(&layers, &Methods::builtin())?;
        if !config.stages.is_empty() {
            return Err(Error::refused("run.stages", "are not for a study"));
        }
        let learning_rates = row.learning_rates.as_ref().unwrap_or(&written.learning_rates).clone();
        if learning_rates.is_empty() {
            return Err(Error::refused("learning_rates", "are none: the grid is empty"));
        }
        if let Some(rate) = learning_rates.iter().find(|rate| !(rate.is_finite() && **rate > 0.0)) {
            return Err(Error::config("learning_rates", rate, "positive numbers"));
        }
        if !learning_rates.is_sorted_by(|a, b| a < b) {
            return Err(Error::config(
                "learning_rates",
                format!("{learning_rates:?}"),
                "numbers in rising order",
            ));
        }
        let seeds = row.seeds.as_ref().unwrap_or(&written.seeds).clone();
        check_seeds("seeds", &seeds)?;
        Ok(StudyRow { name: row.name.clone(), config, learning_rates, seeds })
    }

    /// Its name in names of files.
    fn slug(&self) -> String {
        let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
        let words: String = self.name.chars().map(plain).collect();
        words.split('-').filter(|word| !word.is_empty()).collect::<Vec<_>>().join("-")
    }
}

fn is_plain(word: &str) -> bool {
    !word.is_empty() && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '_')
}

fn check_seeds(field: &str, seeds: &[u64]) -> Result<()> {
    let mut sorted = seeds.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    if seeds.is_empty() || sorted.len() < seeds.len() {
        return Err(Error::config(field, format!("{seeds:?}"), "at least one seed, none twice"));
    }
    Ok(())
}
