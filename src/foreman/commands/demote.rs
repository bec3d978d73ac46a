//! `foreman demote`: moves the artifact of a finished part to a cold tier.

use chrono::Utc;

use crate::foreman::board::one_part;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::Answer;
use crate::node::Node;
use crate::storage::NoSteps;
use crate::storage::demote::{DemoteOptions, demote};

/// Move the artifact of a finished part to a cold tier
///
/// It is copied, read again, compared with its result and receipted; then its result names the copy (the old place is
/// kept as `demoted_from`), and only then the original is removed. `foreman verify` holds before and after.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  foreman demote my-part\n  foreman verify my-part   # as before, from the cold tier"
)]
pub struct Args {
    /// A finished part
    part: String,

    /// Only show what would be moved
    #[arg(long)]
    dry_run: bool,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let node = Node::read(layout.root())?;
        let part = one_part(&layout, &self.part)?;
        let options = DemoteOptions { dry_run: self.dry_run, now: Utc::now(), steps: &NoSteps };
        let demoted = demote(&layout, &node, &part, &options)?;
        let next = desk.command("verify") + " " + part.name.base();
        desk.answer(&demoted, |demoted, printer| {
            printer.line(format!("{} -> {}  {}", demoted.from.display(), demoted.to.display(), demoted.bytes))?;
            demoted.notes.iter().for_each(|note| printer.note(note));
            match demoted.dry_run {
                true => printer.note("nothing was changed (--dry-run)"),
                false => printer.note(format!("next: {next}")),
            }
            Ok(())
        })
    }
}
