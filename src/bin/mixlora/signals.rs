//! Ctrl-C and SIGTERM.

use mixlora::train::Stop;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::flag::{register, register_conditional_shutdown, register_usize};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

/// The received signal.
pub struct Received(Arc<AtomicUsize>);

impl Received {
    /// The number of the signal: 2 for Ctrl-C, 15 for SIGTERM.
    pub fn received(&self) -> Option<u8> {
        u8::try_from(self.0.load(Relaxed)).ok().filter(|number| *number > 0)
    }
}

/// A stop at the first signal, or at a step; the second signal ends the process.
pub fn stop_on_signals(at: Option<usize>) -> std::io::Result<(Stop, Received)> {
    let stop = Stop::at(at);
    let received = Arc::new(AtomicUsize::new(0));
    for signal in [SIGINT, SIGTERM] {
        // The order matters: the second signal finds the flag set by the first.
        register_conditional_shutdown(signal, 128 + signal, stop.flag())?;
        register(signal, stop.flag())?;
        register_usize(signal, received.clone(), signal as usize)?;
    }
    Ok((stop, Received(received)))
}

/// Ctrl-C in a dialogue: it ends the program while waiting for the user, and stops an answer otherwise.
pub struct Interrupt {
    stop: Arc<AtomicBool>,
    waiting: Arc<AtomicBool>,
}

impl Interrupt {
    pub fn new() -> std::io::Result<Self> {
        let stop = Arc::<AtomicBool>::default();
        let waiting = Arc::<AtomicBool>::default();
        register_conditional_shutdown(SIGINT, 128 + SIGINT, waiting.clone())?;
        register(SIGINT, stop.clone())?;
        Ok(Interrupt { stop, waiting })
    }
    /// The flag that stops an answer.
    pub fn flag(&self) -> &AtomicBool {
        &self.stop
    }
    /// Runs a function that waits for the user.
    pub fn while_waiting<R>(&self, wait: impl FnOnce() -> R) -> R {
        self.waiting.store(true, Relaxed);
        let result = wait();
        self.waiting.store(false, Relaxed);
        result
    }
}
