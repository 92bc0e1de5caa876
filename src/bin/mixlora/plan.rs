//! `mixlora plan`

use crate::config::toml_text;
use crate::train_args::TrainArgs;
use crate::{Failure, out};
use mixlora::Device;
use mixlora::mixture::Methods;
use mixlora::model::vision::{TowerShape, VisionPlace};
use mixlora::model::{ModelFiles, ModelPlace, ModelShape};
use mixlora::train::{Fit, Inputs, Plan, Planned, PlannedPictures, RunConfig};
use serde_json::json;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(after_help = "\
Takes the options of `train`. Only the headers of the model's files are read; a folder that has config.json alone is \
enough, and so is a --shape. With --data the longest example is taken, else --max-length, of which one picture is a part \
where the model sees. Exit code 5 when it does not fit into --memory-budget, or without one into the memory that the \
machine has free or the GPU has (where the system tells it). With --fit settings are looked for that fit, the gentlest \
first: `train --fit` takes the same ones.

Example: mixlora plan --model SmolLM2-135M-Instruct.Q4_1.gguf --max-length 512 --micro-batch 4 --memory-budget 2GiB
Example: mixlora plan --shape llama-7b --max-length 1024 --micro-batch 16 --fit 8GiB")]
pub struct Args {
    #[command(flatten)]
    train: TrainArgs,
    /// Sizes of a published model instead of a file, with a format behind them if you like: smollm2-135m, llama-1b, llama-8b,
    /// llama-7b-q4_k.
    #[arg(long, value_name = "NAME[-FORMAT]", conflicts_with_all = ["model", "data"])]
    shape: Option<String>,
    /// Sizes of a published vision tower instead of --vision: clip-l14-336 beside llama-7b is LLaVA-1.5-7B, siglip-b16-512
    /// beside smollm2-135m SmolVLM-256M. `mixlora bench tower --help` lists them.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["vision", "data"])]
    tower: Option<String>,
    /// Write the settings that --fit found, all of them, into this file, for `train --config`.
    #[arg(long, value_name = "FILE", requires = "fit")]
    settings: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let config = RunConfig::layered(&args.train.layers(None)?, &Methods::builtin())?;
    if config.model.as_os_str().is_empty() && args.shape.is_none() {
        return Err(Failure::Usage("--model is needed, or --shape".into()));
    }
    // The device may be absent on this machine.
    let device = config.device.open().ok();
    let Answer { plan, fitted } = if config.data.as_os_str().is_empty() {
        args.by_sizes(&config, device.as_ref())?
    } else {
        args.by_data(Inputs::read(config)?, device.as_ref())?
    };
    if let (Some(path), Some((_, config))) = (&args.settings, &fitted) {
        mixlora::atomic::write(path, toml_text(config)?.as_bytes())?;
    }
    let options = fitted.as_ref().map(|(options, _)| options.as_str());
    if args.train.json {
        let bytes = plan.rows.iter().map(|(name, bytes)| (name.to_string(), json!(bytes)));
        out::json(&json!({
            "bytes": bytes.collect::<serde_json::Map<_, _>>(),
            "total": plan.total(), "budget": plan.budget, "free": plan.free, "fits": plan.fits(), "micro_batch": plan.shape.0,
            "sequence": plan.shape.1, "alternatives": plan.alternatives, "pictures": plan.pictures, "fit": options,
        }))?;
    } else {
        let fits = match options {
            None => String::new(),
            Some("") => "\nno setting has to change".into(),
            Some(options) => format!("\nwith {options}"),
        };
        out::text(&(text(&plan) + &fits))?;
    }
    if plan.fits() { Ok(()) } else { Err(Failure::Memory) }
}

/// A plan; with `--fit` the options that make it fit, and all settings with them.
struct Answer {
    plan: Plan,
    fitted: Option<(String, RunConfig)>,
}

impl Args {
    fn by_data(&self, mut inputs: Inputs, device: Option<&Device>) -> Result<Answer, Failure> {
        let options = if self.train.fit.is_some() { inputs.fit(device)? } else { None };
        let fitted = options.map(|options| (options, inputs.config.clone()));
        Ok(Answer { plan: inputs.plan(device)?, fitted })
    }

    /// Without data.
    fn by_sizes(&self, config: &RunConfig, device: Option<&Device>) -> Result<Answer, Failure> {
        let bare = match (&self.shape, ModelPlace::of(&config.model)?) {
            (None, ModelPlace::Folder(dir)) => Some(dir).filter(|dir| without_weights(dir)),
            _ => None,
        };
        let shape = match (&self.shape, &bare) {
            (Some(name), _) => Some(ModelShape::parse(name).map_err(|e| Failure::Usage(format!("--{e}")))?),
            (None, Some(dir)) => Some(ModelShape::of_config(dir)?),
            (None, None) => None,
        };
        let files = if shape.is_none() { Some(ModelFiles::open(&config.model)?) } else { None };
        let planned = match (&files, &shape) {
            (Some(files), _) => Planned::from(files),
            (None, Some(shape)) => Planned::from(shape),
            (None, None) => return Err(Failure::Usage("--model is needed, or --shape".into())),
        };
        let decoder = planned.config();
        let length = config.text.max_length.min(decoder.max_positions());
        let pictures = self.pictures(config, decoder.hidden_size)?;
        let pictures = pictures.as_ref();
        if self.train.fit.is_some() {
            let mut open = config.clone();
            open.device.weights = Plan::weights(planned, config, length, device, pictures)?;
            let sized = |config: &RunConfig| Plan::sized(planned, config, length, device, pictures);
            if let Some(fit) = Fit::find(planned, &open, sized)? {
                let fitted = Some((fit.saving.options(&open), fit.config));
                return Ok(Answer { plan: fit.plan, fitted });
            }
        }
        let plan = Plan::with_pictures(planned, config, length, device, pictures)?;
        Ok(Answer { plan, fitted: None })
    }

    /// One picture for the vision part; none where the model sees none.
    fn pictures(&self, config: &RunConfig, width: usize) -> Result<Option<PlannedPictures>, Failure> {
        if let Some(name) = &self.tower {
            let tower = TowerShape::parse(name)
                .map_err(|e| Failure::Usage(format!("--{}", e.rename(|_| "tower".into()))))?;
            return Ok(Some(PlannedPictures::of_shape(&tower, width)));
        }
        if config.model.as_os_str().is_empty() && config.vision.is_none() {
            return Ok(None);
        }
        let Some(place) = VisionPlace::of(&config.model, config.vision.as_deref())? else { return Ok(None) };
        let Some(vision) = place.config(width, 0)? else { return Ok(None) };
        let bare = !matches!(&place, VisionPlace::Gguf(_)) && without_weights(place.path());
        let files = if bare { None } else { Some(place.files()?) };
        let mut pictures = PlannedPictures::new(vision, files.as_ref(), config.device.weights);
        #[cfg(feature = "images")]
        if let Ok(processor) = place.processor() {
            // A square, which has the most tiles of those whose sides differ little.
            let layout = processor.layout(1024, 1024)?;
            pictures.tile = [layout.height, layout.width];
            pictures.tiles = mixlora::train::Tiles::of_one(layout.count());
        }
        Ok(Some(pictures))
    }
}

/// Whether a folder has no safetensors.
fn without_weights(dir: &Path) -> bool {
    let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
    dir.join("config.json").is_file()
        && !files.map(|file| file.path()).any(|path| path.extension().is_some_and(|end| end == "safetensors"))
}

/// The plan as a table, with alternatives if it does not fit.
pub fn text(plan: &Plan) -> String {
    let mib = |bytes: u64| format!("{:.1}", bytes as f64 / (1u64 << 20) as f64);
    let rows = plan.rows.iter().map(|(name, bytes)| vec![name.to_string(), mib(*bytes)]);
    let mut rows: Vec<Vec<String>> = rows.collect();
    rows.push(vec!["total".into(), mib(plan.total())]);
    let mut text = out::table(&["what", "MiB"], &rows);
    text += &format!("for {} sequences of {} tokens at a time", plan.shape.0, plan.shape.1);
    if let Some(seen) = plan.pictures {
        text += &format!(", {} of them rows of pictures", seen.rows);
    }
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
    if let Some(seen) = plan.pictures {
        text = text.trim_end().to_string() + "\n";
        text += "the tower looks before the first step: its workspace is not there beside what steps need\n";
        text += &format!(
            "features of {} pictures ({} tiles) take {} MiB more of the machine's memory",
            seen.pictures,
            seen.tiles,
            mib(seen.kept)
        );
        if seen.kept < seen.features {
            text += &format!(", and {} MiB are in files", mib(seen.features - seen.kept));
        }
    }
    text.trim_end().to_string() + "\n"
}
