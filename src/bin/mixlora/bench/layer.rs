//! `mixlora bench layer`

use super::{DeviceArgs, ReportArgs, RoundsArgs, beside_roof, positive, usage};
use crate::key_value::key_value;
use crate::{Failure, out};
use mixlora::bench::{LayerOptions, Shape, layer};
use mixlora::mixture::{MethodSpec, Methods, Tree, find};
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
In each round every layer runs once, forward and backward, in an order that moves on. A ratio is the median over rounds \
of the quotient by the frozen layer. Pools have values in place of the zeros they start from, so that nothing is \
skipped. Each layer is compared with the f64 reference first.

Example: mixlora bench layer --methods lora,mixlora-cond --shapes 4096x4096 --factors 16,256 --device gpu")]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    rounds: RoundsArgs,
    /// Methods separated by commas, or all.
    #[arg(long, value_delimiter = ',', default_value = "all")]
    methods: Vec<String>,
    /// Inputs x outputs of the linear; hidden x intermediate size for methods that take a block.
    #[arg(long, short, value_delimiter = ',', default_value = "576x1536", value_name = "INxOUT")]
    shapes: Vec<String>,
    /// Sequences of a batch.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Tokens of a sequence.
    #[arg(long, default_value_t = 256)]
    seq: usize,
    /// Sizes of the pools of conditional methods; the other methods have their defaults.
    #[arg(long, value_delimiter = ',', default_value = "16")]
    factors: Vec<usize>,
    /// Factors that conditional methods choose.
    #[arg(long, default_value_t = 4)]
    r: usize,
    /// An option for the methods that have it, for example num_experts=64; may be given several times.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Draw the roofline of the frozen layers into this SVG file.
    #[arg(long, value_name = "SVG")]
    plot: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let methods = if args.methods.iter().any(|name| name == "all") {
        Methods::builtin().all().to_vec()
    } else {
        let each =
            args.methods.iter().map(|name| find(name.trim()).map_err(|error| usage("--methods", &error)));
        each.collect::<Result<_, _>>()?
    };
    let shapes =
        args.shapes.iter().map(|text| text.parse::<Shape<2>>().map_err(|error| usage("--shapes", &error)));
    positive("--batch", &[args.batch])?;
    positive("--seq", &[args.seq])?;
    positive("--r", &[args.r])?;
    positive("--factors", &args.factors)?;
    let set = options_of(&args.set, &methods)?;
    let options = LayerOptions {
        methods,
        shapes: shapes.collect::<Result<_, _>>()?,
        batch: args.batch,
        seq: args.seq,
        factors: args.factors.clone(),
        r: args.r,
        set,
        rounds: args.rounds.rounds()?,
        wall: args.rounds.wall,
    };
    beside_roof((&args.device, &args.report), (args.plot.as_deref(), "frozen layers"), |device, roof| {
        layer(device, &options, Some(roof), out::progress)
    })
}

/// Options by name, each of which some method has.
fn options_of(set: &[String], methods: &[&'static MethodSpec]) -> Result<Tree, Failure> {
    let option = |pair: &String| {
        let (name, value) = key_value(pair)?;
        if methods.iter().any(|method| method.option_names().contains(&name)) {
            return Ok((name.to_string(), value));
        }
        Err(Failure::Usage(format!("--set {pair}: no method that is timed has the option '{name}'")))
    };
    set.iter().map(option).collect()
}
