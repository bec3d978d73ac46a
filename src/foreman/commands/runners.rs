//! `foreman runners`: what this build can measure.

use serde::Serialize;

use crate::assay::{RUNNERS, Runner};
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::Answer;
use crate::foreman::wording::columns;

/// List the runners that can measure a model
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman runners --json")]
pub struct Args {}

#[derive(Serialize)]
struct Runners {
    runners: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    summary: &'static str,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let row = |runner: &&'static dyn Runner| Row { name: runner.name(), summary: runner.summary() };
        desk.answer(&Runners { runners: RUNNERS.iter().map(row).collect() }, |document, printer| {
            let rows: Vec<_> = document.runners.iter().map(|row| vec![row.name.into(), row.summary.into()]).collect();
            for line in columns("", &["RUNNER", "WHAT IT TELLS"], &rows) {
                printer.line(line)?;
            }
            Ok(())
        })
    }
}
