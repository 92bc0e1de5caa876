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

/// Ops that run at once at most.
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
    let results = jobs.run(&devices, true)?;
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
    /// The same places once more, with buffers that are poisoned and guarded.
    fn again(&self) -> mixlora::Result<Self> {
        let again = |device: &Option<Device>| device.as_ref().map(Device::again).transpose();
        let devices = Devices { cpu: again(&self.cpu)?, gpu: again(&self.gpu)? };
        devices.cpu.iter().chain(&devices.gpu).for_each(|device| device.set_guard(true));
        Ok(devices)
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
    Ok(devices)
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

/// Ops with the cases that are to be run.
pub struct Jobs(Vec<(&'static OpSpec, Vec<Case>)>);

impl Jobs {
    /// The cases of ops that are wanted, by their index among the op's cases.
    pub fn of(ops: &[&'static OpSpec], wanted: impl Fn(usize) -> bool) -> Self {
        let cases = |op: &OpSpec| {
            let all = (op.cases)().into_iter().enumerate();
            all.filter(|(n, _)| wanted(*n)).map(|(_, case)| case).collect()
        };
        Jobs(ops.iter().map(|&op| (op, cases(op))).collect())
    }

    /// Runs every case on the devices, several ops side by side; with `derivatives`, the reference's gradients are
    /// compared with differences too. Each worker has devices of its own: a driver compiles the kernels of one device
    /// one after the other.
    pub fn run(self, devices: &Devices, derivatives: bool) -> Result<Vec<Tested>, Failure> {
        let names: Vec<&str> = devices.cpu.iter().chain(&devices.gpu).map(Device::name).collect();
        let what = format!("{} ops on {}", self.0.len(), names.join(" and "));
        let cases = self.0.iter().map(|(_, cases)| cases.len()).sum();
        let progress = Progress::new(&what, cases, "cases");
        let results: Vec<Mutex<Tested>> = self.0.iter().map(|(op, _)| Mutex::new(Tested::new(op))).collect();
        // The longest work comes first, so that no worker is left with it at the end.
        let mut order: Vec<usize> = (0..self.0.len()).collect();
        order.sort_by_key(|&i| std::cmp::Reverse(ops_list::variants(self.0[i].0)));
        let next = AtomicUsize::new(0);
        let work = |devices: Devices| {
            while let Some(&i) = order.get(next.fetch_add(1, Relaxed)) {
                let (op, cases) = &self.0[i];
                for case in cases {
                    let found = Outcome::of(op.name, case, &devices, derivatives);
                    results[i].lock().unwrap_or_else(PoisonError::into_inner).add(found);
                    progress.step();
                }
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let workers = cores.min(MOST_WORKERS).min(self.0.len());
        let each = (0..workers).map(|_| devices.again()).collect::<mixlora::Result<Vec<_>>>()?;
        std::thread::scope(|scope| {
            for devices in each {
                scope.spawn(|| work(devices));
            }
        });
        let results = results.into_iter();
        Ok(results.map(|tested| tested.into_inner().unwrap_or_else(PoisonError::into_inner)).collect())
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
