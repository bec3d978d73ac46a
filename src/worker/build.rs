//! One attempt, from a part in assembly to a result.

use std::path::{Path, PathBuf};

use super::ticker::while_ticking;
use super::{WorkerArgs, certify, write_json};
use crate::fault::{Fault, Outcome};
use crate::line::claim::check_token;
use crate::line::wire::WorkerMessage;
use crate::line::{Layout, PartName};
use crate::node::Node;
use crate::recipe::{Plan, RecipeFile, Severity};
use crate::stage::{Progress, StageContext, crash_point, pass_options, plan_recipe, run_stages};
use crate::storage::{NoSteps, fetch};

/// Plans the part, runs its stages, judges the result and writes it down.
///
/// # Errors
/// Whatever stops the part, with the class that decides what becomes of it.
pub fn build(args: &WorkerArgs, progress: &Progress<'_>) -> Outcome<()> {
    while_ticking(progress, || attempt(args, progress))
}

fn attempt(args: &WorkerArgs, progress: &Progress<'_>) -> Outcome<()> {
    let layout = Layout::open(&args.root)?;
    check_token(&args.work, &args.attempt)?;
    let part = part_path(&layout, &args.part);
    let recipe = RecipeFile::read(&part)?;
    let node = Node::load(layout.root())?;
    use_threads(node.forge.threads);
    if let Some(receipt) = fetch::bring(&recipe, &node, &layout, &NoSteps)? {
        progress.warn(format!("copied the model from {} to {}", receipt.from.display(), receipt.to.display()));
    }
    let plan = make_plan(&recipe, &part, &node, &layout, progress)?;
    write_json(&args.work.join("plan.json"), &plan)?;
    crash_point("plan:written");
    progress.send(&WorkerMessage::Planned {
        stages: plan.stages.iter().map(|stage| stage.type_name.clone()).collect(),
        predicted_s: Some(plan.predicted.seconds),
        predicted_peak_bytes: Some(plan.predicted.peak_ram.0),
        alloy_name: Some(plan.name.clone()),
        source_model: Some(plan.source.base_model.clone()),
    });
    // Notes stay with the plan.
    for finding in plan.findings.iter().filter(|finding| finding.severity == Severity::Warning) {
        progress.warn(finding.located());
    }
    let pass = pass_options(&node, &args.work)?;
    let mut cx = StageContext::new(&plan, &args.work, progress, pass);
    let summary = run_stages(&mut cx)?;
    let result = certify::certify(&cx, &recipe, &summary)?;
    check_token(&args.work, &args.attempt)?;
    crash_point("result:before");
    write_json(&args.work.join("result.json"), &result.with_token(&args.attempt))?;
    crash_point("result:written");
    Ok(())
}

fn make_plan(recipe: &RecipeFile, part: &Path, node: &Node, layout: &Layout, progress: &Progress<'_>) -> Outcome<Plan> {
    let hashing = progress.span(0.0, 1.0);
    let base = part.file_name().and_then(|name| PartName::parse(&name.to_string_lossy()).ok());
    let base = base.map_or_else(|| recipe.recipe().name.clone(), |name| name.base().to_owned());
    let hashed = |done, total| hashing.of(done, total, "hash the inputs");
    plan_recipe(recipe, &base, node, layout, &hashed).map_err(|refusal| {
        for finding in refusal.findings.iter().filter(|finding| finding.severity == Severity::Warning) {
            progress.warn(finding.located());
        }
        Fault::from(refusal)
    })
}

/// `assembly/x.alloy.json` below the line's folder; an absolute path as it is.
fn part_path(layout: &Layout, part: &Path) -> PathBuf {
    layout.line().join(part)
}

/// The worker computes with as many threads as its node allows. A pool that exists already (in tests) stays.
fn use_threads(threads: usize) {
    let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
}
