//! `mixlora prune`

use crate::device_args::{CheckArgs, DeviceArgs};
use crate::model_path::model_path;
use crate::progress::Progress;
use crate::{Failure, out};
use mixlora::Error;
use mixlora::adapter::{Adapter, AdapterOptions, AdapterWeights, Keep, Pruned, Usage};
use mixlora::data::{Batch, Dataset, read_samples};
use mixlora::model::{Model, Weights};
use mixlora::train::{TextOptions, count_usage, give_conditions, loss_of};
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
The importance of a row is the mean gate that it has on the data times the norms of its factors; where A and B have \
choices of their own, each side is ranked by its own factor. All pools keep the same number of rows. Rows that the data \
never choose (--unused) go without a change on these data, unless the method's scores depend on all rows; in the place of \
a row that was chosen another one is. The losses before and after are printed.

Example: mixlora prune --model SmolLM2-135M-Instruct.Q4_1.gguf --adapter run --data valid.jsonl --keep 8 --out smaller")]
pub struct Args {
    /// A .gguf file, or a Hugging Face directory.
    #[arg(long, value_parser = model_path())]
    model: PathBuf,
    /// An adapter directory, or the folder of a training run.
    #[arg(long)]
    adapter: PathBuf,
    /// A JSONL file: samples like those that the adapter is for.
    #[arg(long)]
    data: PathBuf,
    /// Rows of each pool that stay.
    #[arg(long, value_name = "N", required_unless_present_any = ["below", "unused"])]
    keep: Option<usize>,
    /// Drop rows below this share of the importance of the best row of their pool, 0 to 1. The pool with most rows above
    /// says how many stay in each.
    #[arg(long, value_name = "SHARE", conflicts_with = "keep")]
    below: Option<f64>,
    /// Drop only rows that no sample chose. The pool of which most rows were chosen says how many stay in each.
    #[arg(long, conflicts_with_all = ["keep", "below"])]
    unused: bool,
    /// The new directory; it must not exist.
    #[arg(long)]
    out: PathBuf,
    /// Samples that go through the model together.
    #[arg(long, default_value_t = 8)]
    micro_batch: usize,
    /// Longest sample, in tokens.
    #[arg(long, default_value_t = TextOptions::default().max_length)]
    max_length: usize,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    checks: CheckArgs,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    if args.out.exists() {
        let what = "exists; pruning writes a new directory and never over another".to_string();
        return Err(Error::File { path: args.out.clone(), what }.into());
    }
    let keep = match (args.keep, args.below) {
        (Some(rows), _) => Keep::Best(rows),
        (None, Some(share)) => Keep::From(share),
        (None, None) => Keep::Used,
    };
    let device = args.device.open()?;
    let model = args.checks.model(&args.model, &device, Weights::File)?;
    let adapter = args.checks.adapter(&args.adapter, &model)?;
    // A method that cannot be pruned is refused before data are read.
    let mut usage = Usage::new(&adapter, &model)?;
    let batches = batches(args, &model, &adapter)?;
    let counting = Progress::new("counting choices", batches.len(), "batches");
    let mut before = 0.0;
    for batch in &batches {
        before += count_usage(&model, &adapter, batch, &mut usage)?;
        counting.steps(1);
    }
    drop(counting);
    let weights = AdapterWeights::of(&adapter, &model, &args.model.display().to_string())?;
    let (pruned, report) = weights.pruned(&usage, keep)?;
    let smaller = pruned.attach(&model, &AdapterOptions::default())?;
    let after = batches.iter().map(|batch| loss_of(&model, &smaller, batch)).sum::<Result<f64, _>>()?;
    pruned.save(&args.out)?;
    let tokens = batches.iter().map(|batch| batch.trained).sum::<usize>().max(1) as f64;
    Ok(out::text(&described(args, &report, [before / tokens, after / tokens]))?)
}

fn described(args: &Args, report: &Pruned, [before, after]: [f64; 2]) -> String {
    let Pruned { rows: [all, left], pools, unused, dropped: [most, mean] } = report;
    format!(
        "adapter in {}: {left} of {all} rows in each of {pools} pools\n\
         {unused} of {} rows were never chosen\n\
         dropped importance: {:.2} % in the mean, {:.2} % at most\n\
         loss {before:.4} before, {after:.4} after\n",
        args.out.display(),
        all * pools,
        100.0 * mean,
        100.0 * most
    )
}

/// The samples of the file in batches, as training sees them.
fn batches(args: &Args, model: &Model, adapter: &Adapter) -> Result<Vec<Batch>, Failure> {
    let samples = read_samples(&args.data)?;
    let options = TextOptions::default();
    let text = options.open(Some(&args.model), None)?;
    let framing = adapter.method().framing();
    let room = model.config().max_positions() - framing.rows_in_front();
    let options = TextOptions { max_length: args.max_length.min(room), ..options };
    let mut data: Dataset = options.encoder(&text)?.dataset(&args.data, &samples)?;
    data.check_rows(&args.data, model.config().vocab_size)?;
    if adapter.method().options().condition().is_some() {
        give_conditions(&mut data, model, &text.tokenizer)?;
    }
    let pad = text.tokenizer.pad_within(model.config().vocab_size);
    let batch = |examples: &[_]| {
        let examples: Vec<_> = examples.iter().collect();
        Batch::new(&examples, framing, pad, model.device())
    };
    Ok(data.examples.chunks(args.micro_batch.max(1)).map(batch).collect::<Result<Vec<_>, _>>()?)
}
