//! `mixlora data stats`

use crate::data_text::TextArgs;
use crate::progress::Progress;
use crate::{Failure, out};
use mixlora::data::{DataFiles, Dataset};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
Counts tokens as training will see them, cut to --max-length. 'trained' are the tokens with a loss; lengths are in \
tokens.

Example: mixlora data stats my-data --model my-model")]
pub struct Args {
    /// A folder with train.jsonl, valid.jsonl, test.jsonl, or one file.
    path: PathBuf,
    #[command(flatten)]
    text: TextArgs,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

/// Figures of one task of one file.
#[derive(Default)]
struct Figures {
    lengths: Vec<usize>,
    trained: usize,
}

impl Figures {
    fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }
    /// The length that a share of the examples does not exceed; lengths are sorted.
    fn quantile(&self, share: f64) -> usize {
        let rank = (share * self.lengths.len() as f64).ceil() as usize;
        self.lengths.get(rank.saturating_sub(1)).copied().unwrap_or(0)
    }
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let options = args.text.options();
    let side = args.text.side()?;
    out::notes(&side.notes);
    let encoder = args.text.encoder(&side)?;
    let mut results = Vec::new();
    let files = DataFiles::find(&args.path)?;
    files.note().iter().for_each(|text| out::note(&format!("note: {text}")));
    for path in files.all() {
        let samples = options.read(path)?;
        let read = Progress::new(&format!("counting tokens of {}", path.display()), samples.len(), "samples");
        let data = encoder.dataset_watched(path, &samples, &|| read.step())?;
        results.push((path.display().to_string(), figures(&data), data.counts));
    }
    if args.json {
        let list = results.iter().map(|(path, tasks, counts)| {
            let tasks: serde_json::Map<_, _> =
                tasks.iter().map(|(t, file)| (t.clone(), task_json(file))).collect();
            json!({
                "path": path,
                "tasks": tasks,
                "samples": counts.samples,
                "empty": counts.empty,
                "untrained": counts.untrained,
                "truncated": counts.truncated,
                "joined": counts.joined,
                "too_long": counts.too_long,
                "bad_pictures": counts.bad_pictures,
            })
        });
        return Ok(out::json(&json!(list.collect::<Vec<_>>()))?);
    }
    let mut rows = Vec::new();
    let mut notes = String::new();
    for (path, tasks, counts) in &results {
        for (task, file) in tasks {
            let cells = [
                file.lengths.len(),
                file.tokens(),
                file.trained,
                file.quantile(0.5),
                file.quantile(0.9),
                file.quantile(1.0),
            ];
            let names = [path.clone(), task.clone()];
            rows.push(names.into_iter().chain(cells.map(|n| n.to_string())).collect());
        }
        let said = counts.note(&format!("samples of {path}"), args.text.max_length);
        notes += &said.map_or_else(String::new, |text| format!("note: {text}\n"));
    }
    let head = ["file", "task", "examples", "tokens", "trained", "p50", "p90", "max"];
    Ok(out::text(&(out::table(&head, &rows) + &notes))?)
}

/// Per label, in the order of their names; without labels `-`, and with several also `all`.
fn figures(data: &Dataset) -> BTreeMap<String, Figures> {
    let mut tasks: BTreeMap<String, Figures> = BTreeMap::new();
    let labels: std::collections::BTreeSet<_> = data.tasks.iter().collect();
    for (e, task) in data.examples.iter().zip(&data.tasks) {
        let name = task.clone().unwrap_or_else(|| "-".into());
        let all = (labels.len() > 1).then(|| "(all)".to_string());
        for name in all.into_iter().chain([name]) {
            let file = tasks.entry(name).or_default();
            file.lengths.push(e.ids.len());
            file.trained += e.trained_tokens();
        }
    }
    tasks.values_mut().for_each(|file| file.lengths.sort_unstable());
    tasks
}

fn task_json(file: &Figures) -> serde_json::Value {
    json!({
        "examples": file.lengths.len(),
        "tokens": file.tokens(),
        "trained": file.trained,
        "p50": file.quantile(0.5),
        "p90": file.quantile(0.9),
        "max": file.quantile(1.0),
    })
}
