//! `foreman man`: manual pages.

use std::path::PathBuf;

use crate::foreman::cli;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};

/// Write the manual page to stdout, or all pages into a folder
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman man | man -l -\n  foreman man --out ~/.local/share/man/man1")]
pub struct Args {
    /// Write one page per command into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        desk.refuse_json("man")?;
        match &self.out {
            Some(dir) => {
                let fail = |error: std::io::Error| Problem::io(format!("write man pages to {}", dir.display()), &error);
                std::fs::create_dir_all(dir).map_err(fail)?;
                clap_mangen::generate_to(cli::command(), dir).map_err(fail)?;
                desk.printer.note(format!("manual pages written to {}", dir.display()));
            }
            None => {
                let mut page = Vec::new();
                let rendered = clap_mangen::Man::new(cli::command()).render(&mut page);
                rendered.map_err(|error| Problem::io("render the manual page", &error))?;
                desk.printer.raw(&page)?;
            }
        }
        Ok(ExitKind::Ok)
    }
}
