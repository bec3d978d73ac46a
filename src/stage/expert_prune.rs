//! `expert-prune`: keeps the most important experts of every layer, proves that nothing else changed, and reads the
//! result back.

use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Value, json};

use super::{Admission, Artifact, Place, Product, Span, Stage, StageContext, predict};
use crate::compress::{
    Importance, METRIC_VERSION, PruneOptions, PrunePlan, PruneReport, TensorFate, plan_prune, rewrite,
};
use crate::family::{FfnSpec, ModelSpec, OpenModel};
use crate::fault::{Fault, Outcome};
use crate::gate::{self, Lineage, ScoreLimit};
use crate::line::stamp;
use crate::model::{HfDir, TensorMeta, WrittenModel};
use crate::recipe::stages::{ExpertMetric, ExpertTensorLayout};
use crate::recipe::{self, Finding, PlannedStage, StageSpec};

pub(super) struct ExpertPrune;

/// Name of the sidecar that says what was pruned, from what.
pub(super) const METADATA_FILE: &str = "expert_prune.metadata.v1.json";
/// A new shard begins when a file would grow past this.
const MAX_SHARD_BYTES: u64 = 5 << 30;

impl Stage for ExpertPrune {
    fn type_name(&self) -> &'static str {
        "expert-prune"
    }

    fn summary(&self) -> &'static str {
        "keep the most important experts of every layer and drop the others"
    }

    fn plan(&self, admission: &mut Admission<'_>, spec: &StageSpec, place: Place) -> PlannedStage {
        let StageSpec::ExpertPrune(prune) = spec else { return place.planned(spec) };
        let mut planned = place.planned(spec);
        check_settings(admission, prune, place);
        if prune.needs_profile() {
            planned.inputs = vec!["importance".into()];
        } else if let Some(file) = &prune.importance_json {
            admission.find_text(place.key("importanceJson"), file);
            planned.inputs = vec![place.key("importanceJson")];
        }
        let out = if admission.is_pruned { format!("pruned.{}", place.0) } else { "pruned".to_owned() };
        planned.outputs = vec![out];
        let Some(keep) = prune.keep().map(|keep| keep as usize) else {
            let finding = Finding::error(place.key("keepExpertsPerLayer"), "is missing");
            admission.report(finding.hint("say how many experts each layer keeps"));
            return planned;
        };
        let from = admission.model().and_then(ModelSpec::experts);
        planned.title = match from {
            Some((experts, _)) => format!("prune experts {experts} → {keep} per layer"),
            None => format!("prune experts to {keep} per layer"),
        };
        if let Some((experts, top_k)) = from {
            check_count(admission, prune, place, keep, experts, top_k);
        }
        if let Some(spec) = admission.model().cloned() {
            let smaller = with_experts(spec.clone(), keep);
            let stored: u64 = admission.source().map_or(0, |s| s.tensors.metas().iter().map(|m| m.bytes).sum());
            let bytes = (stored as f64 * smaller.parameters() as f64 / spec.parameters().max(1) as f64) as u64;
            planned.predicted = predict::rewrite(bytes);
            admission.becomes(smaller);
        }
        admission.is_pruned = true;
        admission.has_importance = false;
        planned
    }

    fn run(&self, cx: &StageContext<'_>, planned: &PlannedStage, span: Span<'_>) -> Outcome<Product> {
        let StageSpec::ExpertPrune(prune) = cx.spec(planned)? else {
            return Err(Fault::internal("plan: this is no expert-prune"));
        };
        let started = stamp::seconds(chrono::Utc::now());
        let (Some(keep), Some(out_name)) = (prune.keep(), planned.outputs.first()) else {
            return Err(Fault::internal("plan: expert-prune without a count or an output"));
        };
        let model = cx.open_model()?;
        let table = importance_path(cx, &prune, planned)?;
        let importance = table.as_deref().map(Importance::read).transpose()?;
        let plan = plan_prune(&model, PruneOptions { keep: keep as usize, importance: importance.as_ref() })?;
        let out = cx.fresh_dir(out_name)?;
        let total = plan.bytes_out(model.tensors.metas());
        let write = span.part(0.0, 0.6);
        let progress = |done| write.of(done, total, "rewrite tensors");
        let (report, settling) = rewrite(&model, &plan, &out, MAX_SHARD_BYTES, &progress)?;
        let mut files = carry(&model, &plan, &out)?;
        let gate = Instant::now();
        let (evidence, pruned) = inspect(cx, &model, &plan, out_name, span)?;
        let written = settling.wait()?;
        let mut known_hashes = std::collections::HashMap::new();
        for file in written.weights.iter().chain(&written.index) {
            known_hashes.insert(Path::new(out_name).join(&file.filename), file.sha256);
            files.push(file.filename.clone().into());
        }
        let gate_s = gate.elapsed().as_secs_f64();
        let about = About {
            plan: &plan,
            report: &report,
            written: &written,
            table: table.as_deref(),
            importance: importance.as_ref(),
            pruned: &pruned,
        };
        write_metadata(cx, &about, &started, &out)?;
        files.push(METADATA_FILE.into());
        let spec = &pruned.spec;
        let bytes: u64 = written.weights.iter().map(|file| file.size).sum();
        let artifact = Artifact {
            path: out_name.into(),
            format: "safetensors".into(),
            dtype: pruned
                .tensors
                .metas()
                .iter()
                .max_by_key(|m| m.bytes)
                .map_or_else(String::new, |m| m.dtype.to_string()),
            bytes,
            parameters: spec.parameters(),
            active_parameters: spec.active_parameters(),
            bits_per_weight: 8.0 * bytes as f64 / spec.parameters().max(1) as f64,
        };
        Ok(Product {
            files: files.into_iter().map(|file| Path::new(out_name).join(file)).collect(),
            known_hashes,
            model: Some(out_name.into()),
            artifacts: vec![artifact],
            evidence,
            gate_s,
            summary: Some(format!(
                "{} → {} experts in {} layers: {} tensors dropped, {} renamed, {} routers cut",
                plan.experts,
                plan.keep,
                plan.kept.len(),
                report.dropped,
                report.kept_renamed,
                report.routers_sliced
            )),
            ..Product::default()
        })
    }
}

fn check_settings(admission: &mut Admission<'_>, prune: &recipe::stages::ExpertPrune, place: Place) {
    let layout = prune.expert_tensor_layout();
    if !matches!(layout, ExpertTensorLayout::Auto | ExpertTensorLayout::MlpExpertsUnfused) {
        let message = format!("this build prunes mlp-experts-unfused, not {}", layout.as_str());
        admission.report(Finding::error(place.key("expertTensorLayout"), message).hint("say auto"));
    }
    match prune.ranking() {
        None | Some(ExpertMetric::ActivationCount | ExpertMetric::RouterL2) => {}
        Some(other) => {
            let message = format!("this build ranks by activation_count or router_l2, not {}", other.as_str());
            admission.report(Finding::error(place.key("metric"), message));
        }
    }
    if prune.needs_profile() && !admission.has_importance {
        let hint =
            "put an expert-activation-profile stage before it, name an importanceJson, or use the metric router_l2";
        admission.report(Finding::error(place.key("type"), "no profile of this model stands before it").hint(hint));
    }
    if !admission.artifacts.is_empty() {
        let message = "comes after quant: the files already written would not be pruned";
        admission.report(Finding::error(place.key("type"), message).hint("put expert-prune before quant"));
    }
    if admission.source().is_some_and(|source| source.path.is_file()) {
        let message = "a GGUF file cannot be pruned in this build";
        admission.report(Finding::error(place.key("type"), message).hint("start from the model's safetensors"));
    }
    if admission.model().is_some_and(|model| model.experts().is_none()) {
        let message = "the source is a dense model, it has no experts";
        let hint = "remove the expert stages, or choose a mixture-of-experts model";
        admission.report(Finding::error(place.key("type"), message).hint(hint));
    }
}

fn check_count(
    admission: &mut Admission<'_>,
    prune: &recipe::stages::ExpertPrune,
    place: Place,
    keep: usize,
    experts: usize,
    top_k: usize,
) {
    let key = place.key(prune.keep_key());
    if keep < top_k {
        let message = format!("{keep} is below the {top_k} experts the model's router chooses per token");
        admission.report(Finding::error(key, message).hint(format!("keep {top_k} to {} experts", experts - 1)));
    } else if keep >= experts {
        let message = format!("{keep} of {experts} experts prunes nothing");
        admission.report(Finding::error(key, message).hint(format!("keep {top_k} to {} experts", experts - 1)));
    }
    if let Some(said) = prune.original_experts_per_layer.filter(|&said| said as usize != experts) {
        let message = format!("{said}, but the model has {experts} experts per layer");
        admission.report(Finding::error(place.key("originalExpertsPerLayer"), message));
    }
}

/// The model's description after a prune: kept experts are numbered from 0.
fn with_experts(mut spec: ModelSpec, keep: usize) -> ModelSpec {
    for block in &mut spec.blocks {
        if let FfnSpec::Moe(moe) = &mut block.ffn {
            moe.experts.truncate(keep);
            moe.router.rows = moe.experts.len();
        }
    }
    spec
}

fn importance_path(
    cx: &StageContext<'_>,
    prune: &recipe::stages::ExpertPrune,
    planned: &PlannedStage,
) -> Outcome<Option<PathBuf>> {
    if prune.importance_json.is_some() {
        return Ok(Some(cx.text(&Place(planned.index).key("importanceJson"))?.path.clone()));
    }
    if !prune.needs_profile() {
        return Ok(None);
    }
    let made = cx.importance.clone();
    made.map(Some).ok_or_else(|| Fault::internal("plan: expert-prune runs without an importance table"))
}

/// Side files and the changed config. Returns their names.
fn carry(model: &OpenModel, plan: &PrunePlan, out: &Path) -> Outcome<Vec<PathBuf>> {
    let source = HfDir::open(&model.path)?;
    let mut files = source.copy_side_files(out)?;
    let mut config = source.config.clone();
    if config.set_experts(plan.keep) == 0 {
        return Err(Fault::source(format!("{}: no key holds the number of experts", source.config.path().display())));
    }
    let path = out.join("config.json");
    std::fs::write(&path, config.to_json())
        .map_err(|e| Fault::infra(format!("write {}", path.display())).caused_by(e))?;
    files.push("config.json".into());
    Ok(files)
}

/// Where every tensor of the output must come from, in source order.
fn lineage(plan: &PrunePlan, metas: &[TensorMeta]) -> Vec<Lineage> {
    let line = |meta: &TensorMeta| {
        let (output, rows) = match plan.fate(&meta.name) {
            TensorFate::Dropped => return None,
            TensorFate::Kept => (meta.name.clone(), None),
            TensorFate::Renamed(name) => (name.clone(), None),
            TensorFate::Sliced(rows) => (meta.name.clone(), Some(rows.clone())),
        };
        Some(Lineage { output, source: meta.name.clone(), rows })
    };
    metas.iter().filter_map(line).collect()
}

/// The gates of a prune: nothing else changed, the directory reads back, and it still scores like its parent.
fn inspect(
    cx: &StageContext<'_>,
    model: &OpenModel,
    plan: &PrunePlan,
    out_name: &str,
    span: Span<'_>,
) -> Outcome<(Vec<gate::Evidence>, OpenModel)> {
    let expected = with_experts(model.spec.clone(), plan.keep);
    let (pruned, reloaded) = gate::reopen(&cx.work.join(out_name), out_name, &expected)?;
    let lineage = lineage(plan, model.tensors.metas());
    let total = plan.bytes_out(model.tensors.metas());
    let proof = span.part(0.6, 0.8);
    let compared = std::sync::atomic::AtomicU64::new(0);
    let done = |bytes| {
        let all = compared.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed) + bytes;
        proof.of(all, total, "prove the pass-through");
    };
    let passed = gate::pass_through(&*model.tensors, &*pruned.tensors, &lineage, out_name, &done)?;
    let tokens = cx.gate_tokens(model)?;
    let parent = cx.short_score(model, &tokens, span.part(0.8, 0.9))?;
    let child = cx.short_score(&pruned, &tokens, span.part(0.9, 1.0))?;
    let scored = gate::judge_score(out_name, parent, child, tokens.len(), ScoreLimit::PRUNE)?;
    Ok((vec![reloaded, passed, scored], pruned))
}

struct About<'a> {
    plan: &'a PrunePlan,
    report: &'a PruneReport,
    written: &'a WrittenModel,
    table: Option<&'a Path>,
    importance: Option<&'a Importance>,
    /// The result, re-opened.
    pruned: &'a OpenModel,
}

fn write_metadata(cx: &StageContext<'_>, about: &About<'_>, started: &str, out: &Path) -> Outcome<()> {
    let About { plan, report, written, table, importance, pruned } = about;
    let shards_out: Vec<Value> = written
        .weights
        .iter()
        .enumerate()
        .map(|(i, file)| {
            let tensors = pruned.tensors.metas().iter().filter(|meta| meta.file == i).count();
            json!({ "path": file.filename, "bytes": file.size, "sha256": file.sha256, "tensor_count": tensors })
        })
        .collect();
    let source = &cx.plan.source;
    let shards = source.files.iter().filter(|f| f.name.ends_with(".safetensors"));
    let table = match (table, importance) {
        (Some(path), Some(table)) => json!({
            "path": path.file_name().unwrap_or_default().to_string_lossy(),
            "sha256": crate::model::hash_file(path)?.0,
            "model": table.model,
            "calibration_corpus": table.calibration_corpus,
            "calibration_examples": table.calibration_examples,
            "calibration_tokens": table.calibration_tokens,
            "metric_version": METRIC_VERSION,
        }),
        _ => Value::Null,
    };
    let finished = chrono::Utc::now();
    let seconds = stamp::parse(started).map_or(0.0, |at| (finished - at).as_seconds_f64());
    let text = json!({
        "schema_version": "1",
        "tool": { "name": "factoryline expert-prune", "version": env!("CARGO_PKG_VERSION") },
        "started_at": started,
        "finished_at": stamp::seconds(finished),
        "total_seconds": seconds,
        "total_bytes_out": report.bytes_out,
        "source": {
            "dir": source.path,
            "shards": shards.map(|f| json!({ "path": f.name, "sha256": f.sha256, "bytes": f.size })).collect::<Vec<_>>(),
        },
        "selection": {
            "metric": plan.metric.as_str(),
            "layout_family": "mlp-experts-unfused",
            "importance_json": table,
            "per_layer_kept_count": plan.kept.iter().map(|(l, kept)| (l.to_string(), kept.len())).collect::<std::collections::HashMap<_, _>>(),
            "per_layer_kept_indices": plan.kept,
        },
        "tensors": {
            "kept_unchanged": report.kept_unchanged,
            "kept_renamed": report.kept_renamed,
            "router_gate_sliced": report.routers_sliced,
            "dropped_expert": report.dropped,
        },
        "shards_out": shards_out,
        "errors": [],
    });
    let bytes = serde_json::to_vec_pretty(&text)
        .map_err(|e| Fault::internal(format!("{METADATA_FILE} cannot be written as JSON")).caused_by(e))?;
    super::replace_file(&out.join(METADATA_FILE), &bytes)
}
