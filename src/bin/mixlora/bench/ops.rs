//! `mixlora bench ops`

use super::{DeviceArgs, ReportArgs, RoundsArgs, beside_roof, usage};
use crate::{Failure, ops_test, out};
use mixlora::Format;
use mixlora::bench::{DEFAULT_SHAPES, OpsOptions, Shape, ops};
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
Every computation is compared with the f64 reference at a small size before it is timed; a wrong one is not timed, and \
the exit code is 1. Columns: docs/BENCHMARKS.md.

Example: mixlora bench ops -p matmul,fused_ba_matmul -s 512x4096x4096 -t f32,q8_0 --device gpu --plot roof.svg")]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    rounds: RoundsArgs,
    /// Only these ops, separated by commas: `mixlora ops list` has them all.
    #[arg(long, short = 'p', value_delimiter = ',')]
    op: Vec<String>,
    /// M x N x K of the dense products: matmul, and fused_ba_matmul, which is the frozen linear.
    #[arg(long, short, value_delimiter = ',', value_name = "MxNxK")]
    shapes: Vec<String>,
    /// Formats of the frozen linear's weight.
    #[arg(long, short, value_delimiter = ',', default_value = "f32,q8_0,q4_k", value_name = "FORMAT")]
    types: Vec<String>,
    /// fwd, bwd, or both.
    #[arg(long, value_delimiter = ',', default_value = "fwd,bwd")]
    dir: Vec<String>,
    /// Draw the roofline into this SVG file.
    #[arg(long, value_name = "SVG")]
    plot: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let given = args.shapes.iter().map(|shape| shape.parse().map_err(|error| usage("--shapes", &error)));
    let given: Vec<Shape<3>> = given.collect::<Result<_, _>>()?;
    let shapes = if given.is_empty() { DEFAULT_SHAPES.to_vec() } else { given };
    let formats = args.types.iter().map(|name| format(name)).collect::<Result<_, _>>()?;
    if let Some(bad) = args.dir.iter().find(|dir| !["fwd", "bwd"].contains(&dir.as_str())) {
        return Err(Failure::Usage(format!("--dir: there is no direction '{bad}'; there are fwd and bwd")));
    }
    let options = OpsOptions {
        ops: ops_test::choose(&args.op)?,
        shapes,
        formats,
        forward: args.dir.iter().any(|dir| dir == "fwd"),
        backward: args.dir.iter().any(|dir| dir == "bwd"),
        rounds: args.rounds.rounds()?,
        wall: args.rounds.wall,
    };
    beside_roof((&args.device, &args.report), (args.plot.as_deref(), "operations"), |device, roof| {
        ops(device, &options, Some(roof), out::progress)
    })
}

fn format(name: &str) -> Result<Format, Failure> {
    Format::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
        let known = Format::ALL.map(Format::name).join(", ");
        Failure::Usage(format!("--types: there is no format '{name}'; the formats are {known}"))
    })
}
