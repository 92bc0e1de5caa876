//! `mixlora data make`

mod contradict;
mod lists;
mod rules;

use crate::quickstart::set::{self, Parts, SEED};
use crate::quickstart::{check_free, file_error};
use crate::{Failure, out};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Data sets in parts that share no item, for comparing methods.
#[derive(clap::Subcommand)]
pub enum Make {
    /// Tasks that contradict each other: lists of words, and a rule that the instruction names.
    Rules(Rules),
    /// The seven tasks of the quickstart.
    Quickstart(Quickstart),
}

#[derive(clap::Args)]
#[command(after_help = "\
The same list of words occurs under several rules, and each rule has another answer. Every rule is named in four wordings; \
a fifth is not trained, and is asked for in wording.jsonl. Wordings of different rules share their words. T tasks are the \
first T of forty rules, so that smaller sets are parts of larger ones. docs/DATA.md lists the rules.

Example: mixlora data make rules --tasks 10 --words 6 --out rules
Example: mixlora data make rules --tasks 40 --samples 60 --out rules")]
pub struct Rules {
    /// A new folder for train.jsonl, tuning.jsonl, final.jsonl and wording.jsonl.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// The number of rules, 2 to 40.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(2..=rules::RULES.len() as u64))]
    tasks: u64,
    /// The number of words in a list, 3 to 8.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u64).range(rules::SHORTEST as u64..=8))]
    words: u64,
    /// Questions of each task in final.jsonl; a quarter as many are in tuning.jsonl.
    #[arg(long, value_name = "N", default_value_t = 160, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    questions: u64,
    #[command(flatten)]
    sizes: Sizes,
}

#[derive(clap::Args)]
#[command(after_help = "\
A word of 'category' or a country of 'continent' is in one part only, and so is a date, a number, a list, a story, a \
sentence. Lists of words and countries end: 'category' and 'continent' give what they have, about an eighth of it for \
tuning and a quarter for the final part.

Example: mixlora data make quickstart --out quickstart-parts")]
pub struct Quickstart {
    /// A new folder for train.jsonl, tuning.jsonl and final.jsonl.
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
    /// Questions of each task in final.jsonl; a quarter as many are in tuning.jsonl.
    #[arg(long, value_name = "N", default_value_t = 280, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    questions: u64,
    #[command(flatten)]
    sizes: Sizes,
}

#[derive(clap::Args)]
struct Sizes {
    /// Samples of each task to train on.
    #[arg(long, value_name = "N", default_value_t = 240, value_parser = clap::value_parser!(u64).range(1..=10_000))]
    samples: u64,
    #[arg(long, default_value_t = SEED)]
    seed: u64,
}

impl Sizes {
    fn of_a_task(&self, questions: u64) -> set::Sizes {
        set::Sizes {
            train: self.samples as usize,
            tuning: questions.div_ceil(4) as usize,
            last: questions as usize,
        }
    }
}

pub fn run(make: &Make) -> Result<(), Failure> {
    let (parts, out) = match make {
        Make::Rules(args) => {
            check_free(&args.out)?;
            let (tasks, words) = (args.tasks as usize, args.words as usize);
            let parts =
                contradict::make(tasks, words, &args.sizes.of_a_task(args.questions), args.sizes.seed);
            let few = || {
                Failure::Usage(format!(
                    "there are not so many lists of {words} words; take fewer --samples or --questions, or more --words"
                ))
            };
            (parts.ok_or_else(few)?, &args.out)
        }
        Make::Quickstart(args) => {
            check_free(&args.out)?;
            let few = |task| {
                Failure::Usage(format!(
                    "the task '{task}' has not so many items; take fewer --samples or --questions"
                ))
            };
            (set::thirds(&args.sizes.of_a_task(args.questions), args.sizes.seed).map_err(few)?, &args.out)
        }
    };
    write(&parts, out)?;
    Ok(out::text(&table(&parts))?)
}

fn write(parts: &Parts, dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).map_err(|error| file_error(dir, &error))?;
    for (name, items) in parts {
        let path = dir.join(name).with_extension("jsonl");
        let text = items.iter().map(|item| item.line_with_item() + "\n").collect::<String>();
        std::fs::write(&path, text).map_err(|error| file_error(&path, &error))?;
    }
    Ok(())
}

fn table(parts: &Parts) -> String {
    let row = |(name, items): &(&str, Vec<set::Item>)| {
        let tasks: BTreeSet<_> = items.iter().map(|item| item.task).collect();
        let different: BTreeSet<_> = items.iter().map(|item| &item.item).collect();
        vec![
            format!("{name}.jsonl"),
            tasks.len().to_string(),
            items.len().to_string(),
            different.len().to_string(),
        ]
    };
    let rows: Vec<Vec<String>> = parts.iter().map(row).collect();
    out::table(&["file", "tasks", "samples", "items"], &rows)
}
