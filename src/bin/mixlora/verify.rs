//! `mixlora verify`

use crate::{Failure, ops_test, out};
use mixlora::Device;
use mixlora::check::golden::{BOUND, Replay, find_files, replay};
use serde_json::json;
use std::path::PathBuf;

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
    /// cpu, gpu (the best adapter), reference (f64), all (these three), or part of an adapter's name.
    #[arg(long, default_value = "all")]
    device: String,
    /// Print JSON instead of lines.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let files = find_files(&args.paths)?;
    let devices = match args.device.as_str() {
        "all" => {
            let mut all = vec![Device::reference(), Device::cpu()];
            all.extend(ops_test::gpu_if_any()?);
            all
        }
        name => vec![crate::device(name)?],
    };
    let mut results = Vec::new();
    for file in &files {
        out::progress(&format!("replaying {}", file.display()));
        let lanes = devices.iter().map(|d| Ok((d.name().to_string(), replay(file, d)?)));
        let lanes = lanes.collect::<Result<Vec<_>, mixlora::Error>>()?;
        if !args.json {
            out::text(&line(&lanes))?;
        }
        results.push(lanes);
    }
    let failed = results.iter().filter(|lanes| !lanes.iter().all(|(_, r)| r.holds())).count();
    if args.json {
        out::json(&report(&results))?;
    } else {
        let names: Vec<&str> = devices.iter().map(Device::name).collect();
        out::text(&format!(
            "{} files on {}: {failed} failed (bound {BOUND:.0e})",
            files.len(),
            names.join(", ")
        ))?;
    }
    if failed == 0 { Ok(()) } else { Err(Failure::Check) }
}

/// One line per file; a file that fails is followed by every tensor that is out of bounds.
fn line(lanes: &[(String, Replay)]) -> String {
    let (_, first) = &lanes[0];
    let holds = lanes.iter().all(|(_, r)| r.holds());
    let name = first.path.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
    let mut text = format!("{} {:5} {name}: ", if holds { "ok    " } else { "FAILED" }, first.kind);
    text += &match lanes.iter().all(|(_, r)| r.choices) {
        true => "choices agree".to_string(),
        false => "CHOICES DIFFER".to_string(),
    };
    // The worst over the devices, tensor by tensor.
    for (i, (tensor, _)) in first.errors.iter().enumerate() {
        let worst = lanes.iter().filter_map(|(_, r)| r.errors.get(i)).fold(0f64, |w, e| w.max(e.1));
        text += &format!(", {tensor} {}", out::error(worst));
    }
    for (device, r) in lanes.iter().filter(|(_, r)| !r.holds()) {
        let bad: Vec<String> =
            r.errors.iter().filter(|(_, e)| *e > BOUND).map(|(t, e)| format!("{t} {e:.1e}")).collect();
        let choices = if r.choices { "" } else { " choices differ" };
        text += &format!("\n       on {device}:{choices} {}", bad.join(", "));
    }
    text
}

fn report(results: &[Vec<(String, Replay)>]) -> serde_json::Value {
    let lane = |(device, r): &(String, Replay)| {
        let errors: serde_json::Map<_, _> = r.errors.iter().map(|(t, e)| (t.clone(), json!(e))).collect();
        json!({ "device": device, "choices_agree": r.choices, "errors": errors, "worst": r.worst().1, "holds": r.holds() })
    };
    let files = results.iter().map(|lanes| {
        json!({
            "path": lanes[0].1.path,
            "kind": lanes[0].1.kind,
            "devices": lanes.iter().map(lane).collect::<Vec<_>>(),
            "holds": lanes.iter().all(|(_, r)| r.holds()),
        })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "bound": BOUND,
        "files": files.collect::<Vec<_>>(),
        "holds": results.iter().flatten().all(|(_, r)| r.holds()),
    })
}
