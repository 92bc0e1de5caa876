//! Where tensors live and ops run.
//!
//! Three lanes: the **reference** (plain f64 loops, the specification), the **CPU** (rayon, f32) and the
//! **GPU** (WGSL through wgpu, f32). No globals: a [`Device`] is a cheap handle that is passed around.

mod arena;
mod free;
mod host;
mod memory;
mod place;

// Without GPUs, nothing looks at what is to be launched.
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
mod dispatch;
#[cfg_attr(not(feature = "gpu"), allow(dead_code))]
mod options;
pub mod parts;
mod shader;
mod stats;

#[cfg(not(feature = "gpu"))]
mod absent;
#[cfg(feature = "gpu")]
mod adapter;
#[cfg(feature = "gpu")]
mod buffer;
#[cfg(feature = "gpu")]
mod coop;
#[cfg(feature = "gpu")]
mod gpu;
#[cfg(feature = "gpu")]
mod kept;
#[cfg(feature = "gpu")]
mod kernel;
#[cfg(feature = "gpu")]
mod pending;
#[cfg(feature = "gpu")]
mod pipelines;
#[cfg(feature = "gpu")]
mod pool;
#[cfg(feature = "gpu")]
mod record;
#[cfg(feature = "gpu")]
mod recorder;
#[cfg(feature = "gpu")]
mod tuned;

#[cfg(feature = "gpu")]
pub use self::{
    adapter::{AdapterSummary, FloorLimit},
    gpu::Gpu,
    pending::Pending,
};
#[cfg(not(feature = "gpu"))]
pub(crate) use absent::GpuBuffer;
#[cfg(not(feature = "gpu"))]
pub use absent::{Gpu, Pending};
#[cfg(feature = "gpu")]
pub(crate) use buffer::GpuBuffer;
pub use dispatch::compose;
pub(crate) use dispatch::{Bind, Dispatch, Grid};
pub use host::{Cpu, Host};
pub use memory::Memory;
pub use options::{AdapterClass, GpuOptions};
pub(crate) use options::{CoopSize, Tuned};
pub use place::Place;
pub(crate) use place::unix_time;
pub use shader::{Backends, COOP_8, COOP_16, Entry, Field, MAX_PARAM_BYTES, PORTABLE, Shader, Variant};
pub(crate) use shader::{Parameters, params};
pub use stats::{KernelTime, Launched, Stats};

use crate::{Error, Result};
use std::path::Path;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a mutex guards, also after a thread that held it has panicked: what is guarded here stays whole at every step,
/// and one thread's panic must not become everyone's.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Threads that may be asked for on a machine with few cores.
const MOST_THREADS: usize = 256;

/// A place where tensors live and ops run. Cloning is cheap and gives the same device.
#[derive(Clone)]
pub enum Device {
    /// Plain f64 loops on one thread: slow and clear, what the other lanes are compared with.
    Reference,
    /// Host memory, rayon threads, f32.
    Cpu(Arc<Cpu>),
    /// A wgpu adapter, f32; builds without feature `gpu` have none.
    Gpu(Arc<Gpu>),
}

impl Device {
    /// The f64 reference device.
    pub fn reference() -> Self {
        Device::Reference
    }

    /// The CPU, on rayon's global thread pool.
    pub fn cpu() -> Self {
        Device::Cpu(Arc::default())
    }

    /// A CPU device whose tensors have shapes and no memory, to count what would be made: nothing can be computed.
    pub(crate) fn shapes_only() -> Self {
        Device::Cpu(Arc::new(Cpu::shapes_only()))
    }

    /// Whether tensors have shapes and no memory.
    pub(crate) fn is_shapes_only(&self) -> bool {
        matches!(self, Device::Cpu(c) if c.shapes_only)
    }

    /// Refuses a number of threads that is 0, or far beyond the machine's cores: to start them takes minutes.
    ///
    /// # Errors
    /// The error has the range.
    pub fn check_threads(threads: usize) -> Result<()> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let most = MOST_THREADS.max(4 * cores);
        if (1..=most).contains(&threads) {
            return Ok(());
        }
        Err(Error::config("threads", threads, format!("in 1..={most} on this machine")))
    }

    /// The CPU with its own pool of `threads` threads. Results do not depend on the number.
    ///
    /// # Errors
    /// `threads` is 0 or far beyond the machine's cores, or the operating system gives no threads.
    pub fn cpu_with_threads(threads: usize) -> Result<Self> {
        Device::check_threads(threads)?;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .build()
            .map_err(|error| Error::refused("threads", error.to_string()))?;
        Ok(Device::Cpu(Arc::new(Cpu::with_threads(pool))))
    }

    /// The device that `MIXLORA_DEVICE` names, else the best of the machine: discrete GPU, then integrated GPU, then the
    /// CPU. With `MIXLORA_REQUIRE_GPU=1` the best is a GPU or an error.
    pub fn auto() -> Result<Self> {
        Device::parse("auto")
    }

    /// What `auto` stands for by `MIXLORA_DEVICE`.
    pub fn named_by_environment() -> Option<String> {
        let name = std::env::var("MIXLORA_DEVICE").ok();
        name.filter(|name| !name.is_empty() && name != "auto")
    }

    fn best(cache: Option<&Path>) -> Result<Self> {
        let required = std::env::var("MIXLORA_REQUIRE_GPU").is_ok_and(|v| v == "1");
        match Gpu::best(&GpuOptions::with_cache(cache)) {
            Ok(gpu) => return Ok(Device::Gpu(gpu)),
            Err(e) if required => return Err(e),
            Err(_) => {}
        }
        Ok(Device::cpu())
    }

    /// Best GPU of the machine. A software adapter is taken only when it is the only one and `MIXLORA_REQUIRE_GPU=1` is
    /// set: it is slower than the CPU. [`gpu_named`](Device::gpu_named) and [`GpuOptions::software`] take it too.
    ///
    /// # Errors
    /// There is none, it is below the floor of this crate, or it could not be opened.
    pub fn gpu() -> Result<Self> {
        Device::gpu_with(&GpuOptions::from_env())
    }

    /// The same with given options, whatever the environment says.
    pub fn gpu_with(options: &GpuOptions) -> Result<Self> {
        Ok(Device::Gpu(Gpu::best(options)?))
    }

    /// The first adapter whose name contains `name` (case ignored), software adapters included.
    pub fn gpu_named(name: &str) -> Result<Self> {
        Ok(Device::Gpu(Gpu::named(name, &GpuOptions::from_env())?))
    }

    /// Another device on the same adapter, with a queue of its own; the CPU and the reference are themselves.
    ///
    /// # Errors
    /// The adapter could not be opened again.
    pub fn again(&self) -> Result<Self> {
        match self {
            Device::Gpu(gpu) => Ok(Device::Gpu(gpu.again()?)),
            other => Ok(other.clone()),
        }
    }

    /// A device of the host application, shared. Nothing of it is changed: no handlers, no limits.
    ///
    /// # Errors
    /// The device's limits are below the floor of this crate; the error names the limit.
    #[cfg(feature = "gpu")]
    pub fn from_wgpu(adapter: &wgpu::Adapter, device: wgpu::Device, queue: wgpu::Queue) -> Result<Self> {
        Ok(Device::Gpu(Gpu::shared(adapter, device, queue)?))
    }

    /// The adapters of the machine, best first.
    #[cfg(feature = "gpu")]
    pub fn list() -> Vec<AdapterSummary> {
        adapter::list()
    }

    /// `cpu`, `gpu`, `reference`, `auto`, or part of an adapter's name.
    pub fn parse(text: &str) -> Result<Self> {
        Device::parse_with_cache(text, None)
    }

    /// The same; a GPU keeps its compiled kernels in that folder between runs, and starts with those of earlier ones.
    pub fn parse_with_cache(text: &str, cache: Option<&Path>) -> Result<Self> {
        match text {
            "cpu" => Ok(Device::cpu()),
            "reference" => Ok(Device::reference()),
            "auto" => match Device::named_by_environment() {
                Some(name) => Device::parse_with_cache(&name, cache),
                None => Device::best(cache),
            },
            "" => Err(Error::config("device", "empty", "cpu, gpu, auto or part of an adapter's name")),
            "gpu" => Device::gpu_with(&GpuOptions::with_cache(cache)),
            name => Ok(Device::Gpu(Gpu::named(name, &GpuOptions::with_cache(cache))?)),
        }
    }

    /// `reference`, `cpu` or the adapter's name.
    pub fn name(&self) -> &str {
        match self {
            Device::Reference => "reference",
            Device::Cpu(_) => "cpu",
            Device::Gpu(g) => g.name(),
        }
    }

    /// Byte counters and budget; none on the reference device.
    pub fn memory(&self) -> Option<&Memory> {
        match self {
            Device::Reference => None,
            Device::Cpu(c) => Some(&c.memory),
            Device::Gpu(g) => Some(g.memory()),
        }
    }

    /// Whether products may round their operands to f16: a GPU that uses cooperative matrices.
    pub fn rounds_operands(&self) -> bool {
        match self {
            Device::Gpu(g) => g.coop_note().is_none(),
            _ => false,
        }
    }

    /// Bytes that can still be given to this device: of the machine, or all that a GPU with memory of its own has. None
    /// where that is not known.
    pub fn free_memory(&self) -> Option<u64> {
        match self {
            Device::Reference | Device::Cpu(_) => free::free_memory(),
            Device::Gpu(g) if matches!(g.class(), AdapterClass::Integrated | AdapterClass::Software) => {
                free::free_memory()
            }
            Device::Gpu(g) => g.heap_bytes(),
        }
    }

    /// True for handles of one device.
    pub fn same(&self, other: &Device) -> bool {
        match (self, other) {
            (Device::Reference, Device::Reference) => true,
            (Device::Cpu(a), Device::Cpu(b)) => Arc::ptr_eq(a, b),
            (Device::Gpu(a), Device::Gpu(b)) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }

    /// Submits what is recorded and waits until the device has done it. Reports any error so far.
    pub fn sync(&self) -> Result<()> {
        match self {
            Device::Gpu(g) => g.sync(),
            _ => Ok(()),
        }
    }

    /// Guard mode, for tests: new buffers are filled with NaN and end in a sentinel.
    ///
    /// Set it before the first tensor is made. See [`Device::check_guards`].
    pub fn set_guard(&self, on: bool) {
        match self {
            Device::Reference => {}
            Device::Cpu(c) => c.guard.store(on, Relaxed),
            Device::Gpu(g) => g.set_guard(on),
        }
    }

    /// False when a kernel wrote behind a buffer since guard mode was switched on or last checked.
    /// On the CPU a buffer is checked when it is dropped.
    pub fn check_guards(&self) -> Result<bool> {
        match self {
            Device::Reference => Ok(true),
            Device::Cpu(c) => Ok(!c.take_broken()),
            Device::Gpu(g) => g.check_guards(),
        }
    }
}

impl std::fmt::Debug for Device {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Device({})", self.name())
    }
}
