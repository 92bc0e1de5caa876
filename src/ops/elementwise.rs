//! Sums, products, scaling and constants, element by element.

use crate::device::{Entry, Gpu, Host, Shader, params};
use crate::engine::launch::ELEMENTS;
use crate::engine::{
    Case, Meta, Op, OpSpec, Operand, Operands, Timed, TimedSizes, operands, rows_in_parallel, run_in_place,
    run1,
};
use crate::simd::wide;
use crate::tape::Node;
use crate::{DType, Device, Error, Result, Shape, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

use crate::engine::launch::{self, Kernel, binds};

pub(super) static SPEC: OpSpec = OpSpec {
    name: "elementwise",
    formula: "a + s b, a b, s a, y += a, y = s",
    shaders: &[&SHADER],
    cases,
    timed,
};

params! {
    struct Params { n: u32, div: u32, len: u32, s: f32 }
}

static SHADER: Shader = Shader {
    name: "elementwise",
    source: include_str!("../../shaders/elementwise.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "add", variants: ELEMENTS },
        Entry { name: "mul", variants: ELEMENTS },
        Entry { name: "scale", variants: ELEMENTS },
        Entry { name: "add_assign", variants: ELEMENTS },
        Entry { name: "fill", variants: ELEMENTS },
    ],
};

operands! {
    struct Pair { a, b }
}

operands! {
    struct Single { a }
}

/// Of two operands, of which the second may be broadcast.
#[derive(Debug, Clone, Copy)]
enum Binary {
    /// `a + s b`
    Add(f32),
    /// `a b`
    Mul,
}

/// Of one operand.
#[derive(Debug, Clone, Copy)]
enum Unary {
    /// `s a`
    Scale(f32),
    /// `y += a`, in place.
    AddAssign,
}

/// `y = value`, in place.
struct Fill {
    shape: Shape,
    value: f32,
}

/// Elements of one parallel task.
const CHUNK: usize = 1 << 14;

/// How the second operand is broadcast over the first: element i meets element `(i / div) % len`.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Broadcast {
    Same,
    /// One row `[D]` for all rows.
    Row,
    /// One value per row, `[.., 1]`.
    Column,
}

impl Broadcast {
    fn of(a: &Tensor, b: &Tensor) -> Result<Self> {
        if a.shape() == b.shape() {
            return Ok(Broadcast::Same);
        }
        if b.dims() == [a.shape().last()] {
            return Ok(Broadcast::Row);
        }
        if a.shape().rank() > 0 && a.shape().with_last(1)? == *b.shape() {
            return Ok(Broadcast::Column);
        }
        let how = "shapes must agree, or the second be one row or one value per row";
        Err(Error::shape(NAME, format!("an operand for {}: {how}", a.shape()), b.shape()))
    }

    /// `(div, len)`
    fn steps(self, a: &Tensor) -> (usize, usize) {
        match self {
            Broadcast::Same => (1, a.len().max(1)),
            Broadcast::Row => (1, a.shape().last().max(1)),
            Broadcast::Column => (a.shape().last().max(1), a.shape().rows().max(1)),
        }
    }

    /// Sums a gradient of the first operand's shape back to the second's.
    fn gather(self, g: Tensor, shape: &crate::Shape) -> Result<Tensor> {
        match self {
            Broadcast::Same => Ok(g),
            Broadcast::Row => g.sum_rows(),
            Broadcast::Column => g.sum_last()?.reshape(shape.dims()),
        }
    }
}

/// `y = f(a, b)`, in loops over plain slices that vectorise.
fn combine(y: &mut [f32], &Pair { a, b }: &Pair<'_>, f: impl Fn(f32, f32) -> f32 + Sync) {
    let Ok(broadcast) = Broadcast::of(a, b) else { return };
    let d = a.shape().last();
    let a = a.f32();
    let b = b.f32();
    match broadcast {
        Broadcast::Same => {
            let parts = y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).zip(b.par_chunks(CHUNK));
            parts.for_each(|((y, a), b)| {
                wide(|| y.iter_mut().zip(a).zip(b).for_each(|((y, &a), &b)| *y = f(a, b)));
            });
        }
        Broadcast::Row => rows_in_parallel(y, d, |i, y| {
            y.iter_mut().zip(&a[i * d..]).zip(b).for_each(|((y, &a), &b)| *y = f(a, b));
        }),
        Broadcast::Column => rows_in_parallel(y, d, |i, y| {
            y.iter_mut().zip(&a[i * d..]).for_each(|(y, &a)| *y = f(a, b[i]));
        }),
    }
}

/// Calls `f` on every element of `y` and of `a`.
fn update(y: &mut [f32], a: &[f32], f: impl Fn(&mut f32, f32) + Sync) {
    let parts = y.par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK));
    parts.for_each(|(y, a)| wide(|| y.iter_mut().zip(a).for_each(|(y, &a)| f(y, a))));
}

const NAME: &str = "elementwise";

impl Op for Binary {
    type In<'a> = Pair<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, x: &Pair<'_>) -> Result<[Meta; 1]> {
        x.require(NAME, DType::F32)?;
        Broadcast::of(x.a, x.b)?;
        Ok([Meta::like(x.a)])
    }

    fn reference(&self, &Pair { a, b }: &Pair<'_>, [y]: [&mut Host; 1]) {
        let Ok(broadcast) = Broadcast::of(a, b) else { return };
        let (div, len) = broadcast.steps(a);
        for (i, (y, a)) in y.f64_mut().iter_mut().zip(a.f64()).enumerate() {
            let b = b.f64()[i / div % len];
            *y = match *self {
                Binary::Add(s) => a + s as f64 * b,
                Binary::Mul => a * b,
            };
        }
    }

    fn cpu(&self, x: &Pair<'_>, [y]: [&mut Host; 1]) {
        match *self {
            Binary::Add(s) => combine(y.f32_mut(), x, |a, b| a + s * b),
            Binary::Mul => combine(y.f32_mut(), x, |a, b| a * b),
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &Pair<'_>, y: &[Tensor; 1]) -> Result<()> {
        let steps = Broadcast::of(x.a, x.b)?.steps(x.a);
        match *self {
            Binary::Add(s) => launch(gpu, "add", x, y, steps, s),
            Binary::Mul => launch(gpu, "mul", x, y, steps, 0.0),
        }
    }
}

impl Op for Unary {
    type In<'a> = Single<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, &Single { a }: &Single<'_>) -> Result<[Meta; 1]> {
        a.require(NAME, DType::F32)?;
        Ok([Meta::like(a)])
    }

    fn reference(&self, &Single { a }: &Single<'_>, [y]: [&mut Host; 1]) {
        for (y, a) in y.f64_mut().iter_mut().zip(a.f64()) {
            match *self {
                Unary::Scale(s) => *y = s as f64 * a,
                Unary::AddAssign => *y += a,
            }
        }
    }

    fn cpu(&self, &Single { a }: &Single<'_>, [y]: [&mut Host; 1]) {
        match *self {
            Unary::Scale(s) => update(y.f32_mut(), a.f32(), |y, a| *y = s * a),
            Unary::AddAssign => update(y.f32_mut(), a.f32(), |y, a| *y += a),
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &Single<'_>, y: &[Tensor; 1]) -> Result<()> {
        let steps = (1, x.a.len().max(1));
        match *self {
            Unary::Scale(s) => launch(gpu, "scale", x, y, steps, s),
            Unary::AddAssign => launch(gpu, "add_assign", x, y, steps, 0.0),
        }
    }
}

impl Op for Fill {
    type In<'a> = ();

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, (): &()) -> Result<[Meta; 1]> {
        Ok([Meta { shape: self.shape.clone(), dtype: DType::F32 }])
    }

    fn reference(&self, (): &(), [y]: [&mut Host; 1]) {
        y.f64_mut().fill(self.value as f64);
    }

    fn cpu(&self, (): &(), [y]: [&mut Host; 1]) {
        y.f32_mut().par_chunks_mut(CHUNK).for_each(|y| y.fill(self.value));
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &(), y: &[Tensor; 1]) -> Result<()> {
        if self.value.to_bits() == 0 {
            return gpu.clear(y[0].buffer());
        }
        launch(gpu, "fill", x, y, (1, 1), self.value)
    }
}

fn launch<'a>(
    gpu: &Gpu,
    entry: &'static str,
    x: &impl Operands<'a>,
    y: &'a [Tensor; 1],
    (div, len): (usize, usize),
    s: f32,
) -> Result<()> {
    let n = y[0].len();
    let params = Params { n: n as u32, div: div as u32, len: len as u32, s };
    let kernel = Kernel { shader: &SHADER, entry, variant: &ELEMENTS[0] };
    kernel.run(gpu, &binds(x, y), &params, n.div_ceil(launch::WG), n)
}

/// Element i of the output is element `(i / each) % len` of the input.
struct Repeat<'a> {
    shape: &'a Shape,
    each: usize,
}

impl Op for Repeat<'_> {
    type In<'a> = Single<'a>;

    fn name(&self) -> &'static str {
        "repeat"
    }

    fn infer(&self, &Single { a: x }: &Single<'_>) -> Result<[Meta; 1]> {
        x.require(self.name(), DType::F32)?;
        let period = self.each * x.len();
        if !self.shape.is_empty() && (period == 0 || !self.shape.len().is_multiple_of(period)) {
            let found = format!("{} x {}", x.shape(), self.each);
            return Err(Error::shape(self.name(), format!("what repeats to {}", self.shape), found));
        }
        Ok([Meta { shape: self.shape.clone(), dtype: DType::F32 }])
    }

    fn reference(&self, &Single { a: x }: &Single<'_>, [y]: [&mut Host; 1]) {
        let each = self.each;
        let x = x.f64();
        y.f64_mut().iter_mut().enumerate().for_each(|(i, y)| *y = x[i / each % x.len()]);
    }

    fn cpu(&self, &Single { a: x }: &Single<'_>, [y]: [&mut Host; 1]) {
        let each = self.each;
        let x = x.f32();
        let y = y.f32_mut();
        match each {
            1 => rows_in_parallel(y, x.len(), |_, y| y.copy_from_slice(x)),
            _ => rows_in_parallel(y, each, |i, y| y.fill(x[i % x.len()])),
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &Single<'_>, y: &[Tensor; 1]) -> Result<()> {
        launch(gpu, "scale", x, y, (self.each, x.a.len()), 1.0)
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
        run_in_place(&Fill { shape: y.shape().clone(), value }, [&mut y], ())?;
        Ok(y)
    }

    /// Every value `each` times, and all of that again until `dims` is full. Not recorded.
    pub(crate) fn repeat_to(&self, dims: &[usize], each: usize) -> Result<Tensor> {
        let shape = Shape::new(dims)?;
        run1(&Repeat { shape: &shape, each }, Single { a: self })
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
        let y = run1(&Binary::Add(s), Pair { a: self, b: other })?;
        let ga = self.requires_grad();
        let gb = other.requires_grad();
        let shape = other.shape().clone();
        let broadcast = Broadcast::of(self, other)?;
        Ok(Node::record("add", &[self, other], y, move |dy| {
            let db = if gb { Some(broadcast.gather(dy.clone(), &shape)?.scale(s)?) } else { None };
            Ok(vec![ga.then_some(dy), db])
        }))
    }

    /// `self * other`, element by element, shapes as in [`add`](Tensor::add).
    pub fn mul(&self, other: &Tensor) -> Result<Tensor> {
        let y = run1(&Binary::Mul, Pair { a: self, b: other })?;
        let broadcast = Broadcast::of(self, other)?;
        let shape = other.shape().clone();
        let a = other.requires_grad().then(|| self.detach());
        let b = self.requires_grad().then(|| other.detach());
        Ok(Node::record("mul", &[self, other], y, move |dy| {
            let db = match &a {
                Some(a) => Some(broadcast.gather(dy.mul(a)?, &shape)?),
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
        let y = run1(&Unary::Scale(s), Single { a: self })?;
        Ok(Node::record("scale", &[self], y, move |dy| Ok(vec![Some(dy.scale(s)?)])))
    }

    /// `self += other`, in place when no one else holds the memory. Not recorded.
    pub(crate) fn add_assign(&mut self, other: &Tensor) -> Result<()> {
        run_in_place(&Unary::AddAssign, [self], Single { a: other })
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
        let column = [&dims[..dims.len() - 1], &[1]].concat();
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

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, d] = sizes.plane();
    let n = rows * d;
    let inputs = ["a", "b"].map(|name| Operand::normal(name, &[rows, d])).into();
    vec![
        Timed::plain(format!("mul {rows}x{d}"), inputs, (n, 12 * n), |x| x[0].mul(&x[1]))
            .backward(2 * n, 24 * n),
    ]
}
