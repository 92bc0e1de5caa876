//! Which cases of the ops are run on a GPU: all, but on a software adapter, where kernels take seconds to compile, a
//! share that moves on with `MIXLORA_ROTATION`; `MIXLORA_ROTATION=all` runs them all there too.

use mixlora::Device;
use mixlora::device::AdapterClass;
use mixlora::ops::OpSpec;

/// Which cases of an op are run, by their numbers.
#[derive(PartialEq)]
pub enum Share {
    All,
    /// One case in so many, from this one on.
    One {
        of: usize,
        first: usize,
    },
}

impl Share {
    /// On a software adapter, one case in `of`.
    pub fn one_in(of: usize, device: &Device) -> Self {
        let Device::Gpu(gpu) = device else { unreachable!() };
        let rotation = std::env::var("MIXLORA_ROTATION").unwrap_or_default();
        if gpu.class() != AdapterClass::Software || rotation == "all" {
            return Share::All;
        }
        let rotation: usize = if rotation.is_empty() { 0 } else { rotation.parse().unwrap() };
        let first = rotation % of;
        println!("cases {first}, {}, ... of each op", first + of);
        Share::One { of, first }
    }

    pub fn holds(&self, case: usize) -> bool {
        match self {
            Share::All => true,
            Share::One { of, first } => case % of == *first,
        }
    }
}

/// The ops with the most kernels first, so that no thread is left with them at the end.
pub fn longest_first(mut ops: Vec<&'static OpSpec>) -> Vec<&'static OpSpec> {
    let variants =
        |op: &&OpSpec| -> usize { op.shaders.iter().flat_map(|s| s.entries).map(|e| e.variants.len()).sum() };
    ops.sort_by_key(|op| std::cmp::Reverse(variants(op)));
    ops
}
