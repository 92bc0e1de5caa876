//! `mixlora plot`

use crate::{Failure, out};
use mixlora::train::loss_curve;
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "Example: mixlora plot run/metrics.jsonl --out loss.svg")]
pub struct Args {
    /// The metrics.jsonl of a run.
    metrics: PathBuf,
    /// The SVG file to write.
    #[arg(long, short)]
    out: PathBuf,
    /// What stands over the picture.
    #[arg(long, default_value = "loss")]
    title: String,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let svg = loss_curve(&args.metrics, &args.title)?;
    mixlora::atomic::write(&args.out, svg.as_bytes())?;
    Ok(out::text(&format!("loss curve in {}", args.out.display()))?)
}
