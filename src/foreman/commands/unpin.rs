//! `foreman unpin`: takes a pin away.

use super::pin::Pinned;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, Problem};
use crate::foreman::subject;
use crate::storage::pins;

/// Take a pin away
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman unpin my-part")]
pub struct Args {
    /// What was pinned
    #[arg(value_name = "PART|PATH|MODEL")]
    subject: String,

    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        // As it was said, or as `pin` wrote it down: a path that is gone can still be unpinned.
        let written = subject::pinned(&layout, &self.subject).unwrap_or_else(|_| self.subject.clone());
        let pinned = pins::read(&layout)?.into_iter().find_map(|(file, pin)| {
            let pin = pin.ok()?;
            (pin.subject == self.subject || pin.subject == written).then_some((file, pin))
        });
        let Some((file, pin)) = pinned else {
            return Err(Problem::not_found(format!("{:?} is not pinned", self.subject))
                .hinted(desk.command("storage") + " lists the pins"));
        };
        if !self.dry_run {
            pins::unpin(&layout, &pin.subject)?;
        }
        let document = Pinned { dry_run: self.dry_run, subject: pin.subject, file, reason: pin.reason };
        desk.answer(&document, |pinned, printer| {
            printer.line(format!("{} -> (no longer pinned)", pinned.subject))?;
            if pinned.dry_run {
                printer.note("nothing was changed (--dry-run)");
            }
            Ok(())
        })
    }
}
