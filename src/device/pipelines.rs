//! Compiled kernels: what one is made from, and the store of those that a device has.

use super::stats::Launched;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::sync::Arc;

/// All that a pipeline is made from.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(super) struct Recipe {
    pub shader: String,
    pub entry: String,
    pub text: String,
    /// For each operand, whether it is written.
    pub writes: Vec<bool>,
    /// Bytes of parameters.
    pub params: u32,
}

/// What compiles recipes on a device.
#[derive(Clone)]
pub(super) struct Compiler {
    pub device: wgpu::Device,
    pub cache: Option<wgpu::PipelineCache>,
    /// Layout of the parameters where they are no immediates.
    pub params: Option<Arc<wgpu::BindGroupLayout>>,
}

impl Compiler {
    /// Errors go to the scopes of the caller.
    pub fn compile(&self, recipe: &Recipe) -> Pipeline {
        let label = format!("{}::{}", recipe.shader, recipe.entry);
        let label = Some(label.as_str());
        // SAFETY: every index of our kernels is bounded by construction; guard mode tests it.
        let module = unsafe {
            self.device.create_shader_module_trusted(
                wgpu::ShaderModuleDescriptor {
                    label,
                    source: wgpu::ShaderSource::Wgsl(recipe.text.as_str().into()),
                },
                wgpu::ShaderRuntimeChecks::unchecked(),
            )
        };
        let storage = |(binding, &writes): (usize, &bool)| wgpu::BindGroupLayoutEntry {
            binding: binding as u32,
            visibility: wgpu::ShaderStages::COMPUTE,
            ty: wgpu::BindingType::Buffer {
                ty: wgpu::BufferBindingType::Storage { read_only: !writes },
                has_dynamic_offset: false,
                min_binding_size: None,
            },
            count: None,
        };
        let entries: Vec<_> = recipe.writes.iter().enumerate().map(storage).collect();
        let layout = self
            .device
            .create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor { label, entries: &entries });
        let groups = [Some(&layout), self.params.as_deref()];
        let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label,
            bind_group_layouts: &groups[..if self.params.is_some() { 2 } else { 1 }],
            immediate_size: if self.params.is_some() { 0 } else { recipe.params },
        });
        let raw = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label,
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some(&recipe.entry),
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: self.cache.as_ref(),
        });
        Pipeline { raw, layout }
    }

    /// The pipeline, if nothing went wrong: who needs it will compile it again and say what.
    pub fn attempt(&self, recipe: &Recipe) -> Option<Pipeline> {
        let scopes =
            [wgpu::ErrorFilter::OutOfMemory, wgpu::ErrorFilter::Validation, wgpu::ErrorFilter::Internal]
                .map(|filter| self.device.push_error_scope(filter));
        let made = self.compile(recipe);
        let errors = scopes.into_iter().rev().filter_map(|s| pollster::block_on(s.pop())).count();
        (errors == 0).then_some(made)
    }
}

/// A compiled kernel, and how its operands are laid out.
pub(super) struct Pipeline {
    pub raw: wgpu::ComputePipeline,
    pub layout: wgpu::BindGroupLayout,
}

/// What tells pipelines apart: fragments by their addresses, and which operands are written.
#[derive(PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub launched: Launched,
    pub parts: Vec<usize>,
    pub writes: Vec<bool>,
}

/// Compiled kernels, and the layout of their parameters where these travel in a buffer.
#[derive(Default)]
pub(super) struct Pipelines {
    pub by_key: HashMap<Key, Arc<Pipeline>>,
    pub params: Option<Arc<wgpu::BindGroupLayout>>,
}
