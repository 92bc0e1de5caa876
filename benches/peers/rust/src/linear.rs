//! A frozen linear: `y = x W^T`, and `dx = dy W` behind it, row-major f32.

use crate::values::{sample, values};
use crate::{Candidate, Result, seconds, timed};
use faer::linalg::matmul::matmul;
use faer::{Accum, MatMut, MatRef, Par};
use mixlora::{Format, Weight, backward};
use std::rc::Rc;
use std::time::Instant;

pub struct Data {
    /// Rows, inputs, outputs.
    pub sizes: [usize; 3],
    pub x: Vec<f32>,
    pub dy: Vec<f32>,
    pub w: Vec<f32>,
}

/// Both products of all candidates; `sizes` are rows, inputs and outputs.
pub fn candidates(sizes: [usize; 3], threads: usize, repeats: usize) -> Result<Vec<Candidate>> {
    let [m, k, n] = sizes;
    let (x, dy, w) = (values(1, m * k, 1.0), values(2, m * n, 1.0), values(3, n * k, 0.1));
    let data = Rc::new(Data { sizes, x, dy, w });
    #[allow(unused_mut)] // Without burn.
    let mut all = vec![
        mixlora(&data, threads, repeats)?,
        gemm_crate(&data, threads, repeats)?,
        faer_crate(&data, threads, repeats)?,
        candle(&data, repeats)?,
    ];
    #[cfg(feature = "burn")]
    all.extend(crate::with_burn::linear(&data, repeats)?);
    Ok(all)
}

fn mixlora(data: &Data, threads: usize, repeats: usize) -> Result<Candidate> {
    let ([m, k, n], device) = (data.sizes, mixlora::Device::cpu_with_threads(threads)?);
    let tensor = |values: &[f32], d: usize| mixlora::Tensor::from_f32(&device, &[m, d], values);
    let (x, dy) = (tensor(&data.x, k)?.leaf(), tensor(&data.dy, n)?);
    let w = Weight::new(&device, n, k, &data.w, Format::F32)?;
    let y = x.linear(&w, None)?;
    let mut all = sample(&y.to_f32()?);
    let gradients = backward(&[(&y, dy.clone())])?;
    all.extend(sample(&gradients.get(&x).ok_or("no gradient")?.to_f32()?));
    Ok(Candidate::new("mixlora", all, move || {
        let forward = seconds(repeats, || Ok(timed(|| Ok(x.linear(&w, None)?))?.0))?;
        let back = seconds(repeats, || {
            let y = x.linear(&w, None)?;
            Ok(timed(|| Ok(backward(&[(&y, dy.clone())])?))?.0)
        })?;
        Ok(vec![("forward", forward), ("backward", back)])
    }))
}

/// A candidate that writes into memory it is given.
fn into(
    name: &'static str,
    data: &Rc<Data>,
    repeats: usize,
    product: impl Fn(&Data, bool, &mut [f32]) + 'static,
) -> Result<Candidate> {
    let ([m, k, n], data) = (data.sizes, data.clone());
    let (mut y, mut dx) = (vec![0f32; m * n], vec![0f32; m * k]);
    product(&data, true, &mut y);
    product(&data, false, &mut dx);
    let all = [sample(&y), sample(&dx)].concat();
    Ok(Candidate::new(name, all, move || {
        let time = |forward: bool, out: &mut [f32]| {
            seconds(repeats, || {
                let started = Instant::now();
                product(&data, forward, out);
                Ok(started.elapsed().as_secs_f64())
            })
        };
        Ok(vec![("forward", time(true, &mut y)?), ("backward", time(false, &mut dx)?)])
    }))
}

fn gemm_crate(data: &Rc<Data>, threads: usize, repeats: usize) -> Result<Candidate> {
    into("gemm", data, repeats, move |d, forward, out| {
        let [m, k, n] = d.sizes;
        // W has k values in a row; the forward product reads it as its transpose.
        let (cols, sum, a) = if forward { (n, k, &d.x) } else { (k, n, &d.dy) };
        let (col, row) = if forward { (k, 1) } else { (1, k) };
        unsafe {
            gemm::gemm(
                m,
                cols,
                sum,
                out.as_mut_ptr(),
                1,
                cols as isize,
                false,
                a.as_ptr(),
                1,
                sum as isize,
                d.w.as_ptr(),
                col as isize,
                row as isize,
                0f32,
                1f32,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(threads),
            );
        }
    })
}

fn faer_crate(data: &Rc<Data>, threads: usize, repeats: usize) -> Result<Candidate> {
    into("faer", data, repeats, move |d, forward, out| {
        let [m, k, n] = d.sizes;
        let w = MatRef::from_row_major_slice(&d.w, n, k);
        let par = Par::rayon(threads);
        match forward {
            true => {
                let x = MatRef::from_row_major_slice(&d.x, m, k);
                matmul(
                    MatMut::from_row_major_slice_mut(out, m, n),
                    Accum::Replace,
                    x,
                    w.transpose(),
                    1.0,
                    par,
                );
            }
            false => {
                let dy = MatRef::from_row_major_slice(&d.dy, m, n);
                matmul(MatMut::from_row_major_slice_mut(out, m, k), Accum::Replace, dy, w, 1.0, par);
            }
        }
    })
}

fn candle(data: &Data, repeats: usize) -> Result<Candidate> {
    use candle_core::{Device, Tensor};
    let [m, k, n] = data.sizes;
    let tensor = |values: &[f32], dims| Tensor::from_slice(values, dims, &Device::Cpu);
    let (x, dy, w) = (tensor(&data.x, (m, k))?, tensor(&data.dy, (m, n))?, tensor(&data.w, (n, k))?);
    let all = |t: Tensor| -> Result<Vec<f32>> { Ok(sample(&t.flatten_all()?.to_vec1::<f32>()?)) };
    let all = [all(x.matmul(&w.t()?)?)?, all(dy.matmul(&w)?)?].concat();
    Ok(Candidate::new("candle", all, move || {
        let forward = seconds(repeats, || Ok(timed(|| Ok(x.matmul(&w.t()?)?))?.0))?;
        let back = seconds(repeats, || Ok(timed(|| Ok(dy.matmul(&w)?))?.0))?;
        Ok(vec![("forward", forward), ("backward", back)])
    }))
}
