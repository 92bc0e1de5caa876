//! `mixlora ops test`

use crate::progress::Progress;
use crate::{Failure, ops_list, out};
use mixlora::check::{GRADCHECK_BOUND, gradcheck, parity};
#[cfg(feature = "gpu")]
use mixlora::device::GpuOptions;
use mixlora::ops::{ALL, Case, OpSpec};
use mixlora::{Device, Error};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

/// Cases that run at once at most.
const MOST_WORKERS: usize = 8;

#[derive(clap::Args)]
#[command(after_help = "\
Every case of an op runs on the reference (plain f64 loops) and on each device, forward and backward, in buffers \
filled with NaN that end in sentinels. The columns show the largest error of any case relative to the largest \
value of that result. 'gradcheck' compares the reference's derivatives with central differences in f64.

Example: mixlora ops test --op rms_norm,reduce --device gpu")]
pub struct Args {
    /// auto (the CPU, and the best GPU), all (a software adapter too where there is no other), cpu, gpu, or part of an
    /// adapter's name.
    #[arg(long, default_value = "auto")]
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
    let jobs = Jobs::of(&ops, |_| true);
    let results = jobs.run(&devices, true);
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
#[derive(Default)]
pub struct Devices {
    pub cpu: Option<Device>,
    pub gpu: Option<Device>,
}

impl Devices {
    /// The same devices with buffers that are poisoned and guarded.
    pub fn guarded(self) -> Self {
        self.cpu.iter().chain(&self.gpu).for_each(|d| d.set_guard(true));
        self
    }
}

fn devices(name: &str) -> Result<Devices, Failure> {
    let devices = match name {
        "cpu" => Devices { cpu: Some(Device::cpu()), gpu: None },
        "auto" => Devices { cpu: Some(Device::cpu()), gpu: gpu_if_any(false)? },
        "all" => Devices { cpu: Some(Device::cpu()), gpu: gpu_if_any(true)? },
        "reference" => {
            let text =
                "--device reference is not a lane to test; use auto, cpu, gpu, all or an adapter's name";
            return Err(Failure::Usage(text.into()));
        }
        name => Devices { cpu: None, gpu: Some(crate::device(name)?) },
    };
    Ok(devices.guarded())
}

/// The best GPU; with `software` also a software adapter where there is no other. Without one the lane is skipped,
/// unless MIXLORA_REQUIRE_GPU=1.
pub fn gpu_if_any(software: bool) -> Result<Option<Device>, Failure> {
    match open_gpu(software) {
        Ok(gpu) => Ok(Some(gpu)),
        Err(e) if std::env::var("MIXLORA_REQUIRE_GPU").is_ok_and(|v| v == "1") => Err(e.into()),
        Err(e @ (Error::NoAdapter(_) | Error::BelowFloor { .. })) => {
            out::note(&format!("GPU SKIPPED: {e}"));
            Ok(None)
        }
        Err(e) => Err(e.into()),
    }
}

#[cfg(feature = "gpu")]
fn open_gpu(software: bool) -> mixlora::Result<Device> {
    let options = GpuOptions::from_env();
    Device::gpu_with(&GpuOptions { software: software || options.software, ..options })
}

#[cfg(not(feature = "gpu"))]
fn open_gpu(_: bool) -> mixlora::Result<Device> {
    Device::parse("gpu")
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

fn worst(a: Option<f64>, b: Option<f64>) -> Option<f64> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.max(b)),
        (a, b) => a.or(b),
    }
}

impl Tested {
    fn new(op: &OpSpec) -> Self {
        Tested {
            op: op.name,
            shaders: op.shaders.iter().map(|s| s.name).collect(),
            variants: ops_list::variants(op),
            ..Tested::default()
        }
    }

    fn add(&mut self, case: Outcome) {
        self.cases += 1;
        self.cpu = worst(self.cpu, case.cpu);
        self.gpu = worst(self.gpu, case.gpu);
        self.backward = self.backward.max(case.backward);
        self.gradcheck = worst(self.gradcheck, case.gradcheck);
        self.failures.extend(case.failures);
    }
}

/// Figures of one case.
#[derive(Default)]
struct Outcome {
    cpu: Option<f64>,
    gpu: Option<f64>,
    backward: f64,
    gradcheck: Option<f64>,
    failures: Vec<String>,
}

impl Outcome {
    fn of(op: &str, case: &Case, devices: &Devices, derivatives: bool) -> Self {
        let mut outcome = Outcome::default();
        outcome.cpu = devices.cpu.as_ref().map(|cpu| outcome.compare(op, case, cpu, "cpu"));
        outcome.gpu = devices.gpu.as_ref().map(|gpu| outcome.compare(op, case, gpu, "gpu"));
        if derivatives && case.gradcheck {
            match gradcheck(case) {
                Ok(e) => {
                    outcome.gradcheck = Some(e);
                    if e > GRADCHECK_BOUND {
                        outcome.failures.push(format!("{op} {}: gradcheck {e:.1e}", case.label));
                    }
                }
                Err(e) => outcome.failures.push(format!("{op} {}: gradcheck: {e}", case.label)),
            }
        }
        outcome
    }

    /// The forward error; whatever does not hold goes on the list.
    fn compare(&mut self, op: &str, case: &Case, device: &Device, lane: &str) -> f64 {
        let place = format!("{op} {} on {lane}", case.label);
        match parity(case, device) {
            Ok(p) => {
                self.backward = self.backward.max(p.backward.max);
                if !p.holds() {
                    self.failures.push(format!("{place}: {p}"));
                }
                p.forward.max
            }
            Err(e) => {
                self.failures.push(format!("{place}: {e}"));
                f64::INFINITY
            }
        }
    }
}

/// Cases of ops to be run, in the order of the ops.
pub struct Jobs {
    ops: Vec<&'static OpSpec>,
    /// Index of the op, and one of its cases.
    cases: Vec<(usize, Case)>,
}

impl Jobs {
    /// The cases of ops that are wanted, by their index among the op's cases.
    pub fn of(ops: &[&'static OpSpec], wanted: impl Fn(usize) -> bool) -> Self {
        let of_op = |(i, op): (usize, &&'static OpSpec)| {
            let cases = (op.cases)().into_iter().enumerate();
            cases.filter(|(n, _)| wanted(*n)).map(|(_, case)| (i, case)).collect::<Vec<_>>()
        };
        Jobs { ops: ops.to_vec(), cases: ops.iter().enumerate().flat_map(of_op).collect() }
    }

    /// Runs every case on the devices, several side by side, so that kernels are compiled on all cores; with
    /// `derivatives`, the reference's gradients are compared with differences too.
    pub fn run(self, devices: &Devices, derivatives: bool) -> Vec<Tested> {
        let names: Vec<&str> = devices.cpu.iter().chain(&devices.gpu).map(Device::name).collect();
        let what = format!("{} ops on {}", self.ops.len(), names.join(" and "));
        let progress = Progress::new(&what, self.cases.len(), "cases");
        let results: Mutex<Vec<Tested>> = Mutex::new(self.ops.iter().map(|op| Tested::new(op)).collect());
        let next = AtomicUsize::new(0);
        let work = || {
            while let Some((i, case)) = self.cases.get(next.fetch_add(1, Relaxed)) {
                let found = Outcome::of(self.ops[*i].name, case, devices, derivatives);
                let mut results = results.lock().unwrap_or_else(PoisonError::into_inner);
                results[*i].add(found);
                progress.step();
            }
        };
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get().min(MOST_WORKERS));
        std::thread::scope(|scope| (0..workers).for_each(|_| drop(scope.spawn(work))));
        results.into_inner().unwrap_or_else(PoisonError::into_inner)
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
