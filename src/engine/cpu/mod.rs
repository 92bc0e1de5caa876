//! What CPU back ends share: dense products, tiles of matrices, scalar functions that vectorise.

pub(crate) mod gemm;
#[cfg(target_arch = "x86_64")]
mod gemm_avx2;
pub(crate) mod math;
pub(crate) mod tile;
