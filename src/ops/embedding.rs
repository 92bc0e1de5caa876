//! Rows of a frozen weight by index: the token embedding of a model whose base does not train.

use super::gather_rows::check_indices;
use crate::device::{Entry, Gpu, Host, PORTABLE, Shader, Variant, params, parts};
use crate::engine::launch::each_format;
use crate::engine::{
    Case, Computation, Meta, Op, OpSpec, Operand, Timed, TimedSizes, launch, operands, rows_in_parallel, run1,
};
use crate::rng::Stream;
use crate::weight::sample;
use crate::{DType, Device, Error, Format, Result, Tensor, Weight};
use std::sync::Arc;

pub(super) static SPEC: OpSpec =
    OpSpec { name: NAME, formula: "y[i] = W[index[i]]", shaders: &[&SHADER], cases, timed };

const NAME: &str = "embedding";

macro_rules! variant {
    ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
        Variant {
            name: $name,
            consts: &[("WG", launch::WG as u32)],
            parts: &[parts::GRID, parts::HALF, parts::$load],
            backends: PORTABLE,
            workgroup_bytes: 0,
        }
    };
}
static VARIANTS: [Variant; Format::ALL.len()] = each_format!(variant);

params! {
    struct Params { n: u32, d: u32, v: u32, first: u32, rows: u32, w_words: u32 }
}

static SHADER: Shader = Shader {
    name: NAME,
    source: include_str!("../../shaders/embedding.wgsl"),
    params: Params::FIELDS,
    entries: &[Entry { name: "forward", variants: &VARIANTS }],
};

/// `index [..] -> y [.., cols]`
struct Embedding<'a>(&'a Weight);

operands! {
    struct In { index }
}

impl Op for Embedding<'_> {
    type In<'a> = In<'a>;

    fn name(&self) -> &'static str {
        NAME
    }

    fn infer(&self, &In { index }: &In<'_>) -> Result<[Meta; 1]> {
        let w = self.0;
        index.require(NAME, DType::U32)?;
        if !w.device().same(index.device()) {
            let w = w.device().name();
            let index = index.device().name();
            return Err(Error::shape(
                NAME,
                format!("indices on '{w}', where the weight is"),
                format!("'{index}'"),
            ));
        }
        check_indices(NAME, index, w.rows())?;
        Ok([Meta::f32(&[index.dims(), &[w.cols()]].concat())?])
    }

    fn reference(&self, &In { index }: &In<'_>, [y]: [&mut Host; 1]) {
        let cols = self.0.cols();
        for (y, &row) in y.f64_mut().chunks_mut(cols.max(1)).zip(index.u32()) {
            let Some(shard) = self.0.shard_of(row as usize) else { continue };
            y.copy_from_slice(&shard.data.f64()[(row as usize - shard.first) * cols..][..cols]);
        }
    }

    fn cpu(&self, &In { index }: &In<'_>, [y]: [&mut Host; 1]) {
        let index = index.u32();
        rows_in_parallel(y.f32_mut(), self.0.cols(), |i, y| {
            let row = index[i] as usize;
            if let Some(shard) = self.0.shard_of(row) {
                self.0.decode_row(shard, row - shard.first, y);
            }
        });
    }

    fn gpu(&self, gpu: &Arc<Gpu>, x: &In<'_>, y: &[Tensor; 1]) -> Result<()> {
        use crate::device::Bind;
        let w = self.0;
        let n = x.index.len();
        let d = self.0.cols();
        for shard in w.shards() {
            let params = Params {
                n: n as u32,
                d: d as u32,
                v: w.rows() as u32,
                first: shard.first as u32,
                rows: shard.rows as u32,
                w_words: w.format().row_words(d) as u32,
            };
            let bind =
                [Bind::Read(shard.data.buffer()), Bind::Read(x.index.buffer()), Bind::Write(y[0].buffer())];
            let variant = &VARIANTS[w.format() as usize];
            let kernel = launch::Kernel { shader: &SHADER, entry: "forward", variant };
            kernel.run(gpu, &bind, &params, (n * d).div_ceil(launch::WG), n * d)?;
        }
        Ok(())
    }
}

impl Weight {
    /// Rows by index: `y[.., d] = W[index[..], d]`, `[V, D]` by `[..]` gives `[.., D]`. No gradient: W is frozen, and
    /// indices have none.
    ///
    /// ```
    /// use mixlora::{Device, Format, Tensor, Weight};
    /// let cpu = Device::cpu();
    /// let w = Weight::new(&cpu, 3, 2, &[0., 1., 10., 11., 20., 21.], Format::Bf16)?;
    /// let index = Tensor::from_u32(&cpu, &[2], &[2, 0])?;
    /// assert_eq!(w.embedding(&index)?.to_f32()?, [20., 21., 0., 1.]);
    /// # Ok::<(), mixlora::Error>(())
    /// ```
    ///
    /// # Errors
    /// The indices are on another device, or one is V or more. A GPU's indices are not read back to check them: there,
    /// larger ones count as V - 1.
    pub fn embedding(&self, index: &Tensor) -> Result<Tensor> {
        run1(&Embedding(self), In { index })
    }
}

fn cases() -> Vec<Case> {
    let case = |format: Format, rows: usize, d: usize, dims: &[usize]| {
        let n = dims.iter().product::<usize>();
        let bits = Stream::new(3);
        let index: Vec<u32> = (0..n as u32).map(|i| bits.bits(i) % rows.max(1) as u32).collect();
        let bytes = sample(format, rows, d, 4);
        // Three shards.
        let shard = 4 * (format.row_words(d) * rows.div_ceil(3).max(1)).max(1) as u64;
        let label = format!("{} [{rows}, {d}] by {dims:?}", format.name());
        let run = move |x: &[Tensor]| {
            let w =
                Weight::from_bytes(x[0].device(), [rows, d], &bytes, format).shard_bytes(shard).build()?;
            Ok(vec![w.embedding(&x[0])?])
        };
        let packed = 4 * n * format.row_words(d);
        Case::new(label, vec![Operand::indices(dims, index)], run).cost(0, 4 * n * d + packed).no_gradcheck()
    };
    let mut all = vec![
        case(Format::F32, 5, 3, &[0]),
        case(Format::F32, 0, 3, &[2, 0]),
        case(Format::F32, 4, 0, &[3]),
        case(Format::F32, 1, 1, &[1]),
        case(Format::Bf16, 70_001, 3, &[2, 35_001]),
    ];
    for format in Format::ALL {
        let block = format.block_len();
        all.push(case(format, 50, if block == 1 { 37 } else { 3 * block }, &[3, 7]));
    }
    all
}

fn timed(sizes: &TimedSizes<'_>) -> Vec<Timed> {
    let [r, v, d] = [sizes.pick(33, 2048), 8192, 576];
    let index = (0..r).map(|i| (i * 31 % v) as u32).collect();
    let make = move |device: &Device| -> Result<Computation> {
        let w = Weight::from_bytes(device, [v, d], &sample(Format::F32, v, d, 2), Format::F32).build()?;
        Ok(Box::new(move |x| Ok(vec![w.embedding(&x[0])?])))
    };
    vec![Timed::new(format!("{r} of {v}x{d}"), vec![Operand::indices(&[r], index)], (0, 8 * r * d), make)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Device;

    #[test]
    fn bad_indices_are_errors_on_hosts() {
        for device in [Device::cpu(), Device::reference()] {
            let w = Weight::new(&device, 3, 2, &[0.0; 6], Format::F32).unwrap();
            let index = Tensor::from_u32(&device, &[2], &[0, 3]).unwrap();
            let error = w.embedding(&index).unwrap_err().to_string();
            assert_eq!(error, "embedding: expected indices of a table of 3 rows, found 3 at position 1");
            assert!(w.embedding(&Tensor::zeros(&device, &[2]).unwrap()).is_err());
        }
        let w = Weight::new(&Device::cpu(), 3, 2, &[0.0; 6], Format::F32).unwrap();
        assert!(w.embedding(&Tensor::from_u32(&Device::cpu(), &[1], &[0]).unwrap()).is_err());
    }

    #[test]
    fn bad_indices_are_clamped_on_the_gpu() {
        let Ok(gpu) = Device::gpu() else { return eprintln!("SKIPPED: no adapter") };
        let w = Weight::from_values(&gpu, [3, 1], &[1.0, 2.0, 3.0]).shard_bytes(4).build().unwrap();
        let index = Tensor::from_u32(&gpu, &[3], &[0, 3, u32::MAX]).unwrap();
        assert_eq!(w.embedding(&index).unwrap().to_f32().unwrap(), [1.0, 3.0, 3.0]);
        assert_eq!(w.to_f32().unwrap(), [1.0, 2.0, 3.0]);
    }
}
