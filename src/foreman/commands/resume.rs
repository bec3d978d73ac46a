//! `foreman resume`: ends a pause.

use super::moved::Moved;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::line::pause;

/// End a pause: parts are started again
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman resume")]
pub struct Args {
    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let Some(moved) = pause::resume(&layout, self.dry_run)? else {
            return Err(Problem::new(ExitKind::NothingMatched, "the line is not paused"));
        };
        Moved { dry_run: self.dry_run, moves: vec![moved], next: desk.command("status") }.tell(desk)
    }
}
