//! `foreman seed`: puts the catalogue's recipes into intake, those that this machine can build.

use std::path::PathBuf;

use serde::Serialize;

use crate::family;
use crate::fault::{Fault, FaultClass};
use crate::foreman::catalog::{self, Entry};
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::foreman::printer::Tone;
use crate::foreman::wording::columns;
use crate::line::verbs::{self, OnTaken};
use crate::line::{Layout, LineError, PartName, Station};
use crate::node::Node;
use crate::recipe::{Finding, RecipeFile};
use crate::stage::examine;

/// Put the catalogue's recipes into intake
///
/// Each is checked as `foreman check` would. What this build would refuse stays out, as does what needs a model or a
/// text that is not on this machine; the table says which. The recipes are in the program; docs/CATALOG.md tells about
/// them. Ends with 4 when nothing was enqueued.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman seed --dry-run\n  foreman seed --from my-recipes")]
pub struct Args {
    /// Only models of this family (see `foreman families`) or architecture; may be given several times
    #[arg(long = "family", value_name = "FAMILY")]
    families: Vec<String>,

    /// Take the recipes (*.alloy.json) of a folder instead of the program's
    #[arg(long, value_name = "DIR")]
    from: Option<PathBuf>,

    /// Only show what would be enqueued
    #[arg(long)]
    dry_run: bool,
}

#[derive(Serialize)]
struct Seeded {
    dry_run: bool,
    enqueued: usize,
    recipes: Vec<Row>,
}

/// What became of a recipe.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Fate {
    /// In intake now; with `--dry-run`, it would be.
    Enqueued,
    /// A part of this name is on the line already.
    OnTheLine,
    /// A model, a text, memory or room on disk is missing here.
    Lacking,
    /// This build would refuse it on any machine.
    Refused,
}

impl Fate {
    fn word(self) -> (Tone, &'static str) {
        match self {
            Fate::Enqueued => (Tone::Good, "enqueued"),
            Fate::OnTheLine => (Tone::Aside, "on the line"),
            Fate::Lacking => (Tone::Warning, "lacking"),
            Fate::Refused => (Tone::Bad, "refused"),
        }
    }
}

#[derive(Serialize)]
struct Row {
    part: String,
    architecture: String,
    base_model: String,
    fate: Fate,
    /// Why it was not enqueued, shortest first; empty when it was.
    because: Vec<String>,
    /// Everything that keeps it out, as `check` says it.
    findings: Vec<Finding>,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let node = Node::read(layout.root())?;
        let entries = match &self.from {
            Some(folder) => catalog::of_folder(folder)?,
            None => catalog::built_in(),
        };
        let mut chosen = Vec::new();
        for entry in entries {
            // As it will lie in intake, so that relative paths mean now what they will mean then.
            let path = layout.station(Station::Intake).join(format!("{}.alloy.json", entry.name));
            let file = RecipeFile::parse(entry.bytes.clone(), &path).map_err(Fault::from)?;
            chosen.push((entry, file));
        }
        self.check_families(&chosen)?;
        chosen.retain(|(_, file)| self.wants(&file.recipe().source.architecture));
        let mut recipes = Vec::new();
        for (entry, file) in &chosen {
            recipes.push(seed(entry, file, &node, &layout, self.dry_run)?);
        }
        let enqueued = recipes.iter().filter(|row| row.fate == Fate::Enqueued).count();
        let document = Seeded { dry_run: self.dry_run, enqueued, recipes };
        let next = desk.command("run --drain");
        desk.answer(&document, |document, printer| {
            let cells = |row: &Row| {
                let why = row.because.join("; ");
                vec![row.part.clone(), row.architecture.clone(), row.fate.word().1.to_owned(), why]
            };
            let rows: Vec<Vec<String>> = document.recipes.iter().map(cells).collect();
            for line in columns("", &["PART", "ARCHITECTURE", "FATE", "BECAUSE"], &rows) {
                printer.line(line)?;
            }
            let (count, all) = (document.enqueued, document.recipes.len());
            match (document.dry_run, count) {
                (true, _) => {
                    printer.note(format!("{count} of {all} would be enqueued; nothing was changed (--dry-run)"))
                }
                (false, 0) => printer.note(format!("none of {all} was enqueued")),
                (false, _) => printer.note(format!("{count} of {all} enqueued; next: {next}")),
            }
            Ok(())
        })?;
        Ok(if enqueued == 0 { ExitKind::NothingMatched } else { ExitKind::Ok })
    }
}

impl Args {
    fn wants(&self, architecture: &str) -> bool {
        self.families.is_empty() || self.families.iter().any(|family| is_of(family, architecture))
    }

    /// Every `--family` chooses something.
    fn check_families(&self, entries: &[(Entry, RecipeFile)]) -> Result<(), Problem> {
        let mut known: Vec<&str> = entries.iter().map(|(_, file)| file.recipe().source.architecture.as_str()).collect();
        known.sort_unstable();
        known.dedup();
        let unknown = self.families.iter().find(|family| !known.iter().any(|name| is_of(family, name)));
        match unknown {
            None => Ok(()),
            Some(family) => {
                let problem = Problem::new(ExitKind::NothingMatched, format!("no recipe is for the family {family:?}"));
                Err(problem.hinted(crate::recipe::suggest(family, known)))
            }
        }
    }
}

/// Whether an architecture is this one, or of the family of this name.
fn is_of(family: &str, architecture: &str) -> bool {
    let of_family = family::by_name(family).is_some_and(|family| family.model_types().contains(&architecture));
    of_family || family == architecture
}

fn seed(entry: &Entry, file: &RecipeFile, node: &Node, layout: &Layout, dry_run: bool) -> Result<Row, Problem> {
    let source = &file.recipe().source;
    let row = |fate, because, findings| Row {
        part: entry.name.clone(),
        architecture: source.architecture.clone(),
        base_model: source.base_model.clone(),
        fate,
        because,
        findings,
    };
    let mut found = examine(file, node, layout);
    found.retain(|(_, finding)| finding.is_error());
    let own = found.iter().any(|(class, _)| *class == FaultClass::Recipe);
    // Where the recipe itself is at fault, what is missing here as well is beside the point.
    found.retain(|(class, _)| !own || *class == FaultClass::Recipe);
    if !found.is_empty() {
        let fate = if own { Fate::Refused } else { Fate::Lacking };
        let because = found.iter().map(|(_, finding)| shortened(finding)).collect();
        return Ok(row(fate, because, found.into_iter().map(|(_, finding)| finding).collect()));
    }
    let name = PartName::new(&entry.name).map_err(LineError::from)?;
    match verbs::enqueue(layout, &name, &entry.bytes, OnTaken::Refuse, dry_run) {
        Ok(_) => Ok(row(Fate::Enqueued, Vec::new(), Vec::new())),
        Err(LineError::Taken { station, .. }) => {
            Ok(row(Fate::OnTheLine, vec![format!("in {}", station.as_str())], Vec::new()))
        }
        Err(error) => Err(error.into()),
    }
}

/// The finding without the places that were looked at: `check` names them.
fn shortened(finding: &Finding) -> String {
    let message = finding.message.split("; looked at").next().unwrap_or(&finding.message);
    message.to_owned()
}
