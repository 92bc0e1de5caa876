//! `mixlora plan`

use crate::train_args::TrainArgs;
use crate::{Failure, out};
use mixlora::mixture::Methods;
use mixlora::model::ModelFiles;
use mixlora::train::{Inputs, Plan, RunConfig};
use serde_json::json;

#[derive(clap::Args)]
#[command(after_help = "\
Takes the options of `train`. Only the headers of the model's files are read. With --data the longest example is taken, \
else --max-length. Exit code 5 when it does not fit into --memory-budget, or without one into the memory that the \
machine has free or the GPU has (where the system tells it).

Example: mixlora plan --model SmolLM2-135M-Instruct.Q4_1.gguf --max-length 512 --micro-batch 4 --memory-budget 2GiB")]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let config = RunConfig::layered(&args.train.layers(None)?, &Methods::builtin())?;
    if config.model.as_os_str().is_empty() {
        return Err(Failure::Usage("--model is needed".into()));
    }
    // The device may be absent on this machine.
    let free = config.device.open().ok().and_then(|device| device.free_memory());
    let plan = if config.data.as_os_str().is_empty() {
        let files = ModelFiles::open(&config.model)?;
        let length = config.text.max_length.min(files.config().max_positions());
        Plan::new(&files, &config, length, free)?
    } else {
        Inputs::read(config)?.plan(free)?
    };
    if args.train.json {
        let bytes = plan.rows.iter().map(|(name, bytes)| (name.to_string(), json!(bytes)));
        out::json(&json!({
            "bytes": bytes.collect::<serde_json::Map<_, _>>(),
            "total": plan.total(), "budget": plan.budget, "free": plan.free, "fits": plan.fits(), "micro_batch": plan.shape.0,
            "sequence": plan.shape.1, "alternatives": plan.alternatives,
        }))?;
    } else {
        out::text(&text(&plan))?;
    }
    if plan.fits() { Ok(()) } else { Err(Failure::Memory) }
}

/// The plan as a table, with alternatives if it does not fit.
pub fn text(plan: &Plan) -> String {
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / (1u64 << 20) as f64);
    let rows = plan.rows.iter().map(|(name, bytes)| vec![name.to_string(), mib(*bytes)]);
    let mut rows: Vec<Vec<String>> = rows.collect();
    rows.push(vec!["total".into(), mib(plan.total())]);
    let mut text = out::table(&["what", "MiB"], &rows);
    text += &format!("for {} sequences of {} tokens at a time", plan.shape.0, plan.shape.1);
    let place = match (plan.budget, plan.free) {
        (Some(budget), _) => format!("the budget of {} MiB", mib(budget)),
        (None, Some(free)) => format!("the {} MiB that this machine has free", mib(free)),
        (None, None) => String::new(),
    };
    match plan.limit() {
        None => text += "; no budget is set, and what the device has is not known",
        Some(_) if plan.fits() => text += &format!("; fits into {place}"),
        Some(limit) => {
            text += &format!("; does not fit into {place}. With these settings it takes\n");
            for (settings, bytes) in &plan.alternatives {
                let fits = if *bytes <= limit { "" } else { ", still too much" };
                text += &format!("  {settings}: {} MiB{fits}\n", mib(*bytes));
            }
        }
    }
    text.trim_end().to_string() + "\n"
}
