//! How a GPU is opened, and what kernels are chosen by.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What kind of adapter this is; variants are chosen by it. In order of preference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AdapterClass {
    Discrete,
    Integrated,
    Virtual,
    Other,
    /// A software driver (lavapipe, WARP): correct, not fast.
    Software,
}

/// Matrices of `side` x `side`, f16 operands and f32 sums, in workgroups of `lanes` invocations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CoopSize {
    pub side: u32,
    pub lanes: u32,
}

/// Names of shape classes, and of the kernels to use for them.
pub(crate) type Tuned = BTreeMap<String, String>;

/// How a GPU is opened.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GpuOptions {
    /// Let the frozen products of forward passes use cooperative matrices (tensor cores) where the adapter has them.
    /// They round both operands to f16; see docs/NUMERICS.md.
    pub coop: bool,
    /// Take a software adapter where there is no other.
    pub software: bool,
    /// Where an adapter's compiled kernels are kept between runs, and which were measured best; nowhere without a folder.
    pub cache: Option<PathBuf>,
}

impl GpuOptions {
    /// Those of the environment, and a folder.
    pub(super) fn with_cache(cache: Option<&Path>) -> Self {
        GpuOptions { cache: cache.map(PathBuf::from), ..GpuOptions::from_env() }
    }

    /// From the environment: `MIXLORA_COOP=1`; `MIXLORA_REQUIRE_GPU=1` takes a software adapter too.
    pub fn from_env() -> Self {
        let set = |name: &str| std::env::var(name).is_ok_and(|v| v == "1");
        GpuOptions { coop: set("MIXLORA_COOP"), software: set("MIXLORA_REQUIRE_GPU"), cache: None }
    }
}
