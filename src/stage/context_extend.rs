//! `context-extend`: changes how positions are turned so that a longer context can be read. Only `config.json` changes;
//! the weights are linked.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::{Admission, Place, Product, Span, Stage, StageContext, directory, package};
use crate::compress::{ContextMethod, extend_context};
use crate::family::{ModelSpec, OpenModel, RopeSpec, spec_of};
use crate::fault::{Fault, Outcome};
use crate::gate::{self, Evidence, Lineage};
use crate::line::stamp;
use crate::model::{HfDir, TensorSource};
use crate::recipe::stages::ContextMethod as ContextRule;
use crate::recipe::{self, Finding, PlannedStage, Predicted, StageSpec};
use crate::units::Bytes;

pub(super) struct ContextExtend;

/// Name of the sidecar that says how the context was extended, from what.
pub(super) const METADATA_FILE: &str = "context_extend.metadata.v1.json";
/// From this ratio of perplexities on the source a warning is given.
const NOTABLE_LOSS: f64 = 1.5;

impl Stage for ContextExtend {
    fn type_name(&self) -> &'static str {
        "context-extend"
    }

    fn summary(&self) -> &'static str {
        "rescale the positions so that a longer context can be read: yarn, ntk, linear, dynamic-ntk"
    }

    fn plan(&self, admission: &mut Admission<'_>, spec: &StageSpec, place: Place) -> PlannedStage {
        let StageSpec::ContextExtend(extend) = spec else { return place.planned(spec) };
        let mut planned = place.planned(spec);
        planned.title = format!("extend the context to {} by {}", extend.target_length, extend.method);
        planned.outputs = vec![format!("context.{}", place.0)];
        check_place(admission, extend, place);
        let before = admission.recipe.stages.iter().take(place.0);
        if let Some(at) = before.into_iter().position(|stage| matches!(stage, StageSpec::ContextExtend(_))) {
            let message = format!("stages[{at}] has extended the context already");
            admission.report(Finding::error(place.key("type"), message).hint("name the length to reach once"));
        } else if let Some(after) = extended(admission, extend, place) {
            admission.becomes(after);
        }
        let stored: u64 = admission.source().map_or(0, |s| s.tensors.metas().iter().map(|m| m.bytes).sum());
        // Links cost nothing; the proof and the hashes read every byte once.
        planned.predicted = Predicted { seconds: stored as f64 / 500e6, peak_ram: Bytes(200_000_000), disk: Bytes(0) };
        admission.is_pruned = true;
        planned
    }

    fn run(&self, cx: &StageContext<'_>, planned: &PlannedStage, span: Span<'_>) -> Outcome<Product> {
        let StageSpec::ContextExtend(extend) = cx.spec(planned)? else {
            return Err(Fault::internal("plan: this is no context-extend"));
        };
        let started = stamp::seconds(chrono::Utc::now());
        let (Some(method), Some(out_name)) = (ContextMethod::parse(extend.method.as_str()), planned.outputs.first())
        else {
            return Err(Fault::internal("plan: context-extend without a method or an output"));
        };
        let model = cx.open_model()?;
        let config = extend_context(&model.config, &model.spec, extend.target_length as usize, method)?;
        let expected = spec_of(&config)?;
        let out = cx.fresh_dir(out_name)?;
        let source = HfDir::open(&model.path)?;
        span.at(0.1, "link the weights");
        let mut files = directory::carry(&source, &config, &out)?;
        files.extend(link_weights(&source, &out)?);
        let gate = Instant::now();
        let (evidence, warnings, extended) = inspect(cx, &model, &expected, out_name, span.part(0.1, 1.0))?;
        let gate_s = gate.elapsed().as_secs_f64();
        let decided = decided(method, &model.spec, &expected);
        let mut document = directory::provenance(cx, "context-extend", &started);
        document.extend(decided.clone());
        directory::write_metadata(&out, METADATA_FILE, &document)?;
        files.push(METADATA_FILE.into());
        let bytes =
            source.tensors.files().iter().filter_map(|file| std::fs::metadata(file).ok()).map(|m| m.len()).sum();
        Ok(Product {
            files: files.into_iter().map(|file| Path::new(out_name).join(file)).collect(),
            model: Some(out_name.into()),
            artifacts: vec![directory::artifact(out_name, &extended, bytes)],
            evidence,
            gate_s,
            warnings,
            details: decided,
            summary: Some(format!(
                "{} → {} positions by {}",
                model.spec.max_positions,
                expected.max_positions,
                method.as_str()
            )),
            ..Product::default()
        })
    }
}

fn check_place(admission: &mut Admission<'_>, extend: &recipe::stages::ContextExtend, place: Place) {
    for (key, named) in [
        ("trainingDataset", extend.training_dataset.is_some()),
        ("trainingSteps", extend.training_steps.is_some_and(|steps| steps > 0)),
    ] {
        if named {
            let finding = Finding::error(place.key(key), "this build extends a context without training");
            admission.report(finding.hint("remove the key; yarn and dynamic-ntk lose least without training"));
        }
    }
    let has_towers = admission.model().is_some_and(gate::has_towers);
    if has_towers && extend.method == ContextRule::Ntk {
        let message = "ntk changes rope_theta, which stays as it is in a model with towers";
        admission.report(Finding::error(place.key("method"), message).hint("use yarn, linear or dynamic-ntk"));
    }
    if !admission.artifacts.is_empty() {
        let message = "comes after quant: the files already written would not have the longer context";
        admission.report(Finding::error(place.key("type"), message).hint("put context-extend before quant"));
    }
    if let Some(form) = admission.source().and_then(OpenModel::fixed_form) {
        let message = format!("the context of {form} cannot be extended in this build");
        admission.report(Finding::error(place.key("type"), message).hint("start from the model's safetensors"));
    }
}

/// The model's description after the stage; why there is none is a finding.
fn extended(admission: &mut Admission<'_>, extend: &recipe::stages::ContextExtend, place: Place) -> Option<ModelSpec> {
    let method = ContextMethod::parse(extend.method.as_str())?;
    let (source, model) = (admission.source()?, admission.model()?);
    let is_long_enough = extend.target_length as usize <= model.max_positions;
    let attempt = || -> Outcome<RopeAndReach> {
        // The config on disk is that of the source; positions are all this stage and its like change in it.
        let config = extend_context(&source.config, model, extend.target_length as usize, method)?;
        let after = spec_of(&config)?;
        Ok((after.rope, after.max_positions))
    };
    let result = attempt().map(|(rope, max_positions)| ModelSpec { rope, max_positions, ..model.clone() });
    match result {
        Ok(after) => Some(after),
        Err(fault) => {
            let key = if is_long_enough { "targetLength" } else { "method" };
            admission.fault(&place.key(key), fault);
            None
        }
    }
}

type RopeAndReach = (RopeSpec, usize);

/// Puts every weight file of `source`, and their index, into `out`. Returns the names.
fn link_weights(source: &HfDir, out: &Path) -> Outcome<Vec<PathBuf>> {
    let mut files = Vec::new();
    let index = source.path.join(crate::model::INDEX_FILE);
    let index = index.is_file().then_some(index);
    for file in source.tensors.files().iter().chain(&index) {
        // A hub cache holds links into its store: the file itself is linked, under the name it has here.
        let name = PathBuf::from(file.file_name().unwrap_or_default());
        let real = file.canonicalize().map_err(|e| Fault::source(format!("read {}", file.display())).caused_by(e))?;
        files.push(package::place_file(&real, out, &name)?);
    }
    Ok(files)
}

/// The gates: the directory reads back with the longer context, every weight is the source's, and it can be scored.
fn inspect(
    cx: &StageContext<'_>,
    model: &OpenModel,
    expected: &ModelSpec,
    out_name: &str,
    span: Span<'_>,
) -> Outcome<(Vec<Evidence>, Vec<String>, OpenModel)> {
    let (extended, reloaded) = gate::reopen(&cx.work.join(out_name), out_name, expected)?;
    let positions = gate::same_positions(out_name, expected, &extended.spec)?;
    let lineage: Vec<Lineage> = model.stored.metas().iter().map(|m| Lineage::unchanged(&m.name)).collect();
    let passed = gate::pass_through(&*model.stored, &*extended.stored, &lineage, out_name, &|_| ())?;
    span.at(0.3, "prove the pass-through");
    let tokens = cx.gate_tokens(model)?;
    let parent = cx.short_score(model, &tokens, span.part(0.3, 0.65))?;
    let child = cx.short_score(&extended, &tokens, span.part(0.65, 1.0))?;
    let (scored, ratio) = gate::compare_score(out_name, parent, child, tokens.len())?;
    let mut warnings = Vec::new();
    if ratio > NOTABLE_LOSS {
        warnings.push(format!(
            "without training, perplexity on {} tokens within the original context is {ratio:.2} times the source's",
            tokens.len()
        ));
    }
    Ok((vec![reloaded, positions, passed, scored], warnings, extended))
}

/// What was decided: for the record of the stage and the metadata document.
fn decided(method: ContextMethod, before: &ModelSpec, after: &ModelSpec) -> Map<String, Value> {
    let rope = |spec: &ModelSpec| json!({ "theta": spec.rope.theta, "rule": format!("{:?}", spec.rope.scaling) });
    let factor = after.max_positions as f64 / before.max_positions.max(1) as f64;
    Map::from_iter([
        ("method".to_owned(), method.as_str().into()),
        ("original_positions".to_owned(), before.max_positions.into()),
        ("positions".to_owned(), after.max_positions.into()),
        ("factor".to_owned(), factor.into()),
        ("rope_before".to_owned(), rope(before)),
        ("rope_after".to_owned(), rope(after)),
    ])
}
