//! The sidecar of an expert prune: what was decided, from what, and what became of the tensors.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Value, json};

use super::prune_choice::Choice;
use super::prune_healing::Healing;
use super::{StageContext, directory};
use crate::compress::{Importance, PrunePlan, PruneReport};
use crate::family::{Holding, MixtureId, OpenModel};
use crate::fault::Outcome;
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
    let counts = about.report.counts;
    let mut document = directory::provenance(cx, "expert-prune", started);
    let mut put = |key: &str, value: Value| document.insert(key.to_owned(), value);
    put("total_bytes_out", json!(about.report.bytes_out));
    put("selection", selection(about)?);
    put("damage", json!(about.choice.damage));
    put("router_kd", json!(about.choice.healing.as_ref().map(Healing::figures)));
    put(
        "tensors",
        json!({
            "kept_unchanged": counts.kept_unchanged,
            "kept_renamed": counts.kept_renamed,
            "router_gate_sliced": counts.routers_sliced,
            "router_recomputed": counts.routers_recomputed,
            "stack_sliced": counts.stacks_sliced,
            "dropped_expert": counts.dropped,
        }),
    );
    put("shards_out", directory::shards_out(about.written, &*about.pruned.stored));
    put("errors", json!([]));
    directory::write_metadata(out, METADATA_FILE, &document)
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
