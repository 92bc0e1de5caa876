//! Finding adapters, and the floor that they must reach.

use super::options::AdapterClass;
use crate::{Error, Result};

impl AdapterClass {
    pub(super) fn of(info: &wgpu::AdapterInfo) -> Self {
        match info.device_type {
            wgpu::DeviceType::DiscreteGpu => AdapterClass::Discrete,
            wgpu::DeviceType::IntegratedGpu => AdapterClass::Integrated,
            wgpu::DeviceType::VirtualGpu => AdapterClass::Virtual,
            wgpu::DeviceType::Cpu => AdapterClass::Software,
            wgpu::DeviceType::Other => AdapterClass::Other,
        }
    }
}

/// What one adapter is, for lists and error messages.
#[derive(Debug, Clone)]
pub struct AdapterSummary {
    pub name: String,
    pub backend: wgpu::Backend,
    pub class: AdapterClass,
    pub driver: String,
    pub limits: wgpu::Limits,
    pub features: wgpu::Features,
    /// Bytes of memory of its own, or that it shares with the system where it has none; none where the driver does not
    /// tell.
    pub memory: Option<u64>,
    /// What is below the floor of this crate, if anything.
    pub below_floor: Option<String>,
}

impl AdapterSummary {
    /// The limits that matter to this crate.
    pub fn floor(&self) -> [FloorLimit; 6] {
        floor(&self.limits)
    }
}

/// A limit of an adapter beside what this crate needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloorLimit {
    /// Name, as wgpu spells it.
    pub limit: &'static str,
    pub have: u64,
    pub need: u64,
}

/// The floor that every kernel of this crate is designed for.
fn floor(l: &wgpu::Limits) -> [FloorLimit; 6] {
    [
        ("max_storage_buffers_per_shader_stage", l.max_storage_buffers_per_shader_stage as u64, 8),
        ("max_storage_buffer_binding_size", l.max_storage_buffer_binding_size, 128 << 20),
        ("max_compute_workgroup_storage_size", l.max_compute_workgroup_storage_size as u64, 16 << 10),
        ("max_compute_invocations_per_workgroup", l.max_compute_invocations_per_workgroup as u64, 256),
        ("max_compute_workgroup_size_x", l.max_compute_workgroup_size_x as u64, 256),
        ("max_compute_workgroups_per_dimension", l.max_compute_workgroups_per_dimension as u64, 65_535),
    ]
    .map(|(limit, have, need)| FloorLimit { limit, have, need })
}

pub(super) fn check_floor(adapter: &str, l: &wgpu::Limits) -> Result<()> {
    for FloorLimit { limit, have, need } in floor(l) {
        if have < need {
            return Err(Error::BelowFloor { adapter: adapter.into(), limit, have, need });
        }
    }
    Ok(())
}

pub(super) fn instance() -> wgpu::Instance {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = wgpu::Backends::PRIMARY;
    desc.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(desc)
}

/// The largest heap of an adapter that is local to it. Only Vulkan tells.
pub(super) fn heap_bytes(adapter: &wgpu::Adapter) -> Option<u64> {
    #[cfg(any(target_os = "linux", target_os = "windows", target_os = "android"))]
    {
        // SAFETY: the handles are used for one query while the adapter lives, and nothing of it is destroyed.
        let heaps = unsafe {
            let vulkan = adapter.as_hal::<wgpu::hal::api::Vulkan>()?;
            let instance = vulkan.shared_instance().raw_instance();
            instance.get_physical_device_memory_properties(vulkan.raw_physical_device())
        };
        let count = heaps.memory_heap_count as usize;
        // Flag 1 of a heap: device local.
        let local = heaps.memory_heaps[..count].iter().filter(|heap| heap.flags.as_raw() & 1 != 0);
        local.map(|heap| heap.size).max()
    }
    #[cfg(not(any(target_os = "linux", target_os = "windows", target_os = "android")))]
    {
        let _ = adapter;
        None
    }
}

/// Adapters of the machine, best first.
pub(super) fn adapters() -> Vec<wgpu::Adapter> {
    let mut all = pollster::block_on(instance().enumerate_adapters(wgpu::Backends::PRIMARY));
    all.sort_by_key(|a| AdapterClass::of(&a.get_info()));
    all
}

pub(super) fn list() -> Vec<AdapterSummary> {
    adapters()
        .iter()
        .map(|a| {
            let info = a.get_info();
            AdapterSummary {
                class: AdapterClass::of(&info),
                backend: info.backend,
                driver: format!("{} {}", info.driver, info.driver_info).trim().to_string(),
                limits: a.limits(),
                features: a.features(),
                memory: heap_bytes(a),
                below_floor: check_floor(&info.name, &a.limits()).err().map(|e| e.to_string()),
                name: info.name,
            }
        })
        .collect()
}
