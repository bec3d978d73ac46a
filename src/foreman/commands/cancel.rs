//! `foreman cancel`: takes parts off the line.

use super::moved::Moved;
use crate::foreman::board::one_part;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, Problem};
use crate::line::moves::Move;
use crate::line::verbs::{self, Cancelled};

/// Take parts off the line, with a reason that stays with them
///
/// A waiting part goes to rework at once; one that is being built is stopped by its supervisor and goes there then.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman cancel my-part --reason \"wrong base model\"")]
pub struct Args {
    /// Names of parts
    #[arg(required = true)]
    names: Vec<String>,

    /// Why; shown by `foreman explain`
    #[arg(long)]
    reason: String,

    /// Only show what would be moved
    #[arg(long)]
    dry_run: bool,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        if self.reason.trim().is_empty() {
            return Err(Problem::usage("--reason is empty").hinted("say why: the next person will want to know"));
        }
        let mut moves = Vec::new();
        for name in &self.names {
            let part = one_part(&layout, name)?;
            match verbs::cancel(&layout, &part.name.file_name(), &self.reason, self.dry_run)? {
                Cancelled::Moved(moved) => moves.extend(moved),
                Cancelled::Requested(request) => {
                    let reason = Some("asked its supervisor to stop it".to_owned());
                    moves.push(Move { reason, ..request });
                }
            }
        }
        Moved { dry_run: self.dry_run, moves, next: desk.command("list rework") }.tell(desk)
    }
}
