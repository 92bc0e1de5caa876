//! The process that tries inputs one after the other. What ends it is a finding of the process that watches it.

use crate::progress::Progress;
use crate::targets::{Case, Target};
use crate::{Result, Wanted, findings, heap};
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Bytes that an input may take besides as many as it has.
const BOUND: usize = 64 << 20;
/// Findings of a target after which it is left.
pub const MOST_FINDINGS: u64 = 10;

static PANIC: Mutex<String> = Mutex::new(String::new());

/// Processor time of the process: others on the machine do not count.
fn clock() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// What an input did.
pub struct Outcome {
    pub accepted: bool,
    pub bytes: usize,
    pub time: Duration,
    /// What is wrong with that.
    pub fault: Option<String>,
}

/// Tries one input.
pub fn attempt(target: &Target, case: &mut Case, input: &[u8]) -> Outcome {
    let before = heap::begin();
    let started = clock();
    let result = catch_unwind(AssertUnwindSafe(|| (case.parse)(input).is_ok()));
    let time = clock().saturating_sub(started);
    let bytes = heap::peak() - before;
    let allowed = Duration::from_secs(target.seconds);
    let fault = match result {
        Err(_) => Some(PANIC.lock().map_or("panicked".into(), |text| text.clone())),
        Ok(_) if bytes > input.len() + BOUND => Some(format!("took {} MiB", bytes >> 20)),
        Ok(_) if time > allowed => Some(format!("took {:.1} s", time.as_secs_f64())),
        Ok(_) => None,
    };
    Outcome { accepted: result.unwrap_or(false), bytes, time, fault }
}

/// Keeps the text of panics to itself: some are caught where they are expected.
pub fn keep_panics() {
    std::panic::set_hook(Box::new(|about| {
        if let Ok(mut text) = PANIC.lock() {
            *text = about.to_string();
        }
    }));
}

/// Tries inputs from where the progress stands until enough are tried.
pub fn run(target: &Target, wanted: &Wanted, state: &File) -> Result<()> {
    let scratch = tempfile::Builder::new().prefix("mixlora-fuzz-").tempdir_in(findings::scratch())?;
    let mut case = (target.open)(scratch.path());
    keep_panics();
    let mutator = target.mutator(&case);
    for seed in &mutator.seeds {
        (case.parse)(seed).map_err(|e| format!("{}: a seed is refused: {e}", target.name))?;
    }
    let mut progress = Progress::read(state)?;
    let started = Instant::now();
    while !wanted.enough(progress.begun, started.elapsed()) && progress.findings < MOST_FINDINGS {
        let number = progress.begun;
        let input = target.input(&mutator, wanted.seed, number);
        progress.begun += 1;
        progress.write(state)?;
        let outcome = attempt(target, &mut case, &input);
        progress.accepted += u64::from(outcome.accepted);
        progress.bytes = progress.bytes.max(outcome.bytes as u64);
        progress.nanoseconds = progress.nanoseconds.max(outcome.time.as_nanos() as u64);
        if let Some(what) = outcome.fault {
            progress.findings += 1;
            findings::keep(target, wanted.seed, number, &input, &what)?;
        }
    }
    progress.write(state)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of an input that does one of the things that none may do.
    fn parse(input: &[u8]) -> std::result::Result<(), String> {
        match input {
            b"panic" => panic!("as asked"),
            b"memory" => drop(std::hint::black_box(vec![1u8; 2 * BOUND])),
            b"time" => {
                let started = clock();
                while clock() - started < Duration::from_millis(1100) {}
            }
            b"refused" => return Err("as asked".into()),
            _ => {}
        }
        Ok(())
    }

    #[test]
    fn faults_are_found() {
        let open = |_: &std::path::Path| Case { seeds: vec![b"good".to_vec()], parse: Box::new(parse) };
        let target = Target { name: "test", seconds: 1, words: &[], framed: false, open };
        let mut case = (target.open)(std::path::Path::new(""));
        keep_panics();
        let mut fault = |input: &[u8]| attempt(&target, &mut case, input).fault;
        assert_eq!(fault(b"good"), None);
        assert_eq!(fault(b"refused"), None);
        assert!(fault(b"panic").unwrap().contains("as asked"));
        assert!(fault(b"memory").unwrap().ends_with("MiB"));
        assert!(fault(b"time").unwrap().ends_with(" s"));
    }

    #[test]
    fn seeds_are_read() {
        for target in crate::targets::ALL {
            let scratch = tempfile::tempdir().unwrap();
            let mut case = (target.open)(scratch.path());
            for seed in &case.seeds {
                assert_eq!((case.parse)(seed), Ok(()), "{}", target.name);
            }
        }
    }
}
