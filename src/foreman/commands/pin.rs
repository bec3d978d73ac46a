//! `foreman pin`: keeps something where it is.

use std::path::PathBuf;

use chrono::Utc;
use serde::Serialize;

use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, Problem};
use crate::foreman::subject;
use crate::storage::{Pin, pins};

/// Keep a part's work, a path or a model where it is, whatever `gc` would do
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  foreman pin my-part --reason \"compare with the next run\"\n  foreman pin org/model"
)]
pub struct Args {
    /// A part, a path, or a model as recipes name it
    #[arg(value_name = "PART|PATH|MODEL")]
    subject: String,

    /// Why; shown by `foreman storage`
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Only show what would be written
    #[arg(long)]
    dry_run: bool,
}

/// What a pin command did.
#[derive(Serialize)]
pub struct Pinned {
    pub dry_run: bool,
    pub subject: String,
    pub file: PathBuf,
    pub reason: Option<String>,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        if self.subject.trim().is_empty() {
            return Err(Problem::usage("the subject is empty").hinted("name a part, a path or a model"));
        }
        let subject = subject::pinned(&layout, &self.subject)?;
        let pin = Pin::new(&subject, self.reason.clone(), Utc::now());
        let file = match self.dry_run {
            true => pins::file_of(&layout, &subject),
            false => pins::pin(&layout, &pin)?,
        };
        let next = desk.command("storage");
        let document = Pinned { dry_run: self.dry_run, subject, file, reason: pin.reason };
        desk.answer(&document, |pinned, printer| {
            printer.line(format!("{} -> {}", pinned.subject, pinned.file.display()))?;
            match pinned.dry_run {
                true => printer.note("nothing was changed (--dry-run)"),
                false => printer.note(format!("next: {next}")),
            }
            Ok(())
        })
    }
}
