//! Compiling and dispatching kernels.

use super::buffer::GpuBuffer;
use super::gpu::Gpu;
use super::shader::{Shader, source};
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;

/// One operand of a dispatch: binding i of group 0 is operand i.
pub(crate) enum Bind<'a> {
    Read(&'a GpuBuffer),
    Write(&'a GpuBuffer),
    /// An operand that this dispatch does not touch: any buffer that is bound for reading.
    Unused(&'a GpuBuffer),
}

impl<'a> Bind<'a> {
    /// The buffer to read, or a stand-in for an absent operand.
    pub fn or_unused(operand: Option<&'a GpuBuffer>, stand_in: &'a GpuBuffer) -> Self {
        operand.map_or(Bind::Unused(stand_in), Bind::Read)
    }
    pub(super) fn buffer(&self) -> &'a GpuBuffer {
        let (Bind::Read(b) | Bind::Write(b) | Bind::Unused(b)) = self;
        b
    }
    /// Bytes that the kernel is expected to touch.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Bind::Unused(_) => 0,
            b => b.buffer().bytes,
        }
    }
}

/// How many workgroups.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Grid {
    /// So many workgroups, folded to two dimensions above 65 535: shaders use `linear_group()`.
    Linear(usize),
    /// As given.
    Xyz(usize, usize, usize),
}

/// One kernel launch.
pub(crate) struct Dispatch<'a> {
    pub shader: &'static Shader,
    pub entry: &'static str,
    pub consts: &'a [(&'static str, u32)],
    pub parts: &'a [&'static str],
    pub bind: &'a [Bind<'a>],
    /// The bytes of `Params`: at most 128.
    pub params: &'a [u8],
    pub grid: Grid,
    /// Rough work, which bounds how much goes into one submit.
    pub flops: u64,
}

pub(super) struct Pipeline {
    pub raw: wgpu::ComputePipeline,
    pub layout: Arc<wgpu::BindGroupLayout>,
}

/// Compiled kernels and the bind group layouts they share.
#[derive(Default)]
pub(super) struct Pipelines {
    by_key: HashMap<(&'static str, &'static str, String), Arc<Pipeline>>,
    layouts: HashMap<Vec<bool>, Arc<wgpu::BindGroupLayout>>,
    params: Option<Arc<wgpu::BindGroupLayout>>,
}

fn storage_entry(binding: usize, writable: bool) -> wgpu::BindGroupLayoutEntry {
    wgpu::BindGroupLayoutEntry {
        binding: binding as u32,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer {
            ty: wgpu::BufferBindingType::Storage { read_only: !writable },
            has_dynamic_offset: false,
            min_binding_size: None,
        },
        count: None,
    }
}

/// The text of a kernel as it is compiled: prelude, fragments, file.
pub fn compose(shader: &Shader, consts: &[(&str, u32)], parts: &[&str], immediates: bool) -> String {
    source(shader, consts, parts, immediates)
}

impl Gpu {
    /// Layout of group 1 where parameters travel in a uniform buffer.
    pub(super) fn params_layout(&self) -> Arc<wgpu::BindGroupLayout> {
        let mut cache = self.pipelines.lock().unwrap();
        let make = || {
            Arc::new(self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some("params"),
                entries: &[wgpu::BindGroupLayoutEntry {
                    binding: 0,
                    visibility: wgpu::ShaderStages::COMPUTE,
                    ty: wgpu::BindingType::Buffer {
                        ty: wgpu::BufferBindingType::Uniform,
                        has_dynamic_offset: true,
                        min_binding_size: None,
                    },
                    count: None,
                }],
            }))
        };
        cache.params.get_or_insert_with(make).clone()
    }

    pub(super) fn pipeline(&self, d: &Dispatch<'_>) -> Result<Arc<Pipeline>> {
        debug_assert!(
            d.shader.entry(d.entry).is_some_and(|e| e.variants.iter().any(|v| {
                v.consts.len() == d.consts.len() && v.consts.iter().zip(d.consts).all(|(a, b)| a.0 == b.0)
            })),
            "{}::{} with {:?} is not declared",
            d.shader.name,
            d.entry,
            d.consts
        );
        let kinds: Vec<bool> = d.bind.iter().map(|b| matches!(b, Bind::Write(_))).collect();
        let mut key = String::new();
        for (name, value) in d.consts {
            key += &format!("{name}={value} ");
        }
        for part in d.parts {
            key += &format!("{:p} ", part.as_ptr());
        }
        for k in &kinds {
            key.push(if *k { 'w' } else { 'r' });
        }
        let key = (d.shader.name, d.entry, key);
        if let Some(p) = self.pipelines.lock().unwrap().by_key.get(&key) {
            return Ok(p.clone());
        }
        let params = (!self.immediates()).then(|| self.params_layout());
        let text = source(d.shader, d.consts, d.parts, self.immediates());
        let layout = self.layout(&kinds);
        let raw = self
            .scoped(|| {
                // Every index of our kernels is bounded by construction; guard mode tests it.
                let module = unsafe {
                    self.device.create_shader_module_trusted(
                        wgpu::ShaderModuleDescriptor {
                            label: Some(d.shader.name),
                            source: wgpu::ShaderSource::Wgsl(text.into()),
                        },
                        wgpu::ShaderRuntimeChecks::unchecked(),
                    )
                };
                let groups = [Some(&*layout), params.as_deref()];
                let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                    label: Some(d.shader.name),
                    bind_group_layouts: &groups[..if params.is_some() { 2 } else { 1 }],
                    immediate_size: if params.is_some() { 0 } else { d.params.len() as u32 },
                });
                self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                    label: Some(d.shader.name),
                    layout: Some(&pipeline_layout),
                    module: &module,
                    entry_point: Some(d.entry),
                    compilation_options: wgpu::PipelineCompilationOptions {
                        zero_initialize_workgroup_memory: false,
                        ..Default::default()
                    },
                    cache: None,
                })
            })
            .map_err(|e| match e {
                Error::Gpu(what) => Error::Shader { shader: format!("{}::{}", d.shader.name, d.entry), what },
                e => e,
            })?;
        let made = Arc::new(Pipeline { raw, layout });
        self.pipelines.lock().unwrap().by_key.insert(key, made.clone());
        Ok(made)
    }

    fn layout(&self, kinds: &[bool]) -> Arc<wgpu::BindGroupLayout> {
        let mut cache = self.pipelines.lock().unwrap();
        if let Some(l) = cache.layouts.get(kinds) {
            return l.clone();
        }
        let entries: Vec<_> = kinds.iter().enumerate().map(|(i, &w)| storage_entry(i, w)).collect();
        let made =
            Arc::new(self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: None,
                entries: &entries,
            }));
        cache.layouts.insert(kinds.to_vec(), made.clone());
        made
    }
}
