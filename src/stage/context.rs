//! What a running stage knows: the plan, the work folder, the current model, and what earlier stages made.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::checkpoint::{Checkpoint, Checkpoints, Found, OutputFile, hash_of_outputs, hash_outputs};
use super::{Artifact, Measurement, Product, Progress, Span};
use crate::engine::{PassOptions, PassProgress, Savepoints, open_device};
use crate::family::{self, OpenModel};
use crate::fault::{Fault, Outcome};
use crate::gate::{GATE_TOKENS, short_score};
use crate::line::claim::check_token;
use crate::line::{AttemptToken, stamp};
use crate::node::Node;
use crate::recipe::{Plan, PlannedStage, ResolvedText, StageSpec};
use crate::units::Sha;

/// How passes run on this node: its device and memory budget; hidden states spill into the work folder.
pub fn pass_options(node: &Node, work: &Path) -> Outcome<PassOptions> {
    Ok(PassOptions {
        device: open_device(node.forge.device)?,
        memory_budget: Some(node.forge.memory_budget),
        spill_directory: Some(work.to_owned()),
        ..PassOptions::default()
    })
}

/// The context of a stage. Stages read it; only the runner moves it on.
pub struct StageContext<'a> {
    pub plan: &'a Plan,
    pub work: &'a Path,
    pub progress: &'a Progress<'a>,
    pub pass: PassOptions,
    /// Work that is worth a savepoint.
    pub savepoint: Duration,
    /// The attempt that may write in the work folder; asked for before every checkpoint. `None`: whoever runs this.
    pub attempt: Option<AttemptToken>,
    /// The model directory the next transform starts from: the source, or what a transform made of it.
    pub model: PathBuf,
    pub importance: Option<PathBuf>,
    pub artifacts: Vec<Artifact>,
    pub measurements: Vec<Measurement>,
    /// Short scores of models, by path; the parent of several artifacts is scored once.
    scores: RefCell<HashMap<PathBuf, f64>>,
    /// What is done, on disk as well.
    pub(super) checkpoints: RefCell<Checkpoints>,
    /// The stage under way.
    pub(super) current: Current,
}

/// The product with the hashes of its files, so that nobody takes them again.
fn with_hashes(mut product: Product, outputs: &[OutputFile]) -> Product {
    product.known_hashes.extend(outputs.iter().map(|file| (file.path.clone(), file.sha256)));
    product
}

/// The stage under way, as its checkpoint will know it.
#[derive(Clone, Debug, Default)]
pub(super) struct Current {
    pub key: String,
    pub inputs: BTreeMap<String, String>,
}

impl Current {
    /// One hash over what the result is a function of.
    fn hash(&self) -> String {
        let text: Vec<String> = self.inputs.iter().map(|(name, hash)| format!("{name} {hash}")).collect();
        Sha::of(text.join("\n").as_bytes()).tagged()
    }
}

/// Folder of savepoints below the work folder.
const SAVEPOINTS_DIR: &str = ".savepoints";

impl<'a> StageContext<'a> {
    pub fn new(plan: &'a Plan, work: &'a Path, progress: &'a Progress<'a>, pass: PassOptions) -> Self {
        StageContext {
            plan,
            work,
            progress,
            pass,
            savepoint: Duration::from_secs(10),
            attempt: None,
            model: plan.source.path.clone(),
            importance: None,
            artifacts: Vec::new(),
            measurements: Vec::new(),
            scores: RefCell::default(),
            checkpoints: RefCell::new(Checkpoints::read(work)),
            current: Current::default(),
        }
    }

    /// How the pass called `name` of this stage runs so that it can go on after an interruption. `what` is all that the pass
    /// is a function of beside the stage's inputs.
    pub fn resumable(&self, name: &str, what: &str) -> PassOptions {
        let key = format!("{} {name} {} {}", self.current.key, self.current.hash(), Sha::of(what.as_bytes()));
        let safe: String =
            name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
        let savepoints = Savepoints::new(self.savepoints_dir().join(safe.trim_start_matches('.')), key);
        PassOptions { savepoints: Some(savepoints.after(self.savepoint)), ..self.pass.clone() }
    }

    /// Tells what became of savepoints.
    pub fn tell_savepoints(&self, options: &PassOptions) {
        for note in options.savepoints.iter().flat_map(Savepoints::notes) {
            self.progress.warn(note);
        }
    }

    /// Refuses when a newer attempt owns the work folder: what this one says of it counts no more.
    pub(super) fn check_owner(&self) -> Outcome<()> {
        self.attempt.as_ref().map_or(Ok(()), |attempt| Ok(check_token(self.work, attempt)?))
    }

    fn savepoints_dir(&self) -> PathBuf {
        self.work.join(SAVEPOINTS_DIR).join(&self.current.key)
    }

    /// Removes the savepoints of the stage under way: it is done.
    pub(super) fn drop_savepoints(&self) {
        // What cannot be removed is in nobody's way, and goes with the work folder.
        let _ = std::fs::remove_dir_all(self.savepoints_dir());
    }

    /// A part of the stage under way that need not be done again: what an earlier attempt made is verified and used, else
    /// `make` makes it, and a checkpoint of its own says so. What it makes depends on the stage's inputs and `name` alone.
    pub fn once(&self, name: &str, make: impl FnOnce() -> Outcome<Product>) -> Outcome<Product> {
        let key = format!("{}/{name}", self.current.key);
        match self.checkpoints.borrow().verified(self.work, &key, &self.current.inputs) {
            Found::Done(done) => return Ok(with_hashes(done.product.clone(), &done.outputs)),
            Found::Stale(why) => self.progress.warn(format!("{key} is done again: {why}")),
            Found::Nothing => {}
        }
        let started = std::time::Instant::now();
        let product = make()?;
        let outputs = hash_outputs(self.work, &product)?;
        let product = with_hashes(product, &outputs);
        let done = Checkpoint {
            stage: key.clone(),
            completed_at: stamp::seconds(chrono::Utc::now()),
            elapsed_s: started.elapsed().as_secs_f64(),
            input_hashes: self.current.inputs.clone(),
            output_path: product.files.first().cloned(),
            output_hash: hash_of_outputs(&outputs),
            outputs,
            product: product.clone(),
        };
        self.check_owner()?;
        let mut checkpoints = self.checkpoints.borrow_mut();
        checkpoints.stages.insert(key, done);
        checkpoints.write(self.work)?;
        Ok(product)
    }

    /// Takes over what a stage made.
    pub(super) fn advance(&mut self, product: &Product) {
        if let Some(path) = &product.importance {
            self.importance = Some(self.work.join(path));
        }
        if let Some(path) = &product.model {
            self.model = self.work.join(path);
        }
        self.artifacts.extend(product.artifacts.iter().cloned());
        self.measurements.extend(product.measurements.iter().cloned());
    }

    /// The artifacts made so far that ship, by the format of the plan's package stage.
    pub fn shipping(&self) -> Vec<&Artifact> {
        let package = self.plan.stages.iter().rev().find(|stage| stage.type_name == "package");
        let format = package.and_then(|stage| stage.resolved.get("format")).and_then(|f| f.as_str()).unwrap_or("auto");
        super::package::shipping(&self.artifacts, format)
    }

    /// What the stages that made the current model left about their decisions.
    pub fn metadata(&self) -> Vec<PathBuf> {
        let files = super::directory::METADATA_FILES.iter().map(|name| self.model.join(name));
        files.filter(|path| path.is_file()).collect()
    }

    /// The source model.
    pub fn open_source(&self) -> Outcome<OpenModel> {
        Ok(family::open(&self.plan.source.path)?)
    }

    /// The model as it stands now.
    pub fn open_model(&self) -> Outcome<OpenModel> {
        Ok(family::open(&self.model)?)
    }

    /// The typed form of a planned stage.
    pub fn spec(&self, planned: &PlannedStage) -> Outcome<StageSpec> {
        serde_json::from_value(planned.resolved.clone())
            .map_err(|e| Fault::internal(format!("plan: stage {} cannot be read back", planned.index)).caused_by(e))
    }

    /// A text the plan resolved for this key (`stages[1].calibrationCorpus`).
    pub fn text(&self, key: &str) -> Outcome<&ResolvedText> {
        self.plan
            .texts
            .iter()
            .find(|text| text.key == key)
            .ok_or_else(|| Fault::internal(format!("plan: no text was resolved for {key}")))
    }

    /// Makes `<work>/<name>` anew: a leftover of an interrupted attempt is removed.
    pub fn fresh_dir(&self, name: &str) -> Outcome<PathBuf> {
        let dir = self.work.join(name);
        let failed = |e| Fault::infra(format!("make {}", dir.display())).caused_by(e);
        match std::fs::remove_dir_all(&dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        std::fs::create_dir_all(&dir).map_err(failed)?;
        Ok(dir)
    }

    /// Up to [`GATE_TOKENS`] tokens for a reload gate, by the tokenizer of `model`: the beginning of an evaluation text
    /// if the plan has one, else of a calibration text; for a model without a tokenizer, ids that walk the vocabulary.
    pub fn gate_tokens(&self, model: &OpenModel) -> Outcome<Vec<u32>> {
        let most = GATE_TOKENS.min(model.spec.max_positions).max(2);
        if let (Some(text), Some(tokenizer)) = (self.gate_text()?, model.open_tokenizer()?) {
            let mut ids = tokenizer.encode(&text)?;
            ids.truncate(most);
            if ids.len() >= 2 {
                return Ok(ids);
            }
        }
        let vocab = model.spec.vocab as u64;
        Ok((0..most as u64).map(|i| ((i * 7919 + 13) % vocab) as u32).collect())
    }

    /// The beginning of the text a gate scores: a few kilobytes, cut at a character.
    pub fn gate_text(&self) -> Outcome<Option<String>> {
        let eval = self.plan.texts.iter().find(|text| text.key.contains("benchmarks"));
        let any = || self.plan.texts.iter().find(|text| !text.key.ends_with("importanceMatrix"));
        let Some(text) = eval.or_else(any) else { return Ok(None) };
        let failed = |e| Fault::source(format!("read {}", text.path.display())).caused_by(e);
        let mut bytes = Vec::new();
        std::fs::File::open(&text.path)
            .and_then(|f| f.take(8 * GATE_TOKENS as u64).read_to_end(&mut bytes))
            .map_err(failed)?;
        let valid = std::str::from_utf8(&bytes).map_or_else(|e| e.valid_up_to(), str::len);
        bytes.truncate(valid);
        Ok(String::from_utf8(bytes).ok())
    }

    /// The short score of `model` on `tokens` (nats per token), computed once per path.
    pub fn short_score(&self, model: &OpenModel, tokens: &[u32], span: Span<'_>) -> Outcome<f64> {
        if let Some(&known) = self.scores.borrow().get(&model.path) {
            return Ok(known);
        }
        let report = |p: PassProgress| span.at(p.fraction, "reload gate");
        let nll = short_score(model, tokens, &self.pass, &report)?;
        self.scores.borrow_mut().insert(model.path.clone(), nll);
        Ok(nll)
    }
}
