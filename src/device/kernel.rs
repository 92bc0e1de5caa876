//! Compiling and dispatching kernels.

use super::dispatch::{Bind, Dispatch};
use super::gpu::Gpu;
use super::kept::Kept;
use super::lock;
use super::pipelines::{Compiler, Key, Pipeline, Recipe};
use super::shader::source;
use super::stats::Launched;
use crate::{Error, Result};
use std::sync::Arc;

impl<'a> Bind<'a> {
    /// The range that is bound: of a stand-in no more than the least.
    pub(super) fn resource(&self) -> wgpu::BindingResource<'a> {
        match self {
            Bind::Read(b) | Bind::Write(b) => b.binding(),
            Bind::Unused(b) => b.least(),
        }
    }
    /// Bytes that the kernel is expected to touch.
    pub(super) fn bytes(&self) -> u64 {
        match self {
            Bind::Unused(_) => 0,
            Bind::Read(b) | Bind::Write(b) => b.bytes,
        }
    }
}

impl Gpu {
    /// Layout of group 1 where parameters travel in a uniform buffer.
    pub(super) fn params_layout(&self) -> Result<Arc<wgpu::BindGroupLayout>> {
        let mut cache = lock(&self.pipelines);
        if let Some(layout) = &cache.params {
            return Ok(layout.clone());
        }
        let made = self.scoped(|| {
            self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
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
            })
        })?;
        Ok(cache.params.insert(Arc::new(made)).clone())
    }

    pub(super) fn pipeline(&self, d: &Dispatch<'_>) -> Result<Arc<Pipeline>> {
        debug_assert!(
            d.shader.entry(d.entry).is_some_and(|e| e.variants.iter().any(|v| {
                v.consts.len() == d.consts.len() && v.consts.iter().zip(d.consts).all(|(a, b)| a.0 == b.0)
            })),
            "{} with {:?} is not declared",
            d.name(),
            d.consts
        );
        let key = Key {
            launched: Launched { shader: d.shader.name, entry: d.entry, consts: d.consts.to_vec() },
            parts: d.parts.iter().map(|p| p.as_ptr() as usize).collect(),
            writes: d.bind.iter().map(|b| matches!(b, Bind::Write(_))).collect(),
        };
        if let Some(p) = lock(&self.pipelines).by_key.get(&key) {
            return Ok(p.clone());
        }
        let recipe = Recipe {
            shader: d.shader.name.into(),
            entry: d.entry.into(),
            text: source(d.shader, d.consts, d.parts, self.immediates()),
            writes: key.writes.clone(),
            params: d.params.len() as u32,
        };
        let ahead = self.kept.as_ref().and_then(|k| k.take(&recipe));
        let made = match ahead {
            Some(made) => made,
            None => {
                let compiler = self.compiler()?;
                self.scoped(|| compiler.compile(&recipe)).map_err(|error| match error {
                    Error::Gpu(what) => Error::Shader { shader: d.name(), what },
                    other => other,
                })?
            }
        };
        let made = Arc::new(made);
        lock(&self.pipelines).by_key.insert(key, made.clone());
        Ok(made)
    }

    pub(super) fn compiler(&self) -> Result<Compiler> {
        let params = if self.immediates() { None } else { Some(self.params_layout()?) };
        let cache = self.kept.as_ref().and_then(Kept::cache);
        Ok(Compiler { device: self.device.clone(), cache, params })
    }

    /// The kernels that were launched so far, in no order.
    pub fn launched(&self) -> Vec<Launched> {
        lock(&self.pipelines).by_key.keys().map(|k| k.launched.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;
    use crate::device::{Entry, PORTABLE, Variant};
    use crate::device::{Grid, Parameters, Shader, params};

    static VARIANTS: &[Variant] =
        &[Variant { name: "wg1", consts: &[], parts: &[], backends: PORTABLE, workgroup_bytes: 0 }];
    static ENTRIES: &[Entry] = &[Entry { name: "main", variants: VARIANTS }];
    params! {
        struct Params { n: u32 }
    }
    static BAD_SYNTAX: Shader =
        Shader { name: "bad_syntax", source: "fn main( {", params: Params::FIELDS, entries: ENTRIES };
    static NO_ENTRY: Shader = Shader {
        name: "no_entry",
        source: "struct Params { n: u32 }",
        params: Params::FIELDS,
        entries: ENTRIES,
    };

    static COPY: Shader = Shader {
        name: "copy",
        source: "struct Params { n: u32 }
            @group(0) @binding(0) var<storage, read> x: array<f32>;
            @group(0) @binding(1) var<storage, read_write> y: array<f32>;
            @compute @workgroup_size(1) fn main() { y[0] = x[0] + f32(p.n); }",
        params: Params::FIELDS,
        entries: ENTRIES,
    };

    fn launch(device: &Device, shader: &'static Shader, grid: Grid) -> Result<()> {
        launch_on(device, shader, &[], grid)
    }

    fn launch_on(device: &Device, shader: &'static Shader, bind: &[Bind<'_>], grid: Grid) -> Result<()> {
        let Device::Gpu(gpu) = device else { unreachable!() };
        gpu.dispatch(Dispatch {
            shader,
            entry: "main",
            consts: &[],
            parts: &[],
            bind,
            params: Params { n: 0 }.bytes(),
            grid,
            flops: 0,
        })
    }

    fn gpu() -> Option<Device> {
        match Device::gpu() {
            Ok(d) => return Some(d),
            Err(e) if std::env::var("MIXLORA_REQUIRE_GPU").is_ok_and(|v| v == "1") => panic!("{e}"),
            Err(e) => eprintln!("SKIPPED: {e}"),
        }
        None
    }

    /// wgpu reports a wrong use when the pass ends or the commands are finished. On a shared device it must not
    /// reach the host's handler, which panics unless the host set another.
    #[test]
    fn wrong_use_on_a_shared_device_stays_with_us() {
        if gpu().is_none() {
            return;
        }
        let adapter = crate::device::adapter::adapters().remove(0);
        let (device, queue) = pollster::block_on(adapter.request_device(&Default::default())).unwrap();
        let device = Device::from_wgpu(&adapter, device, queue).unwrap();
        let x = crate::Tensor::full(&device, &[64], 2.0).unwrap();
        // A refused submit takes the launches before it along: this one must be done by then.
        device.sync().unwrap();
        let alias = [Bind::Read(x.buffer()), Bind::Write(x.buffer())];
        let ends: [fn(&crate::Tensor) -> Result<()>; 3] =
            [|x| x.device().sync(), |x| x.to_f32().map(|_| ()), |x| x.copy().and_then(|_| x.device().sync())];
        for end in ends {
            let done = launch_on(&device, &COPY, &alias, Grid::Linear(1)).and_then(|_| end(&x));
            assert!(matches!(done, Err(Error::Gpu(_))), "{done:?}");
            let _ = device.sync();
            assert_eq!(x.scale(2.0).unwrap().to_f32().unwrap(), [4.0; 64], "the device still works");
        }
    }

    #[test]
    fn refused_launches_are_errors() {
        let Some(device) = gpu() else { return };
        for shader in [&BAD_SYNTAX, &NO_ENTRY] {
            for _ in 0..2 {
                match launch(&device, shader, Grid::Linear(1)) {
                    Err(Error::Shader { shader: name, .. }) => {
                        assert_eq!(name, format!("{}::main", shader.name))
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
        let large = launch(&device, &NO_ENTRY, Grid::Xyz(65_536, 1, 1)).unwrap_err().to_string();
        assert!(large.contains("no_entry::main") && large.contains("65536"), "{large}");
        let unbound = launch(&device, &COPY, Grid::Linear(1)).unwrap_err().to_string();
        assert!(unbound.contains("copy::main"), "{unbound}");
        assert!(launch(&device, &BAD_SYNTAX, Grid::Linear(0)).is_ok(), "nothing to launch");
        let x = crate::Tensor::full(&device, &[3], 2.0).unwrap();
        assert_eq!(x.scale(2.0).unwrap().to_f32().unwrap(), [4.0; 3], "the device still works");
    }
}
