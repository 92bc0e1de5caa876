//! `mixlora bench tower`

use super::{DeviceArgs, ReportArgs, RoundsArgs, WeightsArgs, beside_roof, positive, usage};
use crate::model_path::model_path;
use crate::{Failure, out};
use mixlora::Device;
use mixlora::bench::{Row, TowerOptions, tower};
use mixlora::model::LoadOptions;
use mixlora::model::vision::{Tower, TowerShape, VisionPlace};
use std::path::PathBuf;

#[derive(clap::Args)]
#[command(after_help = "\
'dense products' are the products with the tower's frozen matrices and nothing else, in the same rounds: the ratio of the \
pass is to them. Percents are of the device's roof (bench roof) at the intensity of the work. The pictures are made up, in \
the size that the tower is made for.

Example: mixlora bench tower --shape clip-b16 --images 1 --device cpu")]
pub struct Args {
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    report: ReportArgs,
    #[command(flatten)]
    rounds: RoundsArgs,
    /// Random weights with the sizes of a published tower: clip-b32, clip-b16, clip-l14, clip-l14-336, siglip-b16,
    /// siglip-b16-512, siglip-so400m-384 or efficientnet-lite0.
    #[arg(long, value_name = "NAME", default_value = "clip-b16")]
    shape: String,
    /// The tower of a model that sees, up to the layer that its projector reads.
    #[arg(long, short, value_parser = model_path(), conflicts_with_all = ["shape", "vision"])]
    model: Option<PathBuf>,
    /// A GGUF file (mmproj), or a directory with a vision tower alone.
    #[arg(long, visible_alias = "mmproj", value_name = "PATH", value_parser = model_path(), conflicts_with = "shape")]
    vision: Option<PathBuf>,
    /// Pictures of a pass.
    #[arg(long, short, default_value_t = 1)]
    images: usize,
    #[command(flatten)]
    weights: WeightsArgs,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    positive("--images", &[args.images])?;
    let shape = TowerShape::parse(&args.shape).map_err(|error| usage("--shape", &error))?;
    let options =
        TowerOptions { pictures: args.images, rounds: args.rounds.rounds()?, wall: args.rounds.wall };
    beside_roof((&args.device, &args.report), (None, ""), |device, roof| {
        let (name, net) = args.open(&shape, device)?;
        out::progress("timing the tower");
        let rows = tower(&net, &name, options, Some(roof))?;
        out::note(&summary(&rows));
        Ok(rows)
    })
}

impl Args {
    fn open(&self, shape: &TowerShape, device: &Device) -> mixlora::Result<(String, Tower)> {
        let Some(path) = self.vision.as_ref().or(self.model.as_ref()) else {
            return Ok((shape.name.clone(), Tower::of_shape(shape, device)?));
        };
        let name = path.file_name().map_or(String::new(), |name| name.to_string_lossy().into_owned());
        let options = LoadOptions::from(self.weights.weights());
        let net = match VisionPlace::of(path, self.vision.as_deref())? {
            Some(place) => place.tower(device, &options)?,
            None => None,
        };
        let none = || mixlora::Error::File { path: path.clone(), what: "has no vision tower".into() };
        Ok((name, net.ok_or_else(none)?))
    }
}

/// What came of it, in a sentence.
fn summary(rows: &[Row]) -> String {
    let Some((ratio, gflops)) = rows.first().and_then(|row| Some((row.ratio?, row.gflops?))) else {
        return String::new();
    };
    let share =
        rows[0].roof_pct.map_or(String::new(), |share| format!(", {share:.0} % of the measured roof"));
    format!(
        "forward: {gflops:.0} GFLOP/s{share}; its dense products alone take {:.0} % of its time",
        100.0 / ratio
    )
}
