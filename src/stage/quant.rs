//! `quant`: writes the current model in fewer bits, one GGUF file per type, and reads every file back.

use std::path::Path;
use std::time::Instant;

use super::{Admission, Artifact, Place, PlannedArtifact, Product, Span, Stage, StageContext, predict};
use crate::codec::Dtype;
use crate::compress::{QuantPlan, gguf_metadata, plan_quant, quant_type, write_gguf};
use crate::family::OpenModel;
use crate::fault::{Fault, Outcome};
use crate::gate::{self, ScoreLimit};
use crate::recipe::stages::QuantFormat;
use crate::recipe::{Finding, PlannedStage, StageSpec};

pub(super) struct Quant;

/// Folder of the files below the work folder.
const GGUF_DIR: &str = "gguf";

impl Stage for Quant {
    fn type_name(&self) -> &'static str {
        "quant"
    }

    fn summary(&self) -> &'static str {
        "write the model in fewer bits: GGUF in F32, F16, BF16, Q8_0, Q4_0"
    }

    fn plan(&self, admission: &mut Admission<'_>, spec: &StageSpec, place: Place) -> PlannedStage {
        let StageSpec::Quant(quant) = spec else { return place.planned(spec) };
        let mut planned = place.planned(spec);
        planned.title = format!("quantize to {} {}", quant.format.as_str(), quant.quant_types.join(", "));
        if quant.quant_types.is_empty() {
            let finding = Finding::error(place.key("quantTypes"), "names no type");
            admission.report(finding.hint("name at least one of F32, F16, BF16, Q8_0, Q4_0"));
        }
        if quant.format != QuantFormat::Gguf {
            return planned;
        }
        let stored: u64 = admission.source().map_or(0, |s| s.stored.metas().iter().map(|m| m.bytes).sum());
        for (i, name) in quant.quant_types.iter().enumerate() {
            let Some(dtype) = quant_type(name) else { continue };
            let key = place.key(&format!("quantTypes[{i}]"));
            if admission.artifacts.iter().any(|a| a.format == "gguf" && a.dtype == dtype) {
                admission.report(Finding::error(key, format!("{name} is written already")).hint("name each type once"));
                continue;
            }
            planned.outputs.push(format!("{GGUF_DIR}/{}", file_name(&admission.recipe.name, dtype)));
            let Some(model) = admission.model() else {
                // The missing source is a finding already; later stages may count on this file.
                admission.artifacts.push(PlannedArtifact { format: "gguf", dtype, bytes: 0 });
                continue;
            };
            match plan_quant(model, dtype) {
                Ok(plan) => {
                    let bytes = plan.data_bytes;
                    note_fallbacks(admission, key.clone(), &plan);
                    check_header(admission, &key, &plan);
                    planned.predicted = planned.predicted.then(predict::quant(stored, bytes));
                    admission.artifacts.push(PlannedArtifact { format: "gguf", dtype, bytes });
                }
                Err(error) => admission.fault(&key, error.into()),
            }
        }
        planned
    }

    fn run(&self, cx: &StageContext<'_>, planned: &PlannedStage, span: Span<'_>) -> Outcome<Product> {
        let StageSpec::Quant(quant) = cx.spec(planned)? else { return Err(Fault::internal("plan: this is no quant")) };
        let model = cx.open_model()?;
        let mut product = Product::default();
        let types: Vec<Dtype> = quant.quant_types.iter().filter_map(|name| quant_type(name)).collect();
        std::fs::create_dir_all(cx.work.join(GGUF_DIR))
            .map_err(|e| Fault::infra(format!("make {}", cx.work.join(GGUF_DIR).display())).caused_by(e))?;
        for (i, (&dtype, out)) in types.iter().zip(&planned.outputs).enumerate() {
            let each = 1.0 / types.len() as f64;
            let part = span.part(i as f64 * each, (i + 1) as f64 * each);
            one_file(cx, &model, dtype, out, part, &mut product)?;
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

/// `<recipe name>-Q8_0.gguf`; what a file name cannot hold becomes a dash.
fn file_name(name: &str, dtype: Dtype) -> String {
    let safe: String =
        name.chars().map(|c| if c.is_ascii_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect();
    format!("{}-{dtype}.gguf", safe.trim_start_matches('.'))
}

fn fallback_text(plan: &QuantPlan) -> Option<String> {
    let first = plan.fallbacks.first()?;
    let more = match plan.fallbacks.len() {
        1 => String::new(),
        n => format!(" and {} more", n - 1),
    };
    let (target, block) = (plan.target, plan.target.block_elems());
    Some(format!("{target}: {first}{more} stay F16: their rows are no multiple of {block}"))
}

fn note_fallbacks(admission: &mut Admission<'_>, key: String, plan: &QuantPlan) {
    if let Some(text) = fallback_text(plan) {
        admission.report(Finding::warning(key, text));
    }
}

/// The source's tokenizer decides whether a GGUF file can be written at all.
fn check_header(admission: &mut Admission<'_>, key: &str, plan: &QuantPlan) {
    let header = admission.source().map(|source| gguf_metadata(source, plan, &admission.recipe.name));
    match header {
        Some(Err(error)) => admission.fault(key, error.into()),
        Some(Ok(header)) => {
            for warning in header.warnings {
                admission.report(Finding::warning(key, warning));
            }
        }
        None => {}
    }
}

fn one_file(
    cx: &StageContext<'_>,
    model: &OpenModel,
    dtype: Dtype,
    out: &str,
    span: Span<'_>,
    product: &mut Product,
) -> Outcome<()> {
    let plan = plan_quant(&model.spec, dtype)?;
    product.warnings.extend(fallback_text(&plan));
    let metadata = gguf_metadata(model, &plan, &cx.plan.name)?;
    product.warnings.extend(metadata.warnings);
    let path = cx.work.join(out);
    let (write, total) = (span.part(0.0, 0.6), plan.data_bytes);
    let detail = format!("encode {dtype}");
    let hash = write_gguf(model, &plan, &metadata.fields, &path, &|done| write.of(done, total, &detail))?;
    let gate = Instant::now();
    let (artifact, evidence) = inspect(cx, model, dtype, out, hash.size, span.part(0.6, 1.0))?;
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
    dtype: Dtype,
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
    let artifact = Artifact {
        path: Path::new(out).to_owned(),
        format: "gguf".into(),
        dtype: dtype.to_string(),
        bytes,
        parameters,
        active_parameters: written.spec.active_parameters(),
        bits_per_weight: 8.0 * bytes as f64 / parameters.max(1) as f64,
    };
    Ok((artifact, evidence))
}
