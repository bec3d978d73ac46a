//! `foreman run`: the daemon in the foreground.

use serde::Serialize;

use crate::daemon::{self, DaemonOptions, Mode, Summary};
use crate::fault::Fault;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::foreman::progress::LineProgress;
use crate::line::{Layout, LineLock, lock};
use crate::node::Node;

/// Work the line in the foreground, with live progress
///
/// The same as factoryd. Ctrl-C stops gracefully: the part goes back to intake; a second one kills its worker at once.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman run --drain\n  foreman run --root /srv/line --once")]
pub struct Args {
    /// Build one part, its retries included, then end
    #[arg(long)]
    once: bool,

    /// End when nothing waits any more
    #[arg(long, conflicts_with = "once")]
    drain: bool,

    /// End after this many parts
    #[arg(long, value_name = "N", conflicts_with_all = ["once", "drain"])]
    parts: Option<u32>,
}

#[derive(Serialize)]
struct Worked {
    root: String,
    #[serde(flatten)]
    summary: Summary,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let mode = match (self.once, self.drain, self.parts) {
            (true, ..) => Mode::Once,
            (_, true, _) => Mode::Drain,
            (_, _, Some(parts)) => Mode::MaxParts(parts),
            _ => Mode::Forever,
        };
        let summary = work(desk, &layout, mode)?;
        let failed = summary.rework > 0 && mode != Mode::Forever;
        let (status, rework) = (desk.command("status"), desk.command("list rework"));
        let document = Worked { root: layout.root().display().to_string(), summary };
        desk.answer(&document, |worked, printer| {
            let Summary { finished, rework: back, retried, .. } = &worked.summary;
            printer.line(format!("{finished} finished, {back} to rework, {retried} retried"))?;
            printer.note(format!("next: {}", if *back > 0 { rework } else { status }));
            Ok(())
        })?;
        Ok(if failed { ExitKind::PartFailed } else { ExitKind::Ok })
    }
}

/// Runs the supervisor here, showing what it does.
pub fn work(desk: &mut Desk, layout: &Layout, mode: Mode) -> Result<Summary, Problem> {
    let node = Node::read(layout.root())?;
    if !node.forges() {
        return Err(Problem::refused("this node ships parts and builds none (node.roles)")
            .hinted("add \"forge\" to node.roles in factory_node.toml"));
    }
    for note in &node.notes {
        desk.printer.warn(note);
    }
    if LineLock::is_held(layout) {
        let who = lock::holder(layout);
        let who = who.map(|who| format!(" (process {} on {} since {})", who.process.pid, who.host, who.since));
        return Err(Problem::new(
            ExitKind::LockHeld,
            format!("another daemon works this line{}", who.unwrap_or_default()),
        )
        .hinted(desk.command("status")));
    }
    let options = DaemonOptions::new(layout.root(), mode, &node)?;
    let progress = LineProgress::new(&desk.printer);
    let outcome = daemon::run(&options, &progress);
    progress.finish();
    outcome.map_err(|fault| lost_race(fault, layout))
}

/// Somebody else may have taken the line between our look and our try.
fn lost_race(fault: Fault, layout: &Layout) -> Problem {
    let problem = Problem::from(fault);
    if LineLock::is_held(layout) { problem.as_kind(ExitKind::LockHeld) } else { problem }
}
