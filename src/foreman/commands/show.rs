//! `foreman show`: everything about one part.

use crate::foreman::board::{Dossier, one_part};
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, Problem};
use crate::foreman::printer::Printer;
use crate::foreman::wording::duration;
use crate::node::Node;
use crate::units::Bytes;

/// Show everything the disk knows about one part
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman show my-part\n  foreman show my-part --json | jq .result")]
pub struct Args {
    /// Name of the part, with or without .alloy.json
    name: String,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let node = Node::read(layout.root())?;
        let dossier = Dossier::read(&layout, &node, &one_part(&layout, &self.name)?)?;
        desk.answer(&dossier, |dossier, printer| {
            head(dossier, printer)?;
            recipe(dossier, printer)?;
            outcome(dossier, printer)?;
            files(dossier, printer)
        })
    }
}

fn fact(printer: &mut Printer, name: &str, value: impl std::fmt::Display) -> Result<(), Problem> {
    printer.line(format!("{name:<12}{value}"))
}

fn head(dossier: &Dossier, printer: &mut Printer) -> Result<(), Problem> {
    fact(printer, "part", &dossier.part)?;
    fact(printer, "station", format!("{}, since {}", dossier.station, dossier.arrived_at))?;
    fact(printer, "file", dossier.path.display())?;
    if let Some(attempts) = dossier.attempts {
        fact(printer, "attempts", format!("{attempts} (retry counter {})", dossier.retries))?;
    }
    Ok(())
}

fn recipe(dossier: &Dossier, printer: &mut Printer) -> Result<(), Problem> {
    if let Some(problem) = &dossier.recipe_problem {
        return fact(printer, "recipe", format!("unreadable: {problem}"));
    }
    let Some(card) = &dossier.recipe else { return Ok(()) };
    fact(printer, "recipe", &card.name)?;
    fact(printer, "model", format!("{} ({})", card.base_model, card.architecture))?;
    fact(printer, "stages", card.stages.join(" → "))?;
    if card.priority != 0 {
        fact(printer, "priority", card.priority)?;
    }
    Ok(())
}

fn outcome(dossier: &Dossier, printer: &mut Printer) -> Result<(), Problem> {
    if let Some(waiting) = &dossier.waiting {
        fact(printer, "waits", waiting.reason.sentence())?;
    }
    if let Some(running) = &dossier.running {
        let stage = running.stage.as_deref().unwrap_or("(starting)");
        let percent = running.percent.map(|percent| format!(", {percent:.0} %")).unwrap_or_default();
        let eta = running.eta_s.map(|eta| format!(", {} to go", duration(eta))).unwrap_or_default();
        fact(printer, "stage", format!("{stage}{percent}{eta}"))?;
    }
    if let Some(error) = &dossier.error {
        fact(printer, "failed", format!("{} ({})", error.failed_at, error.class))?;
        fact(printer, "error", &error.error)?;
        if let Some(hint) = &error.hint {
            fact(printer, "next", hint)?;
        }
    }
    let Some(result) = &dossier.result else { return Ok(()) };
    fact(printer, "finished", format!("{}, took {}", result.completed_at, duration(result.elapsed_s)))?;
    fact(printer, "artifact", result.forged_dir.display())?;
    fact(printer, "model hash", &result.model_hash)?;
    for file in &result.file_hashes {
        fact(printer, "", format!("{}  {}", file.filename, Bytes(file.size)))?;
    }
    Ok(())
}

fn files(dossier: &Dossier, printer: &mut Printer) -> Result<(), Problem> {
    if let Some(work) = &dossier.work {
        fact(printer, "work", work.display())?;
    }
    for sidecar in &dossier.sidecars {
        fact(printer, "sidecar", sidecar.display())?;
    }
    for log in &dossier.logs {
        fact(printer, "log", log.path.display())?;
    }
    Ok(())
}
