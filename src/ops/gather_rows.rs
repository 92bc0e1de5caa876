//! Rows of a table by index (embedding lookup); its gradient is a sum over the occurrences of each row.

use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::{
    Case, Meta, Op, OpSpec, Operand, Timed, TimedSizes, launch, operands, rows_in_parallel, run1,
};
use crate::rng::Stream;
use crate::tape::Node;
use crate::{DType, Device, Error, Result, Tensor};
use std::sync::Arc;

pub(super) static SPEC: OpSpec =
    OpSpec { name: "gather_rows", formula: "y[i] = table[index[i]]", shaders: &[&SHADER], cases, timed };

// The array of `links` is counted for all entries: they share one module.
static VARIANTS: &[Variant] = &[Variant {
    name: "wg256",
    consts: &[("WG", launch::WG as u32)],
    parts: &[parts::GRID],
    backends: PORTABLE,
    workgroup_bytes: 4 * launch::WG as u32,
}];

params! {
    struct Params { n: u32, d: u32, v: u32 }
}

static SHADER: Shader = Shader {
    name: "gather_rows",
    source: include_str!("../../shaders/gather_rows.wgsl"),
    params: Params::FIELDS,
    entries: &[
        Entry { name: "forward", variants: VARIANTS },
        Entry { name: "links", variants: VARIANTS },
        Entry { name: "backward", variants: VARIANTS },
    ],
};

/// `(table, index) -> y`
struct Forward;

/// `(dy, index) -> dtable` with this many rows.
struct Backward {
    rows: usize,
}

/// Refuses indices of `rows` or more, where the host can see them.
pub(super) fn check_indices(op: &'static str, index: &Tensor, rows: usize) -> Result<()> {
    match index.device() {
        Device::Gpu(_) if rows > 0 => Ok(()),
        Device::Gpu(_) if index.is_empty() => Ok(()),
        Device::Gpu(_) => {
            Err(Error::shape(op, "a table with rows", format!("none for {} indices", index.len())))
        }
        Device::Cpu(_) | Device::Reference => match index.u32().iter().position(|&i| i as usize >= rows) {
            None => Ok(()),
            Some(at) => {
                let found = format!("{} at position {at}", index.u32()[at]);
                Err(Error::shape(op, format!("indices of a table of {rows} rows"), found))
            }
        },
    }
}

fn kernel(entry: &'static str) -> launch::Kernel {
    launch::Kernel { shader: &SHADER, entry, variant: &VARIANTS[0] }
}

operands! {
    struct In { table, index }
}

impl Op for Forward {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn infer(&self, &In { table, index }: &In<'_>) -> Result<[Meta; 1]> {
        table.require(self.name(), DType::F32)?;
        index.require(self.name(), DType::U32)?;
        let &[rows, d] = table.dims() else {
            return Err(Error::shape(self.name(), "a table [V, D]", table.shape()));
        };
        check_indices(self.name(), index, rows)?;
        Ok([Meta::f32(&[index.dims(), &[d]].concat())?])
    }

    fn reference(&self, &In { table, index }: &In<'_>, [y]: [&mut Host; 1]) {
        let d = table.shape().last();
        let table = table.f64();
        for (y, &row) in y.f64_mut().chunks_mut(d.max(1)).zip(index.u32()) {
            y.copy_from_slice(&table[row as usize * d..][..d]);
        }
    }

    fn cpu(&self, &In { table, index }: &In<'_>, [y]: [&mut Host; 1]) {
        let d = table.shape().last();
        let table = table.f32();
        let index = index.u32();
        rows_in_parallel(y.f32_mut(), d, |i, y| {
            y.copy_from_slice(&table[index[i] as usize * d..][..d]);
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        let rows = x.table.shape().rows();
        let d = x.table.shape().last();
        let n = x.index.len();
        let params = Params { n: n as u32, d: d as u32, v: rows as u32 };
        kernel("forward").run(gpu, &launch::binds(x, y), &params, (n * d).div_ceil(launch::WG), n * d)
    }
}

operands! {
    struct BackwardIn { dy, index }
}

impl Op for Backward {
    type In<'a> = BackwardIn<'a>;

    fn name(&self) -> &'static str {
        "gather_rows"
    }

    fn infer(&self, &BackwardIn { dy, .. }: &BackwardIn<'_>) -> Result<[Meta; 1]> {
        Ok([Meta::f32(&[self.rows, dy.shape().last()])?])
    }

    fn reference(&self, &BackwardIn { dy, index }: &BackwardIn<'_>, [dtable]: [&mut Host; 1]) {
        let d = dy.shape().last();
        let dtable = dtable.f64_mut();
        dtable.fill(0.0);
        for (dy, &row) in dy.f64().chunks(d.max(1)).zip(index.u32()) {
            let sum = &mut dtable[row as usize * d..][..d];
            sum.iter_mut().zip(dy).for_each(|(s, dy)| *s += dy);
        }
    }

    fn cpu(&self, &BackwardIn { dy, index }: &BackwardIn<'_>, [dtable]: [&mut Host; 1]) {
        let d = dy.shape().last();
        let dy = dy.f32();
        let index = index.u32();
        // Positions by row, in order within a row.
        let mut order: Vec<u32> = (0..index.len() as u32).collect();
        order.sort_by_key(|&i| index[i as usize]);
        rows_in_parallel(dtable.f32_mut(), d, |row, sum| {
            sum.fill(0.0);
            let from = order.partition_point(|&i| (index[i as usize] as usize) < row);
            for &i in order[from..].iter().take_while(|&&i| index[i as usize] as usize == row) {
                sum.iter_mut().zip(&dy[i as usize * d..][..d]).for_each(|(s, dy)| *s += dy);
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &BackwardIn<'_>, y: &[Tensor; 1]) -> Result<()> {
        use crate::device::Bind;
        let d = x.dy.shape().last();
        let n = x.index.len();
        gpu.clear(y[0].buffer())?;
        let next = gpu.alloc(n)?;
        let head = gpu.alloc(n)?;
        let params = Params { n: n as u32, d: d as u32, v: self.rows as u32 };
        let bind = [Bind::Read(x.index.buffer()), Bind::Write(&next), Bind::Write(&head)];
        kernel("links").run(gpu, &bind, &params, n.div_ceil(launch::WG), n * n)?;
        let bind = [
            Bind::Read(x.dy.buffer()),
            Bind::Read(x.index.buffer()),
            Bind::Read(&next),
            Bind::Read(&head),
            Bind::Write(y[0].buffer()),
        ];
        kernel("backward").run(gpu, &bind, &params, (n * d).div_ceil(launch::WG), n * d)
    }
}

impl Tensor {
    /// Rows of a table by index, an embedding lookup: `y[.., d] = self[index[..], d]`, `[V, D]` by `[..]` gives
    /// `[.., D]`.
    ///
    /// The gradient of the table is summed in the order of positions, without atomics: the same bits on every run.
    /// On a GPU it compares all pairs of indices, which is cheap up to some 100 000 of them.
    ///
    /// ```
    /// use mixlora::{Device, Tensor};
    /// let cpu = Device::cpu();
    /// let table = Tensor::from_f32(&cpu, &[3, 2], &[0., 1., 10., 11., 20., 21.])?;
    /// let index = Tensor::from_u32(&cpu, &[2], &[2, 0])?;
    /// assert_eq!(table.gather_rows(&index)?.to_f32()?, [20., 21., 0., 1.]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The table is not `[V, D]`, or an index is V or more. A GPU's indices are not read back to check them: there,
    /// larger ones count as V - 1.
    pub fn gather_rows(&self, index: &Tensor) -> Result<Tensor> {
        let y = run1(&Forward, In { table: self, index })?;
        let index = index.detach();
        let rows = self.shape().rows();
        Ok(Node::record("gather_rows", &[self], y, move |dy| {
            Ok(vec![Some(run1(&Backward { rows }, BackwardIn { dy: &dy, index: &index })?)])
        }))
    }
}

fn cases() -> Vec<Case> {
    let case = |rows: usize, d: usize, dims: &[usize], used: usize| {
        let n = dims.iter().product::<usize>();
        let bits = Stream::new(3);
        let index: Vec<u32> = (0..n as u32).map(|i| bits.bits(i) % used.max(1) as u32).collect();
        let inputs = vec![Operand::normal("table", &[rows, d]), Operand::indices(dims, index)];
        Case::new(format!("[{rows}, {d}] by {dims:?}"), inputs, |x| Ok(vec![x[0].gather_rows(&x[1])?]))
            .sums(n / used.max(1))
            .cost(0, 8 * n * d)
    };
    vec![
        case(5, 3, &[0], 1),
        case(0, 3, &[2, 0], 1),
        case(4, 0, &[3], 4),
        case(1, 1, &[1], 1),
        case(7, 5, &[2, 9], 7),
        // Few rows of many occur, each often; then one row only, more often than a workgroup is wide.
        case(70_000, 3, &[500], 40),
        case(9, 66, &[3, 257], 1),
        case(600, 17, &[2, 300], 600),
        case(70_001, 2, &[70_001], 70_001),
    ]
    .into_iter()
    .enumerate()
    .map(|(i, mut c)| {
        if i == 8 {
            // The all-pairs search of the gradient takes too long here on a software adapter.
            c.inputs[0] = c.inputs[0].clone().frozen();
            c.gradcheck = false;
        }
        c
    })
    .collect()
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [rows, d] = sizes.plane();
    let n = rows * d;
    let index = (0..rows).map(|i| (i * 7 % rows) as u32).collect();
    let inputs = vec![Operand::normal("table", &[rows, d]), Operand::indices(&[rows], index)];
    let gather =
        Timed::plain(format!("{rows} of {rows}x{d}"), inputs, (0, 8 * n), |x| x[0].gather_rows(&x[1]));
    vec![gather.backward(0, 8 * n)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_indices_are_errors_on_hosts() {
        for device in [Device::cpu(), Device::reference()] {
            let table = Tensor::zeros(&device, &[3, 2]).unwrap();
            let index = Tensor::from_u32(&device, &[2], &[0, 3]).unwrap();
            let error = table.gather_rows(&index).unwrap_err().to_string();
            assert_eq!(error, "gather_rows: expected indices of a table of 3 rows, found 3 at position 1");
            assert!(table.gather_rows(&table).is_err() && index.gather_rows(&index).is_err());
        }
    }

    #[test]
    fn bad_indices_are_clamped_on_the_gpu() {
        let Ok(gpu) = Device::gpu() else { return };
        let table = Tensor::from_f32(&gpu, &[3, 1], &[1.0, 2.0, 3.0]).unwrap().leaf();
        let index = Tensor::from_u32(&gpu, &[3], &[0, 3, u32::MAX]).unwrap();
        let y = table.gather_rows(&index).unwrap();
        assert_eq!(y.to_f32().unwrap(), [1.0, 3.0, 3.0]);
        let grads = y.sum().unwrap().backward().unwrap();
        assert_eq!(grads.get(&table).unwrap().to_f32().unwrap(), [1.0, 0.0, 2.0]);
        let none = Tensor::zeros(&gpu, &[0, 1]).unwrap();
        assert!(none.gather_rows(&index).is_err());
    }
}
