//! `mixlora ops test`

use crate::{Failure, ops_list, out};
use mixlora::check::{GRADCHECK_BOUND, gradcheck, parity};
use mixlora::ops::{ALL, Case, OpSpec};
use mixlora::{Device, Error};
use serde_json::{Value, json};

#[derive(clap::Args)]
#[command(after_help = "\
Every case of an op runs on the reference (plain f64 loops) and on each device, forward and backward, in buffers \
filled with NaN that end in sentinels. The columns show the largest error of any case relative to the largest \
value of that result. 'gradcheck' compares the reference's derivatives with central differences in f64.

Example: mixlora ops test --op rms_norm,reduce --device gpu")]
pub struct Args {
    /// cpu, gpu (the best adapter), all (both), or part of an adapter's name.
    #[arg(long, default_value = "all")]
    device: String,
    /// Only these ops, separated by commas.
    #[arg(long, value_delimiter = ',')]
    op: Vec<String>,
    /// Print JSON instead of a table.
    #[arg(long)]
    json: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let ops = choose(&args.op)?;
    let devices = devices(&args.device)?;
    let results: Vec<Tested> = ops.iter().map(|op| test(op, &devices)).collect();
    if args.json {
        out::json(&report(&results, &devices))?;
    } else {
        out::text(&render(&results, &devices))?;
    }
    if results.iter().all(|r| r.failures.is_empty()) { Ok(()) } else { Err(Failure::Check) }
}

/// The ops of these names, or all.
pub fn choose(names: &[String]) -> Result<Vec<&'static OpSpec>, Failure> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    let find = |name: &String| {
        ALL.iter().find(|op| op.name == name.trim()).copied().ok_or_else(|| {
            let known: Vec<_> = ALL.iter().map(|op| op.name).collect();
            Failure::Usage(format!("there is no op '{name}'; the ops are {}", known.join(", ")))
        })
    };
    names.iter().map(find).collect()
}

/// The devices under test.
struct Devices {
    cpu: Option<Device>,
    gpu: Option<Device>,
}

fn devices(name: &str) -> Result<Devices, Failure> {
    let devices = match name {
        "cpu" => Devices { cpu: Some(Device::cpu()), gpu: None },
        "all" => Devices { cpu: Some(Device::cpu()), gpu: gpu_if_any()? },
        "reference" | "auto" => {
            let text =
                format!("--device {name} is not a lane to test; use cpu, gpu, all or an adapter's name");
            return Err(Failure::Usage(text));
        }
        name => Devices { cpu: None, gpu: Some(crate::device(name)?) },
    };
    devices.cpu.iter().chain(&devices.gpu).for_each(|d| d.set_guard(true));
    Ok(devices)
}

/// The best GPU. Without one the lane is skipped, unless MIXLORA_REQUIRE_GPU=1.
pub fn gpu_if_any() -> Result<Option<Device>, Failure> {
    match Device::parse("gpu") {
        Ok(gpu) => Ok(Some(gpu)),
        Err(e) if std::env::var("MIXLORA_REQUIRE_GPU").is_ok_and(|v| v == "1") => Err(e.into()),
        Err(e @ (Error::NoAdapter(_) | Error::BelowFloor { .. })) => {
            out::note(&format!("GPU SKIPPED: {e}"));
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

/// Worst figures over the cases of one op.
#[derive(Default)]
pub struct Tested {
    pub op: &'static str,
    pub cases: usize,
    shaders: Vec<&'static str>,
    variants: usize,
    /// Forward, on each device.
    pub cpu: Option<f64>,
    pub gpu: Option<f64>,
    /// Backward, on any device.
    backward: f64,
    gradcheck: Option<f64>,
    pub failures: Vec<String>,
}

fn test(op: &'static OpSpec, devices: &Devices) -> Tested {
    out::progress(&format!("testing {}", op.name));
    let mut t = lanes(op, devices.cpu.as_ref(), devices.gpu.as_ref());
    for case in (op.cases)().iter().filter(|c| c.gradcheck) {
        match gradcheck(case) {
            Ok(e) => {
                t.gradcheck = Some(t.gradcheck.unwrap_or(0.0).max(e));
                if e > GRADCHECK_BOUND {
                    t.failures.push(format!("{} {}: gradcheck {e:.1e}", op.name, case.label));
                }
            }
            Err(e) => t.failures.push(format!("{} {}: gradcheck: {e}", op.name, case.label)),
        }
    }
    t
}

/// Parity of every case of an op on the given devices.
pub fn lanes(op: &'static OpSpec, cpu: Option<&Device>, gpu: Option<&Device>) -> Tested {
    let cases = (op.cases)();
    let mut t = Tested {
        op: op.name,
        cases: cases.len(),
        shaders: op.shaders.iter().map(|s| s.name).collect(),
        variants: ops_list::variants(op),
        ..Tested::default()
    };
    for case in &cases {
        if let Some(cpu) = cpu {
            let e = compare(op, case, cpu, "cpu", &mut t);
            t.cpu = Some(t.cpu.unwrap_or(0.0).max(e));
        }
        if let Some(gpu) = gpu {
            let e = compare(op, case, gpu, "gpu", &mut t);
            t.gpu = Some(t.gpu.unwrap_or(0.0).max(e));
        }
    }
    t
}

/// The forward error of one case; whatever does not hold goes on the list.
fn compare(op: &OpSpec, case: &Case, device: &Device, lane: &str, t: &mut Tested) -> f64 {
    let place = format!("{} {} on {lane}", op.name, case.label);
    match parity(case, device) {
        Ok(p) => {
            t.backward = t.backward.max(p.backward.max);
            if !p.holds() {
                let (f, b) = (p.forward, p.backward);
                let mut text = format!(
                    "{place}: forward {:.1e} (nmse {:.1e}), backward {:.1e} (nmse {:.1e}), bound {:.1e} (nmse {:.1e})",
                    f.max, f.nmse, b.max, b.nmse, p.bound, p.nmse_bound
                );
                if !p.indices {
                    text += ", indices differ";
                }
                if !p.guards {
                    text += ", wrote behind a buffer";
                }
                t.failures.push(text);
            }
            p.forward.max
        }
        Err(e) => {
            t.failures.push(format!("{place}: {e}"));
            f64::INFINITY
        }
    }
}

fn render(results: &[Tested], devices: &Devices) -> String {
    let show = |e: Option<f64>| e.map_or("-".to_string(), out::error);
    let rows: Vec<Vec<String>> = results
        .iter()
        .map(|t| {
            vec![
                t.op.to_string(),
                t.cases.to_string(),
                if t.shaders.is_empty() { "-".into() } else { t.shaders.join(" ") },
                t.variants.to_string(),
                show(t.cpu),
                show(t.gpu),
                out::error(t.backward),
                show(t.gradcheck),
                if t.failures.is_empty() { "ok".into() } else { format!("{} FAILED", t.failures.len()) },
            ]
        })
        .collect();
    let head = ["op", "cases", "shader", "variants", "cpu", "gpu", "backward", "gradcheck", "verdict"];
    let mut text = out::table(&head, &rows);
    for failure in results.iter().flat_map(|t| &t.failures) {
        text += &format!("FAILED {failure}\n");
    }
    let (cases, failed): (usize, usize) =
        (results.iter().map(|t| t.cases).sum(), results.iter().map(|t| t.failures.len()).sum());
    let names: Vec<&str> = devices.cpu.iter().chain(&devices.gpu).map(Device::name).collect();
    text + &format!("{} ops, {cases} cases on {}: {failed} failed\n", results.len(), names.join(" and "))
}

fn report(results: &[Tested], devices: &Devices) -> Value {
    let ops = results.iter().map(|t| {
        json!({
            "op": t.op,
            "cases": t.cases,
            "shaders": t.shaders,
            "variants": t.variants,
            "cpu": t.cpu,
            "gpu": t.gpu,
            "backward": t.backward,
            "gradcheck": t.gradcheck,
            "failures": t.failures,
            "holds": t.failures.is_empty(),
        })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cpu": devices.cpu.is_some(),
        "gpu": devices.gpu.as_ref().map(Device::name),
        "ops": ops.collect::<Vec<_>>(),
        "holds": results.iter().all(|t| t.failures.is_empty()),
    })
}
