//! `mixlora verify`

use crate::device_args::WeightsArgs;
use crate::model_path::model_path;
use crate::progress::Progress;
use crate::{Failure, ops_test, out};
use mixlora::Device;
use mixlora::check::golden::{
    BOUND, Replay, find_files, is_known_kind, named_kind, needs_model, replay, replay_model,
};
use mixlora::model::{Model, ModelFiles, Weights};
use serde_json::json;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(after_help = "\
A reference file holds the tensors of one adapted layer, its configuration, and its outputs and gradients as an \
independent implementation computed them in f64. The layer is built from the configuration, runs forward and \
backward, and every tensor is compared: the error is relative to max(the tensor's largest value, a floor), where \
the floor is 1 for gradients that are zero on paper (router gradients when a single renormalised gate is 1) and 0 \
otherwise. Choices must agree in order (in token kinds: as sets, and in order where scores are more than 1e-5 \
apart).

Example: mixlora verify --device all tests/golden")]
pub struct Args {
    /// Reference files, or folders of them.
    #[arg(required = true)]
    paths: Vec<PathBuf>,
    /// auto (the f64 reference, the CPU, and the best GPU), all (a software adapter too where there is no other),
    /// reference, cpu, gpu, or part of an adapter's name.
    #[arg(long, default_value = "auto")]
    device: String,
    /// The model that files of whole-model kinds were made with: a .gguf file or a Hugging Face directory.
    #[arg(long, value_parser = model_path())]
    model: Option<PathBuf>,
    /// As in other commands, but f32 where it is not given: the values were made with f32.
    #[command(flatten)]
    weights: WeightsArgs,
    /// Only files of these kinds of the method family; may be given several times.
    #[arg(long)]
    kind: Vec<String>,
    /// Print JSON instead of lines.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let mut files = find_files(&args.paths)?;
    if args.model.is_none() {
        // Files named on the command line are kept: their error says that they need a model.
        let mut left_out = 0;
        let mut kept = Vec::with_capacity(files.len());
        for file in files {
            if needs_model(&file)? && !args.paths.contains(&file) {
                left_out += 1;
            } else {
                kept.push(file);
            }
        }
        files = kept;
        if left_out > 0 {
            out::note(&format!("left out, since they need --model: {left_out}"));
        }
        if files.is_empty() {
            return Err(Failure::Usage("every file needs a model: give --model".into()));
        }
    }
    files = of_kinds(files, &args.kind)?;
    let devices = match args.device.as_str() {
        name @ ("auto" | "all") => {
            let mut all = vec![Device::reference(), Device::cpu()];
            all.extend(ops_test::gpu_if_any(name == "all")?);
            all
        }
        name => vec![crate::device(name)?],
    };
    let mut results = Vec::new();
    let names: Vec<&str> = devices.iter().map(Device::name).collect();
    let progress = Progress::new(&format!("replaying on {}", names.join(", ")), files.len(), "files");
    for file in &files {
        let replays =
            devices.iter().map(|device| Ok((device.name().to_string(), replay_one(file, device, args)?)));
        let replays = replays.collect::<Result<Vec<_>, mixlora::Error>>()?;
        if !args.json {
            out::text(&line(&replays))?;
        }
        results.push(replays);
        progress.step();
    }
    drop(progress);
    let failed = results.iter().filter(|replays| !replays.iter().all(|(_, replay)| replay.holds())).count();
    if args.json {
        out::json(&report(&results))?;
    } else {
        out::text(&format!(
            "{} files on {}: {failed} failed (bound {BOUND:.0e})",
            files.len(),
            names.join(", ")
        ))?;
    }
    if failed == 0 { Ok(()) } else { Err(Failure::Check) }
}

/// The files of the kinds that were asked for; of all where none was, without those that this version does not know,
/// which are listed.
fn of_kinds(files: Vec<PathBuf>, kinds: &[String]) -> Result<Vec<PathBuf>, Failure> {
    let mut kept = Vec::with_capacity(files.len());
    let mut unknown: BTreeMap<String, usize> = BTreeMap::new();
    for file in files {
        match named_kind(&file)? {
            Some(kind) if kinds.contains(&kind) => kept.push(file),
            _ if !kinds.is_empty() => {}
            Some(kind) if !is_known_kind(&kind) => *unknown.entry(kind).or_default() += 1,
            _ => kept.push(file),
        }
    }
    if !unknown.is_empty() {
        let each: Vec<String> = unknown.iter().map(|(kind, count)| format!("{kind} ({count})")).collect();
        let total: usize = unknown.values().sum();
        out::note(&format!(
            "left out, of kinds that this version does not know: {total}: {}",
            each.join(", ")
        ));
    }
    if kept.is_empty() {
        return Err(Failure::Usage("no file is of a kind that can be replayed".into()));
    }
    Ok(kept)
}

/// Replays a file, with the model if its kind needs one.
fn replay_one(file: &Path, device: &Device, args: &Args) -> Result<Replay, mixlora::Error> {
    if !needs_model(file)? {
        return replay(file, device);
    }
    let Some(model) = &args.model else {
        let what = "needs the model it was made with: give --model".to_string();
        return Err(mixlora::Error::File { path: file.to_path_buf(), what });
    };
    #[cfg(feature = "tokenizer")]
    if file.extension().is_some_and(|extension| extension == "jsonl") {
        return mixlora::check::golden::replay_tokens(file, &mixlora::text::ModelText::open(model)?);
    }
    let weights = args.weights.given().unwrap_or(Weights::F32);
    replay_model(file, &|| Model::load(&ModelFiles::open(model)?, device, &weights.into()))
}

/// One line per file; lines with every tensor out of bounds follow a file that fails.
fn line(replays: &[(String, Replay)]) -> String {
    let (_, first) = &replays[0];
    let holds = replays.iter().all(|(_, replay)| replay.holds());
    let name = first.path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    let mut text = format!("{} {:5} {name}: ", if holds { "ok    " } else { "FAILED" }, first.kind);
    let agree = replays.iter().all(|(_, replay)| replay.choices);
    text += if agree { "choices agree" } else { "CHOICES DIFFER" };
    // The worst error over the devices, tensor by tensor.
    for (index, measured) in first.errors.iter().enumerate() {
        let errors = replays.iter().filter_map(|(_, replay)| replay.errors.get(index));
        let worst = errors.fold(0f64, |worst, measured| worst.max(measured.error));
        text += &format!(", {} {}", measured.name, out::error(worst));
    }
    for (device, replay) in replays.iter().filter(|(_, replay)| !replay.holds()) {
        let bad: Vec<String> = replay
            .errors
            .iter()
            .filter(|measured| !measured.holds())
            .map(|measured| format!("{} {:.1e}", measured.name, measured.error))
            .collect();
        let choices = if replay.choices { "" } else { " choices differ" };
        text += &format!("\n       on {device}:{choices} {}", bad.join(", "));
    }
    text
}

fn report(results: &[Vec<(String, Replay)>]) -> serde_json::Value {
    let on_device = |(device, replay): &(String, Replay)| {
        let errors: serde_json::Map<_, _> =
            replay.errors.iter().map(|measured| (measured.name.clone(), json!(measured.error))).collect();
        json!({ "device": device, "choices_agree": replay.choices, "errors": errors, "worst": replay.worst().map(|measured| measured.error), "holds": replay.holds() })
    };
    let files = results.iter().map(|replays| {
        json!({
            "path": replays[0].1.path,
            "kind": replays[0].1.kind,
            "devices": replays.iter().map(on_device).collect::<Vec<_>>(),
            "holds": replays.iter().all(|(_, replay)| replay.holds()),
        })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "bound": BOUND,
        "files": files.collect::<Vec<_>>(),
        "holds": results.iter().flatten().all(|(_, replay)| replay.holds()),
    })
}
