//! What a launch is: the words that ops and GPUs share, in builds with and without GPUs.

use super::GpuBuffer;
use super::shader::{Shader, source};

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

/// The text of a kernel as it is compiled: prelude, fragments, file.
pub fn compose(shader: &Shader, consts: &[(&str, u32)], parts: &[&str], immediates: bool) -> String {
    source(shader, consts, parts, immediates)
}
