//! `foreman stages`: the stage types this build executes.

use serde::Serialize;

use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::Answer;
use crate::foreman::wording::columns;
use crate::stage::{STAGES, Stage};

/// List the recipe stages this build executes
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman stages --json")]
pub struct Args {}

#[derive(Serialize)]
struct Stages {
    stages: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    /// The value of a stage's `type` key.
    #[serde(rename = "type")]
    name: &'static str,
    summary: &'static str,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let row = |stage: &&'static dyn Stage| Row { name: stage.type_name(), summary: stage.summary() };
        desk.answer(&Stages { stages: STAGES.iter().map(row).collect() }, |document, printer| {
            let rows: Vec<_> = document.stages.iter().map(|row| vec![row.name.into(), row.summary.into()]).collect();
            for line in columns("", &["STAGE", "WHAT IT DOES"], &rows) {
                printer.line(line)?;
            }
            Ok(())
        })
    }
}
