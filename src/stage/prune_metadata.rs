//! The sidecar of an expert prune: what was decided, from what, and what became of the tensors.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::StageContext;
use super::prune_choice::Choice;
use super::prune_healing::Healing;
use crate::compress::{Importance, PrunePlan, PruneReport};
use crate::family::{Holding, MixtureId, OpenModel};
use crate::fault::{Fault, Outcome};
use crate::line::stamp;
use crate::model::WrittenModel;

/// Name of the sidecar.
pub(super) const METADATA_FILE: &str = "expert_prune.metadata.v1.json";

/// What the sidecar tells about.
pub(super) struct About<'a> {
    pub source: &'a OpenModel,
    pub plan: &'a PrunePlan,
    pub choice: &'a Choice,
    pub report: &'a PruneReport,
    pub written: &'a WrittenModel,
    pub table: Option<(&'a Path, &'a Importance)>,
    /// The result, re-opened.
    pub pruned: &'a OpenModel,
}

/// Writes the sidecar into `out`.
pub(super) fn write(cx: &StageContext<'_>, about: &About<'_>, started: &str, out: &Path) -> Outcome<()> {
    let finished = chrono::Utc::now();
    let seconds = stamp::parse(started).map_or(0.0, |at| (finished - at).as_seconds_f64());
    let source = &cx.plan.source;
    let shards = source.files.iter().filter(|f| f.name.ends_with(".safetensors"));
    let counts = about.report.counts;
    let text = json!({
        "schema_version": "1",
        "tool": { "name": "factoryline expert-prune", "version": env!("CARGO_PKG_VERSION") },
        "started_at": started,
        "finished_at": stamp::seconds(finished),
        "total_seconds": seconds,
        "total_bytes_out": about.report.bytes_out,
        "source": {
            "dir": source.path,
            "shards": shards.map(|f| json!({ "path": f.name, "sha256": f.sha256, "bytes": f.size })).collect::<Vec<_>>(),
        },
        "selection": selection(about)?,
        "damage": about.choice.damage,
        "router_kd": about.choice.healing.as_ref().map(Healing::figures),
        "tensors": {
            "kept_unchanged": counts.kept_unchanged,
            "kept_renamed": counts.kept_renamed,
            "router_gate_sliced": counts.routers_sliced,
            "router_recomputed": counts.routers_recomputed,
            "stack_sliced": counts.stacks_sliced,
            "dropped_expert": counts.dropped,
        },
        "shards_out": shards_out(about),
        "errors": [],
    });
    let bytes = serde_json::to_vec_pretty(&text)
        .map_err(|e| Fault::internal(format!("{METADATA_FILE} cannot be written as JSON")).caused_by(e))?;
    super::replace_file(&out.join(METADATA_FILE), &bytes)
}

fn selection(about: &About<'_>) -> Outcome<Value> {
    let kept = about.choice.by_layer();
    let carried: BTreeMap<String, &Vec<usize>> = about
        .plan
        .kept
        .iter()
        .filter_map(|(id, kept)| match id {
            MixtureId::Carried { part, number } => {
                let name = about.source.spec.carried.get(*part).map_or("", |carried| carried.name);
                Some((format!("{name} {number}"), kept))
            }
            MixtureId::Layer(_) => None,
        })
        .collect();
    let table = match about.table {
        Some((path, table)) => json!({
            "path": path.file_name().unwrap_or_default().to_string_lossy(),
            "sha256": crate::model::hash_file(path)?.0,
            "model": table.model,
            "calibration_corpus": table.calibration_corpus,
            "calibration_sha256": table.calibration_sha256,
            "calibration_examples": table.calibration_examples,
            "calibration_tokens": table.calibration_tokens,
            "metric_version": table.metric_version,
        }),
        None => Value::Null,
    };
    let mut selection = json!({
        "metric": about.choice.metric,
        "layout_family": layout(about.source),
        "importance_json": table,
        "held_out": about.choice.held_out,
        "candidates": about.choice.table(),
        "per_layer_kept_count": kept.iter().map(|(layer, kept)| (layer.to_string(), kept.len())).collect::<BTreeMap<_, _>>(),
        "per_layer_kept_indices": kept,
    });
    if !carried.is_empty() {
        selection["carried_kept_indices"] = json!(carried);
    }
    Ok(selection)
}

/// How the source's files keep experts.
pub(super) fn layout(model: &OpenModel) -> &'static str {
    let tensors = model.storage().tensors();
    let is_stack = tensors.iter().any(|tensor| matches!(tensor.holding, Holding::Stack { .. }));
    let has_shared = model.spec.mixtures().any(|(_, moe)| moe.shared.is_some());
    let block_sparse = tensors.iter().any(|tensor| tensor.name.contains(".block_sparse_moe."));
    match (is_stack, block_sparse, has_shared) {
        (true, true, _) => "granite-moe-fused",
        (true, false, _) => "mlp-experts-fused",
        (false, true, _) => "block_sparse_moe-unfused",
        (false, false, true) => "deepseek-routed-shared",
        (false, false, false) => "mlp-experts-unfused",
    }
}

fn shards_out(about: &About<'_>) -> Vec<Value> {
    let shard = |(i, file): (usize, &crate::model::FileHash)| {
        let tensors = about.pruned.stored.metas().iter().filter(|meta| meta.file == i).count();
        json!({ "path": file.filename, "bytes": file.size, "sha256": file.sha256, "tensor_count": tensors })
    };
    about.written.weights.iter().enumerate().map(shard).collect()
}
