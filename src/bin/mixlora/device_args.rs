//! Options that the commands which compute share: the device, and what is let through when files are opened.

use crate::{Failure, open_device, out};
use mixlora::Device;
use mixlora::adapter::{Adapter, AdapterOptions};
use mixlora::model::{Llama, LoadOptions, ModelFiles};
use mixlora::train::DeviceOptions;
use std::path::Path;

#[derive(clap::Args)]
pub struct DeviceArgs {
    /// cpu, gpu, auto, or part of an adapter's name.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Threads of the CPU device; by default one per core.
    #[arg(long)]
    threads: Option<usize>,
    /// Bytes that the device may hold, for example 6GiB.
    #[arg(long, value_name = "SIZE")]
    memory_budget: Option<String>,
}

impl DeviceArgs {
    /// What a training run is told.
    pub fn options(&self) -> DeviceOptions {
        DeviceOptions {
            name: self.device.clone(),
            threads: self.threads,
            memory_budget: self.memory_budget.clone(),
            ..DeviceOptions::default()
        }
    }

    pub fn open(&self) -> Result<Device, Failure> {
        open_device(&self.options())
    }
}

/// What is let through when a model and an adapter are opened.
#[derive(clap::Args)]
pub struct CheckArgs {
    /// Take weights that hold NaN or infinite values as they are.
    #[arg(long)]
    allow_nonfinite: bool,
    /// Take an adapter that was trained on other weights, if its shapes fit.
    #[arg(long)]
    force: bool,
}

impl CheckArgs {
    /// A model; what is odd about it goes to stderr.
    pub fn model(&self, path: &Path, device: &Device, dequantize: bool) -> Result<Llama, Failure> {
        let options = LoadOptions { dequantize, allow_nonfinite: self.allow_nonfinite };
        let model = Llama::load(&ModelFiles::open(path)?, device, options)?;
        out::notes(model.notes());
        Ok(model)
    }

    /// An adapter on a model.
    pub fn adapter(&self, dir: &Path, model: &mut Llama) -> Result<Adapter, Failure> {
        Ok(Adapter::load_with(dir, model, AdapterOptions { force: self.force })?)
    }
}
