//! What stands in the stations: sidecars without a part, files that are never taken for parts.

use super::{Check, Finding, Patient, counted, some_of};
use crate::line::{Station, shelf};

pub struct PartsCheck;

impl Check for PartsCheck {
    fn name(&self) -> &'static str {
        "parts"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut parts = 0;
        for station in Station::ALL {
            let shelf = match shelf::read(&patient.layout, station) {
                Ok(shelf) => shelf,
                Err(error) => {
                    found.push(Finding::error(crate::fault::Fault::from(error).one_line()).fix("foreman init"));
                    continue;
                }
            };
            parts += shelf.parts.len();
            if !shelf.loose.is_empty() {
                let n = counted(shelf.loose.len(), "file");
                let what = format!("{station}: {n} without a part: {}", some_of(&shelf.loose));
                found.push(match station {
                    // What a person left there when they took the part.
                    Station::Finished | Station::Rework => Finding::note(what).fix("remove what nobody needs"),
                    _ => Finding::warning(what)
                        .why("a part was moved by hand, or a move was cut short")
                        .fix("foreman recover"),
                });
            }
            if !shelf.ignored.is_empty() {
                let names: Vec<String> = shelf.ignored.iter().map(ToString::to_string).collect();
                let what = format!("{station}: {} left alone: {}", counted(names.len(), "file"), some_of(&names));
                found.push(Finding::note(what).fix("rename it to <name>.alloy.json if it is a recipe"));
            }
        }
        if found.is_empty() {
            found.push(Finding::ok(format!("{} on the line, every file belongs to one", counted(parts, "part"))));
        }
        found
    }
}
