//! Options of commands that compute: the device, and checks of opened files.

use crate::{Failure, open_device, out};
use mixlora::Device;
use mixlora::adapter::{Adapter, AdapterOptions};
use mixlora::io::cache;
use mixlora::model::{LoadOptions, Model, ModelFiles, Weights};
use mixlora::train::DeviceOptions;
use std::path::Path;
use std::sync::Arc;

#[derive(clap::Args)]
pub struct DeviceArgs {
    /// auto (the best GPU, else the CPU), cpu, gpu, or part of an adapter's name.
    #[arg(long, default_value = "auto")]
    device: String,
    /// Threads of the CPU device; by default one per core.
    #[arg(long)]
    threads: Option<usize>,
    /// Bytes that the device may hold, for example 6GiB.
    #[arg(long, value_name = "SIZE")]
    memory_budget: Option<String>,
}

impl DeviceArgs {
    /// The device options of a training run.
    pub fn options(&self) -> DeviceOptions {
        DeviceOptions {
            name: self.device.clone(),
            threads: self.threads,
            memory_budget: self.memory_budget.clone(),
            ..DeviceOptions::default()
        }
    }

    /// Opens the device and describes it on stderr.
    pub fn open(&self) -> Result<Device, Failure> {
        let device = open_device(&self.options())?;
        out::note(&describe(&device, &self.device));
        Ok(device)
    }
}

/// One line about an open device and the reason for it, given the requested name.
pub fn describe(device: &Device, name: &str) -> String {
    match device {
        Device::Cpu(cpu) => {
            let threads = cpu.threads();
            let why = if name == "auto" { format!(" ({})", why_auto(device)) } else { String::new() };
            format!("device: cpu, {threads} threads{why}")
        }
        Device::Reference => "device: reference".into(),
        #[cfg(not(feature = "gpu"))]
        Device::Gpu(_) => format!("device: {}", device.name()),
        #[cfg(feature = "gpu")]
        Device::Gpu(gpu) => {
            let class = format!("{:?}", gpu.class()).to_lowercase();
            format!("device: {} ({}, {class})", device.name(), gpu.info().backend)
        }
    }
}

/// The reason why `auto` takes this device.
pub fn why_auto(auto: &Device) -> String {
    if let Some(name) = Device::named_by_environment() {
        return format!("MIXLORA_DEVICE is {name}");
    }
    #[cfg(feature = "gpu")]
    {
        use mixlora::device::AdapterClass;
        if let Device::Gpu(gpu) = auto {
            return match gpu.class() {
                AdapterClass::Software => {
                    "MIXLORA_REQUIRE_GPU=1 asks for a GPU, and this is the best adapter".into()
                }
                class => format!("it is the best adapter ({})", format!("{class:?}").to_lowercase()),
            };
        }
        let adapters = Device::list();
        match adapters.iter().find(|adapter| adapter.class != AdapterClass::Software) {
            Some(adapter) => match &adapter.below_floor {
                Some(reason) => reason.clone(),
                None => format!("'{}' could not be opened", adapter.name),
            },
            None if adapters.is_empty() => "there is no Vulkan, Metal or DX12 adapter".into(),
            None => "the only adapters are software drivers, which are slower than the CPU path".into(),
        }
    }
    #[cfg(not(feature = "gpu"))]
    {
        let _ = auto;
        "this build has no GPU support".into()
    }
}

/// The format of the weights, and what was said in its place before.
#[derive(clap::Args, Clone)]
pub struct WeightsArgs {
    /// The format of the model's matrices in memory: file (what they have there), or f32, bf16, f16, q8_0, q6_k, q5_k, q5_1,
    /// q5_0, q4_k, q4_1 or q4_0, to which they are quantised, or dequantised, while they are loaded. By default auto: file, but
    /// f32 for training on a CPU where that fits twice.
    #[arg(long, value_name = "FORMAT")]
    weights: Option<Weights>,
    #[arg(long, hide = true, conflicts_with = "weights")]
    keep_quantised: bool,
    #[arg(long, hide = true, conflicts_with_all = ["weights", "keep_quantised"])]
    dequantise: bool,
}

impl WeightsArgs {
    /// What was given, if anything was.
    pub fn given(&self) -> Option<Weights> {
        let before = |old: &str, weights: Weights| {
            out::note(&format!("note: {old} is now --weights {weights}"));
            Some(weights)
        };
        if self.keep_quantised {
            before("--keep-quantised", Weights::File)
        } else if self.dequantise {
            before("--dequantise", Weights::F32)
        } else {
            self.weights
        }
    }

    /// What was given, else auto.
    pub fn weights(&self) -> Weights {
        self.given().unwrap_or_default()
    }
}

/// Checks that can be relaxed when a model and an adapter are opened.
#[derive(clap::Args)]
pub struct CheckArgs {
    /// Take weights that hold NaN or infinite values as they are.
    #[arg(long)]
    allow_nonfinite: bool,
    /// Take an adapter that was trained on other weights, if its shapes fit.
    #[arg(long)]
    pub force: bool,
}

impl CheckArgs {
    /// Opens a model and prints notes about it on stderr.
    pub fn model(&self, path: &Path, device: &Device, weights: Weights) -> Result<Arc<Model>, Failure> {
        let cache = cache::folder(None).ok();
        let options = LoadOptions { weights, allow_nonfinite: self.allow_nonfinite, cache };
        let model = Model::load(&ModelFiles::open(path)?, device, &options)?;
        out::notes(model.notes());
        Ok(model)
    }

    /// Opens an adapter of a model.
    pub fn adapter(&self, dir: &Path, model: &Model) -> Result<Adapter, Failure> {
        let options = AdapterOptions { force: self.force, ..AdapterOptions::default() };
        let adapter = Adapter::load_with(dir, model, &options)?;
        adapter.notes().iter().for_each(|n| out::note(&format!("note: {n}")));
        Ok(adapter)
    }
}
