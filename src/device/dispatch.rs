//! What a launch is, and what kernels are chosen by: the words that ops and GPUs share, in builds with and without GPUs.

use super::GpuBuffer;
use super::shader::{Shader, source};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// One operand of a dispatch: binding i of group 0 is operand i.
pub(crate) enum Bind<'a> {
    Read(&'a GpuBuffer),
    Write(&'a GpuBuffer),
    /// An operand that this dispatch does not touch: any buffer that is bound for reading.
    Unused(&'a GpuBuffer),
}

impl<'a> Bind<'a> {
    /// The buffer to read, or a stand-in for an absent operand.
    pub fn or_unused(operand: Option<&'a GpuBuffer>, stand_in: &'a GpuBuffer) -> Self {
        operand.map_or(Bind::Unused(stand_in), Bind::Read)
    }
}

/// How many workgroups.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Grid {
    /// So many workgroups, folded to two dimensions above 65 535: shaders use `linear_group()`.
    Linear(usize),
    /// As given.
    Xyz(usize, usize, usize),
}

/// One kernel launch.
pub(crate) struct Dispatch<'a> {
    pub shader: &'static Shader,
    pub entry: &'static str,
    pub consts: &'a [(&'static str, u32)],
    pub parts: &'a [&'static str],
    pub bind: &'a [Bind<'a>],
    /// The bytes of `Params`: at most [`MAX_PARAM_BYTES`](super::MAX_PARAM_BYTES).
    pub params: &'a [u8],
    pub grid: Grid,
    /// Rough work, which bounds how much goes into one submit.
    pub flops: u64,
}

impl Dispatch<'_> {
    /// The op's shader and the entry, for labels and errors.
    pub fn name(&self) -> String {
        format!("{}::{}", self.shader.name, self.entry)
    }
}

/// A kernel that was launched: an entry of a shader with values of its constants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Launched {
    pub shader: &'static str,
    pub entry: &'static str,
    pub consts: Vec<(&'static str, u32)>,
}

/// The text of a kernel as it is compiled: prelude, fragments, file.
pub fn compose(shader: &Shader, consts: &[(&str, u32)], parts: &[&str], immediates: bool) -> String {
    source(shader, consts, parts, immediates)
}

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

/// Counters since the device was opened or [`Gpu::reset_stats`](super::Gpu::reset_stats) was called.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Stats {
    pub dispatches: u64,
    pub submits: u64,
    pub readbacks: u64,
    /// Bytes of the operands of all dispatches. A stand-in for an absent operand is none.
    pub bytes_bound: u64,
}

/// One profiled kernel launch.
#[derive(Debug, Clone)]
pub struct KernelTime {
    pub shader: &'static str,
    pub entry: &'static str,
    pub nanoseconds: f64,
}
