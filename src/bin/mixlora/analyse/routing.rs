//! `mixlora analyse routing`

use super::{Subjects, figure};
use crate::progress::Progress;
use crate::{Failure, out};
use mixlora::analyse::{HeatMap, Panel, PlaceRouting, Routing, Scale, Scatter, routing};
use serde_json::json;

#[derive(clap::Args)]
#[command(after_help = "\
Overlap: of two instances, the share of the factors chosen by either that both chose (Jaccard index), the mean over all \
places that choose; between different instances of one task it is the task's consistency. Nearest: the share of a task's \
instances whose nearest other one is of the same task. The picture has every instance as a point (exact t-SNE of what it \
chose) and the overlap of tasks. Counts of every place are in the JSON; --place prints those of one.

Example: mixlora analyse routing --run runs/mixlora-cond --svg routing.svg")]
pub struct Args {
    #[command(flatten)]
    subjects: Subjects,
    /// Samples that go through the model together.
    #[arg(long, default_value_t = 8)]
    micro_batch: usize,
    /// Print how often each task chose each factor at this place, for example layers.0.qkv.q_proj.A.
    #[arg(long, value_name = "NAME")]
    place: Option<String>,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let subject = args.subjects.open()?;
    let mut found: Vec<(&str, Routing)> = Vec::new();
    for (name, adapter) in &subject.adapters {
        subject.take_projector(adapter)?;
        let tasks = subject.batches(adapter, args.micro_batch)?;
        let samples = tasks.iter().flat_map(|task| &task.batches).map(|batch| batch.spans.len()).sum();
        let progress = Progress::new(&format!("choices of {name}"), samples, "samples");
        found.push((name, routing(subject.model(), adapter, &tasks, &mut |count| progress.steps(count))?));
    }
    args.subjects.draw(&found.iter().map(|(name, found)| panels(name, found)).collect::<Vec<_>>())?;
    if args.subjects.json {
        let adapter = |(name, found): &(&str, Routing)| json!({ "adapter": name, "routing": found });
        let adapters: Vec<_> = found.iter().map(adapter).collect();
        return Ok(out::json(&json!({ "data": subject.path, "adapters": adapters }))?);
    }
    let mut text = String::new();
    for (name, found) in &found {
        text += &format!("{name}\n{}\n{}\n{}\n", tasks(found), overlap(found), layers(found));
        if let Some(place) = &args.place {
            text += &counts(found, place)?;
        }
    }
    Ok(out::text(&text)?)
}

fn panels<'a>(name: &str, found: &'a Routing) -> Vec<Panel<'a>> {
    let count = found.instances.len();
    vec![
        Panel::Scatter(Scatter {
            title: format!("{name}: what {count} instances choose"),
            caption: format!(
                "t-SNE of choices at {} places; axes and distances of far groups mean nothing",
                found.places.len()
            ),
            tasks: &found.tasks,
            of: &found.instances,
            points: &found.points,
        }),
        Panel::HeatMap(HeatMap {
            title: format!("{name}: overlap of choices"),
            caption: "mean Jaccard index of instances of two tasks".into(),
            rows: &found.tasks,
            columns: &found.tasks,
            scores: &found.overlap,
            scale: Scale::Share,
        }),
    ]
}

fn tasks(found: &Routing) -> String {
    let head = ["task", "instances", "consistency", "overlap with others", "nearest of its own", "by chance"];
    let row = |(i, task): (usize, &String)| {
        let others: Vec<f64> = found.overlap.0[i]
            .iter()
            .enumerate()
            .filter(|(j, _)| *j != i)
            .filter_map(|(_, cell)| *cell)
            .collect();
        let instances = found.instances.iter().filter(|of| **of == i).count();
        vec![
            task.clone(),
            instances.to_string(),
            figure(found.overlap.0[i][i]),
            figure((!others.is_empty()).then(|| others.iter().sum::<f64>() / others.len() as f64)),
            percent(found.nearest[i]),
            percent(found.nearest_by_chance[i]),
        ]
    };
    out::table(&head, &found.tasks.iter().enumerate().map(row).collect::<Vec<_>>())
}

fn overlap(found: &Routing) -> String {
    let head: Vec<&str> = std::iter::once("overlap").chain(found.tasks.iter().map(String::as_str)).collect();
    let row = |(task, cells): (&String, &Vec<Option<f64>>)| {
        std::iter::once(task.clone()).chain(cells.iter().map(|cell| figure(*cell))).collect()
    };
    out::table(&head, &found.tasks.iter().zip(&found.overlap.0).map(row).collect::<Vec<_>>())
}

fn layers(found: &Routing) -> String {
    let head = [
        "layer",
        "places",
        "within a task",
        "between tasks",
        "entropy",
        "factors in effect",
        "most used",
        "unused",
    ];
    let row = |layer: &mixlora::analyse::LayerRouting| {
        vec![
            layer.layer.map_or("before".into(), |number| number.to_string()),
            layer.places.to_string(),
            figure(layer.within),
            figure(layer.between),
            figure(Some(layer.load.entropy)),
            format!("{:.1}", layer.load.effective),
            percent(layer.load.load_max),
            percent(layer.load.unused),
        ]
    };
    out::table(&head, &found.layers.iter().map(row).collect::<Vec<_>>())
}

/// The counts of a place.
fn counts(found: &Routing, name: &str) -> Result<String, Failure> {
    let names = || found.places.iter().map(|place| place.place.name.as_str());
    let Some(PlaceRouting { place, counts, .. }) = found.places.iter().find(|place| place.place.name == name)
    else {
        let all = names().take(8).collect::<Vec<_>>().join(", ");
        let more = found.places.len().saturating_sub(8);
        return Err(Failure::Usage(format!(
            "--place: '{name}' chooses nothing; there are {all} and {more} more"
        )));
    };
    let factors: Vec<String> = (0..place.factors).map(|factor| factor.to_string()).collect();
    let head: Vec<&str> =
        std::iter::once(place.name.as_str()).chain(factors.iter().map(String::as_str)).collect();
    let count = |count: &f64| if count.fract() == 0.0 { count.to_string() } else { format!("{count:.1}") };
    let row = |(task, counts): (&String, &Vec<f64>)| {
        std::iter::once(task.clone()).chain(counts.iter().map(count)).collect()
    };
    let rows: Vec<Vec<String>> = found.tasks.iter().zip(counts).map(row).collect();
    Ok(out::table(&head, &rows) + "\n")
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}
