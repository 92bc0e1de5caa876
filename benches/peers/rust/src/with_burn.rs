//! burn's side: its backends for the CPU, and wgpu.

use crate::linear::Data;
use crate::values::sample;
use crate::{Candidate, Result, seconds, timed};
use burn::tensor::{Device, DeviceKind, Tensor, TensorData};

/// Both products of a frozen linear.
#[allow(deprecated)] // burn's ndarray backend, which many still use.
pub fn linear(data: &Data, repeats: usize) -> Result<[Candidate; 2]> {
    Ok([
        product("burn-flex", Device::flex(), data, repeats)?,
        product("burn-ndarray", Device::ndarray(), data, repeats)?,
    ])
}

fn product(name: &'static str, device: Device, data: &Data, repeats: usize) -> Result<Candidate> {
    let [m, k, n] = data.sizes;
    let tensor = |values: &[f32], dims: [usize; 2]| {
        Tensor::<2>::from_data(TensorData::new(values.to_vec(), dims), &device)
    };
    let (x, dy, w) = (tensor(&data.x, [m, k]), tensor(&data.dy, [m, n]), tensor(&data.w, [n, k]));
    let all = |t: Tensor<2>| -> Result<Vec<f32>> {
        Ok(sample(&t.into_data().try_to_vec::<f32>().map_err(|e| format!("{e:?}"))?))
    };
    let forward = move |x: &Tensor<2>, w: &Tensor<2>| x.clone().matmul(w.clone().transpose());
    let back = move |dy: &Tensor<2>, w: &Tensor<2>| dy.clone().matmul(w.clone());
    let all = [all(forward(&x, &w))?, all(back(&dy, &w))?].concat();
    Ok(Candidate::new(name, all, move || {
        let time = |f: &dyn Fn() -> Tensor<2>| {
            seconds(repeats, || {
                Ok(timed(|| {
                    let y = f();
                    device.sync().map_err(|e| format!("{e:?}"))?;
                    Ok(y)
                })?
                .0)
            })
        };
        Ok(vec![("forward", time(&|| forward(&x, &w))?), ("backward", time(&|| back(&dy, &w))?)])
    }))
}

pub fn gpu(a: &[f32], b: &[f32], side: usize, repeats: usize) -> Result<Candidate> {
    let device = Device::wgpu(DeviceKind::DefaultDevice);
    let tensor =
        |values: &[f32]| Tensor::<2>::from_data(TensorData::new(values.to_vec(), [side, side]), &device);
    let (a, b) = (tensor(a), tensor(b));
    let c = a.clone().matmul(b.clone()).into_data();
    let all = sample(&c.try_to_vec::<f32>().map_err(|e| format!("{e:?}"))?);
    eprintln!("burn: {:?}", device.identity());
    Ok(Candidate::new("burn-wgpu", all, move || {
        let each = seconds(repeats, || {
            Ok(timed(|| {
                let c = a.clone().matmul(b.clone());
                device.sync().map_err(|e| format!("{e:?}"))?;
                Ok(c)
            })?
            .0)
        })?;
        Ok(vec![("matmul", each)])
    }))
}
