//! `foreman list`: the parts of one station.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::foreman::board::{Card, supervisor, waiting_parts};
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, Problem};
use crate::foreman::wording::{brief, columns};
use crate::line::{Station, heartbeat, record, shelf, stamp};

/// List the parts of a station, numbered
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman list\n  foreman list rework --json")]
pub struct Args {
    /// intake, assembly, finished, rework or deferred
    #[arg(default_value = "intake", value_parser = station)]
    station: Station,
}

fn station(text: &str) -> Result<Station, String> {
    text.parse().map_err(|error: crate::line::LineError| error.to_string())
}

#[derive(Serialize)]
struct Listing {
    station: Station,
    parts: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    number: usize,
    part: String,
    retries: u32,
    base_model: Option<String>,
    architecture: Option<String>,
    arrived_at: String,
    /// Why it waits, what went wrong, or where the artifact lies.
    note: Option<String>,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let mut parts = shelf::list(&layout, self.station)?;
        let mut notes: BTreeMap<String, String> = BTreeMap::new();
        match self.station {
            Station::Intake => {
                let boss = supervisor(&layout, heartbeat::read(&layout).unwrap_or(None).as_ref());
                let building = shelf::list(&layout, Station::Assembly)?.first().map(|part| part.name.file_name());
                let queue = waiting_parts(&layout, &parts, &boss, building.as_deref())?;
                let order: Vec<String> = queue.iter().map(|waiting| waiting.part.clone()).collect();
                parts.sort_by_key(|part| order.iter().position(|name| *name == part.name.file_name()));
                notes.extend(queue.into_iter().map(|waiting| (waiting.part, waiting.reason.sentence())));
            }
            _ => {
                for part in &parts {
                    notes.extend(note(&layout, part)?.map(|note| (part.name.file_name(), note)));
                }
            }
        }
        let rows = parts.iter().enumerate().map(|(index, part)| {
            let card = Card::read(&part.path).ok();
            Row {
                number: index + 1,
                part: part.name.file_name(),
                retries: part.retries,
                base_model: card.as_ref().map(|card| card.base_model.clone()),
                architecture: card.map(|card| card.architecture),
                arrived_at: stamp::seconds(part.arrived),
                note: notes.remove(&part.name.file_name()),
            }
        });
        let listing = Listing { station: self.station, parts: rows.collect() };
        desk.answer(&listing, |listing, printer| {
            let rows: Vec<Vec<String>> = listing.parts.iter().map(words).collect();
            if rows.is_empty() {
                printer.note(format!("{} is empty", listing.station));
                return Ok(());
            }
            for line in columns("", &["#", "PART", "MODEL", "ARCHITECTURE", "NOTE"], &rows) {
                printer.line(line)?;
            }
            Ok(())
        })
    }
}

fn words(row: &Row) -> Vec<String> {
    vec![
        row.number.to_string(),
        row.part.clone(),
        row.base_model.clone().unwrap_or_else(|| "(unreadable)".into()),
        row.architecture.clone().unwrap_or_else(|| "-".into()),
        brief(row.note.as_deref().unwrap_or(""), 90),
    ]
}

fn note(layout: &crate::line::Layout, part: &crate::line::PartEntry) -> Result<Option<String>, Problem> {
    Ok(match part.station {
        Station::Rework => record::error(layout, part.station, &part.name)?.map(|error| error.error),
        Station::Finished => {
            record::result(layout, part.station, &part.name)?.map(|result| result.forged_dir.display().to_string())
        }
        _ => None,
    })
}
