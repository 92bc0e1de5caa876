//! Which cases of the ops are run on a GPU: all, but on a software adapter, where kernels take seconds to compile, a
//! share that moves on with `MIXLORA_ROTATION`; `MIXLORA_ROTATION=all` runs them all there too.

use mixlora::Device;
use mixlora::device::AdapterClass;

/// Which cases of an op are run, by their numbers.
#[derive(PartialEq)]
pub enum Share {
    All,
    /// Every `SHARES`-th case, from this one on.
    Every(usize),
}

const SHARES: usize = 6;

impl Share {
    pub fn of(device: &Device) -> Self {
        let Device::Gpu(gpu) = device else { unreachable!() };
        let rotation = std::env::var("MIXLORA_ROTATION").unwrap_or_default();
        if gpu.class() != AdapterClass::Software || rotation == "all" {
            return Share::All;
        }
        let rotation: usize = if rotation.is_empty() { 0 } else { rotation.parse().unwrap() };
        println!("cases {}, {}, ... of each op", rotation % SHARES, rotation % SHARES + SHARES);
        Share::Every(rotation % SHARES)
    }

    pub fn holds(&self, case: usize) -> bool {
        match self {
            Share::All => true,
            Share::Every(first) => case % SHARES == *first,
        }
    }
}
