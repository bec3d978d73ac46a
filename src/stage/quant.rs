//! `quant`: writes the current model in fewer bits, one GGUF file per type, and reads every file back.

use std::path::Path;
use std::time::Instant;

use super::{
    Admission, Artifact, Place, PlannedArtifact, Product, Span, Stage, StageContext, TensorFallback, TypeShare, predict,
};
use crate::compress::{
    ImportanceMatrix, QUANT_TYPES, QuantMix, QuantPlan, gguf_metadata, plan_quant, quant_mix, write_gguf,
};
use crate::family::OpenModel;
use crate::fault::{Fault, Outcome};
use crate::gate::{self, ScoreLimit};
use crate::recipe::stages::{self, QuantFormat};
use crate::recipe::{Finding, PlannedStage, StageSpec};

pub(super) struct Quant;

/// Folder of the files below the work folder.
const GGUF_DIR: &str = "gguf";

impl Stage for Quant {
    fn type_name(&self) -> &'static str {
        "quant"
    }

    fn summary(&self) -> &'static str {
        "write the model in fewer bits: GGUF from F32 to Q2_K, in llama.cpp's mixes"
    }

    fn plan(&self, admission: &mut Admission<'_>, spec: &StageSpec, place: Place) -> PlannedStage {
        let StageSpec::Quant(quant) = spec else { return place.planned(spec) };
        let mut planned = place.planned(spec);
        planned.title = format!("quantize to {} {}", quant.format.as_str(), quant.quant_types.join(", "));
        if quant.quant_types.is_empty() {
            let finding = Finding::error(place.key("quantTypes"), "names no type");
            admission.report(finding.hint(format!("name at least one of {}", QUANT_TYPES.join(", "))));
        }
        if quant.format != QuantFormat::Gguf {
            return planned;
        }
        let stored: u64 = admission.source().map_or(0, |s| s.stored.metas().iter().map(|m| m.bytes).sum());
        let importance = importance_matrix(admission, quant, place);
        for (i, name) in quant.quant_types.iter().enumerate() {
            let Some(mix) = quant_mix(name) else { continue };
            let key = place.key(&format!("quantTypes[{i}]"));
            if admission.artifacts.iter().any(|a| a.format == "gguf" && a.name == mix.name) {
                admission.report(Finding::error(key, format!("{name} is written already")).hint("name each type once"));
                continue;
            }
            let out = format!("{GGUF_DIR}/{}", file_name(&admission.recipe.name, mix));
            let bytes = plan_file(admission, place, mix, importance.as_ref(), Path::new(&out), &key);
            planned.outputs.push(out);
            // Without a source, which is a finding already, later stages may still count on this file.
            let bytes = bytes.unwrap_or(0);
            planned.predicted = planned.predicted.then(predict::quant(stored, bytes));
            admission.artifacts.push(PlannedArtifact { format: "gguf", name: mix.name, bytes });
        }
        planned
    }

    fn run(&self, cx: &StageContext<'_>, planned: &PlannedStage, span: Span<'_>) -> Outcome<Product> {
        let StageSpec::Quant(quant) = cx.spec(planned)? else { return Err(Fault::internal("plan: this is no quant")) };
        let model = cx.open_model()?;
        let mut product = Product::default();
        let mixes: Vec<&QuantMix> = quant.quant_types.iter().filter_map(|name| quant_mix(name)).collect();
        let importance = match &quant.importance_matrix {
            Some(_) => Some(ImportanceMatrix::read(&cx.text(&Place(planned.index).key(MATRIX_KEY))?.path)?),
            None => None,
        };
        std::fs::create_dir_all(cx.work.join(GGUF_DIR))
            .map_err(|e| Fault::infra(format!("make {}", cx.work.join(GGUF_DIR).display())).caused_by(e))?;
        for (i, (&mix, out)) in mixes.iter().zip(&planned.outputs).enumerate() {
            let each = 1.0 / mixes.len() as f64;
            let part = span.part(i as f64 * each, (i + 1) as f64 * each);
            one_file(cx, &model, (mix, importance.as_ref()), out, part, &mut product)?;
        }
        let sizes: Vec<String> = product
            .artifacts
            .iter()
            .map(|a| format!("{} {} ({:.2} bits per weight)", a.dtype, crate::units::Bytes(a.bytes), a.bits_per_weight))
            .collect();
        product.summary = Some(sizes.join(", "));
        Ok(product)
    }
}

/// The key of the importance matrix.
const MATRIX_KEY: &str = "importanceMatrix";

/// `<recipe name>-Q8_0.gguf`; what a file name cannot hold becomes a dash.
fn file_name(name: &str, mix: &QuantMix) -> String {
    let safe: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
    format!("{}-{}.gguf", safe.trim_start_matches('.'), mix.name)
}

/// The matrix the recipe names, read; what is wrong with it is a finding.
fn importance_matrix(admission: &mut Admission<'_>, quant: &stages::Quant, place: Place) -> Option<ImportanceMatrix> {
    let (name, key) = (quant.importance_matrix.as_ref()?, place.key(MATRIX_KEY));
    admission.find_text(key.clone(), name)?;
    let path = admission.texts.last()?.found.path.clone();
    match ImportanceMatrix::read(&path) {
        Ok(matrix) => Some(matrix),
        Err(error) => {
            admission.fault(&key, error.into());
            None
        }
    }
}

/// Bytes of a file to come, header included; notes what its plan has to say. `None` when it cannot be planned, which is
/// a finding.
fn plan_file(
    admission: &mut Admission<'_>,
    place: Place,
    mix: &'static QuantMix,
    importance: Option<&ImportanceMatrix>,
    out: &Path,
    key: &str,
) -> Option<u64> {
    let plan = match plan_quant(admission.model()?, mix, importance.is_some()) {
        Ok(plan) => plan,
        Err(error) => {
            admission.fault(key, error.into());
            return None;
        }
    };
    for line in plan.fallback_lines() {
        admission.report(Finding::warning(key, line));
    }
    match importance.map(|matrix| coverage_lines(matrix, &plan)) {
        Some(Ok(lines)) => {
            lines.into_iter().for_each(|line| admission.report(Finding::warning(place.key(MATRIX_KEY), line)));
        }
        Some(Err(fault)) => admission.fault(&place.key(MATRIX_KEY), fault),
        None => {}
    }
    // The source's tokenizer decides whether a GGUF file can be written at all.
    let header = admission.source().map(|source| gguf_metadata(source, &plan, importance, &admission.recipe.name))?;
    let sized = header.and_then(|header| Ok((plan.file_bytes(&header.fields, out)?, header.warnings)));
    match sized {
        Ok((bytes, warnings)) => {
            warnings.into_iter().for_each(|warning| admission.report(Finding::warning(key, warning)));
            Some(bytes)
        }
        Err(error) => {
            admission.fault(key, error.into());
            None
        }
    }
}

/// What a matrix leaves out.
fn coverage_lines(matrix: &ImportanceMatrix, plan: &QuantPlan) -> Outcome<Vec<String>> {
    let coverage = matrix.check(plan)?;
    let mut lines = Vec::new();
    let mix = plan.mix.name;
    if let Some(first) = coverage.missing.first() {
        let (count, used) = (coverage.missing.len(), coverage.used);
        lines.push(format!(
            "{mix}: the matrix says nothing about {count} of {} matrices ({first} …): they are written without it",
            count + used
        ));
    }
    if coverage.unknown > 0 {
        lines.push(format!("{mix}: {} entries of the matrix are about no tensor of this model", coverage.unknown));
    }
    Ok(lines)
}

fn one_file(
    cx: &StageContext<'_>,
    model: &OpenModel,
    (mix, importance): (&'static QuantMix, Option<&ImportanceMatrix>),
    out: &str,
    span: Span<'_>,
    product: &mut Product,
) -> Outcome<()> {
    let plan = plan_quant(&model.spec, mix, importance.is_some())?;
    product.warnings.extend(plan.fallback_lines());
    if let Some(matrix) = importance {
        product.warnings.extend(coverage_lines(matrix, &plan)?);
    }
    let metadata = gguf_metadata(model, &plan, importance, &cx.plan.name)?;
    product.warnings.extend(metadata.warnings);
    let path = cx.work.join(out);
    let (write, total) = (span.part(0.0, 0.6), plan.data_bytes);
    let detail = format!("encode {}", mix.name);
    let report = |done| write.of(done, total, &detail);
    let hash = write_gguf(model, &plan, &metadata.fields, importance, &path, &report)?;
    let gate = Instant::now();
    let (artifact, evidence) = inspect(cx, model, &plan, out, hash.size, span.part(0.6, 1.0))?;
    product.gate_s += gate.elapsed().as_secs_f64();
    product.known_hashes.insert(out.into(), hash.sha256);
    product.files.push(out.into());
    product.artifacts.push(artifact);
    product.evidence.extend(evidence);
    Ok(())
}

/// The gates of a quantized file: it reads back as the model it was made from, splits text as it does, and scores.
fn inspect(
    cx: &StageContext<'_>,
    model: &OpenModel,
    plan: &QuantPlan,
    out: &str,
    bytes: u64,
    span: Span<'_>,
) -> Outcome<(Artifact, Vec<gate::Evidence>)> {
    let (written, reloaded) = gate::reopen(&cx.work.join(out), out, &model.spec)?;
    let mut evidence = vec![reloaded];
    let tokens = cx.gate_tokens(model)?;
    if let Some(text) = cx.gate_text()? {
        evidence.extend(gate::same_tokens(model, &written, &text, out)?);
    }
    let parent = cx.short_score(model, &tokens, span.part(0.0, 0.5))?;
    let child = cx.short_score(&written, &tokens, span.part(0.5, 1.0))?;
    evidence.push(gate::judge_score(out, parent, child, tokens.len(), ScoreLimit::QUANT)?);
    let parameters = written.spec.parameters();
    let share = |(dtype, tensors, bytes): (crate::codec::Dtype, usize, u64)| TypeShare {
        dtype: dtype.to_string(),
        tensors,
        bytes,
    };
    let fallback = |f: &crate::compress::Fallback| TensorFallback {
        tensor: f.tensor.clone(),
        wanted: f.wanted.to_string(),
        given: f.given.to_string(),
    };
    let artifact = Artifact {
        path: Path::new(out).to_owned(),
        format: "gguf".into(),
        dtype: plan.mix.name.to_owned(),
        bytes,
        parameters,
        active_parameters: written.spec.active_parameters(),
        bits_per_weight: 8.0 * bytes as f64 / parameters.max(1) as f64,
        types: plan.types().into_iter().map(share).collect(),
        fallbacks: plan.fallbacks.iter().map(fallback).collect(),
    };
    Ok((artifact, evidence))
}
