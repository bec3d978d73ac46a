//! Runs the stages of a plan in their order, each once: verified and skipped when an earlier attempt did it already.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::OnceLock;
use std::time::Instant;

use serde::Serialize;

use super::checkpoint::{Checkpoint, Checkpoints, Found, hash_of_outputs, hash_outputs};
use super::context::Current;
use super::{Product, StageContext, stage_named};
use crate::crash::crash_point;
use crate::family;
use crate::fault::{Fault, Outcome};
use crate::gate::{self, Evidence};
use crate::line::stamp;
use crate::line::wire::WorkerMessage;
use crate::model::hash_file;
use crate::recipe::PlannedStage;
use crate::units::Sha;

/// What is said about one stage in the result.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StageRecord {
    pub stage: String,
    pub title: String,
    /// Of the run that did the work; a skipped stage keeps the time of the attempt that did it.
    pub elapsed_s: f64,
    /// The part of it that went into gates: reading back, proving, scoring.
    pub gate_s: f64,
    pub predicted_s: f64,
    /// True when this attempt found it done.
    pub skipped: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub summary: Option<String>,
    /// What the stage decided and found.
    #[serde(skip_serializing_if = "serde_json::Map::is_empty")]
    pub details: serde_json::Map<String, serde_json::Value>,
}

/// What all stages left together.
#[derive(Clone, Debug, Default)]
pub struct Summary {
    pub stages: Vec<StageRecord>,
    pub evidence: Vec<Evidence>,
    pub warnings: Vec<String>,
    pub checkpoints: Checkpoints,
}

/// The key of a stage in the checkpoint file.
fn key(planned: &PlannedStage) -> String {
    format!("{:02}-{}", planned.index, planned.type_name)
}

/// Runs every stage of the plan of `cx`. A fault stops the run; what is done stays checkpointed.
pub fn run_stages(cx: &mut StageContext<'_>) -> Outcome<Summary> {
    let mut summary = Summary::default();
    let of = cx.plan.stages.len();
    // Everything before a stage decides its result; the chain carries it.
    let mut before = source_hash(cx);
    for (index, planned) in cx.plan.stages.iter().enumerate() {
        let stage = planned.type_name.clone();
        cx.progress.begin(&stage);
        cx.progress.send(&WorkerMessage::StageStarted { stage: stage.clone(), index, of });
        crash_point(&format!("{stage}:started"));
        let (key, inputs) = (key(planned), input_hashes(cx, planned, &before)?);
        cx.current = Current { key: key.clone(), inputs: inputs.clone() };
        let started = Instant::now();
        let verified = match cx.checkpoints.borrow().verified(cx.work, &key, &inputs) {
            Found::Done(done) => Some(done.clone()),
            Found::Stale(why) => {
                cx.progress.warn(format!("{key} is done again: {why}"));
                None
            }
            Found::Nothing => None,
        };
        let skipped = verified.is_some();
        let done = match verified {
            Some(done) => done,
            None => run_one(cx, planned, inputs, started)?,
        };
        cx.advance(&done.product);
        before = chain(&done.input_hashes, &done.output_hash);
        if !skipped {
            crash_point(&format!("{stage}:written"));
            cx.check_owner()?;
            let checkpoints = cx.checkpoints.get_mut();
            checkpoints.forget_parts(&key);
            checkpoints.stages.insert(key, done.clone());
            checkpoints.write(cx.work)?;
            crash_point(&format!("{stage}:checkpointed"));
        }
        cx.drop_savepoints();
        cx.progress.send(&WorkerMessage::StageCompleted {
            stage: stage.clone(),
            elapsed_s: started.elapsed().as_secs_f64(),
            summary: done.product.summary.clone(),
            skipped,
        });
        summary.record(planned, &done, skipped);
    }
    summary.checkpoints = cx.checkpoints.borrow().clone();
    Ok(summary)
}

impl Summary {
    fn record(&mut self, planned: &PlannedStage, done: &Checkpoint, skipped: bool) {
        self.evidence.extend(done.product.evidence.iter().cloned());
        self.warnings.extend(done.product.warnings.iter().cloned());
        self.stages.push(StageRecord {
            stage: planned.type_name.clone(),
            title: planned.title.clone(),
            elapsed_s: done.elapsed_s,
            gate_s: done.product.gate_s,
            predicted_s: planned.predicted.seconds,
            skipped,
            summary: done.product.summary.clone(),
            details: done.product.details.clone(),
        });
    }
}

fn run_one(
    cx: &StageContext<'_>,
    planned: &PlannedStage,
    input_hashes: BTreeMap<String, String>,
    started: Instant,
) -> Outcome<Checkpoint> {
    let stage = stage_named(&planned.type_name)
        .ok_or_else(|| Fault::internal(format!("plan: no stage of type {:?} in this build", planned.type_name)))?;
    let mut product: Product = stage.run(cx, planned, cx.progress.span(0.0, 0.98))?;
    guard_senses(cx, &mut product)?;
    for warning in &product.warnings {
        cx.progress.warn(warning.clone());
    }
    cx.progress.span(0.98, 1.0).at(0.0, "hash what was written");
    let outputs = hash_outputs(cx.work, &product)?;
    Ok(Checkpoint {
        stage: planned.type_name.clone(),
        completed_at: stamp::seconds(chrono::Utc::now()),
        elapsed_s: started.elapsed().as_secs_f64(),
        input_hashes,
        output_path: planned.outputs.first().map(Into::into),
        output_hash: hash_of_outputs(&outputs),
        outputs,
        product,
    })
}

/// Whatever a stage does to a language model, the towers and token ids of its other senses stay: proved here, for every
/// stage that writes a model directory.
fn guard_senses(cx: &StageContext<'_>, product: &mut Product) -> Outcome<()> {
    let Some(made) = &product.model else { return Ok(()) };
    let (before, after) = (cx.open_model()?, family::open(&cx.work.join(made))?);
    let started = Instant::now();
    product.evidence.extend(gate::senses_unchanged(&before, &after, &made.display().to_string())?);
    product.gate_s += started.elapsed().as_secs_f64();
    Ok(())
}

/// What the result of a stage is a function of.
fn input_hashes(cx: &StageContext<'_>, planned: &PlannedStage, before: &str) -> Outcome<BTreeMap<String, String>> {
    let settings = format!("{} {} {}", env!("CARGO_PKG_VERSION"), planned.type_name, planned.resolved);
    let mut inputs = BTreeMap::from([
        ("settings".to_owned(), Sha::of(settings.as_bytes()).tagged()),
        ("before".to_owned(), before.to_owned()),
        // Which of several GPUs it was makes no difference.
        ("device".to_owned(), cx.plan.device.split(':').next().unwrap_or_default().to_owned()),
        ("tool".to_owned(), this_build()?),
    ]);
    let mine = format!("stages[{}].", planned.index);
    for text in cx.plan.texts.iter().filter(|text| text.key.starts_with(&mine)) {
        inputs.insert(text.key.clone(), text.sha256.tagged());
    }
    Ok(inputs)
}

/// The hash of this executable: another build may compute other bits.
fn this_build() -> Outcome<String> {
    static HASH: OnceLock<String> = OnceLock::new();
    if let Some(hash) = HASH.get() {
        return Ok(hash.clone());
    }
    // The link stays good when the file was replaced meanwhile.
    let (sha, _) = hash_file(Path::new("/proc/self/exe"))?;
    Ok(HASH.get_or_init(|| sha.tagged()).clone())
}

/// One hash over every file of the source: configuration and tokenizer decide results too.
fn source_hash(cx: &StageContext<'_>) -> String {
    let mut text = cx.plan.source.path.display().to_string();
    for file in &cx.plan.source.files {
        text.push_str(&format!("\n{} {}", file.name, file.sha256));
    }
    Sha::of(text.as_bytes()).tagged()
}

fn chain(inputs: &BTreeMap<String, String>, output: &str) -> String {
    let mut text = output.to_owned();
    for (name, hash) in inputs {
        text.push_str(&format!("\n{name} {hash}"));
    }
    Sha::of(text.as_bytes()).tagged()
}
