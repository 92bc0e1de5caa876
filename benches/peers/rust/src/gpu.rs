//! `a b` of squares on the GPU, an adapter in software included.

use crate::values::{sample, values};
use crate::{Candidate, Result, seconds, timed};
use burn::tensor::{Device, DeviceKind, Tensor, TensorData};

pub fn candidates(side: usize, repeats: usize) -> Result<Vec<Candidate>> {
    let (a, b) = (values(1, side * side, 1.0), values(2, side * side, 1.0));
    Ok(vec![mixlora(&a, &b, side, repeats)?, burn(&a, &b, side, repeats)?])
}

fn mixlora(a: &[f32], b: &[f32], side: usize, repeats: usize) -> Result<Candidate> {
    let device = mixlora::Device::gpu()?;
    eprintln!("mixlora: {}", device.name());
    let tensor = |values: &[f32]| mixlora::Tensor::from_f32(&device, &[side, side], values);
    let (a, b) = (tensor(a)?, tensor(b)?);
    let all = sample(&a.matmul(&b)?.to_f32()?);
    Ok(Candidate::new("mixlora", all, move || {
        let each = seconds(repeats, || {
            Ok(timed(|| {
                let c = a.matmul(&b)?;
                device.sync()?;
                Ok(c)
            })?
            .0)
        })?;
        Ok(vec![("matmul", each)])
    }))
}

fn burn(a: &[f32], b: &[f32], side: usize, repeats: usize) -> Result<Candidate> {
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
