//! Launching kernels: the variants that most ops share, and one call per dispatch.

use super::Operands;
use crate::device::{Bind, Dispatch, Gpu, Grid, PORTABLE, Parameters, Shader, Variant, parts};
use crate::{Result, Tensor};

/// Invocations of a workgroup of [`ELEMENTS`].
pub(crate) const WG: usize = 256;

/// One invocation per element.
pub(crate) static ELEMENTS: &[Variant] = &[Variant {
    name: "wg256",
    consts: &[("WG", WG as u32)],
    parts: &[parts::GRID],
    backends: PORTABLE,
    workgroup_bytes: 0,
}];

/// One workgroup per row, with sums over the workgroup: 64 invocations, or 256 for long rows.
pub(crate) static ROWS: &[Variant] = &[
    Variant {
        name: "wg64",
        consts: &[("WG", 64)],
        parts: &[parts::GRID, parts::SUM],
        backends: PORTABLE,
        workgroup_bytes: 256,
    },
    Variant {
        name: "wg256",
        consts: &[("WG", 256)],
        parts: &[parts::GRID, parts::SUM],
        backends: PORTABLE,
        workgroup_bytes: 1024,
    },
];

/// An entry point in one of its variants.
pub(crate) struct Kernel {
    pub shader: &'static Shader,
    pub entry: &'static str,
    pub variant: &'static Variant,
}

impl Kernel {
    /// Records a launch of `groups` workgroups, folded to two dimensions above 65 535.
    pub fn run(
        self,
        gpu: &Gpu,
        bind: &[Bind<'_>],
        params: &impl Parameters,
        groups: usize,
        flops: usize,
    ) -> Result<()> {
        gpu.dispatch(Dispatch {
            shader: self.shader,
            entry: self.entry,
            consts: self.variant.consts,
            parts: self.variant.parts,
            bind,
            params: params.bytes(),
            grid: Grid::Linear(groups),
            flops: flops as u64,
        })
    }
}

/// Inputs to read, then outputs to write.
pub(crate) fn binds<'a>(x: &impl Operands<'a>, y: &'a [Tensor]) -> Vec<Bind<'a>> {
    let reads = x.all().into_iter().map(|t| Bind::Read(t.buffer()));
    reads.chain(y.iter().map(|t| Bind::Write(t.buffer()))).collect()
}

/// Records an entry of [`ROWS`], one workgroup for every row of the first input. `params` is given the rows and D.
pub(crate) fn per_row<'a, P: Parameters>(
    gpu: &Gpu,
    shader: &'static Shader,
    entry: &'static str,
    x: &impl Operands<'a>,
    y: &'a [Tensor],
    params: impl FnOnce(u32, u32) -> P,
) -> Result<()> {
    let x_shape = x.all()[0].shape();
    let n = x_shape.rows();
    let d = x_shape.last();
    let kernel = Kernel { shader, entry, variant: &ROWS[usize::from(d > 512)] };
    kernel.run(gpu, &binds(x, y), &params(n as u32, d as u32), n, 10 * n * d)
}

/// An array of what the macros make of the name and the loaders of every format, in the order of `Format::ALL`.
macro_rules! each_format {
    ($($make:ident),+) => {
        [$(
            $make!("f32", LOAD_F32, LOAD4_F32, PIECE_F32),
            $make!("f16", LOAD_F16, LOAD4_F16, PIECE_F16),
            $make!("bf16", LOAD_BF16, LOAD4_BF16, PIECE_BF16),
            $make!("q8_0", LOAD_Q8_0, LOAD4_Q8_0, PIECE_Q8_0),
            $make!("q4_0", LOAD_Q4_0, LOAD4_Q4_0, PIECE_Q4_0),
            $make!("q4_1", LOAD_Q4_1, LOAD4_Q4_1, PIECE_Q4_1),
            $make!("q5_0", LOAD_Q5_0, LOAD4_Q5_0, PIECE_Q5_0),
            $make!("q5_1", LOAD_Q5_1, LOAD4_Q5_1, PIECE_Q5_1),
            $make!("q4_k", LOAD_Q4_K, LOAD4_Q4_K, PIECE_Q4_K),
            $make!("q5_k", LOAD_Q5_K, LOAD4_Q5_K, PIECE_Q5_K),
            $make!("q6_k", LOAD_Q6_K, LOAD4_Q6_K, PIECE_Q6_K),
        )+]
    };
}
pub(crate) use each_format;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;

    macro_rules! name {
        ($name:literal, $load:ident, $load4:ident, $piece:ident) => {
            ($name, [parts::$load, parts::$load4])
        };
    }

    #[test]
    fn loaders_are_listed_in_the_order_of_formats() {
        for (i, (format, (name, fragments))) in Format::ALL.into_iter().zip(each_format!(name)).enumerate() {
            assert_eq!((format as usize, format.name()), (i, name));
            assert!(fragments.iter().all(|f| f.contains(&format!("stored as {name}"))), "{name}");
        }
    }
}
