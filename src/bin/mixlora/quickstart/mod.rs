//! `mixlora quickstart`

mod set;

use crate::{Failure, out};
use std::path::PathBuf;

#[derive(clap::Args)]
pub struct Args {
    /// Only write the training set here: train.jsonl and test.jsonl.
    #[arg(long, value_name = "DIR")]
    set_only: Option<PathBuf>,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let set = set::set();
    if let Some(dir) = &args.set_only {
        std::fs::create_dir_all(dir)?;
        for (name, items) in [("train", &set.train), ("test", &set.test)] {
            let text: String = items.iter().map(|i| i.line() + "\n").collect();
            std::fs::write(dir.join(format!("{name}.jsonl")), text)?;
        }
        out::note(&format!("{} {}", set.train.len(), set.test.len()));
    }
    Ok(())
}
