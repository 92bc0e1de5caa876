//! Ctrl-C and SIGTERM.

use mixlora::train::Stop;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_shutdown, register_usize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// Which signal came.
pub struct Received(Arc<AtomicUsize>);

impl Received {
    /// Its number: 2 for Ctrl-C, 15 for SIGTERM.
    pub fn received(&self) -> Option<u8> {
        u8::try_from(self.0.load(Relaxed)).ok().filter(|n| *n > 0)
    }
}

/// A stop that is asked for by the first signal, or at a step; the second signal ends the process.
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

/// Ctrl-C in a dialogue: while the user is asked it ends the program, else it stops what is being said.
pub struct Interrupt {
    stop: Arc<AtomicBool>,
    waiting: Arc<AtomicBool>,
}

impl Interrupt {
    pub fn new() -> std::io::Result<Self> {
        let (stop, waiting) = (Arc::<AtomicBool>::default(), Arc::<AtomicBool>::default());
        register_conditional_shutdown(SIGINT, 128 + SIGINT, waiting.clone())?;
        register(SIGINT, stop.clone())?;
        Ok(Interrupt { stop, waiting })
    }
    /// Set when what is being said must stop.
    pub fn flag(&self) -> &AtomicBool {
        &self.stop
    }
    /// Runs what waits for the user.
    pub fn while_waiting<R>(&self, f: impl FnOnce() -> R) -> R {
        self.waiting.store(true, Relaxed);
        let result = f();
        self.waiting.store(false, Relaxed);
        result
    }
}
