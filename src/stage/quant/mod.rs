//! `quant`: writes the current model in fewer bits, once per type, and reads every output back.
//!
//! A file format is one file here and one line in [`FORMATS`]; what they share, the order of work and the gates, is in
//! this file.

use std::path::Path;
use std::time::Instant;

use super::{Admission, Artifact, Place, PlannedArtifact, Product, Span, Stage, StageContext, predict};
use crate::compress::MatrixReport;
use crate::crash::crash_point;
use crate::family::{Family, OpenModel};
use crate::fault::{Fault, Outcome};
use crate::gate::{self, ScoreLimit};
use crate::model::FileHash;
use crate::recipe::stages::{self, QuantAim};
use crate::recipe::{Finding, PlannedStage, QuantCapability, StageSpec};
use serde_json::Value;

pub(super) struct Quant;

/// A format the stage writes.
pub(super) trait Format: Sync {
    /// The value of the stage's `format` key.
    fn name(&self) -> &'static str;

    /// The types it writes, as `quantTypes` names them.
    fn types(&self) -> Vec<&'static str>;

    /// Whether it can hold models of this family.
    fn holds(&self, family: &dyn Family) -> bool;

    /// How much worse than its parent an output may score; `None`: for the recipe's criteria to say.
    fn score_limit(&self) -> Option<ScoreLimit> {
        Some(ScoreLimit::QUANT)
    }

    /// Where the output of one type goes and what it will take; everything wrong with it is reported. `None` when it
    /// cannot be planned, which is a finding.
    fn plan(&self, admission: &mut Admission<'_>, type_name: &str, request: &Request<'_>) -> Option<Draft>;

    /// Types of single tensors that a file for a target may be made of; none where the format takes no target.
    fn choices(&self) -> Vec<&'static str> {
        Vec::new()
    }

    /// As [`Format::plan`], for the one output of a target.
    fn plan_target(&self, admission: &mut Admission<'_>, _aim: QuantAim, request: &Request<'_>) -> Option<Draft> {
        let message = format!("format {} takes no target", self.name());
        admission.report(Finding::error(&request.key, message).hint("use format gguf, or name the types to write"));
        None
    }

    /// As [`Format::write`], for the one output of a target.
    fn write_target(
        &self,
        _cx: &StageContext<'_>,
        _model: &OpenModel,
        _aim: QuantAim,
        _request: &Writing<'_>,
    ) -> Outcome<Written> {
        Err(Fault::internal(format!("plan: format {} takes no target", self.name())))
    }

    /// Writes the output of one type at `out`.
    fn write(
        &self,
        cx: &StageContext<'_>,
        model: &OpenModel,
        type_name: &str,
        request: &Writing<'_>,
    ) -> Outcome<Written>;
}

mod calibrate;
mod rotate;
mod target;

crate::registry! {
    /// Every format this build quantizes to.
    pub(super) FORMATS: dyn Format {
        gguf => Gguf,
        frontier => Frontier,
        safetensors => Safetensors,
        mlx => Mlx,
    }
}

/// What a format is asked to plan.
pub(super) struct Request<'a> {
    pub quant: &'a stages::Quant,
    pub place: Place,
    /// The key of the type: where its findings belong.
    pub key: String,
}

/// What a format will write.
pub(super) struct Draft {
    /// The type's own spelling.
    pub name: String,
    /// Relative to the work folder: a file or a directory.
    pub out: String,
    pub bytes: u64,
}

/// What a format is asked to write.
pub(super) struct Writing<'a> {
    pub quant: &'a stages::Quant,
    pub place: Place,
    /// Relative to the work folder.
    pub out: &'a str,
    /// What the layers' inputs are measured on, where they are.
    pub calibration: Option<&'a calibrate::Calibration>,
    pub span: Span<'a>,
}

/// What a format has written.
#[derive(Default)]
pub(super) struct Written {
    /// Every file, relative to the work folder, with its size and hash.
    pub files: Vec<(String, FileHash)>,
    /// The other files of a directory, whose hashes are taken when the stage is done.
    pub side_files: Vec<String>,
    /// The type's own spelling.
    pub dtype: String,
    /// Bytes of all weight files.
    pub bytes: u64,
    pub types: Vec<super::TypeShare>,
    pub fallbacks: Vec<super::TensorFallback>,
    pub warnings: Vec<String>,
    /// The output packed, relative to the work folder.
    pub archive: Option<String>,
    /// What the format itself has found out about its output.
    pub evidence: Vec<gate::Evidence>,
    /// How calibrated matrices came out.
    pub matrices: Vec<MatrixReport>,
    /// What else was decided and found, for the stage's record.
    pub details: serde_json::Map<String, serde_json::Value>,
}

/// What this build can quantize to, as the recipe checks read it.
pub(super) fn capabilities(families: &[&dyn Family]) -> Vec<QuantCapability> {
    let capability = |format: &&dyn Format| QuantCapability {
        format: format.name().to_owned(),
        types: format.types().into_iter().map(str::to_owned).collect(),
        choices: format.choices().into_iter().map(str::to_owned).collect(),
        architectures: families
            .iter()
            .filter(|family| format.holds(**family))
            .flat_map(|family| family.model_types())
            .map(|&name| name.to_owned())
            .collect(),
    };
    FORMATS.iter().map(capability).collect()
}

fn format_named(name: &str) -> Option<&'static dyn Format> {
    FORMATS.iter().copied().find(|format| format.name() == name)
}

impl Stage for Quant {
    fn type_name(&self) -> &'static str {
        "quant"
    }

    fn summary(&self) -> &'static str {
        "write the model in fewer bits: GGUF in llama.cpp's mixes, directories of compressed-tensors or MLX, bf16 or f16"
    }

    fn plan(&self, admission: &mut Admission<'_>, spec: &StageSpec, place: Place) -> PlannedStage {
        let StageSpec::Quant(quant) = spec else { return place.planned(spec) };
        let mut planned = place.planned(spec);
        planned.title = format!("quantize to {} {}", quant.format.as_str(), quant.quant_types.join(", "));
        let Some(format) = format_named(quant.format.as_str()) else { return planned };
        if quant.quant_types.is_empty() {
            let finding = Finding::error(place.key("quantTypes"), "names no type");
            admission.report(finding.hint(format!("name at least one of {}", format.types().join(", "))));
        }
        calibrate::check(admission, quant, place);
        rotate::check(admission, quant, place);
        if let Some(target) = &quant.target {
            // What is wrong with it is a finding of the recipe's own checks.
            let Ok(aim) = target.aim() else { return planned };
            planned.title = format!("quantize to {} {}", quant.format.as_str(), aim.label());
            let request = Request { quant, place, key: place.key("target") };
            plan_output(admission, &mut planned, format, &aim.label(), &request, |admission| {
                format.plan_target(admission, aim, &request)
            });
            planned.predicted = planned.predicted.then(target::predicted(admission, aim));
            return planned;
        }
        for (i, name) in quant.quant_types.iter().enumerate() {
            // An unknown type is a finding of the recipe's own checks.
            if !format.types().iter().any(|known| known.eq_ignore_ascii_case(name)) {
                continue;
            }
            let request = Request { quant, place, key: place.key(&format!("quantTypes[{i}]")) };
            plan_output(admission, &mut planned, format, name, &request, |admission| {
                format.plan(admission, name, &request)
            });
        }
        planned
    }

    fn run(&self, cx: &StageContext<'_>, planned: &PlannedStage, span: Span<'_>) -> Outcome<Product> {
        let StageSpec::Quant(quant) = cx.spec(planned)? else { return Err(Fault::internal("plan: this is no quant")) };
        let format = format_named(quant.format.as_str())
            .ok_or_else(|| Fault::internal(format!("plan: no format {}", quant.format)))?;
        let (model, place) = (cx.open_model()?, Place(planned.index));
        let calibration = calibrate::Calibration::of(cx, &model, &quant, place)?;
        // What is compared with in the end is the model as it came.
        let turned = rotate::turned(&model, &quant)?;
        let written_from = turned.as_ref().map_or(&model, |(turned, _)| turned);
        let mut product = Product::default();
        let aim = quant.target.as_ref().map(stages::QuantTarget::aim).transpose().map_err(Fault::internal)?;
        let count = planned.outputs.len();
        for (i, out) in planned.outputs.iter().enumerate() {
            let each = span.part(i as f64 / count as f64, (i + 1) as f64 / count as f64);
            let writing =
                Writing { quant: &quant, place, out, calibration: calibration.as_ref(), span: each.part(0.0, 0.8) };
            let one = cx.once(out, || {
                let written = match (aim, quant.quant_types.get(i)) {
                    (Some(aim), _) => format.write_target(cx, written_from, aim, &writing)?,
                    (None, Some(name)) => format.write(cx, written_from, name, &writing)?,
                    (None, None) => return Err(Fault::internal(format!("plan: {out} has no type"))),
                };
                crash_point(&format!("quant:output:{out}"));
                let gate = Instant::now();
                let (artifact, evidence) = inspect(cx, &model, (format, out), &written, each.part(0.8, 1.0))?;
                let mut one = of_output(written, artifact, evidence, &model, calibration.as_ref());
                one.gate_s = gate.elapsed().as_secs_f64();
                Ok(one)
            })?;
            join(&mut product, one);
        }
        let size = |a: &Artifact| {
            format!("{} {} ({:.2} bits per weight)", a.dtype, crate::units::Bytes(a.bytes), a.bits_per_weight)
        };
        let sizes: Vec<String> = product.artifacts.iter().map(size).collect();
        product.summary = Some(sizes.join(", "));
        if let Some(calibration) = calibration {
            let passes = product.details.remove(PASSES).unwrap_or_default();
            product.details.extend(calibration.details(&passes));
        }
        product.details.extend(turned.into_iter().flat_map(|(_, details)| details));
        Ok(product)
    }
}

/// Keys of an output's details that are lists and maps over all outputs in the stage's.
const PASSES: &str = "passes";
const LAYERS: &str = "layers";

/// What is handed on of one output.
fn of_output(
    written: Written,
    artifact: Artifact,
    mut evidence: Vec<gate::Evidence>,
    model: &OpenModel,
    calibration: Option<&calibrate::Calibration>,
) -> Product {
    evidence.extend(written.evidence);
    let mut one = Product { artifacts: vec![artifact], evidence, warnings: written.warnings, ..Product::default() };
    if let Some(calibration) = calibration {
        let layers = calibrate::by_layer(model, &written.matrices);
        one.details.insert(LAYERS.into(), serde_json::Map::from_iter([(written.dtype, layers)]).into());
        one.details.insert(PASSES.into(), calibration.take_passes().into());
    }
    one.details.extend(written.details);
    for (file, hash) in written.files {
        one.known_hashes.insert(file.clone().into(), hash.sha256);
        one.files.push(file.into());
    }
    one.files.extend(written.side_files.into_iter().map(Into::into));
    one
}

/// Adds an output to what the stage hands on.
fn join(all: &mut Product, one: Product) {
    all.gate_s += one.gate_s;
    all.artifacts.extend(one.artifacts);
    all.evidence.extend(one.evidence);
    all.warnings.extend(one.warnings);
    all.known_hashes.extend(one.known_hashes);
    all.files.extend(one.files);
    for (key, value) in one.details {
        match (all.details.get_mut(&key), value) {
            (Some(Value::Object(all)), Value::Object(more)) if key == LAYERS => all.extend(more),
            (Some(Value::Array(all)), Value::Array(more)) if key == PASSES => all.extend(more),
            (_, value) => drop(all.details.insert(key, value)),
        }
    }
}

/// Plans one output, named `name`, and notes it: what it writes and takes, and that later stages may count on it.
fn plan_output(
    admission: &mut Admission<'_>,
    planned: &mut PlannedStage,
    format: &'static dyn Format,
    name: &str,
    request: &Request<'_>,
    plan: impl FnOnce(&mut Admission<'_>) -> Option<Draft>,
) {
    let written = |a: &PlannedArtifact| a.format == format.name() && a.name.eq_ignore_ascii_case(name);
    if admission.artifacts.iter().any(written) {
        let finding = Finding::error(&request.key, format!("{name} is written already"));
        return admission.report(finding.hint("name each type once"));
    }
    // Without a source, which is a finding already, later stages may still count on this output.
    let draft = plan(admission);
    let (name, bytes) = draft.as_ref().map_or((name.to_owned(), 0), |draft| (draft.name.clone(), draft.bytes));
    planned.outputs.extend(draft.map(|draft| draft.out));
    let stored: u64 = admission.source().map_or(0, |s| s.stored.metas().iter().map(|m| m.bytes).sum());
    planned.predicted = planned.predicted.then(predict::quant(stored, bytes));
    if let Some(pass) = calibrate::predicted(admission, request.quant, stored) {
        planned.predicted = planned.predicted.then(pass);
    }
    admission.artifacts.push(PlannedArtifact { format: format.name(), name, bytes });
}

/// `<recipe name>-Q8_0`; what a file name cannot hold becomes a dash.
fn out_name(recipe: &str, type_name: &str) -> String {
    // A file name has room for 255 bytes.
    let safe: String = recipe
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' })
        .take(180)
        .collect();
    format!("{}-{type_name}", safe.trim_start_matches('.'))
}

/// The gates of a quantized model: it reads back as the model it was made from, splits text as it does, and scores.
fn inspect(
    cx: &StageContext<'_>,
    model: &OpenModel,
    (format, out): (&'static dyn Format, &str),
    written: &Written,
    span: Span<'_>,
) -> Outcome<(Artifact, Vec<gate::Evidence>)> {
    let (child, reloaded) = gate::reopen(&cx.work.join(out), out, &model.spec)?;
    let mut evidence = vec![reloaded];
    let tokens = cx.gate_tokens(model)?;
    if let Some(text) = cx.gate_text()? {
        evidence.extend(gate::same_tokens(model, &child, &text, out)?);
    }
    let parent_score = cx.short_score(model, &tokens, span.part(0.0, 0.5))?;
    let child_score = cx.short_score(&child, &tokens, span.part(0.5, 1.0))?;
    evidence.push(match format.score_limit() {
        Some(limit) => gate::judge_score(out, parent_score, child_score, tokens.len(), limit)?,
        None => gate::compare_score(out, parent_score, child_score, tokens.len())?.0,
    });
    let parameters = child.spec.parameters();
    let artifact = Artifact {
        path: Path::new(out).to_owned(),
        format: format.name().to_owned(),
        dtype: written.dtype.clone(),
        bytes: written.bytes,
        parameters,
        active_parameters: child.spec.active_parameters(),
        bits_per_weight: 8.0 * written.bytes as f64 / parameters.max(1) as f64,
        archive: written.archive.clone().map(Into::into),
        quantized: true,
        types: written.types.clone(),
        fallbacks: written.fallbacks.clone(),
    };
    Ok((artifact, evidence))
}
