//! `mixlora tune`

use crate::{Failure, open_device, out};
use mixlora::Device;
use mixlora::bench::Shape;
use mixlora::bench::tune::{Timing, keep, shapes, tune, winners};
use mixlora::device::AdapterClass;
use mixlora::train::DeviceOptions;

#[derive(clap::Args)]
#[command(after_help = "\
Every kernel is compared with the CPU's result before it is timed; a wrong one is never chosen. What is measured best is \
kept for this adapter, driver and version, and used from the next command on. Software adapters always use the built-in \
table.

Example: mixlora tune --device gpu --dry-run --shapes 512x2048x2048")]
pub struct Args {
    /// gpu, or part of an adapter's name.
    #[arg(long, default_value = "gpu")]
    device: String,
    /// M x N x K of the products to time; by default one for each class of shapes.
    #[arg(long, short, value_delimiter = ',', value_name = "MxNxK")]
    shapes: Vec<String>,
    /// Time and print, but keep nothing.
    #[arg(long)]
    dry_run: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let wanted = args.shapes.iter().map(|text| text.parse().map(|Shape(shape)| shape));
    let wanted: Vec<[usize; 3]> = wanted
        .collect::<mixlora::Result<_>>()
        .map_err(|error| Failure::Usage(format!("--shapes: {error}")))?;
    let device = open_device(&DeviceOptions { name: args.device.clone(), ..DeviceOptions::default() })?;
    let Device::Gpu(gpu) = &device else {
        return Err(Failure::Usage("--device: only GPUs have kernels to choose from".into()));
    };
    let software = gpu.class() == AdapterClass::Software;
    if software && !args.dry_run {
        let name = device.name();
        let text =
            format!("{name} is a software adapter: it always uses the built-in table, nothing to tune");
        return Ok(out::text(&text)?);
    }
    let all = tune(&device, &if wanted.is_empty() { shapes() } else { wanted }, out::progress)?;
    out::text(&report(&all))?;
    if args.dry_run {
        out::note("dry run: nothing is kept");
    } else {
        out::note(&format!("kept in {}", keep(&device, &all)?.display()));
    }
    Ok(())
}

fn report(all: &[Timing]) -> String {
    let best = winners(all);
    let rows: Vec<Vec<String>> = all
        .iter()
        .map(|timing| {
            let verdict =
                match (timing.microseconds, best.contains(&(timing.class, timing.kernel)), timing.built_in) {
                    (None, ..) => "wrong",
                    (_, true, _) => "best",
                    (_, _, true) => "built in",
                    _ => "",
                };
            vec![
                timing.class.into(),
                Shape(timing.shape).to_string(),
                timing.kernel.into(),
                timing.microseconds.map_or("-".into(), |us| format!("{us:.1}")),
                out::error(timing.error),
                verdict.into(),
            ]
        })
        .collect();
    out::table(&["class", "shape", "kernel", "us", "error", "verdict"], &rows)
}
