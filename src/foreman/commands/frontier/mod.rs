//! `foreman frontier`: contracts of frontier contests, and artifacts against them.

mod check;
mod list;
mod pack;
mod patch;

use std::path::PathBuf;

use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::frontier::{Contracts, FrontierError};

/// Check artifacts against the contracts of ternary and binary frontiers
///
/// Everything happens here: nothing is sent, and no code inside an artifact is run. docs/FRONTIER.md says what is checked
/// and how certain it is that the live contracts do the same.
#[derive(clap::Args)]
#[command(
    after_help = "Example:\n  foreman frontier list\n  foreman frontier pack models/tiny tiny.tar.xz\n  foreman frontier check tiny.tar.xz --contract ID --documents held-out.txt"
)]
pub struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand)]
enum Task {
    List(list::Args),
    Check(Box<check::Args>),
    Pack(pack::Args),
    Patch(patch::Args),
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        match &self.task {
            Task::List(args) => args.run(desk),
            Task::Check(args) => args.run(desk),
            Task::Pack(args) => args.run(desk),
            Task::Patch(args) => args.run(desk),
        }
    }
}

/// The contracts built in, or those of a file.
fn contracts(path: &Option<PathBuf>) -> Result<Contracts, Problem> {
    let read = path.as_ref().map_or_else(Contracts::builtin, |path| Contracts::read(path));
    read.map_err(|error| problem(error).as_kind(ExitKind::Usage))
}

/// A missing file is "not found", a name that nobody knows is "usage".
fn problem(error: FrontierError) -> Problem {
    let kind = match &error {
        FrontierError::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => Some(ExitKind::NotFound),
        FrontierError::UnknownContract { .. } | FrontierError::UnknownScorer { .. } | FrontierError::Request { .. } => {
            Some(ExitKind::Usage)
        }
        _ => None,
    };
    let problem = Problem::from(crate::fault::Fault::from(error));
    match kind {
        Some(kind) => problem.as_kind(kind),
        None => problem,
    }
}
