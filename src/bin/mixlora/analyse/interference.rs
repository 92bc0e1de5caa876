//! `mixlora analyse interference`

use super::{Subjects, figure};
use crate::progress::Progress;
use crate::{Failure, out};
use mixlora::analyse::{HeatMap, Interference, Panel, Scale, Scores, SideScores, interference};
use serde_json::{Value, json};

#[derive(clap::Args)]
#[command(after_help = "\
Row i, column j: what a step along the normalised gradient of task j does to the loss of task i, over what a step for task i \
itself does: 1 helps as much, 0 does nothing, below 0 it harms. For A and for B factors apart, in each layer, and in the mean \
over layers. A mean of ratios (the paper's score) hangs on samples that their own task's step hardly helps; the ratio of \
means beside it does not: see docs/ANALYSES.md. Nothing is trained.

Example: mixlora analyse interference --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter runs/lora \
--adapter runs/mixlora-cond --data my_data --svg interference.svg")]
pub struct Args {
    #[command(flatten)]
    subjects: Subjects,
    /// Samples whose mean loss has one gradient: each such group is an x of the score.
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if args.batch == 0 {
        return Err(Failure::Usage("--batch: is 0, must be at least 1".into()));
    }
    let subject = args.subjects.open()?;
    let mut found: Vec<(&str, Interference)> = Vec::new();
    for (name, adapter) in &subject.adapters {
        subject.take_projector(adapter)?;
        let tasks = subject.batches(adapter, args.batch)?;
        let passes = 2 * tasks.iter().map(|task| task.batches.len()).sum::<usize>();
        let progress = Progress::new(&format!("gradients of {name}"), passes, "passes");
        found.push((
            name,
            interference(subject.model(), adapter, &tasks, &mut |count| progress.steps(count))?,
        ));
    }
    args.subjects.draw(&found.iter().map(|(name, found)| panels(name, found)).collect::<Vec<_>>())?;
    if args.subjects.json {
        let adapters: Vec<Value> = found.iter().map(|(name, found)| json_of(name, found)).collect();
        return Ok(out::json(&json!({ "data": subject.path, "adapters": adapters }))?);
    }
    let mut text = String::new();
    for (name, found) in &found {
        found.sides.iter().for_each(|side| text += &matrix(name, found, side));
    }
    Ok(out::text(&(text + &summary(&found) + &by_layer(&found)))?)
}

fn panels<'a>(name: &str, found: &'a Interference) -> Vec<Panel<'a>> {
    let panel = |side: &'a SideScores| {
        let pairs = side.scores.between().count();
        Panel::HeatMap(HeatMap {
            title: format!("{name}, {}", side_name(side)),
            caption: format!(
                "{} of {pairs} cells below 0; row: whose loss, column: whose step",
                side.scores.negative()
            ),
            rows: &found.tasks,
            columns: &found.tasks,
            scores: &side.scores,
            scale: Scale::Signed,
        })
    };
    found.sides.iter().map(panel).collect()
}

/// A side in words.
fn side_name(side: &SideScores) -> String {
    match side.side {
        mixlora::mixture::Side::Rest => "other parameters".into(),
        other => format!("{} factors", other.name()),
    }
}

/// The scores of a side in the mean over layers.
fn matrix(name: &str, found: &Interference, side: &SideScores) -> String {
    let head: Vec<&str> =
        std::iter::once("loss of, step for").chain(found.tasks.iter().map(String::as_str)).collect();
    let row = |(task, cells): (&String, &Vec<Option<f64>>)| {
        std::iter::once(task.clone()).chain(cells.iter().map(|cell| figure(*cell))).collect()
    };
    let rows: Vec<Vec<String>> = found.tasks.iter().zip(&side.scores.0).map(row).collect();
    format!(
        "{name}, {}, mean over {} layers\n{}\n",
        side_name(side),
        side.layers.len(),
        out::table(&head, &rows)
    )
}

/// All adapters and sides beside each other.
fn summary(found: &[(&str, Interference)]) -> String {
    let head = [
        "adapter",
        "side",
        "trained values",
        "mean",
        "harm",
        "below 0",
        "mean",
        "harm",
        "below 0",
        "contrary",
    ];
    let row = |name: &str, found: &Interference, side: &SideScores| {
        let gradients = found.batches.iter().sum::<usize>() * side.layers.len();
        let contrary = side.layers.iter().flat_map(|layer| &layer.contrary).sum::<usize>();
        let mut row = vec![name.to_string(), side.side.name().to_string(), side.values.to_string()];
        for scores in [&side.scores, &side.of_means] {
            row.extend([figure(scores.mean_between()), figure(scores.harm()), below(scores)]);
        }
        row.push(format!("{:.1} %", 100.0 * contrary as f64 / gradients.max(1) as f64));
        row
    };
    let rows: Vec<Vec<String>> = sides(found).map(|(name, found, side)| row(name, found, side)).collect();
    format!(
        "between different tasks: the score (a mean of ratios), then the ratio of means\n{}\n",
        out::table(&head, &rows)
    )
}

/// How many cells are below zero in each layer.
fn by_layer(found: &[(&str, Interference)]) -> String {
    let mut numbers: Vec<Option<usize>> =
        sides(found).flat_map(|(.., side)| side.layers.iter().map(|layer| layer.layer)).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let names: Vec<String> =
        sides(found).map(|(name, _, side)| format!("{name} {}", side.side.name())).collect();
    let head: Vec<&str> = std::iter::once("layer").chain(names.iter().map(String::as_str)).collect();
    let row = |number: &Option<usize>| {
        let cell = |(.., side): (&str, &Interference, &SideScores)| {
            let layer = side.layers.iter().find(|layer| layer.layer == *number);
            layer.map_or("-".into(), |layer| below(&layer.scores))
        };
        let name = number.map_or("before".into(), |number| number.to_string());
        std::iter::once(name).chain(sides(found).map(cell)).collect()
    };
    let rows: Vec<Vec<String>> = numbers.iter().map(row).collect();
    format!("scores below 0 in each layer\n{}", out::table(&head, &rows))
}

/// All sides of all adapters.
fn sides<'a>(
    found: &'a [(&'a str, Interference)],
) -> impl Iterator<Item = (&'a str, &'a Interference, &'a SideScores)> {
    found.iter().flat_map(|(name, found)| found.sides.iter().map(move |side| (*name, found, side)))
}

fn below(scores: &Scores) -> String {
    format!("{} of {}", scores.negative(), scores.between().count())
}

/// All figures of an adapter.
fn json_of(name: &str, found: &Interference) -> Value {
    let mut all = json!({ "adapter": name, "interference": found });
    for (number, side) in found.sides.iter().enumerate() {
        let by_layer: Vec<usize> = side.layers.iter().map(|layer| layer.scores.negative()).collect();
        let entry = &mut all["interference"]["sides"][number];
        entry["below_0"] = side.scores.negative().into();
        entry["below_0_by_layer"] = json!(by_layer);
    }
    all
}
