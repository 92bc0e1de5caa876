//! `mixlora bench train`

use super::sight::SightArgs;
use super::{BaseArgs, DeviceArgs, ReportArgs, WeightsArgs, open, positive, usage};
use crate::{Failure, out};
use mixlora::bench::{TrainingOptions, training};
use mixlora::mixture::{find, methods};

#[derive(clap::Args)]
#[command(after_help = "\
The tokens are made up and always the same. 'dense products' are all frozen linears of the model, forward and backward, \
and nothing else: no method can be faster. The step's ratio and its percent of the roof are against them, from the same \
rounds. On a GPU, forward, backward and optimizer are the times to record the work; waiting for it is readback.

With a picture ('--image', '--vision' or '--tower') each sequence of 'step on features' begins with one, whose features are \
kept; the step beside it has text alone, of the same length and with a loss at the same places, and its ratio is to that. \
'tower' looks at one picture, which a run does once for each.

Example: mixlora bench train --shape llama-1b --batch 2 --seq 128 --device gpu")]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    sight: SightArgs,
    /// Train the projector too. A new one always is.
    #[arg(long)]
    train_projector: bool,
    /// Method of the adapter: `mixlora methods` lists them.
    #[arg(long, default_value = methods::STANDARD.name)]
    method: String,
    /// Factors of each pool (conditional methods).
    #[arg(long, default_value_t = 8)]
    factors: usize,
    /// Rank, or factors that are chosen; by default 2 for conditional methods, and the method's own for others.
    #[arg(long)]
    r: Option<usize>,
    /// Sequences of a batch.
    #[arg(long, default_value_t = 2)]
    batch: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 128)]
    seq: usize,
    /// Steps that are timed.
    #[arg(long, default_value_t = 5)]
    steps: usize,
    /// Share of the tokens that have a loss.
    #[arg(long, default_value_t = 1.0)]
    trained_share: f64,
    #[command(flatten)]
    weights: WeightsArgs,
    /// Compute layers again in the backward pass.
    #[arg(long)]
    recompute: bool,
    /// Also list the kernels of one step by the time that the GPU spends in them.
    #[arg(long)]
    kernels: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let method = find(&args.method).map_err(|error| usage("--method", &error))?;
    positive("--steps", &[args.steps])?;
    let mut method = method.defaults();
    let pools = method.spec().option_names().contains(&"num_factors");
    if pools {
        method = method.with("num_factors", args.factors)?;
    }
    if let Some(r) = args.r.or(pools.then_some(2)) {
        method = method.with("r", r)?;
    }
    let report = args.report.open()?;
    let model = args.base.open(&open(&args.device)?, args.weights.given())?;
    let options = TrainingOptions {
        pictured: args.sight.open(&args.base, &model, args.train_projector)?,
        method,
        batch: args.batch,
        seq: args.seq,
        steps: args.steps,
        trained_share: args.trained_share,
        recompute: args.recompute,
        kernels: args.kernels,
    };
    out::progress("training");
    report.print(&training(model, &options)?)
}
