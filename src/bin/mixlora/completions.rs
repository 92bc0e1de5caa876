//! `mixlora completions`

use crate::{Failure, out};

#[derive(clap::Args)]
#[command(after_help = "\
Example: mixlora completions bash > ~/.local/share/bash-completion/completions/mixlora
Example: mixlora completions zsh > ~/.zfunc/_mixlora
Example: mixlora completions fish > ~/.config/fish/completions/mixlora.fish")]
pub struct Args {
    /// The shell to complete in.
    shell: clap_complete::Shell,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut crate::command(), "mixlora", &mut script);
    Ok(out::stream(&String::from_utf8_lossy(&script))?)
}
