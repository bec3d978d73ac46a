//! `foreman defer`: parks waiting parts.

use super::moved::Moved;
use crate::foreman::board::one_part;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::Answer;
use crate::line::verbs;

/// Park waiting parts until `foreman retry`
///
/// They stay on the line but are not picked up.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman defer my-part\n  foreman retry my-part   # back into intake")]
pub struct Args {
    /// Names of parts in intake
    #[arg(required = true)]
    names: Vec<String>,

    /// Only show what would be moved
    #[arg(long)]
    dry_run: bool,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let mut moves = Vec::new();
        for name in &self.names {
            let part = one_part(&layout, name)?;
            moves.extend(verbs::defer(&layout, &part.name.file_name(), self.dry_run)?);
        }
        Moved { dry_run: self.dry_run, moves, next: desk.command("list deferred") }.tell(desk)
    }
}
