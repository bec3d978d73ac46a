//! How a changing verb tells what it changed: `from -> to`, one line per file, and the next command.

use serde::Serialize;

use crate::foreman::desk::Desk;
use crate::foreman::exit::Answer;
use crate::line::moves::Move;

/// The document of every verb that moves parts.
#[derive(Debug, Serialize)]
pub struct Moved {
    /// True when nothing was changed, only shown.
    pub dry_run: bool,
    pub moves: Vec<Move>,
    /// A command that shows what became of it.
    pub next: String,
}

impl Moved {
    /// Prints the moves on stdout and the next command on stderr.
    pub fn tell(self, desk: &mut Desk) -> Answer {
        desk.answer(&self, |moved, printer| {
            for change in &moved.moves {
                let why = change.reason.as_deref().map(|reason| format!("  ({reason})")).unwrap_or_default();
                printer.line(format!("{} -> {}{why}", change.from.display(), change.to.display()))?;
            }
            match moved.dry_run {
                true => printer.note("nothing was changed (--dry-run)"),
                false => printer.note(format!("next: {}", moved.next)),
            }
            Ok(())
        })
    }
}
