//! The op trait: shapes first, then one of three lanes.

use crate::device::Host;
use crate::tensor::Storage;
use crate::{DType, Device, Error, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

/// Shape and element type of an output.
#[derive(Debug, Clone)]
pub(crate) struct Meta {
    pub shape: Shape,
    pub dtype: DType,
}

impl Meta {
    pub fn f32(dims: &[usize]) -> Result<Meta> {
        Ok(Meta { shape: Shape::new(dims)?, dtype: DType::F32 })
    }
    pub fn u32(dims: &[usize]) -> Result<Meta> {
        Ok(Meta { shape: Shape::new(dims)?, dtype: DType::U32 })
    }
    pub fn like(t: &Tensor) -> Meta {
        Meta { shape: t.shape().clone(), dtype: t.dtype() }
    }
}

/// A computation on tensors, without a derivative: that is composed from ops where it is recorded.
///
/// Outputs may hold NaN when a lane starts; every element must be written.
pub(crate) trait Op: Send + Sync {
    /// Name for errors: the op's file name.
    fn name(&self) -> &'static str;
    /// Checks the inputs and says what comes out. Nothing is allocated before this has passed.
    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>>;
    /// The specification: plain f64 loops.
    fn reference(&self, x: &[&Tensor], y: &mut [Host]);
    /// The fast CPU path. Work is split by shape, never by thread count.
    fn cpu(&self, x: &[&Tensor], y: &mut [Host]);
    /// Records the kernels that compute it.
    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()>;
}

fn common_device<'a>(op: &dyn Op, x: &[&'a Tensor]) -> Result<&'a Device> {
    let first = x[0].device();
    match x.iter().find(|t| !t.device().same(first)) {
        None => Ok(first),
        Some(t) => Err(Error::shape(
            op.name(),
            format!("operands on different devices: '{}' and '{}'", first.name(), t.device().name()),
        )),
    }
}

/// Checks, allocates and computes, on the device of the inputs.
pub(crate) fn run(op: &dyn Op, x: &[&Tensor]) -> Result<Vec<Tensor>> {
    let device = common_device(op, x)?;
    let metas = op.infer(x)?;
    let mut y = Vec::with_capacity(metas.len());
    for m in metas {
        y.push(Tensor::undefined(device, m.shape, m.dtype)?);
    }
    compute(op, device, x, y)
}

/// Like [`run`] on outputs that hold values: they are updated. Memory that others see is copied first.
pub(crate) fn run_in_place(op: &dyn Op, y: &mut [&mut Tensor], x: &[&Tensor]) -> Result<()> {
    let device = y[0].device().clone();
    if let Some(t) = x.iter().find(|t| !t.device().same(&device)) {
        return Err(Error::shape(
            op.name(),
            format!("operands on different devices: '{}' and '{}'", device.name(), t.device().name()),
        ));
    }
    let views: Vec<Tensor> = y.iter().map(|t| t.detach()).collect();
    let mut all: Vec<&Tensor> = views.iter().collect();
    all.extend(x);
    op.infer(&all)?;
    drop(all);
    drop(views);
    let mut owned = Vec::with_capacity(y.len());
    for t in y.iter_mut() {
        let mut own = t.detach();
        // Two handles are ours: the caller's and `own`.
        if Arc::strong_count(&own.storage) > 2 {
            own = own.copy()?;
        }
        owned.push(own);
    }
    let edges: Vec<_> = y.iter().map(|t| t.edge.clone()).collect();
    let empty = Shape::new(&[0])?;
    for t in y.iter_mut() {
        // Let go of the caller's handle, so that `own` is the only one.
        **t = Tensor::new(empty.clone(), DType::U32, &Device::Reference, Storage::Host(Host::RefU32(vec![])));
    }
    let done = compute(op, &device, x, owned);
    for ((t, new), edge) in y.iter_mut().zip(done?).zip(edges) {
        **t = Tensor { edge, ..new };
    }
    Ok(())
}

fn compute(op: &dyn Op, device: &Device, x: &[&Tensor], mut y: Vec<Tensor>) -> Result<Vec<Tensor>> {
    match device {
        #[cfg(feature = "gpu")]
        Device::Gpu(g) => op.gpu(g, x, &y)?,
        _ => {
            let mut hosts = Vec::with_capacity(y.len());
            let mut shells = Vec::with_capacity(y.len());
            for t in y.drain(..) {
                let Tensor { storage, shape, dtype, .. } = t;
                match Arc::into_inner(storage) {
                    Some(Storage::Host(h)) => hosts.push(h),
                    _ => unreachable!("outputs are unique host tensors"),
                }
                shells.push((shape, dtype));
            }
            match device {
                Device::Cpu(c) => c.install(|| op.cpu(x, &mut hosts)),
                _ => op.reference(x, &mut hosts),
            }
            y = shells
                .into_iter()
                .zip(hosts)
                .map(|((shape, dtype), h)| Tensor::new(shape, dtype, device, Storage::Host(h)))
                .collect();
        }
    }
    Ok(y)
}

/// Rows of one parallel task: enough work to be worth a task, and a function of the shape alone.
fn rows_per_task(width: usize) -> usize {
    (16_384 / width.max(1)).max(1)
}

/// Calls `f(row, values)` for every row of `width` values, rows in parallel.
pub(crate) fn rows_in_parallel<T: Send>(y: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if y.is_empty() || width == 0 {
        return;
    }
    let n = rows_per_task(width);
    y.par_chunks_mut(n * width).enumerate().for_each(|(c, rows)| {
        for (i, row) in rows.chunks_mut(width).enumerate() {
            f(c * n + i, row);
        }
    });
}
