//! What a running stage knows: the plan, the work folder, the current model, and what earlier stages made.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::{Artifact, Measurement, Product, Progress, Span};
use crate::engine::{PassOptions, PassProgress, open_device};
use crate::family::{self, OpenModel};
use crate::fault::{Fault, Outcome};
use crate::gate::{GATE_TOKENS, short_score};
use crate::node::Node;
use crate::recipe::{Plan, PlannedStage, ResolvedText, StageSpec};

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
    /// The model directory the next transform starts from: the source, or what a transform made of it.
    pub model: PathBuf,
    pub importance: Option<PathBuf>,
    pub artifacts: Vec<Artifact>,
    pub measurements: Vec<Measurement>,
    /// Short scores of models, by path; the parent of several artifacts is scored once.
    scores: RefCell<HashMap<PathBuf, f64>>,
}

impl<'a> StageContext<'a> {
    pub fn new(plan: &'a Plan, work: &'a Path, progress: &'a Progress<'a>, pass: PassOptions) -> Self {
        StageContext {
            plan,
            work,
            progress,
            pass,
            model: plan.source.path.clone(),
            importance: None,
            artifacts: Vec::new(),
            measurements: Vec::new(),
            scores: RefCell::default(),
        }
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
