//! `foreman retry`: back into intake.

use super::moved::Moved;
use crate::foreman::board::one_part;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::line::{Station, shelf, verbs};

/// Put parts back into intake
///
/// From rework (with a fresh retry counter) or from deferred.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman retry my-part\n  foreman retry --all --dry-run")]
pub struct Args {
    /// Names of parts
    #[arg(required_unless_present = "all")]
    names: Vec<String>,

    /// Every part in rework
    #[arg(long, conflicts_with = "names")]
    all: bool,

    /// Only show what would be moved
    #[arg(long)]
    dry_run: bool,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let names: Vec<String> = match self.all {
            true => shelf::list(&layout, Station::Rework)?.iter().map(|part| part.name.file_name()).collect(),
            false => self.names.clone(),
        };
        if names.is_empty() {
            return Err(Problem::new(ExitKind::NothingMatched, "rework is empty: nothing to retry"));
        }
        let mut moves = Vec::new();
        for name in &names {
            let part = one_part(&layout, name)?;
            moves.extend(match part.station {
                Station::Deferred => verbs::undefer(&layout, &part.name.file_name(), self.dry_run)?,
                _ => verbs::retry(&layout, &part.name.file_name(), self.dry_run)?,
            });
        }
        Moved { dry_run: self.dry_run, moves, next: desk.command("status") }.tell(desk)
    }
}
