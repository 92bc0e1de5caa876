//! `a b` of squares on the GPU, an adapter in software included.

use crate::values::{sample, values};
use crate::{Candidate, Result, seconds, timed};

pub fn candidates(side: usize, repeats: usize) -> Result<Vec<Candidate>> {
    let (a, b) = (values(1, side * side, 1.0), values(2, side * side, 1.0));
    #[allow(unused_mut)] // Without burn.
    let mut all = vec![mixlora(&a, &b, side, repeats)?];
    #[cfg(feature = "burn")]
    all.push(crate::with_burn::gpu(&a, &b, side, repeats)?);
    Ok(all)
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
