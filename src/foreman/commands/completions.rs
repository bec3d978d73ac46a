//! `foreman completions`: shell completions.

use clap_complete::Shell;

use crate::foreman::cli;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind};

/// Write a shell's completion script to stdout
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman completions bash > ~/.local/share/bash-completion/completions/foreman")]
pub struct Args {
    /// bash, zsh, fish, elvish or powershell
    shell: Shell,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        desk.refuse_json("completions")?;
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut cli::command(), "foreman", &mut script);
        desk.printer.raw(&script)?;
        Ok(ExitKind::Ok)
    }
}
