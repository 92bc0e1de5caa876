//! Finding adapters.

use super::gpu::{AdapterClass, FloorLimit};

/// What one adapter is, for lists and error messages.
#[derive(Debug, Clone)]
pub struct AdapterSummary {
    pub name: String,
    pub backend: wgpu::Backend,
    pub class: AdapterClass,
    pub driver: String,
    pub limits: wgpu::Limits,
    pub features: wgpu::Features,
    /// What is below the floor of this crate, if anything.
    pub below_floor: Option<String>,
}

impl AdapterSummary {
    /// The limits that matter to this crate.
    pub fn floor(&self) -> [FloorLimit; 6] {
        super::gpu::floor(&self.limits)
    }
}

pub(super) fn instance() -> wgpu::Instance {
    let mut desc = wgpu::InstanceDescriptor::new_without_display_handle();
    desc.backends = wgpu::Backends::PRIMARY;
    desc.flags = wgpu::InstanceFlags::empty();
    wgpu::Instance::new(desc)
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
                below_floor: super::gpu::check_floor(&info.name, &a.limits()).err().map(|e| e.to_string()),
                name: info.name,
            }
        })
        .collect()
}
