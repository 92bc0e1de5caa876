//! `mixlora bench model`

use super::sight::SightArgs;
use super::{BaseArgs, DeviceArgs, ReportArgs, WeightsArgs, open, positive, usage};
use crate::{Failure, out};
use mixlora::bench::{ModelOptions, model};
use mixlora::mixture::find;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
Rows are named as in llama-bench: pp512 is a prompt of 512 tokens at once, tg128 are 128 tokens one by one behind a \
single one. The tokens are made up and always the same.

With a picture ('--image', '--vision' or '--tower') there are more rows: 'picture' is from the file to what the tower reads, \
'tower' its forward pass, 'picture+pp512' tower, projector, and the picture's rows with 512 tokens behind them at once.

Example: mixlora bench model --shape llama-7b-q4 -p 128,512 -n 32 --device gpu")]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    sight: SightArgs,
    /// Lengths of prompts.
    #[arg(long, short, value_delimiter = ',', default_value = "512")]
    prompt: Vec<usize>,
    /// Numbers of tokens to generate.
    #[arg(long, short = 'n', value_delimiter = ',', default_value = "128")]
    generate: Vec<usize>,
    /// An adapter directory, or the folder of a training run (its best checkpoint is taken).
    #[arg(long)]
    adapter: Option<PathBuf>,
    /// A fresh adapter of this method with its defaults, instead of one from files.
    #[arg(long, conflicts_with = "adapter")]
    method: Option<String>,
    #[command(flatten)]
    weights: WeightsArgs,
    /// Samples of each row.
    #[arg(long, short, default_value_t = 3)]
    rounds: usize,
    /// Also list the kernels of the last prompt, and of one token behind it, by the time that the GPU spends in them.
    #[arg(long)]
    kernels: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let method =
        args.method.as_ref().map(|name| find(name).map_err(|error| usage("--method", &error))).transpose()?;
    positive("--rounds", &[args.rounds])?;
    positive("--prompt", &args.prompt)?;
    positive("--generate", &args.generate)?;
    let report = args.report.open()?;
    let base = args.base.open(&open(&args.device)?, args.weights.given())?;
    let adapter = args.adapter.as_deref().map(|dir| args.base.checks.adapter(dir, &base)).transpose()?;
    let options = ModelOptions {
        pictured: args.sight.open(&args.base, &base, false)?,
        prompts: args.prompt.clone(),
        generated: args.generate.clone(),
        rounds: args.rounds,
        kernels: args.kernels,
    };
    out::progress("timing the model");
    report.print(&model(&base, method.map(|method| method.defaults()).as_ref(), adapter, &options)?)
}
