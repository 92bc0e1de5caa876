//! [`Tensor`]: a cheap handle on a contiguous row-major array on a device.

use crate::device::GpuBuffer;
use crate::device::Host;
use crate::tape::{Edge, Node};
use crate::{DType, Device, Error, Result, Shape};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// The memory behind one or more tensors.
pub(crate) enum Storage {
    Host(Host),
    Gpu(GpuBuffer),
}

/// A contiguous row-major array on a [`Device`]. Cloning shares it.
///
/// ```
/// use mixlora::{Device, Tensor};
/// let cpu = Device::cpu();
/// let x = Tensor::from_f32(&cpu, &[2, 3], &[1., 2., 3., 4., 5., 6.])?;
/// assert_eq!(x.scale(2.0)?.to_f32()?, [2., 4., 6., 8., 10., 12.]);
/// # Ok::<(), mixlora::Error>(())
/// ```
#[derive(Clone)]
pub struct Tensor {
    pub(crate) shape: Shape,
    pub(crate) dtype: DType,
    pub(crate) device: Device,
    pub(crate) storage: Arc<Storage>,
    pub(crate) edge: Option<Edge>,
}

static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// A number that no other leaf, node or parameter of this process has.
pub(crate) fn fresh_id() -> u64 {
    NEXT_ID.fetch_add(1, Relaxed)
}

/// Copies values to where they are kept: nowhere on a device that has shapes alone.
fn copy_kept<T: Copy>(to: &mut [T], values: &[T]) {
    to.copy_from_slice(&values[..to.len()]);
}

impl Tensor {
    pub(crate) fn new(shape: Shape, dtype: DType, device: &Device, storage: Storage) -> Self {
        Tensor { shape, dtype, device: device.clone(), storage: Arc::new(storage), edge: None }
    }

    fn check_len(shape: &Shape, n: usize) -> Result<()> {
        if shape.len() == n {
            Ok(())
        } else {
            Err(Error::shape("tensor", format!("{} values for shape {shape}", shape.len()), n))
        }
    }

    /// Values from host memory. On the reference device they widen to f64.
    pub fn from_f32(device: &Device, dims: &[usize], values: &[f32]) -> Result<Self> {
        let shape = Shape::new(dims)?;
        Self::check_len(&shape, values.len())?;
        let storage = match device {
            Device::Reference => Storage::Host(Host::F64(values.iter().map(|&v| v as f64).collect())),
            Device::Cpu(c) => {
                let mut host = Host::f32s(c, values.len())?;
                copy_kept(host.f32_mut(), values);
                Storage::Host(host)
            }
            Device::Gpu(g) => {
                let buffer = g.alloc(values.len())?;
                g.upload(&buffer, bytemuck::cast_slice(values))?;
                Storage::Gpu(buffer)
            }
        };
        Ok(Tensor::new(shape, DType::F32, device, storage))
    }

    /// Values from host memory in f64; rounded to f32 except on the reference device.
    pub fn from_f64(device: &Device, dims: &[usize], values: &[f64]) -> Result<Self> {
        if let Device::Reference = device {
            let shape = Shape::new(dims)?;
            Self::check_len(&shape, values.len())?;
            return Ok(Tensor::new(shape, DType::F32, device, Storage::Host(Host::F64(values.to_vec()))));
        }
        Self::from_f32(device, dims, &values.iter().map(|&v| v as f32).collect::<Vec<_>>())
    }

    /// Indices from host memory.
    pub fn from_u32(device: &Device, dims: &[usize], values: &[u32]) -> Result<Self> {
        let shape = Shape::new(dims)?;
        Self::check_len(&shape, values.len())?;
        let storage = match device {
            Device::Reference => Storage::Host(Host::RefU32(values.to_vec())),
            Device::Cpu(c) => {
                let mut host = Host::u32s(c, values.len())?;
                copy_kept(host.u32_mut(), values);
                Storage::Host(host)
            }
            Device::Gpu(g) => {
                let buffer = g.alloc(values.len())?;
                g.upload(&buffer, bytemuck::cast_slice(values))?;
                Storage::Gpu(buffer)
            }
        };
        Ok(Tensor::new(shape, DType::U32, device, storage))
    }

    /// A tensor whose 32-bit words `fill` writes, where they will stay if the device computes in host memory. Not for the
    /// reference device, which has no words.
    pub(crate) fn from_words(
        device: &Device,
        dims: &[usize],
        dtype: DType,
        fill: impl FnOnce(&mut [u32]),
    ) -> Result<Self> {
        let shape = Shape::new(dims)?;
        if let Device::Cpu(c) = device {
            let host = match dtype {
                DType::F32 => Host::f32s(c, shape.len()).map(|mut host| {
                    fill(bytemuck::cast_slice_mut(host.f32_mut()));
                    host
                }),
                DType::U32 => Host::u32s(c, shape.len()).map(|mut host| {
                    fill(host.u32_mut());
                    host
                }),
            };
            return Ok(Tensor::new(shape, dtype, device, Storage::Host(host?)));
        }
        let mut words = vec![0; shape.len()];
        fill(&mut words);
        match dtype {
            DType::F32 => Self::from_f32(device, dims, bytemuck::cast_slice(&words)),
            DType::U32 => Self::from_u32(device, dims, &words),
        }
    }

    /// A tensor whose content nobody has written yet.
    pub(crate) fn undefined(device: &Device, shape: Shape, dtype: DType) -> Result<Self> {
        let n = shape.len();
        let storage = match (device, dtype) {
            (Device::Reference, DType::F32) => Storage::Host(Host::F64(vec![f64::NAN; n])),
            (Device::Reference, DType::U32) => Storage::Host(Host::RefU32(vec![u32::MAX; n])),
            (Device::Cpu(c), DType::F32) => Storage::Host(Host::f32s(c, n)?),
            (Device::Cpu(c), DType::U32) => Storage::Host(Host::u32s(c, n)?),
            (Device::Gpu(g), _) => Storage::Gpu(g.alloc(n)?),
        };
        Ok(Tensor::new(shape, dtype, device, storage))
    }

    /// The same values on another device.
    pub fn to_device(&self, device: &Device) -> Result<Self> {
        if self.device.same(device) {
            return Ok(self.clone());
        }
        match (self.dtype, &*self.storage) {
            (DType::U32, _) => Tensor::from_u32(device, self.dims(), &self.to_u32()?),
            (_, Storage::Host(Host::F64(v))) => Tensor::from_f64(device, self.dims(), v),
            _ => Tensor::from_f32(device, self.dims(), &self.to_f32()?),
        }
    }

    /// Axis lengths.
    pub fn dims(&self) -> &[usize] {
        self.shape.dims()
    }
    /// Shape.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }
    /// Element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }
    /// Where it lives.
    pub fn device(&self) -> &Device {
        &self.device
    }
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.len()
    }
    /// True when there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.is_empty()
    }

    /// Copies the values to host memory; on a GPU this submits and waits.
    pub fn to_f32(&self) -> Result<Vec<f32>> {
        self.require("to_f32", DType::F32)?;
        match &*self.storage {
            Storage::Host(Host::F64(v)) => Ok(v.iter().map(|&v| v as f32).collect()),
            Storage::Host(h) => Ok(h.f32().to_vec()),
            Storage::Gpu(b) => Ok(bytemuck::cast_vec(self.gpu()?.read(b)?.wait()?)),
        }
    }

    /// Copies the values to host memory in f64.
    pub fn to_f64(&self) -> Result<Vec<f64>> {
        self.require("to_f64", DType::F32)?;
        match &*self.storage {
            Storage::Host(Host::F64(v)) => Ok(v.clone()),
            _ => Ok(self.to_f32()?.into_iter().map(f64::from).collect()),
        }
    }

    /// Copies indices to host memory; on a GPU this submits and waits.
    pub fn to_u32(&self) -> Result<Vec<u32>> {
        self.require("to_u32", DType::U32)?;
        match &*self.storage {
            Storage::Host(h) => Ok(h.u32().to_vec()),
            Storage::Gpu(b) => self.gpu()?.read(b)?.wait(),
        }
    }

    /// Copies the values to host memory without blocking the caller's thread.
    pub async fn read_async(&self) -> Result<Vec<f32>> {
        if let Storage::Gpu(b) = &*self.storage {
            self.require("read_async", DType::F32)?;
            return Ok(bytemuck::cast_vec(self.gpu()?.read(b)?.await?));
        }
        self.to_f32()
    }

    /// The only value of a tensor of one element.
    pub fn item(&self) -> Result<f64> {
        match self.to_f64()?.as_slice() {
            [v] => Ok(*v),
            v => Err(Error::shape("item", "one element", v.len())),
        }
    }

    fn gpu(&self) -> Result<&Arc<crate::device::Gpu>> {
        match &self.device {
            Device::Gpu(g) => Ok(g),
            _ => Err(Error::Gpu("not a GPU tensor".into())),
        }
    }

    /// The host buffer; ops call it in their host lanes.
    pub(crate) fn host(&self) -> &Host {
        match &*self.storage {
            Storage::Host(h) => h,
            Storage::Gpu(_) => unreachable!("a host lane runs on host tensors"),
        }
    }
    /// Values on the CPU device.
    pub(crate) fn f32(&self) -> &[f32] {
        self.host().f32()
    }
    /// Values on the reference device.
    pub(crate) fn f64(&self) -> &[f64] {
        self.host().f64()
    }
    /// Indices on a host device.
    pub(crate) fn u32(&self) -> &[u32] {
        self.host().u32()
    }
    /// The GPU buffer; ops call it in their GPU back end.
    pub(crate) fn buffer(&self) -> &GpuBuffer {
        match &*self.storage {
            Storage::Gpu(b) => b,
            Storage::Host(_) => unreachable!("the GPU back end runs on GPU tensors"),
        }
    }

    /// Refuses another element type.
    pub(crate) fn require(&self, op: &'static str, dtype: DType) -> Result<()> {
        if self.dtype == dtype {
            Ok(())
        } else {
            Err(Error::DType { op, expected: dtype.name(), found: self.dtype.name() })
        }
    }

    /// The same memory under another shape, on the tape.
    pub fn reshape(&self, dims: &[usize]) -> Result<Self> {
        let shape = Shape::new(dims)?;
        if shape.len() != self.len() {
            return Err(Error::shape(
                "reshape",
                format!("{} elements, as {} has", self.len(), self.shape),
                format!("{} in {shape}", shape.len()),
            ));
        }
        let out = Tensor { shape, edge: None, ..self.clone() };
        let from = self.shape.clone();
        Ok(Node::record("reshape", &[self], out, move |dy| Ok(vec![Some(dy.reshape(from.dims())?)])))
    }

    /// The same memory without its history: no gradient flows through it.
    pub fn detach(&self) -> Self {
        Tensor { edge: None, ..self.clone() }
    }

    /// The same memory as a new leaf of the tape: gradients are collected for it.
    pub fn leaf(&self) -> Self {
        self.leaf_of(fresh_id())
    }
    /// The same memory as the leaf of that id.
    pub(crate) fn leaf_of(&self, id: u64) -> Self {
        Tensor { edge: Some(Edge::Leaf(id)), ..self.clone() }
    }

    /// True when a gradient flows to this tensor.
    pub fn requires_grad(&self) -> bool {
        self.edge.is_some()
    }

    /// A copy in new memory, without history.
    pub fn copy(&self) -> Result<Self> {
        let mut out = Tensor::undefined(&self.device, self.shape.clone(), self.dtype)?;
        match (Arc::get_mut(&mut out.storage), &*self.storage) {
            (Some(Storage::Host(dst)), Storage::Host(src)) => match (dst, src) {
                (Host::F64(d), Host::F64(s)) => d.copy_from_slice(s),
                (Host::F32(d), Host::F32(s)) => d.copy_from_slice(s),
                (d, s) => d.u32_mut().copy_from_slice(s.u32()),
            },
            (Some(Storage::Gpu(dst)), Storage::Gpu(src)) => self.gpu()?.copy(src, dst)?,
            _ => unreachable!("same device"),
        }
        Ok(out)
    }
}

impl std::fmt::Debug for Tensor {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let grad = if self.requires_grad() { ", grad" } else { "" };
        write!(formatter, "Tensor({} {} on {}{grad})", self.dtype.name(), self.shape, self.device.name())
    }
}
