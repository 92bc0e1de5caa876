//! Mutated inputs for every parser: none may crash, hang, or take much more memory than it has bytes.
//! docs/FUZZING.md says what is run and what was found.

mod findings;
mod heap;
mod mutate;
mod progress;
mod targets;
mod watch;
mod worker;

use progress::Progress;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use targets::Target;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

#[global_allocator]
static HEAP: heap::Heap = heap::Heap;

const USAGE: &str = "usage: scripts/fuzz [--seconds N | --inputs N] [--seed N] [TARGET ...]
       scripts/fuzz --replay FILE TARGET
Tries mutated inputs on each target, 10 s by default. What is found is kept in fuzz/findings.";

/// How many inputs are wanted of a target.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    seconds: f64,
    inputs: u64,
    seed: u64,
}

impl Wanted {
    const DEFAULT: Wanted = Wanted { seconds: 10.0, inputs: u64::MAX, seed: 1 };

    fn enough(&self, inputs: u64, time: Duration) -> bool {
        inputs >= self.inputs || time.as_secs_f64() >= self.seconds
    }

    /// The same after some time.
    fn left(&self, time: Duration) -> Self {
        Wanted { seconds: (self.seconds - time.as_secs_f64()).max(0.0), ..*self }
    }

    /// As the command line has it.
    fn arguments(&self) -> Vec<String> {
        let named = [
            ("--inputs", self.inputs.to_string()),
            // Behind the number of inputs, which takes the limit on time away.
            ("--seconds", self.seconds.to_string()),
            ("--seed", self.seed.to_string()),
        ];
        named.into_iter().flat_map(|(name, value)| [name.to_string(), value]).collect()
    }
}

/// What the command line asks for.
struct Arguments {
    wanted: Wanted,
    /// Is the process that tries inputs.
    worker: bool,
    replay: bool,
    names: Vec<String>,
}

fn parse(words: impl Iterator<Item = String>) -> Result<Arguments> {
    let mut words = words;
    let mut found = Arguments { wanted: Wanted::DEFAULT, worker: false, replay: false, names: Vec::new() };
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
        match word.as_str() {
            "--seconds" => found.wanted.seconds = value()?.parse()?,
            "--inputs" => {
                found.wanted.inputs = value()?.parse()?;
                found.wanted.seconds = f64::INFINITY;
            }
            "--seed" => found.wanted.seed = value()?.parse()?,
            "--worker" => found.worker = true,
            "--replay" => found.replay = true,
            _ if word.starts_with('-') => return Err(USAGE.into()),
            _ => found.names.push(word),
        }
    }
    Ok(found)
}

fn find(name: &str) -> Result<&'static Target> {
    let found = targets::ALL.iter().find(|target| target.name == name);
    let names: Vec<&str> = targets::ALL.iter().map(|target| target.name).collect();
    Ok(found.ok_or_else(|| format!("'{name}' is no target; there are {}", names.join(", ")))?)
}

/// Runs the targets; gives the number of findings.
fn run(wanted: &Wanted, names: &[String]) -> Result<u64> {
    let chosen = names.iter().map(|name| find(name)).collect::<Result<Vec<_>>>()?;
    let chosen = if chosen.is_empty() { targets::ALL.iter().collect() } else { chosen };
    println!("target          inputs  inputs/s  accepted  findings       memory       time");
    let mut findings = 0;
    for target in chosen {
        let (progress, time) = watch::run(target, wanted)?;
        println!("{}", row(target, &progress, time));
        findings += progress.findings;
    }
    Ok(findings)
}

fn row(target: &Target, progress: &Progress, time: Duration) -> String {
    let speed = progress.begun as f64 / time.as_secs_f64();
    let accepted = 100.0 * progress.accepted as f64 / progress.begun.max(1) as f64;
    let memory = progress.bytes as f64 / (1 << 20) as f64;
    let longest = progress.nanoseconds as f64 * 1e-6;
    format!(
        "{:<12} {:>9}  {speed:>8.0}  {accepted:>6.1} %  {:>8}  {memory:>7.2} MiB  {longest:>6.1} ms",
        target.name, progress.begun, progress.findings
    )
}

/// Tries the input of a file.
fn replay(path: &Path, target: &Target) -> Result<u64> {
    let scratch = tempfile::tempdir()?;
    let mut case = (target.open)(scratch.path());
    worker::keep_panics();
    let outcome = worker::attempt(target, &mut case, &std::fs::read(path)?);
    let what = outcome.fault.as_deref().unwrap_or(if outcome.accepted { "accepted" } else { "refused" });
    println!("{what}; {} bytes, {:.1} ms", outcome.bytes, outcome.time.as_secs_f64() * 1e3);
    Ok(u64::from(outcome.fault.is_some()))
}

fn act() -> Result<u64> {
    let arguments = parse(std::env::args().skip(1))?;
    match (&arguments.names[..], arguments.worker, arguments.replay) {
        ([name, state], true, _) => {
            let state = File::options().read(true).write(true).open(state)?;
            worker::run(find(name)?, &arguments.wanted, &state).map(|()| 0)
        }
        ([path, name], _, true) => replay(Path::new(path), find(name)?),
        (names, false, false) => run(&arguments.wanted, names),
        _ => Err(USAGE.into()),
    }
}

fn main() -> ExitCode {
    match act() {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{e}");
            ExitCode::from(2)
        }
    }
}
