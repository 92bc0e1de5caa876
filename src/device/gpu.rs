//! A GPU: adapter, limits, error capture. Buffers are in `buffer.rs`, kernels in `kernel.rs`, recording in `record.rs`.

use super::adapter::{adapters, check_floor, heap_bytes};
use super::coop::{self, Coop};
use super::kept::Kept;
use super::lock;
use super::memory::Memory;
use super::options::{AdapterClass, CoopSize, GpuOptions, Tuned};
use super::pipelines::Pipelines;
use super::pool::Pool;
use super::recorder::Recorder;
use super::shader::MAX_PARAM_BYTES;
use super::tuned;
use crate::{Error, Result};
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

/// What went wrong outside of a call: filled by wgpu's callbacks, read at the next call.
#[derive(Debug, Default)]
pub(super) struct Trouble {
    pub lost: Mutex<Option<String>>,
    pub first: Mutex<Option<Error>>,
}

/// An open GPU device. Made through [`Device`](super::Device).
pub struct Gpu {
    pub(super) info: wgpu::AdapterInfo,
    pub(super) device: wgpu::Device,
    pub(super) queue: wgpu::Queue,
    pub(super) limits: wgpu::Limits,
    pub(super) features: wgpu::Features,
    heap_bytes: Option<u64>,
    pub(super) memory: Memory,
    pub(super) pool: Pool,
    pub(super) pipelines: Mutex<Pipelines>,
    pub(super) recorder: Mutex<Recorder>,
    pub(super) trouble: Arc<Trouble>,
    pub(super) guard: AtomicBool,
    pub(super) kept: Option<Kept>,
    /// The folder of the options, and what was measured in it.
    pub(super) cache: Option<PathBuf>,
    pub(super) tuned: Tuned,
    coop: Coop,
}

/// Why a device has no cooperative matrices unless its options say otherwise.
const NOT_ASKED: &str = "cooperative matrices were not asked for";

impl Gpu {
    pub(super) fn best(options: &GpuOptions) -> Result<Arc<Self>> {
        let all = adapters();
        let mut why = match all.first().map(|a| a.get_info().name) {
            None => {
                "no Vulkan, Metal or DX12 adapter found (on Debian: install mesa-vulkan-drivers)".to_string()
            }
            Some(name) => {
                format!("only software adapters found, which are used when asked for by name ('{name}')")
            }
        };
        for a in all {
            if AdapterClass::of(&a.get_info()) == AdapterClass::Software && !options.software {
                continue;
            }
            match Gpu::open(&a, a.limits(), options) {
                Ok(g) => return Ok(g),
                Err(e) => why = e.to_string(),
            }
        }
        Err(Error::NoAdapter(why))
    }

    pub(super) fn named(name: &str, options: &GpuOptions) -> Result<Arc<Self>> {
        let all = adapters();
        let wanted = name.to_lowercase();
        match all.iter().find(|a| a.get_info().name.to_lowercase().contains(&wanted)) {
            Some(a) => Gpu::open(a, a.limits(), options),
            None => {
                let names: Vec<_> = all.iter().map(|a| format!("'{}'", a.get_info().name)).collect();
                Err(Error::NoAdapter(format!(
                    "'{name}' matches none of: {}",
                    if names.is_empty() { "(no adapters)".into() } else { names.join(", ") }
                )))
            }
        }
    }

    /// Opens the adapter of a device once more, with the same options.
    pub(super) fn again(&self) -> Result<Arc<Self>> {
        let options =
            GpuOptions { coop: self.coop.was_asked_for(), cache: self.cache.clone(), software: true };
        match adapters().iter().find(|a| a.get_info() == self.info) {
            Some(a) => Gpu::open(a, self.limits.clone(), &options),
            None => Err(Error::NoAdapter(format!("'{}' is there no more", self.info.name))),
        }
    }

    /// Opens an adapter with the given limits (its own, or the floor).
    pub(super) fn open(
        adapter: &wgpu::Adapter,
        limits: wgpu::Limits,
        options: &GpuOptions,
    ) -> Result<Arc<Self>> {
        let info = adapter.get_info();
        check_floor(&info.name, &limits)?;
        let mut wanted = wgpu::Features::IMMEDIATES | wgpu::Features::TIMESTAMP_QUERY;
        wanted.set(wgpu::Features::PIPELINE_CACHE, options.cache.is_some());
        let size = if options.coop { coop::offered(adapter) } else { Err(NOT_ASKED) };
        let request = |limits: wgpu::Limits| {
            let immediates = limits.max_immediate_size >= MAX_PARAM_BYTES as u32;
            let mut features = adapter.features() & wanted;
            features
                .set(wgpu::Features::IMMEDIATES, immediates && features.contains(wgpu::Features::IMMEDIATES));
            let mut experimental = wgpu::ExperimentalFeatures::disabled();
            if size.is_ok() {
                features |= coop::FEATURES;
                // SAFETY: what is experimental about them is checked: by the shader tests, and by a self-test before use.
                experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
            }
            pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
                label: Some("mixlora"),
                required_features: features,
                required_limits: limits,
                experimental_features: experimental,
                ..Default::default()
            }))
        };
        // Some drivers list limits that they then refuse: the floor still works there.
        let (device, queue) = request(limits)
            .or_else(|_| request(wgpu::Limits::defaults()))
            .map_err(|error| Error::NoAdapter(format!("'{}': {error}", info.name)))?;
        let trouble = Arc::new(Trouble::default());
        let t = trouble.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| {
            if let Ok(mut first) = t.first.lock() {
                first.get_or_insert(classify(e));
            }
        }));
        let t = trouble.clone();
        device.set_device_lost_callback(move |reason, text| {
            if let Ok(mut lost) = t.lost.lock() {
                lost.get_or_insert(format!("{reason:?} {text}").trim().to_string());
            }
        });
        let cache = options.cache.clone();
        let kept = cache.as_deref().map(|folder| Kept::open(folder, &info, &device));
        let tuned = cache.as_deref().map(|folder| tuned::read(&tuned::path(folder, &info), &info));
        let tuned = tuned.unwrap_or_default();
        let opened = Gpu::with(adapter, device, queue, trouble, Coop::new(size));
        let mut gpu = Gpu { kept, cache, tuned, ..opened };
        let compiler = gpu.compiler()?;
        if let Some(kept) = &mut gpu.kept {
            kept.compile_ahead(&compiler);
        }
        Ok(Arc::new(gpu))
    }

    pub(super) fn shared(
        adapter: &wgpu::Adapter,
        device: wgpu::Device,
        queue: wgpu::Queue,
    ) -> Result<Arc<Self>> {
        let info = adapter.get_info();
        check_floor(&info.name, &device.limits())?;
        Ok(Arc::new(Gpu::with(adapter, device, queue, Arc::default(), Coop::new(Err(NOT_ASKED)))))
    }

    fn with(
        adapter: &wgpu::Adapter,
        device: wgpu::Device,
        queue: wgpu::Queue,
        trouble: Arc<Trouble>,
        coop: Coop,
    ) -> Self {
        let limits = device.limits();
        let features = device.features();
        Gpu {
            info: adapter.get_info(),
            limits,
            features,
            heap_bytes: heap_bytes(adapter),
            memory: Memory::default(),
            pool: Pool::default(),
            pipelines: Mutex::default(),
            recorder: Mutex::default(),
            trouble,
            guard: false.into(),
            kept: None,
            cache: None,
            tuned: Tuned::new(),
            coop,
            device,
            queue,
        }
    }

    /// The adapter.
    pub fn info(&self) -> &wgpu::AdapterInfo {
        &self.info
    }
    /// The adapter's name.
    pub fn name(&self) -> &str {
        &self.info.name
    }
    /// Backend, name, driver and kind.
    pub(super) fn describe(&self) -> [String; 4] {
        let info = &self.info;
        let driver = format!("{} {}", info.driver, info.driver_info);
        let class = format!("{:?}", self.class()).to_lowercase();
        [info.backend.to_string(), info.name.clone(), driver.trim().into(), class]
    }
    /// Bytes that one binding of a kernel can hold.
    pub(crate) fn largest_binding(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size.min(self.limits.max_buffer_size)
    }
    /// What kind of adapter this is.
    pub fn class(&self) -> AdapterClass {
        AdapterClass::of(&self.info)
    }
    /// The limits of the device.
    pub fn limits(&self) -> &wgpu::Limits {
        &self.limits
    }
    /// The features of the device.
    pub fn features(&self) -> wgpu::Features {
        self.features
    }
    /// Bytes of its memory, as in [`AdapterSummary::memory`](super::AdapterSummary::memory).
    pub fn heap_bytes(&self) -> Option<u64> {
        self.heap_bytes
    }
    /// Byte counters and budget.
    pub fn memory(&self) -> &Memory {
        &self.memory
    }
    /// The cooperative matrices to use, if any; `test` is run once, before the first use.
    pub(crate) fn coop(&self, test: impl FnOnce(CoopSize) -> Result<()>) -> Option<CoopSize> {
        self.coop.tested(test)
    }
    /// Why cooperative matrices are not used, if that is known.
    pub fn coop_note(&self) -> Option<String> {
        self.coop.note()
    }
    /// The measured choice of kernels; empty where nothing was measured.
    pub(crate) fn tuned(&self) -> &Tuned {
        &self.tuned
    }
    /// Keeps a table for devices that are opened later.
    ///
    /// # Errors
    /// The device was opened without a folder, or the folder cannot be written.
    pub(crate) fn keep_tuned(&self, table: &Tuned) -> Result<PathBuf> {
        let folder = self.cache.as_deref();
        let folder =
            folder.ok_or_else(|| Error::refused("cache", "the device was opened without a folder"))?;
        tuned::write(&tuned::path(folder, &self.info), table)
    }
    /// The device itself, for sharing with other wgpu code.
    pub fn raw(&self) -> (&wgpu::Device, &wgpu::Queue) {
        (&self.device, &self.queue)
    }
    /// Whether parameters travel as immediates (else in a uniform buffer).
    pub(super) fn immediates(&self) -> bool {
        self.features.contains(wgpu::Features::IMMEDIATES)
            && self.limits.max_immediate_size >= MAX_PARAM_BYTES as u32
    }

    /// The error that a callback left behind, if any.
    pub(super) fn check(&self) -> Result<()> {
        if let Some(text) = lock(&self.trouble.lost).as_ref() {
            return Err(Error::DeviceLost(text.clone()));
        }
        match lock(&self.trouble.first).take() {
            Some(e) => Err(e),
            None => Ok(()),
        }
    }

    /// Runs `f` inside error scopes and turns what they catch into an error.
    pub(super) fn scoped<T>(&self, f: impl FnOnce() -> T) -> Result<T> {
        let oom = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let out = f();
        let errors = [internal.pop(), validation.pop()].map(|e| pollster::block_on(e).map(classify));
        let oom = pollster::block_on(oom.pop()).map(|_| self.memory.out_of_memory(0));
        self.check()?;
        match errors.into_iter().flatten().chain(oom).next() {
            Some(e) => Err(self.diagnose(e)),
            None => Ok(out),
        }
    }

    /// The cause behind an error: calls on a lost device fail with odd messages before the loss is reported,
    /// and on a shared device it never is reported to us.
    pub(super) fn diagnose(&self, e: Error) -> Error {
        if !matches!(e, Error::Gpu(_)) {
            return e;
        }
        // Polling runs the callback that reports a loss.
        let _ = self.device.poll(wgpu::PollType::Poll);
        if let Err(cause) = self.check() {
            return cause;
        }
        // A lost device makes buffers that cannot be mapped, without an error.
        let scopes = [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation]
            .map(|filter| self.device.push_error_scope(filter));
        let probe = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some("probe"),
            size: 4,
            usage: wgpu::BufferUsages::COPY_SRC,
            mapped_at_creation: true,
        });
        let mapped = probe.get_mapped_range_mut(..).is_ok();
        let [oom, validation] = scopes;
        let refused = [validation, oom].into_iter().any(|scope| pollster::block_on(scope.pop()).is_some());
        if mapped || refused {
            return e;
        }
        let text = "calls on it fail".to_string();
        Error::DeviceLost(lock(&self.trouble.lost).get_or_insert(text).clone())
    }
}

/// Turns an error of wgpu into ours.
pub(super) fn classify(e: wgpu::Error) -> Error {
    let text = e.to_string();
    match e {
        wgpu::Error::OutOfMemory { .. } => Error::OutOfMemory { requested: 0, in_use: 0, budget: 0 },
        _ if text.to_lowercase().contains("lost") || text.contains("destroyed") => Error::DeviceLost(text),
        _ => Error::Gpu(text),
    }
}

impl std::fmt::Debug for Gpu {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Gpu({}, {:?})", self.info.name, self.info.backend)
    }
}
