//! `foreman pause`: nothing more is started.

use super::moved::Moved;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::Answer;
use crate::line::pause;

/// Start nothing more until `foreman resume`
///
/// Parts that are being built go on. The pause outlives the daemon and holds for the next one too.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman pause --reason \"disk swap at noon\"\n  foreman resume")]
pub struct Args {
    /// Why; shown by `foreman status`
    #[arg(long, default_value = "")]
    reason: String,

    /// Only show what would be written
    #[arg(long)]
    dry_run: bool,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let moved = pause::pause(&layout, self.reason.trim(), self.dry_run)?;
        Moved { dry_run: self.dry_run, moves: vec![moved], next: desk.command("resume") }.tell(desk)
    }
}
