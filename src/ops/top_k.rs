//! Positions of the k largest values of each row.

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Timed, TimedSizes, operands, rows_in_parallel, run1};
use crate::{DType, Error, Result, Tensor};
use std::sync::Arc;

pub(super) static SPEC: OpSpec = OpSpec {
    name: "top_k",
    formula: "positions of the k largest of each row",
    shaders: &[&SHADER],
    cases,
    timed,
};

const fn variant(name: &'static str, consts: &'static [(&'static str, u32)]) -> Variant {
    let workgroup_bytes = 8 * consts[0].1;
    Variant { name, consts, parts: &[parts::GRID, parts::ORDER], backends: PORTABLE, workgroup_bytes }
}
static VARIANTS: &[Variant] = &[variant("wg64", &[("WG", 64)]), variant("wg256", &[("WG", 256)])];

params! {
    struct Params { n: u32, d: u32, k: u32 }
}

static SHADER: Shader = Shader {
    name: "top_k",
    source: include_str!("../../shaders/top_k.wgsl"),
    params: Params::FIELDS,
    entries: &[Entry { name: "pick", variants: VARIANTS }, Entry { name: "rank", variants: VARIANTS }],
};

/// Longest row: one workgroup orders it.
const MAX_ROW: usize = 4096;

/// `x -> index`
struct TopK {
    k: usize,
}

/// Grows with the value; 0 for NaN; +0 and -0 are equal.
pub(super) fn key(x: f32) -> u32 {
    let bits = x.to_bits();
    match x {
        _ if x.is_nan() => 0,
        0.0 => 1 << 31,
        _ if x < 0.0 => !bits,
        _ => bits | 1 << 31,
    }
}

/// Positions of the largest values, as many as fit `index`, in the order of the op. `order` is scratch.
pub(super) fn largest(values: &[f32], order: &mut Vec<u64>, index: &mut [u32]) {
    // Ascending order of these is descending order of values, then ascending order of positions.
    order.clear();
    order.extend(values.iter().enumerate().map(|(i, &v)| (!key(v) as u64) << 32 | i as u64));
    if index.len() < order.len() {
        order.select_nth_unstable(index.len());
        order.truncate(index.len());
    }
    order.sort_unstable();
    index.iter_mut().zip(order).for_each(|(index, w)| *index = *w as u32);
}

operands! {
    struct In { x }
}

impl Op for TopK {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        "top_k"
    }

    fn infer(&self, &In { x }: &In<'_>) -> Result<[Meta; 1]> {
        x.require(self.name(), DType::F32)?;
        let d = x.shape().last();
        if x.shape().rank() == 0 || self.k > d || d > MAX_ROW {
            return Err(Error::shape(
                self.name(),
                format!("rows of {} to {MAX_ROW} values", self.k),
                x.shape(),
            ));
        }
        let shape = x.shape().with_last(self.k)?;
        Ok([Meta::u32(shape.dims())?])
    }

    fn reference(&self, &In { x }: &In<'_>, [index]: [&mut Host; 1]) {
        let d = x.shape().last().max(1);
        for (index, x) in index.u32_mut().chunks_mut(self.k.max(1)).zip(x.f64().chunks(d)) {
            let mut order: Vec<usize> = (0..x.len()).collect();
            // A stable sort keeps the lowest position first among equals.
            let value = |i: usize| if x[i].is_nan() { (false, 0.0) } else { (true, x[i]) };
            order.sort_by(|&a, &b| value(b).partial_cmp(&value(a)).expect("no NaN"));
            index.iter_mut().zip(order).for_each(|(index, i)| *index = i as u32);
        }
    }

    fn cpu(&self, &In { x }: &In<'_>, [index]: [&mut Host; 1]) {
        let d = x.shape().last();
        let x = x.f32();
        let k = self.k;
        rows_in_parallel(index.u32_mut(), k, |row, index| {
            largest(&x[row * d..][..d], &mut Vec::with_capacity(d), index);
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let n = x.x.shape().rows();
        let d = x.x.shape().last();
        let k = self.k;
        if k == 0 {
            return Ok(());
        }
        // Estimated from the number of barriers against comparisons, not measured.
        let entry = if d <= 128 || k > 256 { "rank" } else { "pick" };
        let variant = &VARIANTS[usize::from(d > 512)];
        let work = if entry == "rank" { d } else { k };
        let kernel = crate::engine::launch::Kernel { shader: &SHADER, entry, variant };
        let params = Params { n: n as u32, d: d as u32, k: k as u32 };
        kernel.run(gpu, &crate::engine::launch::binds(x, y), &params, n, 4 * n * d * work)
    }
}

impl Tensor {
    /// Positions of the `k` largest values of each row, largest first: `[.., D] -> [.., k]`, indices.
    ///
    /// Of equal values the lowest position comes first; NaN counts as smaller than everything. There is no
    /// derivative.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let x = Tensor::from_f32(&Device::cpu(), &[1, 4], &[1.0, 7.0, f32::NAN, 7.0])?;
    /// assert_eq!(x.top_k(3)?.to_u32()?, [1, 3, 0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// `k` is more than D, or D is more than 4096.
    pub fn top_k(&self, k: usize) -> Result<Tensor> {
        run1(&TopK { k }, In { x: self })
    }
}

fn cases() -> Vec<Case> {
    let case = |dims: &'static [usize], k: usize, steps: f32| {
        let n = dims.iter().product::<usize>();
        let d = dims[dims.len() - 1];
        let Operand::Values { mut data, .. } = Operand::normal("x", dims) else { unreachable!() };
        // Few different values give ties.
        data.iter_mut().for_each(|v| *v = (*v * steps).round() / steps);
        if steps == 1.0 {
            let odd = [f32::NAN, f32::INFINITY, -0.0, f32::NEG_INFINITY, 1e-40, -1e-40, 0.0];
            data.iter_mut().zip(odd).for_each(|(v, o)| *v = o);
        }
        let inputs = vec![Operand::values(dims, data).frozen()];
        Case::new(format!("{dims:?} k {k} steps {steps}"), inputs, move |x| Ok(vec![x[0].top_k(k)?]))
            .cost(n * k.max(1), 4 * (n + n / d.max(1) * k))
    };
    vec![
        case(&[0, 5], 2, 4.0),
        case(&[3, 0], 0, 4.0),
        case(&[3, 5], 0, 4.0),
        case(&[1, 1], 1, 4.0),
        case(&[9], 9, 1.0),
        case(&[2, 3, 17], 4, 1e6),
        case(&[70_000, 3], 2, 2.0),
        // pick with wg64, pick with wg256, rank with wg256.
        case(&[5, 300], 7, 1.0),
        case(&[3, 513], 40, 1.0),
        case(&[5, 4096], 8, 100.0),
        case(&[2, 4096], 257, 100.0),
        case(&[2, 600], 600, 1.0),
    ]
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, d] = sizes.plane();
    let inputs = vec![Operand::normal("x", &[rows, d]).frozen()];
    vec![Timed::plain(format!("8 of {rows}x{d}"), inputs, (0, 4 * rows * (d + 8)), |x| x[0].top_k(8))]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn bad_sizes_are_errors() {
        let cpu = Device::cpu();
        let zeros = |dims: &[usize]| Tensor::zeros(&cpu, dims).unwrap();
        assert!(zeros(&[2, 3]).top_k(4).is_err());
        assert!(zeros(&[1, 4097]).top_k(1).is_err());
        assert!(zeros(&[]).top_k(1).is_err());
        let x = Tensor::from_u32(&cpu, &[1], &[1]).unwrap();
        assert!(matches!(x.top_k(1), Err(Error::DType { .. })));
    }
}
