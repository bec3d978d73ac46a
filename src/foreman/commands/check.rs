//! `foreman check`: everything admission would say about a recipe.

use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::fault::Fault;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::foreman::printer::Tone;
use crate::line::Layout;
use crate::node::Node;
use crate::recipe::{Finding, RecipeError, RecipeFile, Severity};
use crate::stage::check_recipe;

/// Check recipes as admission would, one line per finding
///
/// Reads the recipe, looks for every input, opens the model's headers, and does the arithmetic (does a quant fit
/// maxVramGb, are enough experts kept, is there room on disk). Ends with 9 when a recipe would be refused.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman check my.alloy.json\n  foreman check recipes/*.json --json")]
pub struct Args {
    /// Recipe files
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
}

#[derive(Serialize)]
struct Checked {
    ok: bool,
    recipes: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    file: PathBuf,
    ok: bool,
    findings: Vec<Located>,
}

#[derive(Serialize)]
struct Located {
    line: Option<usize>,
    column: Option<usize>,
    #[serde(flatten)]
    finding: Finding,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.layout();
        let node = Node::read(layout.root())?;
        if let Some(missing) = self.files.iter().find(|file| !file.exists()) {
            return Err(Problem::not_found(format!("{} is not there", missing.display())));
        }
        let recipes: Vec<Row> = self.files.iter().map(|file| check(file, &node, &layout)).collect();
        let document = Checked { ok: recipes.iter().all(|row| row.ok), recipes };
        desk.answer(&document, |document, printer| {
            for row in &document.recipes {
                for located in &row.findings {
                    let tone = match located.finding.severity {
                        Severity::Error => Tone::Bad,
                        Severity::Warning => Tone::Warning,
                        Severity::Note => Tone::Aside,
                    };
                    let word = printer.paint(tone, located.finding.severity.as_str());
                    printer.line(format!("{}: {word} {}", place(&row.file, located), words(&located.finding)))?;
                }
                if row.findings.is_empty() {
                    printer.line(format!("{}: {}", row.file.display(), printer.paint(Tone::Good, "ok")))?;
                }
            }
            Ok(())
        })?;
        Ok(if document.ok { ExitKind::Ok } else { ExitKind::Refused })
    }
}

fn check(path: &Path, node: &Node, layout: &Layout) -> Row {
    let findings = match RecipeFile::read(path) {
        Err(error) => vec![unreadable(error)],
        Ok(file) => check_recipe(&file, node, layout).into_iter().map(|finding| locate(&file, finding)).collect(),
    };
    Row { file: path.to_owned(), ok: !findings.iter().any(|located| located.finding.is_error()), findings }
}

fn locate(file: &RecipeFile, finding: Finding) -> Located {
    let at = file.locate(&finding.key);
    Located { line: at.map(|at| at.line), column: at.map(|at| at.column), finding }
}

fn unreadable(error: RecipeError) -> Located {
    let at = error.position();
    let key = error.key().unwrap_or_default().to_owned();
    let hint = error.hint();
    let mut finding = Finding::error(key, Fault::from(error).one_line());
    finding.hint = hint;
    Located { line: at.map(|at| at.line), column: at.map(|at| at.column), finding }
}

/// `file:line:column`, which editors jump to.
fn place(file: &Path, located: &Located) -> String {
    match (located.line, located.column) {
        (Some(line), Some(column)) => format!("{}:{line}:{column}", file.display()),
        _ => file.display().to_string(),
    }
}

fn words(finding: &Finding) -> String {
    let text = finding.to_string();
    text.strip_prefix(finding.severity.as_str()).unwrap_or(&text).trim_start().to_owned()
}
