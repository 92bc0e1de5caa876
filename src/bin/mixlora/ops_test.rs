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

/// The largest number of ops that run at the same time.
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
    if results.iter().all(|result| result.failures.is_empty()) { Ok(()) } else { Err(Failure::Check) }
}

/// The ops of these names, or all.
pub fn choose(names: &[String]) -> Result<Vec<&'static OpSpec>, Failure> {
    if names.is_empty() {
        return Ok(ALL.to_vec());
    }
    let find_op = |name: &String| {
        ALL.iter().find(|op| op.name == name.trim()).copied().ok_or_else(|| {
            let known: Vec<_> = ALL.iter().map(|op| op.name).collect();
            Failure::Usage(format!("there is no op '{name}'; the ops are {}", known.join(", ")))
        })
    };
    names.iter().map(find_op).collect()
}

/// The devices under test.
#[derive(Default)]
pub struct Devices {
    pub cpu: Option<Device>,
    pub gpu: Option<Device>,
}

impl Devices {
    /// Opens the devices once more, with buffers that are poisoned and guarded.
    fn reopened(&self) -> mixlora::Result<Self> {
        let reopen = |device: &Option<Device>| device.as_ref().map(Device::again).transpose();
        let devices = Devices { cpu: reopen(&self.cpu)?, gpu: reopen(&self.gpu)? };
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

/// The best GPU, or with `software` a software adapter if there is no other. A missing GPU is skipped, unless
/// MIXLORA_REQUIRE_GPU=1.
pub fn gpu_if_any(software: bool) -> Result<Option<Device>, Failure> {
    match open_gpu(software) {
        Ok(gpu) => Ok(Some(gpu)),
        Err(error) if std::env::var("MIXLORA_REQUIRE_GPU").is_ok_and(|value| value == "1") => {
            Err(error.into())
        }
        Err(error @ (Error::NoAdapter(_) | Error::BelowFloor { .. })) => {
            out::note(&format!("GPU SKIPPED: {error}"));
            Ok(None)
        }
        Err(error) => Err(error.into()),
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

/// The worst figures over the cases of one op.
#[derive(Default)]
pub struct Tested {
    pub op: &'static str,
    pub cases: usize,
    shaders: Vec<&'static str>,
    variants: usize,
    /// The forward error on the CPU.
    pub cpu: Option<f64>,
    /// The forward error on the GPU.
    pub gpu: Option<f64>,
    /// The backward error on any device.
    backward: f64,
    gradcheck: Option<f64>,
    pub failures: Vec<String>,
}

fn worst(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.max(other)),
        (one, other) => one.or(other),
    }
}

impl Tested {
    fn new(op: &OpSpec) -> Self {
        Tested {
            op: op.name,
            shaders: op.shaders.iter().map(|shader| shader.name).collect(),
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

/// The figures of one case.
#[derive(Default)]
struct Outcome {
    cpu: Option<f64>,
    gpu: Option<f64>,
    backward: f64,
    gradcheck: Option<f64>,
    failures: Vec<String>,
}

impl Outcome {
    fn measure(op: &str, case: &Case, devices: &Devices, derivatives: bool) -> Self {
        let mut outcome = Outcome::default();
        outcome.cpu = devices.cpu.as_ref().map(|cpu| outcome.compare(op, case, cpu, "cpu"));
        outcome.gpu = devices.gpu.as_ref().map(|gpu| outcome.compare(op, case, gpu, "gpu"));
        if derivatives && case.gradcheck {
            match gradcheck(case) {
                Ok(error) => {
                    outcome.gradcheck = Some(error);
                    if error > GRADCHECK_BOUND {
                        outcome.failures.push(format!("{op} {}: gradcheck {error:.1e}", case.label));
                    }
                }
                Err(error) => outcome.failures.push(format!("{op} {}: gradcheck: {error}", case.label)),
            }
        }
        outcome
    }

    /// Returns the forward error and lists failed comparisons.
    fn compare(&mut self, op: &str, case: &Case, device: &Device, backend: &str) -> f64 {
        let place = format!("{op} {} on {backend}", case.label);
        match parity(case, device) {
            Ok(found) => {
                self.backward = self.backward.max(found.backward.max);
                if !found.holds() {
                    self.failures.push(format!("{place}: {found}"));
                }
                found.forward.max
            }
            Err(error) => {
                self.failures.push(format!("{place}: {error}"));
                f64::INFINITY
            }
        }
    }
}

/// Ops with the cases to run.
pub struct Jobs(Vec<(&'static OpSpec, Vec<Case>)>);

impl Jobs {
    /// Selects cases of ops by their index.
    pub fn of(ops: &[&'static OpSpec], wanted: impl Fn(usize) -> bool) -> Self {
        let cases = |op: &OpSpec| {
            let all = (op.cases)().into_iter().enumerate();
            all.filter(|(index, _)| wanted(*index)).map(|(_, case)| case).collect()
        };
        Jobs(ops.iter().map(|&op| (op, cases(op))).collect())
    }

    /// Runs every case on the devices, several ops in parallel; with `derivatives`, the gradients of the reference are
    /// also compared with differences. Each worker opens the devices itself, because a driver compiles the kernels of
    /// one device sequentially.
    pub fn run(self, devices: &Devices, derivatives: bool) -> Result<Vec<Tested>, Failure> {
        let names: Vec<&str> = devices.cpu.iter().chain(&devices.gpu).map(Device::name).collect();
        let what = format!("{} ops on {}", self.0.len(), names.join(" and "));
        let cases = self.0.iter().map(|(_, cases)| cases.len()).sum();
        let progress = Progress::new(&what, cases, "cases");
        let results: Vec<Mutex<Tested>> = self.0.iter().map(|(op, _)| Mutex::new(Tested::new(op))).collect();
        // The longest work comes first, so that the workers finish at about the same time.
        let mut order: Vec<usize> = (0..self.0.len()).collect();
        order.sort_by_key(|&job| std::cmp::Reverse(ops_list::variants(self.0[job].0)));
        let next = AtomicUsize::new(0);
        let work = |devices: Devices| {
            while let Some(&job) = order.get(next.fetch_add(1, Relaxed)) {
                let (op, cases) = &self.0[job];
                for case in cases {
                    let found = Outcome::measure(op.name, case, &devices, derivatives);
                    results[job].lock().unwrap_or_else(PoisonError::into_inner).add(found);
                    progress.step();
                }
            }
        };
        let cores = std::thread::available_parallelism().map_or(1, |cores| cores.get());
        let workers = cores.min(MOST_WORKERS).min(self.0.len());
        let each = (0..workers).map(|_| devices.reopened()).collect::<mixlora::Result<Vec<_>>>()?;
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
    let show = |error: Option<f64>| error.map_or("-".to_string(), out::error);
    let rows: Vec<Vec<String>> = results
        .iter()
        .map(|tested| {
            vec![
                tested.op.to_string(),
                tested.cases.to_string(),
                if tested.shaders.is_empty() { "-".into() } else { tested.shaders.join(" ") },
                tested.variants.to_string(),
                show(tested.cpu),
                show(tested.gpu),
                out::error(tested.backward),
                show(tested.gradcheck),
                if tested.failures.is_empty() {
                    "ok".into()
                } else {
                    format!("{} FAILED", tested.failures.len())
                },
            ]
        })
        .collect();
    let head = ["op", "cases", "shader", "variants", "cpu", "gpu", "backward", "gradcheck", "verdict"];
    let mut text = out::table(&head, &rows);
    for failure in results.iter().flat_map(|tested| &tested.failures) {
        text += &format!("FAILED {failure}\n");
    }
    let cases: usize = results.iter().map(|tested| tested.cases).sum();
    let failed: usize = results.iter().map(|tested| tested.failures.len()).sum();
    let names: Vec<&str> = devices.cpu.iter().chain(&devices.gpu).map(Device::name).collect();
    text + &format!("{} ops, {cases} cases on {}: {failed} failed\n", results.len(), names.join(" and "))
}

fn report(results: &[Tested], devices: &Devices) -> Value {
    let ops = results.iter().map(|tested| {
        json!({
            "op": tested.op,
            "cases": tested.cases,
            "shaders": tested.shaders,
            "variants": tested.variants,
            "cpu": tested.cpu,
            "gpu": tested.gpu,
            "backward": tested.backward,
            "gradcheck": tested.gradcheck,
            "failures": tested.failures,
            "holds": tested.failures.is_empty(),
        })
    });
    json!({
        "version": env!("CARGO_PKG_VERSION"),
        "cpu": devices.cpu.is_some(),
        "gpu": devices.gpu.as_ref().map(Device::name),
        "ops": ops.collect::<Vec<_>>(),
        "holds": results.iter().all(|tested| tested.failures.is_empty()),
    })
}
