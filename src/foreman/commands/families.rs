//! `foreman families`: the model families this build knows.

use serde::Serialize;

use crate::family::FAMILIES;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::Answer;
use crate::foreman::wording::columns;

/// List the model families this build can run and compress
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman families --json")]
pub struct Args {}

#[derive(Serialize)]
struct Families {
    families: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    name: &'static str,
    /// Values of `model_type` in config.json.
    model_types: &'static [&'static str],
    /// `general.architecture` in GGUF files; `null` where this build writes and reads none.
    gguf_architecture: Option<&'static str>,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let row = |family: &&'static dyn crate::family::Family| Row {
            name: family.name(),
            model_types: family.model_types(),
            gguf_architecture: family.gguf().map(|rules| rules.arch),
        };
        desk.answer(&Families { families: FAMILIES.iter().map(row).collect() }, |document, printer| {
            let cells = |row: &Row| {
                vec![row.name.into(), row.model_types.join(", "), row.gguf_architecture.unwrap_or("-").into()]
            };
            let rows: Vec<Vec<String>> = document.families.iter().map(cells).collect();
            for line in columns("", &["FAMILY", "MODEL TYPES", "GGUF"], &rows) {
                printer.line(line)?;
            }
            Ok(())
        })
    }
}
