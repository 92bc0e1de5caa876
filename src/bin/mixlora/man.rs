//! `mixlora man`

use crate::{Failure, out};
use clap_mangen::Man;
use std::path::{Path, PathBuf};

#[derive(clap::Args)]
#[command(after_help = "Example: mixlora man --out ~/.local/share/man/man1")]
pub struct Args {
    /// The folder to write the pages to, which is made where it is not there.
    #[arg(long, short, value_name = "DIR")]
    out: PathBuf,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let fail = |what: String| mixlora::Error::File { path: args.out.clone(), what };
    std::fs::create_dir_all(&args.out).map_err(|error| fail(format!("cannot be created: {error}")))?;
    let mut command = crate::command().disable_help_subcommand(true);
    // It gives subcommands their whole names.
    command.build();
    let pages = write(command, &args.out)?;
    Ok(out::text(&format!("{pages} pages in {}", args.out.display()))?)
}

/// Writes the page of a command and those of its subcommands; how many these are.
fn write(command: clap::Command, to: &Path) -> Result<usize, Failure> {
    let mut pages = 1;
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
        pages += write(inner.clone(), to)?;
    }
    // A page fills its lines, so that examples need an empty one between them.
    let after = command.get_after_help().map(|text| text.to_string().replace("\nExample:", "\n\nExample:"));
    let man = Man::new(command.after_help(after.unwrap_or_default()));
    let man = man.source(concat!("mixlora ", env!("CARGO_PKG_VERSION"))).manual("mixlora");
    let mut page = Vec::new();
    man.render(&mut page)?;
    mixlora::atomic::write(&to.join(man.get_filename()), &page)?;
    Ok(pages)
}
