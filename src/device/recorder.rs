//! What is recorded and not yet submitted, and when there is enough of it.

use super::stats::Stats;

/// Dispatches in one submit: a parameter buffer of 1 MiB. Steps of real models fit; only their work splits them.
pub(super) const MAX_DISPATCHES: usize = 4096;
/// Work in one submit, so that no submit comes near a 2 s watchdog: about 0.1 s on a weak GPU.
const MAX_FLOPS: u64 = 100_000_000_000;
/// Bytes bound in one submit, for launches that compute little: as long, at 80 GB/s.
const MAX_BYTES: u64 = 8 << 30;
pub(super) const PARAM_SLOT: usize = 256;
/// Launches that one set of timestamps holds.
pub(super) const PROFILED_PER_SET: usize = 2048;

/// Timestamps of launches: two each, in sets that are full but for the last.
#[derive(Default)]
pub(super) struct Profile {
    pub sets: Vec<wgpu::QuerySet>,
    pub labels: Vec<(&'static str, &'static str)>,
}

/// What waits for a submit.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Waiting {
    pub dispatches: usize,
    pub flops: u64,
    pub bytes: u64,
}

impl Waiting {
    pub fn enough(self) -> bool {
        self.dispatches >= MAX_DISPATCHES || self.flops >= MAX_FLOPS || self.bytes >= MAX_BYTES
    }
}

/// The commands that wait for a submit, and the counters of all.
#[derive(Default)]
pub(super) struct Recorder {
    // Declared in this order so that an open pass is dropped before its encoder.
    pub pass: Option<wgpu::ComputePass<'static>>,
    pub encoder: Option<wgpu::CommandEncoder>,
    pub params: Vec<u8>,
    pub uniform: Option<(wgpu::Buffer, wgpu::BindGroup)>,
    pub waiting: Waiting,
    pub uploaded: u64,
    pub profile: Option<Profile>,
    pub stats: Stats,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_of_three_is_enough() {
        let none = Waiting::default();
        assert!(!none.enough());
        assert!(
            !Waiting { dispatches: MAX_DISPATCHES - 1, flops: MAX_FLOPS - 1, bytes: MAX_BYTES - 1 }.enough()
        );
        assert!(Waiting { dispatches: MAX_DISPATCHES, ..none }.enough());
        assert!(Waiting { flops: MAX_FLOPS, ..none }.enough());
        assert!(Waiting { bytes: MAX_BYTES, ..none }.enough());
    }
}
