//! The op trait: shapes first, then one of three lanes.

use crate::device::Host;
use crate::simd::wide;
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
    let (y, done) = compute(op, device, x, y);
    done.map(|()| y)
}

/// Like [`run`] on outputs that hold values: they are updated. Memory that others see is copied first.
///
/// After an error the outputs are as they were, except that a GPU lane of several launches may have done some.
pub(crate) fn run_in_place(op: &dyn Op, y: &mut [&mut Tensor], x: &[&Tensor]) -> Result<()> {
    let all: Vec<&Tensor> = y.iter().map(|t| &**t).chain(x.iter().copied()).collect();
    let device = common_device(op, &all)?.clone();
    op.infer(&all)?;
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
    let (owned, done) = compute(op, &device, x, owned);
    for ((t, new), edge) in y.iter_mut().zip(owned).zip(edges) {
        **t = Tensor { edge, ..new };
    }
    done
}

/// Computes into `y` and hands it back, whether it went well or not.
fn compute(op: &dyn Op, device: &Device, x: &[&Tensor], mut y: Vec<Tensor>) -> (Vec<Tensor>, Result<()>) {
    match device {
        #[cfg(feature = "gpu")]
        Device::Gpu(g) => {
            let done = op.gpu(g, x, &y);
            return (y, done);
        }
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
    (y, Ok(()))
}

/// Rows of one parallel task: enough work to be worth a task, and a function of the shape alone.
pub(crate) fn rows_per_task(width: usize) -> usize {
    (16_384 / width.max(1)).max(1)
}

/// Calls `f(row, values)` for every row of `width` values, rows in parallel.
pub(crate) fn rows_in_parallel<T: Send>(y: &mut [T], width: usize, f: impl Fn(usize, &mut [T]) + Sync) {
    if y.is_empty() || width == 0 {
        return;
    }
    let n = rows_per_task(width);
    let task = |c: usize, rows: &mut [T]| {
        wide(|| {
            for (i, row) in rows.chunks_mut(width).enumerate() {
                f(c * n + i, row);
            }
        });
    };
    match y.len() <= n * width {
        // One task needs no other thread.
        true => task(0, y),
        false => y.par_chunks_mut(n * width).enumerate().for_each(|(c, rows)| task(c, rows)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds 1 to its only output; its GPU lane fails.
    struct Broken;

    impl Op for Broken {
        fn name(&self) -> &'static str {
            "broken"
        }
        fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
            Ok(vec![Meta::like(x[0])])
        }
        fn reference(&self, _: &[&Tensor], y: &mut [Host]) {
            y[0].f64_mut().iter_mut().for_each(|v| *v += 1.0);
        }
        fn cpu(&self, _: &[&Tensor], y: &mut [Host]) {
            y[0].f32_mut().iter_mut().for_each(|v| *v += 1.0);
        }
        #[cfg(feature = "gpu")]
        fn gpu(&self, _: &Arc<crate::device::Gpu>, _: &[&Tensor], _: &[Tensor]) -> Result<()> {
            Err(Error::Gpu("broken".into()))
        }
    }

    #[test]
    fn in_place_writes_only_what_no_one_else_holds() {
        for device in [Device::cpu(), Device::reference()] {
            let mut y = Tensor::full(&device, &[3], 2.0).unwrap().leaf();
            let seen = y.clone();
            run_in_place(&Broken, &mut [&mut y], &[]).unwrap();
            assert_eq!((y.to_f32().unwrap(), seen.to_f32().unwrap()), (vec![3.0; 3], vec![2.0; 3]));
            assert!(y.requires_grad());
        }
    }

    #[cfg(feature = "gpu")]
    #[test]
    fn a_failed_launch_loses_no_tensor() {
        let Ok(device) = Device::gpu() else { return eprintln!("SKIPPED: no adapter") };
        let mut y = Tensor::full(&device, &[3], 2.0).unwrap().leaf();
        let held = device.memory().unwrap().current();
        assert!(run_in_place(&Broken, &mut [&mut y], &[]).is_err());
        assert_eq!((y.to_f32().unwrap(), y.dims()), (vec![2.0; 3], &[3][..]));
        assert!(y.requires_grad());
        assert_eq!(device.memory().unwrap().current(), held);
        let shared = y.clone();
        assert!(run_in_place(&Broken, &mut [&mut y], &[]).is_err());
        drop(shared);
        assert_eq!(y.to_f32().unwrap(), [2.0; 3]);
        let other = Tensor::full(&Device::cpu(), &[3], 2.0).unwrap();
        assert!(run_in_place(&Broken, &mut [&mut y], &[&other]).is_err());
        assert_eq!(y.to_f32().unwrap(), [2.0; 3]);
    }
}
