//! Sums, products and scaling, element by element.

use super::{Case, Meta, Op, OpSpec, Operand, run, run_in_place};
use crate::device::{Entry, Host, PORTABLE, Shader, Variant, parts};
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;

pub(super) static SPEC: OpSpec =
    OpSpec { name: "elementwise", formula: "a + s b, a b, s a, y += a", shaders: &[&SHADER], cases };

const WG: u32 = 256;
static VARIANTS: &[Variant] = &[Variant {
    name: "wg256",
    consts: &[("WG", WG)],
    parts: &[parts::GRID],
    backends: PORTABLE,
    workgroup_bytes: 0,
}];
static SHADER: Shader = Shader {
    name: "elementwise",
    source: include_str!("../../shaders/elementwise.wgsl"),
    entries: &[
        Entry { name: "add", variants: VARIANTS },
        Entry { name: "mul", variants: VARIANTS },
        Entry { name: "scale", variants: VARIANTS },
        Entry { name: "add_assign", variants: VARIANTS },
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

impl Kind {
    fn fold<T>(self, a: &[T], b: impl Fn(usize) -> T, y: &mut [T], start: usize)
    where
        T: Copy + std::ops::Mul<Output = T> + std::ops::Add<Output = T> + From<f32>,
    {
        match self {
            Kind::Add(s) => {
                let s = T::from(s);
                y.iter_mut().zip(a).enumerate().for_each(|(i, (y, &a))| *y = a + s * b(start + i))
            }
            Kind::Mul => y.iter_mut().zip(a).enumerate().for_each(|(i, (y, &a))| *y = a * b(start + i)),
            Kind::Scale(s) => y.iter_mut().zip(a).for_each(|(y, &a)| *y = T::from(s) * a),
            Kind::AddAssign => y.iter_mut().zip(a).for_each(|(y, &a)| *y = *y + a),
        }
    }
}

fn steps(x: &[&Tensor]) -> (usize, usize) {
    match x {
        [a, b] => Spread::of(a, b).unwrap_or(Spread::Same).steps(a),
        _ => (1, 1),
    }
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
        let (div, len) = steps(x);
        let b = x.get(1).map_or(&[][..], |b| b.f64());
        self.fold(x[0].f64(), |i| b[i / div % len], y[0].f64_mut(), 0);
    }

    fn cpu(&self, x: &[&Tensor], y: &mut [Host]) {
        let (div, len) = steps(x);
        let (a, b) = (x[0].f32(), x.get(1).map_or(&[][..], |b| b.f32()));
        let same = a.len() == b.len();
        y[0].f32_mut().par_chunks_mut(CHUNK).zip(a.par_chunks(CHUNK)).enumerate().for_each(|(c, (y, a))| {
            let start = c * CHUNK;
            match same {
                true => {
                    let b = &b[start..][..a.len()];
                    self.fold(a, |i| b[i], y, 0)
                }
                false => self.fold(a, |i| b[i / div % len], y, start),
            }
        });
    }

    #[cfg(feature = "gpu")]
    fn gpu(&self, gpu: &std::sync::Arc<crate::device::Gpu>, x: &[&Tensor], y: &[Tensor]) -> Result<()> {
        use crate::device::{Bind, Dispatch, Grid};
        #[repr(C)]
        #[derive(Clone, Copy, bytemuck::NoUninit)]
        struct Params {
            n: u32,
            div: u32,
            len: u32,
            s: f32,
        }
        let (div, len) = steps(x);
        let (entry, s) = match *self {
            Kind::Add(s) => ("add", s),
            Kind::Mul => ("mul", 0.0),
            Kind::Scale(s) => ("scale", s),
            Kind::AddAssign => ("add_assign", 0.0),
        };
        let n = y[0].len();
        let mut bind: Vec<Bind> = x.iter().map(|t| Bind::Read(t.buffer())).collect();
        bind.push(Bind::Write(y[0].buffer()));
        let params = Params { n: n as u32, div: div as u32, len: len as u32, s };
        gpu.dispatch(Dispatch {
            shader: &SHADER,
            entry,
            consts: VARIANTS[0].consts,
            parts: VARIANTS[0].parts,
            bind: &bind,
            params: bytemuck::bytes_of(&params),
            grid: Grid::Linear(n.div_ceil(WG as usize)),
            flops: n as u64,
        })
    }
}

impl Tensor {
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
        // The same tensor twice: its gradients accumulate in place.
        all.push(
            Case::new(format!("square {dims:?}"), vec![a()], |x| Ok(vec![x[0].mul(&x[0])?])).cost(n, 8 * n),
        );
    }
    all
}
