//! The op trait: shapes first, then one of three back ends.

use crate::device::{Gpu, Host};
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

/// The input tensors of an op, by name: see [`operands!`].
pub(crate) trait Operands<'a>: Copy + Send + Sync {
    /// All of them, in the order of their declaration; absent ones are left out.
    fn all(&self) -> Vec<&'a Tensor>;
    /// Refuses inputs of another element type.
    fn require(&self, op: &'static str, dtype: DType) -> Result<()> {
        self.all().iter().try_for_each(|t| t.require(op, dtype))
    }
}

/// No inputs.
impl<'a> Operands<'a> for () {
    fn all(&self) -> Vec<&'a Tensor> {
        Vec::new()
    }
}

/// Any number of inputs that are treated alike.
impl<'a> Operands<'a> for &'a [&'a Tensor] {
    fn all(&self) -> Vec<&'a Tensor> {
        self.to_vec()
    }
}

/// Some inputs in a given order.
impl<'a, const M: usize> Operands<'a> for [&'a Tensor; M] {
    fn all(&self) -> Vec<&'a Tensor> {
        self.to_vec()
    }
}

/// Declares the inputs of an op: `operands! { struct In { x, w; mask } }` has tensors `x` and `w`, and perhaps a `mask`.
macro_rules! operands {
    ($(#[$doc:meta])* $vis:vis struct $name:ident { $($field:ident),+ $(; $($optional:ident),+)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy)]
        $vis struct $name<'a> {
            $(pub $field: &'a $crate::Tensor,)+
            $($(pub $optional: Option<&'a $crate::Tensor>,)+)?
        }

        impl<'a> $crate::engine::Operands<'a> for $name<'a> {
            fn all(&self) -> Vec<&'a $crate::Tensor> {
                #[allow(unused_mut)]
                let mut all = vec![$(self.$field),+];
                $($(all.extend(self.$optional);)+)?
                all
            }
        }
    };
}
pub(crate) use operands;

/// A computation of `N` outputs on tensors, without a derivative: that is composed from ops where it is recorded.
///
/// Outputs may hold NaN when a back end starts; every element must be written. An output that is not wanted is empty.
pub(crate) trait Op<const N: usize = 1>: Send + Sync {
    /// The inputs, declared by [`operands!`].
    type In<'a>: Operands<'a>;
    /// Name for errors: the op's file name.
    fn name(&self) -> &'static str;
    /// Checks the inputs and says what comes out. Nothing is allocated before this has passed.
    fn infer(&self, x: &Self::In<'_>) -> Result<[Meta; N]>;
    /// The specification: plain f64 loops.
    fn reference(&self, x: &Self::In<'_>, y: [&mut Host; N]);
    /// The fast CPU path. Work is split by shape, never by thread count.
    fn cpu(&self, x: &Self::In<'_>, y: [&mut Host; N]);
    /// Records the kernels that compute it.
    fn gpu(&self, gpu: &Arc<Gpu>, x: &Self::In<'_>, y: &[Tensor; N]) -> Result<()>;
}

fn common_device<'a>(op: &'static str, x: &[&'a Tensor]) -> Result<&'a Device> {
    let Some(first) = x.first() else { return Err(Error::shape(op, "at least one tensor", "none")) };
    let device = first.device();
    match x.iter().find(|t| !t.device().same(device)) {
        None => Ok(device),
        Some(t) => Err(Error::shape(
            op,
            format!("all operands on '{}'", device.name()),
            format!("one on '{}'", t.device().name()),
        )),
    }
}

/// Checks, allocates and computes, on the device of the inputs.
pub(crate) fn run<O: Op<N>, const N: usize>(op: &O, x: O::In<'_>) -> Result<[Tensor; N]> {
    let inputs = x.all();
    let device = common_device(op.name(), &inputs)?;
    let mut y = Vec::with_capacity(N);
    for Meta { shape, dtype } in op.infer(&x)? {
        y.push(Tensor::undefined(device, shape, dtype)?);
    }
    let Ok(y) = <[Tensor; N]>::try_from(y) else { unreachable!("one tensor for each output") };
    let (y, done) = compute(op, device, &x, y);
    done.map(|()| y)
}

/// [`run`] of an op with one output.
pub(crate) fn run1<O: Op>(op: &O, x: O::In<'_>) -> Result<Tensor> {
    let [y] = run(op, x)?;
    Ok(y)
}

/// Like [`run`] on outputs that hold values: they are updated. Memory that others see is copied first.
///
/// After an error the outputs are as they were, except that a GPU may have done some of several launches.
pub(crate) fn run_in_place<O: Op<N>, const N: usize>(
    op: &O,
    y: [&mut Tensor; N],
    x: O::In<'_>,
) -> Result<()> {
    let mut all = x.all();
    all.extend(y.iter().map(|t| &**t));
    let device = common_device(op.name(), &all)?.clone();
    for (i, (output, meta)) in y.iter().zip(op.infer(&x)?).enumerate() {
        output.require(op.name(), meta.dtype)?;
        if *output.shape() != meta.shape {
            return Err(Error::shape(op.name(), format!("output {i} of {}", meta.shape), output.shape()));
        }
    }
    let mut owned = Vec::with_capacity(N);
    for output in &y {
        let own = output.detach();
        // Two handles are ours: the caller's and `own`.
        owned.push(if Arc::strong_count(&own.storage) > 2 { own.copy()? } else { own });
    }
    let Ok(owned) = <[Tensor; N]>::try_from(owned) else { unreachable!("one tensor for each output") };
    let empty = Shape::new(&[0])?;
    let edges = y.each_ref().map(|t| t.edge.clone());
    let y = y.map(|output| {
        // Let go of the caller's handle, so that `owned` has the only one.
        let nothing = Storage::Host(Host::RefU32(vec![]));
        *output = Tensor::new(empty.clone(), DType::U32, &Device::Reference, nothing);
        output
    });
    let (owned, done) = compute(op, &device, &x, owned);
    for ((output, new), edge) in y.into_iter().zip(owned).zip(edges) {
        *output = Tensor { edge, ..new };
    }
    done
}

/// Computes into `y` and hands it back, whether it went well or not.
fn compute<O: Op<N>, const N: usize>(
    op: &O,
    device: &Device,
    x: &O::In<'_>,
    y: [Tensor; N],
) -> ([Tensor; N], Result<()>) {
    if let Device::Gpu(gpu) = device {
        let done = op.gpu(gpu, x, &y);
        return (y, done);
    }
    let mut outputs = y.map(|Tensor { storage, shape, dtype, .. }| match Arc::into_inner(storage) {
        Some(Storage::Host(host)) => (shape, dtype, host),
        _ => unreachable!("outputs are unique host tensors"),
    });
    let hosts = outputs.each_mut().map(|(_, _, host)| host);
    match device {
        Device::Cpu(cpu) => cpu.install(|| op.cpu(x, hosts)),
        _ => op.reference(x, hosts),
    }
    (outputs.map(|(shape, dtype, host)| Tensor::new(shape, dtype, device, Storage::Host(host))), Ok(()))
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
    // One task needs no other thread.
    if y.len() <= n * width {
        task(0, y);
    } else {
        y.par_chunks_mut(n * width).enumerate().for_each(|(c, rows)| task(c, rows));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Adds 1 to its only output; it fails on a GPU.
    struct Broken;

    impl Op for Broken {
        type In<'a> = &'a [&'a Tensor];
        fn name(&self) -> &'static str {
            "broken"
        }
        fn infer(&self, _: &&[&Tensor]) -> Result<[Meta; 1]> {
            Ok([Meta::f32(&[3])?])
        }
        fn reference(&self, _: &&[&Tensor], [y]: [&mut Host; 1]) {
            y.f64_mut().iter_mut().for_each(|v| *v += 1.0);
        }
        fn cpu(&self, _: &&[&Tensor], [y]: [&mut Host; 1]) {
            y.f32_mut().iter_mut().for_each(|v| *v += 1.0);
        }
        fn gpu(&self, _: &Arc<Gpu>, _: &&[&Tensor], _: &[Tensor; 1]) -> Result<()> {
            Err(Error::Gpu("broken".into()))
        }
    }

    #[test]
    fn in_place_writes_only_what_no_one_else_holds() {
        for device in [Device::cpu(), Device::reference()] {
            let mut y = Tensor::full(&device, &[3], 2.0).unwrap().leaf();
            let seen = y.clone();
            run_in_place(&Broken, [&mut y], &[]).unwrap();
            assert_eq!((y.to_f32().unwrap(), seen.to_f32().unwrap()), (vec![3.0; 3], vec![2.0; 3]));
            assert!(y.requires_grad());
        }
    }

    #[test]
    fn a_failed_launch_loses_no_tensor() {
        let Ok(device) = Device::gpu() else { return eprintln!("SKIPPED: no adapter") };
        let mut y = Tensor::full(&device, &[3], 2.0).unwrap().leaf();
        let held = device.memory().unwrap().current();
        assert!(run_in_place(&Broken, [&mut y], &[]).is_err());
        assert_eq!((y.to_f32().unwrap(), y.dims()), (vec![2.0; 3], &[3][..]));
        assert!(y.requires_grad());
        assert_eq!(device.memory().unwrap().current(), held);
        let shared = y.clone();
        assert!(run_in_place(&Broken, [&mut y], &[]).is_err());
        drop(shared);
        assert_eq!(y.to_f32().unwrap(), [2.0; 3]);
        let other = Tensor::full(&Device::cpu(), &[3], 2.0).unwrap();
        assert!(run_in_place(&Broken, [&mut y], &[&other]).is_err());
        assert_eq!(y.to_f32().unwrap(), [2.0; 3]);
    }
}
