//! The calibration of a quantization: which text, how much of it, and the pass that solves every matrix on it. Formats
//! say which weights they want solved in which grid.

use std::sync::{Mutex, PoisonError};

use serde_json::{Map, Value, json};

use super::Writing;
use crate::compress::{
    Calibrated, CalibratedRows, Calibration as TextParts, MatrixReport, SequenceLimits, SolveOptions, Solver, StoredAs,
    Target, Targets, TuneOptions, default_calibration, read_corpus, sequences, solver_named,
};
use crate::engine::{PassProgress, RewriteReport, STEP_TOKENS};
use crate::family::OpenModel;
use crate::fault::{Fault, Outcome};
use crate::recipe::stages::Quant;
use crate::recipe::{Finding, Predicted};
use crate::stage::{Admission, Place, StageContext, predict};
use crate::units::{Bytes, Sha};

/// The key of the text.
const CORPUS_KEY: &str = "calibrationCorpus";
/// The name of the text that comes with the program.
const DEFAULT: &str = "default";
/// Memory for the sums of one round when the node's budget is not known to be larger.
const LEAST_SUMS: Bytes = Bytes(256_000_000);

/// Whether the stage measures what its layers are given.
pub(super) fn is_calibrated(quant: &Quant) -> bool {
    let needs_moments = solver_named(&quant.algorithm()).is_some_and(|solver| solver.needs_moments());
    quant.calibration_corpus.is_some() || quant.target.is_some() || needs_moments
}

/// Everything wrong with the stage's calibration; finds its text.
pub(super) fn check(admission: &mut Admission<'_>, quant: &Quant, place: Place) {
    if !is_calibrated(quant) {
        return;
    }
    let tunes = solver_named(&quant.algorithm()).is_some_and(Solver::tunes_blocks);
    if tunes && quant.true_sequential() {
        let finding = Finding::error(place.key("trueSequential"), "a block is tuned to what the model as it was makes");
        admission.report(finding.hint("leave trueSequential out, or say algorithm gptq"));
    }
    if quant.importance_matrix.is_some() {
        let finding = Finding::error(place.key("importanceMatrix"), "the stage measures its layers' inputs itself");
        let hint = "leave importanceMatrix out, or say algorithm rtn and neither calibrationCorpus nor target";
        admission.report(finding.hint(hint));
    }
    if quant.true_sequential() && solver_named(&quant.algorithm()).is_some_and(|solver| solver.scales_inputs()) {
        let message = format!("{} changes what makes an input after its readers are solved", quant.algorithm());
        let finding = Finding::error(place.key("trueSequential"), message);
        admission.report(finding.hint("leave trueSequential out, or say algorithm gptq"));
    }
    if admission.source().is_some_and(|source| !matches!(source.tokenizer(), Ok(Some(_)))) {
        let finding = Finding::error(place.key(CORPUS_KEY), "the source has no usable tokenizer");
        admission.report(finding.hint("a calibration text needs the model's tokenizer; algorithm rtn does without"));
    }
    if let Some(name) = quant.calibration_corpus.as_deref().filter(|name| *name != DEFAULT) {
        admission.find_text(place.key(CORPUS_KEY), name);
    }
}

/// What the calibration of one type takes; `None` without one.
pub(super) fn predicted(admission: &Admission<'_>, quant: &Quant, stored: u64) -> Option<Predicted> {
    let model = admission.model().filter(|_| is_calibrated(quant))?;
    let tokens = quant.calibration_tokens();
    // Once to look, once to go on; solving and the sums take about as long as another.
    let threads = admission.node.forge.threads;
    let mut pass = predict::pass(model, stored, tokens.saturating_mul(3), threads, false);
    if solver_named(&quant.algorithm()).is_some_and(Solver::tunes_blocks) {
        // Forward and backward, for every step of every block.
        let tuned = (3 * STEP_TOKENS as u64).saturating_mul(quant.tune_steps());
        pass.seconds += predict::pass(model, 0, tuned, threads, false).seconds;
    }
    let columns = model.blocks.iter().map(|block| block.inputs().iter().map(|i| (i.columns() as u64).pow(2)).sum());
    let sums: u64 = columns.max().unwrap_or(0);
    pass.peak_ram = Bytes(pass.peak_ram.0 + (4 * sums).min(sums_budget(admission.node.forge.memory_budget).0));
    Some(pass)
}

/// Tokens taken beside those of the calibration so that [`TextParts::split`], which leaves a sixteenth for measuring, leaves
/// as many as were asked for.
fn held_out_tokens(quant: &Quant) -> u64 {
    if quant.target.is_some() { quant.calibration_tokens().div_ceil(15) } else { 0 }
}

/// A quarter of the memory a pass may take.
pub(super) fn sums_budget(memory: Bytes) -> Bytes {
    Bytes(memory.0 / 4).max(LEAST_SUMS)
}

/// A text as the layers will see it.
pub(in crate::stage) struct Calibration {
    sequences: Vec<Vec<u32>>,
    /// Text after it that nothing is calibrated on, for measuring what a target needs; empty without one.
    held_out: Vec<Vec<u32>>,
    corpus: String,
    corpus_sha256: Sha,
    solver: &'static dyn Solver,
    by_depth: bool,
    drift: f32,
    tune_steps: usize,
    /// What the passes took that have not been told of.
    passes: Mutex<Vec<RewriteReport>>,
}

impl Calibration {
    /// The calibration of a stage; `None` when it has none.
    pub fn of(cx: &StageContext<'_>, model: &OpenModel, quant: &Quant, place: Place) -> Outcome<Option<Self>> {
        if !is_calibrated(quant) {
            return Ok(None);
        }
        let algorithm = quant.algorithm();
        let solver = solver_named(&algorithm).ok_or_else(|| Fault::internal(format!("plan: no solver {algorithm}")))?;
        let (corpus, name, sha256) = match quant.calibration_corpus.as_deref() {
            None | Some(DEFAULT) => {
                let mix = default_calibration();
                (mix.corpus, mix.name.to_owned(), mix.sha256)
            }
            Some(name) => {
                let text = cx.text(&place.key(CORPUS_KEY))?;
                (read_corpus(&text.path)?, name.to_owned(), text.sha256)
            }
        };
        let tokenizer = model.open_tokenizer()?.ok_or_else(|| {
            Fault::source(format!("{} has no tokenizer", model.path.display()))
                .hint("a calibration text needs the model's tokenizer")
        })?;
        let limits = SequenceLimits {
            max_length: (quant.calibration_length() as usize).min(model.spec.max_positions),
            max_examples: None,
            max_tokens: Some(quant.calibration_tokens().saturating_add(held_out_tokens(quant))),
        };
        let mut sequences = sequences(&corpus, &tokenizer, limits, &|_| ())?;
        let mut held_out = Vec::new();
        if quant.target.is_some() {
            let parts = TextParts::split(sequences);
            (sequences, held_out) = (parts.profiled, parts.held_out);
        }
        let by_depth = quant.true_sequential();
        let drift = if by_depth { 0.0 } else { quant.drift_share() as f32 };
        Ok(Some(Calibration {
            sequences,
            held_out,
            corpus: name,
            corpus_sha256: sha256,
            solver,
            by_depth,
            drift,
            tune_steps: quant.tune_steps() as usize,
            passes: Mutex::default(),
        }))
    }

    /// What is calibrated on.
    pub(super) fn sequences(&self) -> &[Vec<u32>] {
        &self.sequences
    }

    /// Text that is not calibrated on.
    pub(super) fn held_out(&self) -> &[Vec<u32>] {
        &self.held_out
    }

    /// Solves the targets of one type; what is not solved is stored as `stored_as` says.
    pub fn solve(
        &self,
        cx: &StageContext<'_>,
        model: &OpenModel,
        (targets, stored_as): (&Targets, &StoredAs),
        writing: &Writing<'_>,
    ) -> Outcome<CalibratedRows> {
        self.solve_behind(cx, model, (targets, stored_as, None), writing)
    }

    /// The same with another embedding than the model's own.
    pub fn solve_behind(
        &self,
        cx: &StageContext<'_>,
        model: &OpenModel,
        (targets, stored_as, embedding): (&Targets, &StoredAs, Option<&[f32]>),
        writing: &Writing<'_>,
    ) -> Outcome<CalibratedRows> {
        let how = Calibrated {
            targets,
            solver: self.solver,
            options: SolveOptions::default(),
            by_depth: self.by_depth,
            drift: self.drift,
            tuning: TuneOptions { steps: self.tune_steps, ..TuneOptions::default() },
            embedding,
            sums: sums_budget(cx.pass.memory_budget.unwrap_or(LEAST_SUMS)),
            stored_as,
        };
        let span = writing.span.part(0.0, 0.9);
        let report = |p: PassProgress| span.at_rate(p.fraction, self.solver.name(), Some(p.tokens_per_s));
        let path = cx.work.join(format!("{}.rows", writing.out));
        let options = cx.resumable(writing.out, &described(&how));
        let solved = how.run(model, &self.sequences, &options, &path, &report)?;
        cx.tell_savepoints(&options);
        self.passes.lock().unwrap_or_else(PoisonError::into_inner).push(solved.pass);
        Ok(solved)
    }

    /// How often each token of the vocabulary occurs in the text.
    pub fn token_counts(&self, vocab: usize) -> Vec<u64> {
        let mut counts = vec![0; vocab];
        self.sequences.iter().flatten().for_each(|token| counts[*token as usize] += 1);
        counts
    }

    /// What the passes since the last time took, for the result.
    pub fn take_passes(&self) -> Vec<Value> {
        let pass = |pass: RewriteReport| {
            let (predicted, peak) = (pass.predicted_peak.0, pass.peak.map(|peak| peak.0));
            json!({ "seconds": pass.seconds, "predictedPeakBytes": predicted, "peakBytes": peak })
        };
        let mut passes = self.passes.lock().unwrap_or_else(PoisonError::into_inner);
        passes.drain(..).map(pass).collect()
    }

    /// What a result says about it and its passes.
    pub fn details(&self, passes: &Value) -> Map<String, Value> {
        let tokens: usize = self.sequences.iter().map(Vec::len).sum();
        let value = json!({
            "algorithm": self.solver.name(),
            "calibration": {
                "corpus": self.corpus,
                "sha256": self.corpus_sha256,
                "sequences": self.sequences.len(),
                "tokens": tokens,
                "trueSequential": self.by_depth,
                "driftShare": self.drift,
                "passes": passes,
            },
        });
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }
}

/// What a solving pass is a function of beside the settings of its stage: rounds of a search differ in it.
fn described(how: &Calibrated<'_>) -> String {
    let target =
        |(weight, target): (&String, &Target)| format!("{weight} {} {:?}", target.grid.get().name(), target.dtype);
    let mut lines: Vec<String> = how.targets.iter().map(target).collect();
    lines.extend(how.stored_as.others.iter().map(|(tensor, dtype)| format!("{tensor} stored as {dtype:?}")));
    lines.sort_unstable();
    lines.push(format!("{:?} {}", how.stored_as.usual, how.sums));
    let embedding = how.embedding.into_iter().flatten().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    lines.push(Sha::of(&embedding).to_string());
    lines.join("\n")
}

/// Per block: the mean share of the outputs' energy that was lost, and where most was.
pub(super) fn by_layer(model: &OpenModel, matrices: &[MatrixReport]) -> Value {
    let layer = |block: &crate::family::BlockSpec| {
        let inputs = block.inputs();
        let of_block: Vec<&MatrixReport> =
            matrices.iter().filter(|m| inputs.iter().any(|input| input.feeds(&m.weight))).collect();
        let worst = of_block.iter().max_by(|a, b| a.error.total_cmp(&b.error))?;
        let mean = of_block.iter().map(|m| m.error).sum::<f64>() / of_block.len() as f64;
        let notes: Vec<&str> = of_block.iter().map(|m| m.method.as_str()).filter(|m| m.contains(';')).take(4).collect();
        let mut report = json!({ "layer": block.index, "meanError": mean, "worst": worst, "notes": notes });
        let exponents: serde_json::Map<String, Value> =
            of_block.iter().filter_map(|m| Some((m.weight.clone(), m.exponent?.into()))).collect();
        if !exponents.is_empty() {
            report["exponents"] = exponents.into();
        }
        Some(report)
    };
    model.spec.blocks.iter().filter_map(layer).collect()
}
