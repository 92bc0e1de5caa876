//! The Rust side of the comparisons: mixlora and other crates do the same work, one round on request.
//!
//! `mixlora-peers WORK ARGUMENTS` prints a line about itself, then answers every line on stdin, the name of a
//! candidate, by one line of JSON on stdout. The scripts one folder up ask; README.md there says how.

mod decode;
mod gpu;
mod layer;
mod linear;
mod train;
mod values;
#[cfg(feature = "burn")]
mod with_burn;

use serde_json::{Map, Value, json};
use std::error::Error;
use std::io::{BufRead, Write};
use std::time::Instant;

#[global_allocator]
static ALLOCATOR: mixlora::Allocator = mixlora::Allocator;

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// What a round says: names and numbers.
type Answer = Vec<(&'static str, f64)>;

/// One program's way to do the work.
struct Candidate {
    name: &'static str,
    /// Some values of its result, which those of the others must be near.
    sample: Vec<f32>,
    round: Box<dyn FnMut() -> Result<Answer>>,
}

impl Candidate {
    fn new(name: &'static str, sample: Vec<f32>, round: impl FnMut() -> Result<Answer> + 'static) -> Self {
        Candidate { name, sample, round: Box::new(round) }
    }
}

/// Seconds of one call in the mean, after one that is not timed: the caches are full of somebody else's work.
fn seconds(repeats: usize, mut f: impl FnMut() -> Result<f64>) -> Result<f64> {
    f()?;
    let total = (0..repeats).map(|_| f()).sum::<Result<f64>>()?;
    Ok(total / repeats as f64)
}

/// Seconds that `f` takes, and what it gives.
fn timed<T>(f: impl FnOnce() -> Result<T>) -> Result<(f64, T)> {
    let started = Instant::now();
    let out = f()?;
    Ok((started.elapsed().as_secs_f64(), out))
}

/// Largest resident memory of this process so far, where the system tells it.
fn peak_rss_mib() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok()? / 1024.0)
}

fn serve(mut candidates: Vec<Candidate>) -> Result<()> {
    let say = |v: Value| {
        println!("{v}");
        std::io::stdout().flush()
    };
    let about: Vec<_> = candidates.iter().map(|c| json!([c.name, c.sample])).collect();
    say(json!({ "candidates": about }))?;
    for line in std::io::stdin().lock().lines() {
        let name = line?;
        let found = candidates.iter_mut().find(|c| c.name == name);
        let answer = (found.ok_or_else(|| format!("no candidate '{name}'"))?.round)()?;
        let mut answer: Map<String, Value> =
            answer.into_iter().map(|(k, v)| (k.to_string(), json!(v))).collect();
        answer.insert("peak_rss_mib".into(), json!(peak_rss_mib()));
        say(Value::Object(answer))?;
    }
    Ok(())
}

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    // `2x3x4` as numbers.
    let sizes = |text: &str| text.split('x').map(str::parse).collect::<std::result::Result<Vec<usize>, _>>();
    let candidates = match args[..] {
        ["linear", shape, threads, repeats] => match sizes(shape)?[..] {
            [m, k, n] => linear::candidates([m, k, n], threads.parse()?, repeats.parse()?)?,
            _ => return Err("linear: a shape is ROWSxINxOUT".into()),
        },
        ["layer", shape, threads, repeats] => match sizes(shape)?[..] {
            [batch, seq, d_in, d_out, factors, r] => {
                let of = layer::Of { batch, seq, d_in, d_out, factors, r };
                layer::candidates(of, threads.parse()?, repeats.parse()?)?
            }
            _ => return Err("layer: a shape is BATCHxSEQxINxOUTxFACTORSxR".into()),
        },
        ["train", model, shape, threads] => match sizes(shape)?[..] {
            [batch, seq, factors, r] => {
                train::candidates(model, [batch, seq], [factors, r], threads.parse()?)?
            }
            _ => return Err("train: a shape is BATCHxSEQxFACTORSxR".into()),
        },
        ["decode", model, shape, threads] => match sizes(shape)?[..] {
            [prompt, generated] => decode::candidates(model, prompt, generated, threads.parse()?)?,
            _ => return Err("decode: a shape is PROMPTxGENERATED".into()),
        },
        ["gpu", side, repeats] => gpu::candidates(side.parse()?, repeats.parse()?)?,
        _ => return Err("usage: mixlora-peers linear|layer|train|decode|gpu ARGUMENTS, see main.rs".into()),
    };
    serve(candidates)
}
