//! One attempt, from a part in assembly to a result.

use std::path::{Path, PathBuf};

use super::ticker::while_ticking;
use super::{WorkerArgs, certify, write_json};
use crate::crash::crash_point;
use crate::engine::device_name;
use crate::fault::{Fault, Outcome};
use crate::line::claim::check_token;
use crate::line::record::{self, WAIT_FILE, WaitRecord};
use crate::line::wire::WorkerMessage;
use crate::line::{Layout, Needs, PartName, stamp};
use crate::node::{Node, Room};
use crate::recipe::{Plan, Predicted, RecipeFile, Severity};
use crate::stage::{Progress, StageContext, pass_options, plan_recipe, predict, run_stages};
use crate::storage::copy::{self, Links};
use crate::storage::{NoSteps, fetch};
use crate::units::Bytes;

/// How an attempt ended that met no fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Built {
    /// `result.json` lies in the work folder.
    Done,
    /// The part does not fit at this moment: `wait.json` lies there.
    Waits,
}

/// Plans the part, runs its stages, judges the result and writes it down.
///
/// # Errors
/// Whatever stops the part, with the class that decides what becomes of it.
pub fn build(args: &WorkerArgs, progress: &Progress<'_>) -> Outcome<Built> {
    while_ticking(progress, || attempt(args, progress))
}

fn attempt(args: &WorkerArgs, progress: &Progress<'_>) -> Outcome<Built> {
    let layout = Layout::open(&args.root)?;
    check_token(&args.work, &args.attempt)?;
    let part = part_path(&layout, &args.part);
    let recipe = RecipeFile::read(&part)?;
    let mut node = Node::load(layout.root())?;
    node.forge.device = args.device.unwrap_or(node.forge.device);
    use_threads(node.forge.threads);
    // What is nowhere here is brought first: all that follows opens the model.
    let fetching = progress.span(0.0, 0.9);
    let told = |done, total| fetching.of(done, total, "fetch the model");
    if let Some(receipt) = fetch::bring(&recipe, &node, &layout, &NoSteps, &told)? {
        progress.warn(format!("copied the model from {} to {}", receipt.from.display(), receipt.to.display()));
    }
    if let Some(wait) = waits(args, predict(&recipe, &node, &layout)?, &node)? {
        check_token(&args.work, &args.attempt)?;
        write_json(&args.work.join(WAIT_FILE), &wait)?;
        return Ok(Built::Waits);
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
    let mut pass = pass_options(&node, &args.work)?;
    if !pass.device.is_cpu() {
        let name = device_name(&pass.device).replace(':', "");
        pass.turn = Some(layout.line().join(format!(".{name}.lock")));
    }
    let mut cx = StageContext::new(&plan, &args.work, progress, pass);
    cx.savepoint = node.forge.savepoint;
    cx.attempt = Some(args.attempt.clone());
    let summary = run_stages(&mut cx)?;
    let result = certify::certify(&cx, &recipe, &summary)?;
    check_token(&args.work, &args.attempt)?;
    crash_point("result:before");
    write_json(&args.work.join("result.json"), &result.with_token(&args.attempt))?;
    crash_point("result:written");
    Ok(Built::Done)
}

/// What the part has to wait for: nothing, when what it will take is free now. What earlier attempts have written need not
/// be written again.
fn waits(args: &WorkerArgs, predicted: Predicted, node: &Node) -> Outcome<Option<WaitRecord>> {
    let path = args.work.join(WAIT_FILE);
    // A folder that cannot be listed counts as empty: then more room is asked for.
    let written = copy::list(&args.work, Links::Keep).map_or(Bytes(0), |entries| copy::bytes_of(&entries));
    let needs = Needs { ram: predicted.peak_ram, disk: predicted.disk.saturating_sub(written), ..Needs::default() };
    let room = Room::now(&args.work, node.hot.min_free);
    let Some(lacking) = room.lacks(needs.ram, needs.vram, needs.disk) else {
        return match std::fs::remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(Fault::io(format!("remove {}", path.display()), e))
            }
            _ => Ok(None),
        };
    };
    let earlier: Option<WaitRecord> = record::read_json(&path).ok();
    let since = earlier.map_or_else(|| stamp::seconds(chrono::Utc::now()), |earlier| earlier.since);
    Ok(Some(WaitRecord { attempt_token: args.attempt.to_string(), needs, reason: lacking, since }))
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
