//! Admission: from a recipe as read to a plan, or to everything that is wrong with it, at once.
//!
//! The stages are asked in their written order; each moves the admission on to the state after it (a model with fewer
//! experts, an importance table, artifacts), so an order that cannot work is found before anything runs.

use super::{STAGES, inputs, stage_named};
use crate::assay;
use crate::compress::SOLVERS;
use crate::family::{FAMILIES, ModelSpec, OpenModel, open};
use crate::fault::{Fault, FaultClass};
use crate::gate;
use crate::line::Layout;
use crate::node::{Found, MOST_TEXT, Node, Resolver, Space};
use crate::recipe::{
    Capabilities, Finding, PLAN_VERSION, Plan, PlannedStage, Predicted, Recipe, RecipeFile, StageSpec, check,
    check_executable,
};
use crate::units::Bytes;

/// A stage's place in its recipe, from 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place(pub usize);

impl Place {
    /// The key path of a key of this stage: `stages[2].quantTypes`.
    pub fn key(self, key: &str) -> String {
        format!("stages[{}].{key}", self.0)
    }

    /// The planned stage before its type adds to it: defaults filled in, nothing read, written or predicted.
    pub fn planned(self, spec: &StageSpec) -> PlannedStage {
        PlannedStage {
            index: self.0,
            type_name: spec.type_name().to_owned(),
            title: spec.type_name().to_owned(),
            resolved: spec.resolved(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            predicted: Predicted::default(),
        }
    }
}

/// An artifact that a stage will make.
#[derive(Clone, Debug, PartialEq)]
pub struct PlannedArtifact {
    pub format: &'static str,
    /// The type asked for.
    pub name: String,
    pub bytes: u64,
}

/// A text that was found.
pub struct FoundText {
    pub named: String,
    pub key: String,
    pub found: Found,
    pub bytes: u64,
}

/// The state of the part between two stages, while it is planned.
pub struct Admission<'a> {
    pub recipe: &'a Recipe,
    pub node: &'a Node,
    resolver: Resolver<'a>,
    pub(super) found: Option<Found>,
    pub(super) source: Option<OpenModel>,
    /// The model as it will stand after the stages planned so far.
    current: Option<ModelSpec>,
    pub(super) texts: Vec<FoundText>,
    pub has_importance: bool,
    pub is_pruned: bool,
    pub is_packaged: bool,
    pub measures_perplexity: bool,
    pub artifacts: Vec<PlannedArtifact>,
    findings: Vec<(FaultClass, Finding)>,
    /// Nothing is built from what is found here: a model that is still to be fetched is not missed.
    only_looks: bool,
}

/// Why a recipe is not admitted: every finding, and whose job it is to mend the first thing.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub class: FaultClass,
    /// Errors, warnings and notes, in the order they were found.
    pub findings: Vec<Finding>,
}

impl From<Refusal> for Fault {
    fn from(refusal: Refusal) -> Fault {
        let fault = Finding::refusal(&refusal.findings);
        let mut fault = fault.unwrap_or_else(|| Fault::internal("refused without a reason"));
        fault.class = refusal.class;
        fault
    }
}

/// What this build executes, by the names recipes use.
pub fn capabilities() -> Capabilities {
    Capabilities {
        stages: STAGES.iter().map(|stage| stage.type_name().to_owned()).collect(),
        benchmarks: assay::RUNNERS.iter().map(|runner| runner.name().to_owned()).collect(),
        quant: super::quant::capabilities(FAMILIES),
        quant_algorithms: SOLVERS.iter().map(|solver| solver.name().to_owned()).collect(),
        architectures: FAMILIES.iter().flat_map(|f| f.model_types()).map(|&t| t.to_owned()).collect(),
    }
}

impl<'a> Admission<'a> {
    fn new(file: &'a RecipeFile, node: &'a Node, layout: &'a Layout) -> Self {
        Admission {
            recipe: file.recipe(),
            node,
            resolver: Resolver::new(node, layout.root()).for_recipe(file.path()),
            found: None,
            source: None,
            current: None,
            texts: Vec::new(),
            has_importance: false,
            is_pruned: false,
            is_packaged: false,
            measures_perplexity: false,
            artifacts: Vec::new(),
            findings: Vec::new(),
            only_looks: false,
        }
    }

    /// The model as it will stand here; `None` when the source could not be opened (which is a finding already).
    pub fn model(&self) -> Option<&ModelSpec> {
        self.current.as_ref()
    }

    /// The source as opened.
    pub fn source(&self) -> Option<&OpenModel> {
        self.source.as_ref()
    }

    /// From here on the model is `spec`.
    pub fn becomes(&mut self, spec: ModelSpec) {
        self.current = Some(spec);
    }

    /// A finding about the recipe: an error refuses it, a warning or a note stays with the plan.
    pub fn report(&mut self, finding: Finding) {
        self.findings.push((FaultClass::Recipe, finding));
    }

    /// Something is missing or broken on this machine, or does not fit here.
    pub fn fault(&mut self, key: &str, fault: Fault) {
        let finding = Finding::error(key, fault.one_line());
        let finding = match fault.hint {
            Some(hint) => finding.hint(hint),
            None => finding,
        };
        self.findings.push((fault.class, finding));
    }

    /// Finds a text and notes it under `key`; returns its bytes. A missing text is a finding.
    pub fn find_text(&mut self, key: String, name: &str) -> Option<u64> {
        let found = match self.resolver.text(name) {
            Ok(found) => found,
            Err(fault) => {
                self.fault(&key, fault);
                return None;
            }
        };
        let bytes = std::fs::metadata(&found.path).map(|meta| (meta.len(), meta.is_file()));
        let Ok((bytes, true)) = bytes else {
            let fault = Fault::source(format!("{} is not a readable file", found.path.display()));
            self.fault(&key, fault.hint("name a .jsonl or a text file"));
            return None;
        };
        if bytes > MOST_TEXT.0 {
            let message = format!("{} has {}; a text may have {MOST_TEXT}", found.path.display(), Bytes(bytes));
            self.fault(&key, Fault::source(message).hint("cut the text: a few megabytes are enough to calibrate"));
            return None;
        }
        self.texts.push(FoundText { named: name.to_owned(), key, found, bytes });
        Some(bytes)
    }

    fn open_source(&mut self) {
        let source = &self.recipe.source;
        let found = match self.resolver.model(&source.base_model, source.revision.as_deref()) {
            Ok(found) => found,
            Err(fault) => return self.no_model(fault),
        };
        // Not even opened: a read from such a place may never come back.
        if let Some(fault) = found.refusal(&self.node.storage.allow_unfit_filesystems) {
            return self.fault("source.baseModel", fault);
        }
        if let Some(warning) = found.warning() {
            self.report(Finding::warning("source.baseModel", warning));
        }
        match open(&found.path) {
            Ok(model) => {
                self.check_claims(&model);
                self.current = Some(model.spec.clone());
                self.source = Some(model);
            }
            Err(error) => self.fault("source.baseModel", error.into()),
        }
        self.found = Some(found);
    }

    /// A model that a declared network tier is asked for before the part is built is no error to somebody who only looks.
    fn no_model(&mut self, fault: Fault) {
        let source = &self.recipe.source;
        let asked = self.resolver.asked_later(&source.base_model);
        let is_nowhere = || self.resolver.is_nowhere(&source.base_model, source.revision.as_deref());
        match asked.first().filter(|_| self.only_looks && is_nowhere()) {
            Some(tier) => {
                let message = format!("not here; network tier {:?} is asked for it when it is built", tier.name);
                self.report(
                    Finding::warning("source.baseModel", message)
                        .hint("what depends on the model itself was not checked"),
                );
            }
            None => self.fault("source.baseModel", fault),
        }
    }

    /// What the recipe says about the source, against the source.
    fn check_claims(&mut self, model: &OpenModel) {
        let source = &self.recipe.source;
        let experts = model.spec.experts();
        if source.is_moe == Some(true) && experts.is_none() {
            self.report(Finding::error("source.isMoE", format!("{} is a dense model", model.path.display())));
        }
        if let Some(layers) = source.num_layers.filter(|&layers| layers as usize != model.spec.blocks.len()) {
            let message = format!("{layers}, but the model has {}", model.spec.blocks.len());
            self.report(Finding::error("source.numLayers", message).hint("correct the recipe or name another model"));
        }
    }

    fn plan_stages(&mut self) -> Vec<PlannedStage> {
        let cycles = self.recipe.cycles.unwrap_or(1);
        if cycles > 1 {
            self.report(
                Finding::error("cycles", format!("{cycles}: this build runs the stages once, in their written order"))
                    .hint("remove cycles, or write the stages as often as they shall run"),
            );
        }
        let recipe = self.recipe;
        let mut stages = Vec::new();
        for (i, spec) in recipe.stages.iter().enumerate() {
            let Some(stage) = stage_named(spec.type_name()) else { continue };
            if self.is_packaged && !matches!(spec, StageSpec::Eval(_)) {
                let message = format!("{} comes after package", spec.type_name());
                self.report(Finding::error(Place(i).key("type"), message).hint("put package last"));
            }
            stages.push(stage.plan(self, spec, Place(i)));
        }
        if !self.is_packaged && (!self.artifacts.is_empty() || self.is_pruned) {
            stages.push(super::package::implied(self, Place(recipe.stages.len())));
        }
        stages
    }

    fn check_fit(&mut self, layout: &Layout, predicted: Predicted) {
        let work = layout.work_root();
        match self.node.space_for(&work, predicted.disk) {
            Ok(Space::Free) => {}
            Ok(Space::Later { free }) => {
                let message = format!("{} are needed at {}, {free} are free", predicted.disk, work.display());
                self.report(Finding::warning("", message).hint("the part waits until so much is free"));
            }
            Err(fault) => self.fault("", fault),
        }
        if predicted.peak_ram > self.node.ram {
            let (need, have) = (predicted.peak_ram, self.node.ram);
            let fault = Fault::resource(format!("about {need} of memory are needed, this machine has {have}"));
            self.fault("", fault.hint("run the part on a machine with more memory"));
        }
    }

    fn run(&mut self, layout: &Layout) -> (Vec<PlannedStage>, Predicted) {
        for finding in check(self.recipe).into_iter().chain(check_executable(self.recipe, &capabilities())) {
            self.report(finding);
        }
        self.open_source();
        let stages = self.plan_stages();
        if let Some(criteria) = &self.recipe.acceptance_criteria {
            let makes_artifact = !self.artifacts.is_empty() || self.is_pruned;
            for finding in gate::admissible(criteria, self.measures_perplexity, makes_artifact) {
                self.report(finding);
            }
            self.check_vram(criteria.hardware.as_ref().and_then(|h| h.max_vram_gb));
        }
        let predicted = stages.iter().fold(Predicted::default(), |all, stage| all.then(stage.predicted));
        self.check_fit(layout, predicted);
        (stages, predicted)
    }

    /// At least one planned artifact must fit the memory the recipe promises; their sizes are known now.
    fn check_vram(&mut self, limit: Option<f64>) {
        let smallest = self.artifacts.iter().map(|a| a.bytes).min();
        if let (Some(limit), Some(smallest)) = (limit, smallest)
            && Bytes(smallest).as_gb() > limit
        {
            let message = format!("the smallest artifact will have {}, maxVramGb is {limit}", Bytes(smallest));
            self.report(
                Finding::error("acceptanceCriteria.hardware.maxVramGb", message).hint("quantize or prune more"),
            );
        }
    }

    fn refusal(&self) -> Option<Refusal> {
        let errors = || self.findings.iter().filter(|(_, finding)| finding.is_error()).map(|(class, _)| *class);
        let class = [FaultClass::Recipe, FaultClass::Source, FaultClass::Resource]
            .into_iter()
            .find(|class| errors().any(|c| c == *class))
            .or_else(|| errors().next())?;
        Some(Refusal { class, findings: self.findings.iter().map(|(_, finding)| finding.clone()).collect() })
    }
}

/// Everything admission has to say about a recipe on this machine, without hashing the inputs; each finding with whose
/// job it is to mend it.
pub fn examine(file: &RecipeFile, node: &Node, layout: &Layout) -> Vec<(FaultClass, Finding)> {
    let mut admission = Admission::new(file, node, layout);
    admission.only_looks = true;
    admission.run(layout);
    admission.findings
}

/// The findings of [`examine`].
pub fn check_recipe(file: &RecipeFile, node: &Node, layout: &Layout) -> Vec<Finding> {
    examine(file, node, layout).into_iter().map(|(_, finding)| finding).collect()
}

/// What a part is predicted to take, without hashing anything.
pub fn predict(file: &RecipeFile, node: &Node, layout: &Layout) -> Result<Predicted, Refusal> {
    let mut admission = Admission::new(file, node, layout);
    let (_, predicted) = admission.run(layout);
    admission.refusal().map_or(Ok(predicted), Err)
}

/// The plan of a part: every default resolved, every input found, opened, sized and hashed. `part` is its base name.
/// `done` hears bytes hashed and bytes to hash in all.
pub fn plan_recipe(
    file: &RecipeFile,
    part: &str,
    node: &Node,
    layout: &Layout,
    done: &(dyn Fn(u64, u64) + Sync),
) -> Result<Plan, Refusal> {
    let mut admission = Admission::new(file, node, layout);
    let (stages, predicted) = admission.run(layout);
    if let Some(refusal) = admission.refusal() {
        return Err(refusal);
    }
    let hashed = inputs::hash_all(&admission, layout, done);
    let (source, texts) = match hashed {
        Ok(hashed) => hashed,
        Err(fault) => {
            admission.fault("", fault);
            return Err(admission.refusal().unwrap_or(Refusal { class: FaultClass::Internal, findings: Vec::new() }));
        }
    };
    Ok(Plan {
        plan_version: PLAN_VERSION,
        part: part.to_owned(),
        name: admission.recipe.name.clone(),
        alloy_hash: file.alloy_hash(),
        cycles: 1,
        source,
        texts,
        device: node.forge.device.to_string(),
        memory_budget: node.forge.memory_budget,
        predicted,
        stages,
        findings: admission.findings.into_iter().map(|(_, finding)| finding).collect(),
    })
}
