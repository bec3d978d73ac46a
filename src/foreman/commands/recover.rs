//! `foreman recover`: brings the line back to order.

use std::path::PathBuf;

use serde::Serialize;

use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::Answer;
use crate::foreman::wording::columns;
use crate::line::moves::Mover;
use crate::line::recovery;
use crate::line::recovery::table::Action;
use crate::node::Node;

/// Bring the line back to order after a crash
///
/// What no row of the table allows is mended or put aside. A daemon does this at its start. It is safe at any time: a part whose worker still lives is left alone.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman recover --dry-run\n  foreman recover")]
pub struct Args {
    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Recovery {
    dry_run: bool,
    parts: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    part: String,
    /// Row of the table in docs/FACTORY-PROTOCOL.md.
    row: &'static str,
    action: String,
    moves: Vec<(PathBuf, PathBuf)>,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let node = Node::read(layout.root())?;
        let done = recovery::run(Mover::real(&layout), node.forge.max_retries, self.dry_run)?;
        let parts: Vec<Row> = done
            .into_iter()
            .map(|done| Row {
                part: done.base,
                row: done.row,
                action: in_words(&done.action),
                moves: done.moves.into_iter().map(|change| (change.from, change.to)).collect(),
            })
            .collect();
        let next = desk.command("status");
        desk.answer(&Recovery { dry_run: self.dry_run, parts }, |recovery, printer| {
            if recovery.parts.is_empty() {
                printer.note("the line is in order: nothing to recover");
                return Ok(());
            }
            let cells = |row: &Row| vec![row.part.clone(), row.row.to_owned(), row.action.clone()];
            let rows: Vec<_> = recovery.parts.iter().map(cells).collect();
            for line in columns("", &["PART", "ROW", "WHAT"], &rows) {
                printer.line(line)?;
            }
            for (from, to) in recovery.parts.iter().flat_map(|row| &row.moves) {
                printer.line(format!("{} -> {}", from.display(), to.display()))?;
            }
            match recovery.dry_run {
                true => printer.note("nothing was changed (--dry-run)"),
                false => printer.note(format!("next: {next}")),
            }
            Ok(())
        })
    }
}

fn in_words(action: &Action) -> String {
    match action {
        Action::Keep => "in order".into(),
        Action::Leave => "left alone: its worker lives".into(),
        Action::Gather(station) => format!("bring its stranded sidecars to {station}"),
        Action::Drop(station) => format!("remove its second name in {station}"),
        Action::Ship => "finish its move to finished".into(),
        Action::Complete => "finish its move to rework".into(),
        Action::Fail => "to rework, with the fault its worker wrote".into(),
        Action::Cancel => "to rework, cancelled".into(),
        Action::Exhaust => "to rework: too many retries".into(),
        Action::Return => "back to intake, retry counter raised".into(),
        Action::Promote => "finish its move from rework to intake".into(),
        Action::Quarantine(station) => format!("from {station} to quarantine: no row of the table fits"),
    }
}
