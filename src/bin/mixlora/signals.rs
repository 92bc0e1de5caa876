//! Ctrl-C and SIGTERM: the first asks the run to stop, the second ends the process.

use mixlora::train::Stop;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_shutdown, register_usize};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

/// Which signal came.
pub struct Received(Arc<AtomicUsize>);

impl Received {
    /// Its number: 2 for Ctrl-C, 15 for SIGTERM.
    pub fn received(&self) -> Option<u8> {
        u8::try_from(self.0.load(Relaxed)).ok().filter(|n| *n > 0)
    }
}

/// A stop that is asked for by a signal, or at a step.
pub fn stop_on_signals(at: Option<usize>) -> std::io::Result<(Stop, Received)> {
    let stop = Stop::at(at);
    let which = Arc::new(AtomicUsize::new(0));
    for signal in [SIGINT, SIGTERM] {
        // In this order: the second signal finds the flag set by the first.
        register_conditional_shutdown(signal, 128 + signal, stop.flag())?;
        register(signal, stop.flag())?;
        register_usize(signal, which.clone(), signal as usize)?;
    }
    Ok((stop, Received(which)))
}
