//! What an op tells the harnesses.

use super::{Case, Timed, TimedSizes};
use crate::device::Shader;

/// One entry of the op list.
pub struct OpSpec {
    /// File name of the op.
    pub name: &'static str,
    /// What it computes, in one line.
    pub formula: &'static str,
    /// Its WGSL files.
    pub shaders: &'static [&'static Shader],
    /// Cases for parity, gradcheck, edge shapes, poison and repeatability.
    pub cases: fn() -> Vec<Case>,
    /// What is timed of it.
    pub timed: fn(&TimedSizes<'_>) -> Vec<Timed>,
}
