//! What is counted and timed of launches.

/// A kernel that was launched: an entry of a shader with values of its constants.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Launched {
    pub shader: &'static str,
    pub entry: &'static str,
    pub consts: Vec<(&'static str, u32)>,
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
