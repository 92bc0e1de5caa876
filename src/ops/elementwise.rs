//! Sums, products, scaling and constants, element by element.

use crate::device::{Entry, Host, Shader};
use crate::engine::launch::ELEMENTS;
use crate::engine::{Case, Meta, Op, OpSpec, Operand, rows_in_parallel, run, run_in_place};
use crate::simd::wide;
use crate::tape::Node;
use crate::{DType, Device, Error, Result, Shape, Tensor};
use rayon::prelude::*;

#[cfg(feature = "gpu")]
use crate::engine::launch::{self, Kernel, binds};

pub(super) static SPEC: OpSpec =
    OpSpec { name: "elementwise", formula: "a + s b, a b, s a, y += a, y = s", shaders: &[&SHADER], cases };

static SHADER: Shader = Shader {
    name: "elementwise",
    source: include_str!("../../shaders/elementwise.wgsl"),
    entries: &[
        Entry { name: "add", variants: ELEMENTS },
        Entry { name: "mul", variants: ELEMENTS },
        Entry { name: "scale", variants: ELEMENTS },
        Entry { name: "add_assign", variants: ELEMENTS },
        Entry { name: "fill", variants: ELEMENTS },
    ],
};

#[derive(Debug, Clone, Copy)]
enum Kind {
    /// `a + s b`
    Add(f32),
    /// `a b`
    Mul,
    /// `s a`
    Scale(f32),
    /// `y += a`; the output comes first.
    AddAssign,
    /// `y = s`; the output comes first.
    Fill(f32),
}

/// Elements of one parallel task.
const CHUNK: usize = 1 << 14;

/// How the second operand spreads over the first: element i meets element `(i / div) % len`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Spread {
    Same,
    /// One row `[D]` for all rows.
    Row,
    /// One value per row, `[.., 1]`.
    Column,
}

impl Spread {
    fn of(a: &Tensor, b: &Tensor) -> Option<Self> {
        if a.shape() == b.shape() {
            Some(Spread::Same)
        } else if b.dims() == [a.shape().last()] {
            Some(Spread::Row)
        } else if a.shape().rank() > 0 && a.shape().with_last(1).ok()? == *b.shape() {
            Some(Spread::Column)
        } else {
            None
        }
    }

    /// `(div, len)`
    fn steps(self, a: &Tensor) -> (usize, usize) {
        match self {
            Spread::Same => (1, a.len().max(1)),
            Spread::Row => (1, a.shape().last().max(1)),
            Spread::Column => (a.shape().last().max(1), a.shape().rows().max(1)),
        }
    }

    /// Sums a gradient of the first operand's shape back to the second's.
    fn gather(self, g: Tensor, shape: &crate::Shape) -> Result<Tensor> {
        match self {
            Spread::Same => Ok(g),
            Spread::Row => g.sum_rows(),
            Spread::Column => g.sum_last()?.reshape(shape.dims()),
        }
    }
}

/// The second operand's spread over the first, and `(div, len)`; `(1, n)` where there is no second.
fn steps(x: &[&Tensor]) -> (Spread, usize, usize) {
    match x {
        [a, b] => {
            let spread = Spread::of(a, b).unwrap_or(Spread::Same);
            let (div, len) = spread.steps(a);
            (spread, div, len)
        }
        _ => (Spread::Same, 1, x.first().map_or(1, |t| t.len().max(1))),
    }
}

/// `y = f(a, b)`, in loops over plain slices that vectorise.
fn combine(y: &mut [f32], a: &Tensor, b: &Tensor, spread: Spread, f: impl Fn(f32, f32) -> f32 + Sync) {
    let (d, a, b) = (a.shape().last(), a.f32(), b.f32());
    match spread {
        Spread::Same => {
            let parts = y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK));
            parts.for_each(|((y, a), b)| {
                wide(|| y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = f(a, b)));
            });
        }
        Spread::Row => rows_in_parallel(y, d, |i, y| {
            y.iter_mut().zip(&a[i * d..]).zip(b).for_each(|((y, &a), &b)| *y = f(a, b));
        }),
        Spread::Column => rows_in_parallel(y, d, |i, y| {
            y.iter_mut().zip(&a[i * d..]).for_each(|(y, &a)| *y = f(a, b[i]));
        }),
    }
}

/// Calls `f` on every element of `y` and of `a`.
fn update(y: &mut [f32], a: &[f32], f: impl Fn(&mut f32, f32) + Sync) {
    let parts = y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK));
    parts.for_each(|(y, a)| wide(|| y.iter_mut().zip(a).for_each(|(y, &a)| f(y, a))));
}

impl Op for Kind {
    fn name(&self) -> &'static str {
        "elementwise"
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        x.iter().try_for_each(|t| t.expect(self.name(), DType::F32))?;
        if let [a, b] = x {
            let fits = match self {
                Kind::AddAssign => a.shape() == b.shape(),
                _ => Spread::of(a, b).is_some(),
            };
            if !fits {
                let how = "shapes must agree, or the second be one row or one value per row";
                return Err(Error::shape(self.name(), format!("{} with {}: {how}", a.shape(), b.shape())));
            }
        }
        Ok(vec![Meta::like(x[0])])
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let (_, div, len) = steps(x);
        let a = |i: usize| x[0].f64()[i];
        let b = |i: usize| x[1].f64()[i / div % len];
        for (i, y) in y[0].f64_mut().iter_mut().enumerate() {
            *y = match *self {
                Kind::Add(s) => a(i) + s as f64 * b(i),
                Kind::Mul => a(i) * b(i),
                Kind::Scale(s) => s as f64 * a(i),
                Kind::AddAssign => *y + a(i),
                Kind::Fill(s) => s as f64,
            };
        }
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        let ((spread, ..), y) = (steps(x), y[0].f32_mut());
        match *self {
            Kind::Add(s) => combine(y, x[0], x[1], spread, |a, b| a + s * b),
            Kind::Mul => combine(y, x[0], x[1], spread, |a, b| a * b),
            Kind::Scale(s) => update(y, x[0].f32(), |y, a| *y = s * a),
            Kind::AddAssign => update(y, x[0].f32(), |y, a| *y += a),
            Kind::Fill(s) => y.par_chunks_mut(CHUNK).for_each(|y| y.fill(s)),
        }
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        let (_, div, len) = steps(x);
        match *self {
            Kind::Add(s) => launch(gpu, "add", x, y, [div, len], s),
            Kind::Mul => launch(gpu, "mul", x, y, [div, len], 0.0),
            Kind::Scale(s) => launch(gpu, "scale", x, y, [div, len], s),
            Kind::AddAssign => launch(gpu, "add_assign", x, y, [div, len], 0.0),
            Kind::Fill(s) if s.to_bits() == 0 => gpu.clear(y[0].buffer()),
            Kind::Fill(s) => launch(gpu, "fill", x, y, [div, len], s),
        }
    }
}

#[cfg(feature = "gpu")]
fn launch(
    gpu: &crate::device::Gpu,
    entry: &'static str,
    x: &[&Tensor],
    y: &[Tensor],
    [div, len]: [usize; 2],
    s: f32,
) -> Result<()> {
    let n = y[0].len();
    let params = [n as u32, div as u32, len as u32, s.to_bits()];
    let kernel = Kernel { shader: &SHADER, entry, variant: &ELEMENTS[0] };
    kernel.run(gpu, &binds(x, y), &params, n.div_ceil(launch::WG), n)
}

/// Element i of the output is element `(i / each) % len` of the input.
struct Repeat<'a> {
    shape: &'a Shape,
    each: usize,
}

impl Op for Repeat<'_> {
    fn name(&self) -> &'static str {
        "repeat"
    }

    fn infer(&self, x: &[&Tensor]) -> Result<Vec<Meta>> {
        x[0].expect(self.name(), DType::F32)?;
        let period = self.each * x[0].len();
        match self.shape.is_empty() || (period > 0 && self.shape.len().is_multiple_of(period)) {
            true => Ok(vec![Meta { shape: self.shape.clone(), dtype: DType::F32 }]),
            false => {
                Err(Error::shape(self.name(), format!("{} x {} to {}", x[0].shape(), self.each, self.shape)))
            }
        }
    }

    fn reference(&self, x: &[&Tensor], y: &mut [Host]) {
        let (each, x) = (self.each, x[0].f64());
        y[0].f64_mut().iter_mut().enumerate().for_each(|(i, y)| *y = x[i / each % x.len()]);
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        let (each, x, y) = (self.each, x[0].f32(), y[0].f32_mut());
        match each {
            1 => rows_in_parallel(y, x.len(), |_, y| y.copy_from_slice(x)),
            _ => rows_in_parallel(y, each, |i, y| y.fill(x[i % x.len()])),
        }
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        launch(gpu, "scale", x, y, [self.each, x[0].len()], 1.0)
    }
}

impl Tensor {
    /// A tensor of zeros.
    pub fn zeros(device: &Device, dims: &[usize]) -> Result<Tensor> {
        Self::full(device, dims, 0.0)
    }

    /// A tensor of one value.
    pub fn full(device: &Device, dims: &[usize], value: f32) -> Result<Tensor> {
        let mut y = Tensor::undefined(device, Shape::new(dims)?, DType::F32)?;
        if device.is_shapes_only() {
            return Ok(y);
        }
        run_in_place(&Kind::Fill(value), &mut [&mut y], &[])?;
        Ok(y)
    }

    /// Every value `each` times, and all of that again until `dims` is full. Not recorded.
    pub(crate) fn repeat_to(&self, dims: &[usize], each: usize) -> Result<Tensor> {
        let shape = Shape::new(dims)?;
        Ok(run(&Repeat { shape: &shape, each }, &[self])?.swap_remove(0))
    }

    /// `self + other`. `other` has the same shape, or is one row `[D]`, or one value per row `[.., 1]`.
    ///
    /// # Errors
    /// The shapes do not fit, or the tensors are on different devices.
    pub fn add(&self, other: &Tensor) -> Result<Tensor> {
        self.add_scaled(other, 1.0)
    }

    /// `self - other`, shapes as in [`add`](Tensor::add).
    pub fn sub(&self, other: &Tensor) -> Result<Tensor> {
        self.add_scaled(other, -1.0)
    }

    /// `self + s * other`, shapes as in [`add`](Tensor::add).
    pub fn add_scaled(&self, other: &Tensor, s: f32) -> Result<Tensor> {
        let y = run(&Kind::Add(s), &[self, other])?.swap_remove(0);
        let (ga, gb, shape) = (self.requires_grad(), other.requires_grad(), other.shape().clone());
        let spread = Spread::of(self, other).expect("checked by infer");
        Ok(Node::record("add", &[self, other], y, move |dy| {
            let db = if gb { Some(spread.gather(dy.clone(), &shape)?.scale(s)?) } else { None };
            Ok(vec![ga.then_some(dy), db])
        }))
    }

    /// `self * other`, element by element, shapes as in [`add`](Tensor::add).
    pub fn mul(&self, other: &Tensor) -> Result<Tensor> {
        let y = run(&Kind::Mul, &[self, other])?.swap_remove(0);
        let spread = Spread::of(self, other).expect("checked by infer");
        let shape = other.shape().clone();
        let (a, b) =
            (other.requires_grad().then(|| self.detach()), self.requires_grad().then(|| other.detach()));
        Ok(Node::record("mul", &[self, other], y, move |dy| {
            let db = match &a {
                Some(a) => Some(spread.gather(dy.mul(a)?, &shape)?),
                None => None,
            };
            Ok(vec![b.map(|b| dy.mul(&b)).transpose()?, db])
        }))
    }

    /// `s * self`.
    pub fn scale(&self, s: f32) -> Result<Tensor> {
        if s == 1.0 {
            return Ok(self.clone());
        }
        let y = run(&Kind::Scale(s), &[self])?.swap_remove(0);
        Ok(Node::record("scale", &[self], y, move |dy| Ok(vec![Some(dy.scale(s)?)])))
    }

    /// `self += other`, in place when no one else holds the memory. Not recorded.
    pub(crate) fn add_assign(&mut self, other: &Tensor) -> Result<()> {
        run_in_place(&Kind::AddAssign, &mut [self], &[other])
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for dims in [&[0][..], &[1], &[3, 5], &[2, 3, 130], &[70_000, 2]] {
        let n: usize = dims.iter().product();
        let row = [*dims.last().unwrap_or(&1)];
        let a = || Operand::normal("a", dims);
        let pair = || vec![a(), Operand::normal("b", dims)];
        let with_row = || vec![a(), Operand::normal("row", &row)];
        let bytes = 12 * n;
        all.push(Case::new(format!("add {dims:?}"), pair(), |x| Ok(vec![x[0].add(&x[1])?])).cost(n, bytes));
        all.push(Case::new(format!("sub {dims:?}"), pair(), |x| Ok(vec![x[0].sub(&x[1])?])).cost(n, bytes));
        all.push(Case::new(format!("mul {dims:?}"), pair(), |x| Ok(vec![x[0].mul(&x[1])?])).cost(n, bytes));
        all.push(
            Case::new(format!("scale {dims:?}"), vec![a()], |x| Ok(vec![x[0].scale(-0.7)?])).cost(n, 8 * n),
        );
        let rows = n / row[0].max(1);
        all.push(
            Case::new(format!("add row {dims:?}"), with_row(), |x| Ok(vec![x[0].add(&x[1])?]))
                .sums(rows)
                .cost(n, bytes),
        );
        all.push(
            Case::new(format!("mul row {dims:?}"), with_row(), |x| Ok(vec![x[0].mul(&x[1])?]))
                .sums(rows)
                .cost(n, bytes),
        );
        let mut column = dims.to_vec();
        *column.last_mut().unwrap() = 1;
        let with_column = vec![a(), Operand::normal("column", &column)];
        all.push(
            Case::new(format!("mul column {dims:?}"), with_column, |x| Ok(vec![x[0].mul(&x[1])?]))
                .sums(row[0])
                .cost(n, bytes),
        );
        all.push(
            Case::new(format!("full {dims:?}"), vec![a()], |x| {
                Ok(vec![x[0].mul(&Tensor::full(x[0].device(), x[0].dims(), -1.5)?)?])
            })
            .cost(0, 4 * n),
        );
        // The same tensor twice: its gradients accumulate in place.
        all.push(
            Case::new(format!("square {dims:?}"), vec![a()], |x| Ok(vec![x[0].mul(&x[0])?])).cost(n, 8 * n),
        );
    }
    all
}
