//! Dense products of two tensors, one or a batch of them.

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::cpu::gemm::{Mat, gemm, gemm_f64};
use crate::engine::product::{Sizes, TILE_BYTES, TILINGS, Tiling, VECTOR_BYTES};
use crate::engine::{Case, Meta, Op, OpSpec, Operand, Operands, Timed, TimedSizes, operands, run1};
use crate::tape::Node;
use crate::{DType, Error, Result, Tensor};
use rayon::prelude::*;
use std::sync::Arc;

pub(super) static SPEC: OpSpec =
    OpSpec { name: "matmul", formula: "c = a b, a b^T, a^T b", shaders: &[&SHADER], cases, timed };

/// `TA`, `TB`, `EDGE` and the fragments that read the operands.
macro_rules! variants {
    ($bytes:expr) => {
        &[
            variants!("nn", 0 0 0, $bytes, READ4, [LOAD4_F32]),
            variants!("nt", 0 1 0, $bytes, READ4, [LOAD4_F32]),
            variants!("tn", 1 0 1, $bytes, READ4, [LOAD4_F32]),
            variants!("nn any", 0 0 1, $bytes, READ4_ANY, [LOAD_F32, LOAD4_ANY]),
            variants!("nt any", 0 1 1, $bytes, READ4_ANY, [LOAD_F32, LOAD4_ANY]),
        ]
    };
    ($name:literal, $ta:literal $tb:literal $edge:literal, $bytes:expr, $read:ident, [$($load:ident),+]) => {
        Variant {
            name: $name,
            consts: &[
                ("R", 8), ("V", 1), ("X", 16), ("Y", 4), ("LANES", 64), ("TA", $ta), ("TB", $tb),
                ("EDGE", $edge),
            ],
            parts: &[parts::PRODUCT, parts::GRID, parts::$read, parts::HALF, $(parts::$load),+],
            backends: PORTABLE,
            workgroup_bytes: $bytes,
        }
    };
}

const AHEAD: &[Variant] = &[
    variants!("nn", 0 0 0, TILE_BYTES, READ4, [LOAD4_F32, PRODUCT_AHEAD]),
    variants!("nt", 0 1 0, TILE_BYTES, READ4, [LOAD4_F32, PRODUCT_AHEAD]),
    variants!("tn", 1 0 0, TILE_BYTES, READ4, [LOAD4_F32, PRODUCT_AHEAD]),
];
const STREAM: Variant = variants!(
    "nt", 0 1 0, VECTOR_BYTES, READ4, [LOAD4_F32, WORDS4, PIECE, PIECE_F32, PRODUCT_STREAM]
);

params! {
    struct Params { m: u32, n: u32, k: u32, groups: u32, a_stride: u32, a_first: u32, w_first: u32, w_words: u32 }
}

static SHADER: Shader = Shader {
    name: "matmul",
    source: include_str!("../../shaders/matmul.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "direct", variants: variants!(0) },
        Entry { name: "tile", variants: variants!(TILE_BYTES) },
        Entry { name: "vector", variants: variants!(VECTOR_BYTES) },
        Entry { name: "stream", variants: &[STREAM] },
        Entry { name: "ahead", variants: AHEAD },
    ],
};

/// Which operand is stored transposed.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Form {
    NN,
    NT,
    TN,
}

/// `(a, b) -> c`
#[derive(Debug, Clone, Copy)]
struct Product {
    form: Form,
    /// Only tests set it.
    force: Option<Tiling>,
}

/// Sizes of a product: `batch` times `[m, k] [k, n]`, and the shape of the result.
struct Plan {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    out: Vec<usize>,
}

impl Product {
    fn plan(self, a: &[usize], b: &[usize]) -> Result<Plan> {
        let refuse = |why: &str| {
            Err(Error::shape(
                "matmul",
                format!("operands of {:?}: {why}", self.form),
                format!("{a:?} and {b:?}"),
            ))
        };
        let (batch, rows, cols, lead) = match (a, b) {
            ([ga, r, c], [gb, _, _]) if ga == gb => (*ga, *r, *c, &a[..1]),
            ([_, _, _], [_, _, _]) => return refuse("the same batch axis"),
            ([r, c], [_, _]) => (1, *r, *c, &a[..0]),
            ([lead @ .., c], [_, _]) if self.form != Form::TN => (1, lead.iter().product(), *c, lead),
            _ => return refuse("two matrices, two batches [G, ., .], or rows [.., K] with one matrix"),
        };
        let b0 = b[b.len() - 2];
        let b1 = b[b.len() - 1];
        let (m, k) = if self.form == Form::TN { (cols, rows) } else { (rows, cols) };
        let (kb, n) = if self.form == Form::NT { (b1, b0) } else { (b0, b1) };
        if k != kb {
            return refuse(&format!("as many values on the summed axes, not {k} and {kb}"));
        }
        // Leading axes that were flattened already count the rows.
        let mut out = lead.to_vec();
        if a.len() == b.len() {
            out.push(m);
        }
        out.push(n);
        Ok(Plan { batch, m, n, k, out })
    }

    /// The plan of operands that `infer` has accepted.
    fn checked(self, x: &In<'_>) -> Plan {
        self.plan(x.a.dims(), x.b.dims()).expect("checked by infer")
    }

    /// The product as one tensor function, with its derivative.
    fn record(self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let y = run1(&self, In { a, b })?;
        let need_a = a.requires_grad();
        let need_b = b.requires_grad();
        let a_dims = a.dims().to_vec();
        let b_dims = b.dims().to_vec();
        let keep = |t: &Tensor, need: bool| need.then(|| t.detach());
        let a_value = keep(a, need_b);
        let b_value = keep(b, need_a);
        let Plan { batch, m, n, .. } = self.plan(&a_dims, &b_dims)?;
        Ok(Node::record("matmul", &[a, b], y, move |dy| {
            let dy = dy.reshape(&[batch, m, n])?;
            let product = |form, a: &Tensor, b: &Tensor| run1(&Product { form, ..self }, In { a, b });
            let da = match b_value {
                Some(b) => {
                    let b = matrices(&b, batch)?;
                    let da = match self.form {
                        Form::NN => product(Form::NT, &dy, &b)?,
                        Form::NT => product(Form::NN, &dy, &b)?,
                        Form::TN => product(Form::NT, &b, &dy)?,
                    };
                    Some(da.reshape(&a_dims)?)
                }
                None => None,
            };
            let db = match a_value {
                Some(a) => {
                    let a = matrices(&a, batch)?;
                    let db = match self.form {
                        Form::NN => product(Form::TN, &a, &dy)?,
                        Form::NT => product(Form::TN, &dy, &a)?,
                        Form::TN => product(Form::NN, &a, &dy)?,
                    };
                    Some(db.reshape(&b_dims)?)
                }
                None => None,
            };
            Ok(vec![da, db])
        }))
    }
}

/// The same memory as `batch` matrices: leading axes beyond the batch become rows.
fn matrices(t: &Tensor, batch: usize) -> Result<Tensor> {
    let rows = match t.dims() {
        [g, r, _] if *g == batch => *r,
        _ => t.shape().rows(),
    };
    t.reshape(&[batch, rows, t.shape().last()])
}

operands! {
    struct In { a, b }
}

impl Op for Product {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        "matmul"
    }

    fn infer(&self, input: &In<'_>) -> Result<[Meta; 1]> {
        let &In { a, b } = input;
        input.require(self.name(), DType::F32)?;
        Ok([Meta::f32(&self.plan(a.dims(), b.dims())?.out)?])
    }

    fn reference(&self, x: &In<'_>, [c]: [&mut Host; 1]) {
        let Plan { batch, m, n, k, .. } = self.checked(x);
        let &In { a, b } = x;
        let a = a.f64();
        let b = b.f64();
        let c = c.f64_mut();
        for g in 0..batch {
            let a = &a[g * m * k..][..m * k];
            let b = &b[g * k * n..][..k * n];
            let c = &mut c[g * m * n..][..m * n];
            gemm_f64(c, a, b, (m, n, k), self.form == Form::TN, self.form == Form::NT);
        }
    }

    fn cpu(&self, x: &In<'_>, [c]: [&mut Host; 1]) {
        let Plan { m, n, k, .. } = self.checked(x);
        let &In { a, b } = x;
        let a = a.f32();
        let b = b.f32();
        let one = |g: usize, c: &mut [f32]| {
            let a = &a[g * m * k..];
            let b = &b[g * k * n..];
            let (a, b) = match self.form {
                Form::NN => (Mat::new(a, m, k), Mat::new(b, k, n)),
                Form::NT => (Mat::new(a, m, k), Mat::new(b, n, k).t()),
                Form::TN => (Mat::new(a, k, m).t(), Mat::new(b, k, n)),
            };
            gemm(c, a, b, 1.0, false);
        };
        let c = c.f32_mut();
        match c.len() {
            len if len == m * n => one(0, c),
            len if len * k < 1 << 18 => c.chunks_mut((m * n).max(1)).enumerate().for_each(|(g, c)| one(g, c)),
            _ => c.par_chunks_mut((m * n).max(1)).enumerate().for_each(|(g, c)| one(g, c)),
        }
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        use crate::engine::{launch, product};
        let Plan { batch, m, n, k, .. } = self.checked(x);
        let ta = self.form == Form::TN;
        let tb = self.form == Form::NT;
        let launch = product::Product {
            shader: &SHADER,
            tiling: self.force.unwrap_or_else(|| product::choose(gpu.class(), gpu.tuned(), m, n, k)),
            format: crate::Format::F32,
            batch,
            m,
            n,
            k,
            ta,
            tb,
            a_row: if ta { m } else { k },
            a_first: 0,
            w_row: if tb { k } else { n },
            w_first: 0,
            bind: &launch::binds(x, y),
            consts: &[],
            parts: &[],
        };
        let Sizes { m, n, k, groups, a_stride, a_first, w_first, w_words } = launch.sizes();
        launch.run(gpu, &Params { m, n, k, groups, a_stride, a_first, w_first, w_words })
    }
}

impl Tensor {
    /// Dense product `c = a b`: `[M, K] [K, N] -> [M, N]`, `[.., K] [K, N] -> [.., N]`, or a batch of
    /// products `[G, M, K] [G, K, N] -> [G, M, N]`.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let cpu = Device::cpu();
    /// let a = Tensor::from_f32(&cpu, &[1, 2], &[1.0, 2.0])?;
    /// let b = Tensor::from_f32(&cpu, &[2, 2], &[1.0, 2.0, 3.0, 4.0])?;
    /// assert_eq!(a.matmul(&b)?.to_f32()?, [7.0, 10.0]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The summed axes or the batch axes differ in length.
    pub fn matmul(&self, other: &Tensor) -> Result<Tensor> {
        Product { form: Form::NN, force: None }.record(self, other)
    }

    /// Dense product `c = a b^T`: `[M, K] [N, K] -> [M, N]`, `[.., K] [N, K] -> [.., N]`, or
    /// `[G, M, K] [G, N, K] -> [G, M, N]`.
    ///
    /// # Errors
    /// The summed axes or the batch axes differ in length.
    pub fn matmul_nt(&self, other: &Tensor) -> Result<Tensor> {
        Product { form: Form::NT, force: None }.record(self, other)
    }

    /// Dense product `c = a^T b`: `[K, M] [K, N] -> [M, N]`, or `[G, K, M] [G, K, N] -> [G, M, N]`.
    ///
    /// # Errors
    /// The summed axes or the batch axes differ in length.
    pub fn matmul_tn(&self, other: &Tensor) -> Result<Tensor> {
        Product { form: Form::TN, force: None }.record(self, other)
    }
}

/// `a b^T` by one kernel, without a derivative.
pub(crate) fn forced(a: &Tensor, b: &Tensor, tiling: Tiling) -> Result<Tensor> {
    run1(&Product { form: Form::NT, force: Some(tiling) }, In { a, b })
}

fn case(form: Form, force: Option<Tiling>, lead: &[usize], (m, n, k): (usize, usize, usize)) -> Case {
    let shape = |r: usize, c: usize| [lead, &[r, c]].concat();
    let (a, b) = match form {
        Form::NN => (shape(m, k), shape(k, n)),
        Form::NT => (shape(m, k), shape(n, k)),
        Form::TN => (shape(k, m), shape(k, n)),
    };
    let batch: usize = lead.iter().product();
    let how = force.map_or(String::new(), |f| format!(" {}", f.name));
    Case::new(
        format!("{form:?}{how} {a:?} {b:?}"),
        vec![Operand::normal("a", &a), Operand::normal("b", &b)],
        move |x| Ok(vec![Product { form, force }.record(&x[0], &x[1])?]),
    )
    .sums(k.max(m).max(n))
    .cost(2 * batch * m * n * k, 4 * batch * (m * k + k * n + m * n))
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    let sizes: [(&[usize], _); 11] = [
        (&[], (0, 3, 4)),
        (&[], (3, 4, 0)),
        (&[], (1, 1, 1)),
        (&[], (5, 7, 3)),
        (&[3], (6, 5, 9)),
        (&[0], (2, 3, 4)),
        (&[], (67, 130, 33)),
        (&[2], (65, 17, 129)),
        (&[], (33, 8, 577)),
        (&[], (70_000, 3, 2)),
        (&[70_000], (1, 1, 2)),
    ];
    for form in [Form::NN, Form::NT, Form::TN] {
        all.extend(sizes.iter().map(|&(lead, mnk)| case(form, None, lead, mnk)));
        // The kernels that the test machine's adapter does not choose by itself.
        for tiling in TILINGS {
            // `ahead` takes whole steps of k alone.
            let whole: &[_] = if tiling.entry == "ahead" { &[(&[][..], (80, 144, 48))] } else { &[] };
            for (lead, mnk) in [(&[][..], (67, 130, 33)), (&[], (68, 132, 36)), (&[3], (6, 5, 9))] {
                all.push(case(form, Some(tiling), lead, mnk));
            }
            all.extend(whole.iter().map(|&(lead, mnk)| case(form, Some(tiling), lead, mnk)));
        }
    }
    let rows = |b: [usize; 2]| move |a: &[usize]| vec![Operand::normal("a", a), Operand::normal("b", &b)];
    for dims in [&[5][..], &[2, 3, 5], &[0, 3, 5], &[2, 2, 3, 5]] {
        let label = |form| format!("{form} rows {dims:?}");
        all.push(Case::new(label("NN"), rows([5, 4])(dims), |x| Ok(vec![x[0].matmul(&x[1])?])));
        all.push(Case::new(label("NT"), rows([4, 5])(dims), |x| Ok(vec![x[0].matmul_nt(&x[1])?])));
    }
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let product = |[m, n, k]: [usize; 3]| {
        let inputs = vec![Operand::normal("a", &[m, k]), Operand::normal("b", &[n, k])];
        let costs = (2 * m * n * k, 4 * (m * k + n * k + m * n));
        Timed::plain(format!("NT {m}x{n}x{k}"), inputs, costs, |x| x[0].matmul_nt(&x[1]))
            .sums(m.max(n).max(k))
            .backward(4 * m * n * k, 4 * (2 * m * k + 2 * n * k + 2 * m * n))
    };
    sizes.products().map(product).collect()
}

#[cfg(test)]
mod tests {
    use crate::{Device, Tensor};

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let t = |dims: &[usize]| Tensor::zeros(&Device::cpu(), dims).unwrap();
        for (a, b) in [(&[2, 3][..], &[2, 3][..]), (&[2, 3], &[3]), (&[2, 2, 3], &[3, 3, 2]), (&[], &[1, 1])]
        {
            assert!(t(a).matmul(&t(b)).is_err(), "{a:?} {b:?}");
        }
        assert!(t(&[2, 3]).matmul_nt(&t(&[2, 4])).is_err());
        assert!(t(&[2, 2, 3]).matmul_tn(&t(&[2, 3])).is_err());
        let indices = Tensor::from_u32(&Device::cpu(), &[1, 1], &[0]).unwrap();
        assert!(t(&[1, 1]).matmul(&indices).is_err());
    }
}
