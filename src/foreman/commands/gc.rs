//! `foreman gc`: makes room on the hot disk and loses nothing.

use chrono::Utc;

use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::foreman::printer::{Printer, Tone};
use crate::foreman::wording::columns;
use crate::node::Node;
use crate::storage::NoSteps;
use crate::storage::gc::{self, GcOptions, GcReport};
use crate::units::Bytes;

/// Make room: move work folders nobody needs to cold tiers
///
/// A folder is copied, read again, compared and receipted before it is removed here. Without a cold tier that takes it
/// only weights that a finished part's stages made on the way are deleted. Below the threshold nothing is moved. Ends
/// with 1 when a move failed (its source is kept).
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman gc --dry-run --force --explain\n  foreman gc")]
pub struct Args {
    /// Only show what would go where
    #[arg(long)]
    dry_run: bool,

    /// Per cent of the disk in use from which room is made [default: storage.gc_threshold_pct, 85]
    #[arg(long, value_name = "PCT", value_parser = percent)]
    threshold: Option<f64>,

    /// Move everything nobody needs, whatever is free
    #[arg(long)]
    force: bool,

    /// Also say why each thing is kept
    #[arg(long)]
    explain: bool,
}

fn percent(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=100.0).contains(&value) => Ok(value),
        _ => Err("between 0 and 100".into()),
    }
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let node = Node::read(layout.root())?;
        let options = GcOptions {
            dry_run: self.dry_run,
            force: self.force,
            threshold_pct: self.threshold.unwrap_or(node.storage.gc_threshold_pct),
            wanted_free: Bytes(0),
            now: Utc::now(),
            steps: &NoSteps,
        };
        let report = gc::run(&layout, &node, &options)?;
        let next = desk.command("gc --force");
        desk.answer(&report, |report, printer| self.tell(report, printer, &next))?;
        Ok(if report.failed() { ExitKind::Unexpected } else { ExitKind::Ok })
    }
}

impl Args {
    fn tell(&self, report: &GcReport, printer: &mut Printer, next: &str) -> Result<(), Problem> {
        for evicted in &report.evicted {
            let bytes = evicted.bytes;
            let target = evicted.action.strip_prefix("moved_to_cold:").unwrap_or("deleted");
            let line = format!("{} -> {target}  {bytes}  ({})", evicted.path.display(), evicted.because);
            printer.line(line)?;
            if let Some(problem) = &evicted.problem {
                let word = printer.paint(Tone::Bad, "kept after all:");
                printer.line(format!("  {word} {problem}"))?;
            }
        }
        if self.explain {
            let rows: Vec<Vec<String>> = report
                .kept
                .iter()
                .map(|kept| vec![kept.path.display().to_string(), kept.bytes.to_string(), kept.because.join("; ")])
                .collect();
            for line in columns("", &["KEPT", "BYTES", "WHY"], &rows) {
                printer.line(line)?;
            }
        }
        for unknown in &report.unknown {
            printer.warn(format!(
                "{} cannot be read: what it could own is kept ({})",
                unknown.file.display(),
                unknown.problem
            ));
        }
        for note in &report.notes {
            printer.note(note);
        }
        let (free, used) = (report.after.free_bytes, report.after.used_pct);
        match (&report.skipped, report.dry_run) {
            (Some(skipped), _) => {
                printer.note(format!("no work folder was moved: {skipped}"));
                printer.hint(format!("{next} moves everything nobody needs"));
            }
            (None, true) => printer.note("nothing was changed (--dry-run)"),
            (None, false) => printer.note(format!("{} freed; {free} free, {used:.0} % in use", report.freed_bytes)),
        }
        Ok(())
    }
}
