//! Progress of counted work on stderr: a bar where a person watches, else a line now and then.

use crate::out;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use std::fmt::Write;
use std::io::IsTerminal;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

/// Time between lines where nobody watches.
const QUIET: Duration = Duration::from_secs(10);

/// So many steps of some work. Several threads may take them.
pub struct Progress {
    total: usize,
    done: AtomicUsize,
    started: Instant,
    last: Mutex<Instant>,
    bar: Option<ProgressBar>,
}

impl Progress {
    /// Says at once what is about to be done: `what` in words, and the name of a step in the plural.
    pub fn new(what: &str, total: usize, steps: &str) -> Self {
        out::note(&format!("{what}: {total} {steps}"));
        let bar = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("{wide_bar} {pos}/{len}{left}");
            let style = style.unwrap_or_else(|_| ProgressStyle::default_bar()).with_key("left", time_left);
            let bar = ProgressBar::new(total as u64).with_style(style);
            // Drawn before the first step, which may take a while.
            bar.tick();
            bar
        });
        let now = Instant::now();
        Progress { total, done: AtomicUsize::new(0), started: now, last: Mutex::new(now), bar }
    }

    /// Adds a finished step.
    pub fn step(&self) {
        self.steps(1);
    }

    /// Sets the number of finished steps.
    pub fn reach(&self, done: usize) {
        self.steps(done.saturating_sub(self.done.load(Relaxed)));
    }

    /// Adds finished steps.
    pub fn steps(&self, more: usize) {
        let done = self.done.fetch_add(more, Relaxed) + more;
        if let Some(bar) = &self.bar {
            return bar.inc(more as u64);
        }
        // Whoever finds the lock taken leaves the line to its holder.
        let Ok(mut last) = self.last.try_lock() else { return };
        if last.elapsed() < QUIET || done >= self.total {
            return;
        }
        *last = Instant::now();
        let left = self.started.elapsed().as_secs_f64() / done as f64 * (self.total - done) as f64;
        out::note(&format!("{done} of {}, about {left:.0} s left", self.total));
    }
}

/// The estimate behind a bar; nothing is known before the first step.
fn time_left(state: &ProgressState, text: &mut dyn Write) {
    if state.pos() > 0 {
        // A bar that lacks its estimate is no reason to fail.
        let _ = write!(text, ", {} s left", state.eta().as_secs());
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
