//! `foreman plan`: what would be done, with every default and input resolved.

use std::path::PathBuf;

use crate::fault::Fault;
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, Problem};
use crate::foreman::printer::Printer;
use crate::foreman::wording::{columns, duration};
use crate::line::PartName;
use crate::node::Node;
use crate::recipe::{Plan, Predicted, RecipeFile};
use crate::stage::plan_recipe;

/// Show the resolved plan of a recipe: inputs found and hashed, defaults, predictions
///
/// With --json it is what a worker writes to plan.json before anything runs. Hashes the inputs, so a large model takes
/// a while; foreman check does not.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman plan my.alloy.json\n  foreman plan my.alloy.json --json | jq .predicted")]
pub struct Args {
    /// Recipe file
    #[arg(value_name = "FILE")]
    file: PathBuf,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.layout();
        let node = Node::read(layout.root())?;
        if !self.file.exists() {
            return Err(Problem::not_found(format!("{} is not there", self.file.display())));
        }
        let recipe = RecipeFile::read(&self.file).map_err(Fault::from)?;
        let name = self.file.file_name().unwrap_or_default().to_string_lossy();
        let part = PartName::parse(&name).map_or_else(|_| recipe.recipe().name.clone(), |name| name.base().to_owned());
        let plan = plan_recipe(&recipe, &part, &node, &layout, &|_, _| {}).map_err(Fault::from)?;
        desk.answer(&plan, words)
    }
}

fn words(plan: &Plan, printer: &mut Printer) -> Result<(), Problem> {
    let mut fact = |name: &str, value: String| printer.line(format!("{name:<12}{value}"));
    fact("part", format!("{} ({})", plan.part, plan.name))?;
    fact("recipe", plan.alloy_hash.tagged())?;
    fact("model", format!("{} ({}), {}", plan.source.path.display(), plan.source.family, plan.source.total))?;
    fact("model hash", plan.source.model_hash.tagged())?;
    for text in &plan.texts {
        fact("text", format!("{} for {}, {}", text.path.display(), text.key, text.size))?;
    }
    fact("device", format!("{}, memory budget {}", plan.device, plan.memory_budget))?;
    fact("predicted", predicted(&plan.predicted))?;
    printer.line("")?;
    let mut rows = Vec::new();
    for (index, stage) in plan.stages.iter().enumerate() {
        rows.push(vec![(index + 1).to_string(), stage.title.clone(), predicted(&stage.predicted)]);
    }
    for line in columns("", &["#", "STAGE", "PREDICTED"], &rows) {
        printer.line(line)?;
    }
    for finding in &plan.findings {
        printer.line(finding.to_string())?;
    }
    Ok(())
}

fn predicted(what: &Predicted) -> String {
    format!("{}, peak memory {}, {} written", duration(what.seconds), what.peak_ram, what.disk)
}
