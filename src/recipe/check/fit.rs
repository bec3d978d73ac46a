//! Whether the files a recipe asks for can fit the memory it promises, by arithmetic.
//!
//! Weights alone are counted: parameters times bits per weight of the whole file. Context needs memory on top, so a
//! file that just fits is worth a warning.

use super::values::plain;
use crate::recipe::finding::Finding;
use crate::recipe::root::{AlloySource, Recipe};
use crate::recipe::stages::{Quant, QuantAim, QuantTarget, StageSpec};

/// Above this share of the limit no room is left to speak of for the context.
pub(super) const TIGHT: f64 = 0.95;

pub(super) fn check(recipe: &Recipe) -> Vec<Finding> {
    let mut findings = Vec::new();
    let criteria = recipe.acceptance_criteria.as_ref();
    let memory = criteria.and_then(|c| c.hardware.as_ref()).and_then(|h| h.max_vram_gb);
    let size = criteria.and_then(|c| c.size.as_ref()).and_then(|s| s.max_gb);
    findings.extend(memory.and_then(|limit| unquantized(recipe, limit)));
    for (i, stage) in recipe.stages.iter().enumerate() {
        let StageSpec::Quant(quant) = stage else { continue };
        let Some(params_b) = params_after(recipe, i) else { continue };
        let key = format!("stages[{i}].quantTypes");
        if let Some(limit) = memory {
            findings.extend(fits(quant, params_b, limit, &key, "acceptanceCriteria.hardware.maxVramGb"));
        }
        if let Some(limit) = size {
            findings.extend(fits(quant, params_b, limit, &key, "acceptanceCriteria.size.maxGb"));
        }
    }
    findings
}

/// Without a `quant` stage the result has 16 bits per weight.
fn unquantized(recipe: &Recipe, limit_gb: f64) -> Option<Finding> {
    let changes = |stage: &StageSpec| matches!(stage, StageSpec::ExpertPrune(_) | StageSpec::Prune(_));
    if !recipe.stages.iter().any(changes) || recipe.stages.iter().any(|stage| matches!(stage, StageSpec::Quant(_))) {
        return None;
    }
    let params_b = params_after(recipe, recipe.stages.len())?;
    let (needed, limit) = (params_b * 2.0, plain(limit_gb));
    let key = "acceptanceCriteria.hardware.maxVramGb";
    let (weights, needed_text) = (rounded(params_b), rounded(needed));
    if needed > limit_gb {
        let message = format!("{weights} billion weights in 16 bits take {needed_text} GB, maxVramGb is {limit}");
        Some(Finding::error(key, message).hint("add a `quant` stage, keep less of the model, or raise the limit"))
    } else if needed > limit_gb * TIGHT {
        let message = format!("hardly any of the {limit} GB is left for the context: 16 bits take {needed_text} GB");
        Some(Finding::warning(key, message).hint("a `quant` stage, or more pruning, leaves room"))
    } else {
        None
    }
}

/// One finding when none of the files fits, or some do not, or all that fit are tight; nothing when a type is not in
/// the table and might fit.
fn fits(quant: &Quant, params_b: f64, limit_gb: f64, key: &str, rule: &str) -> Option<Finding> {
    let mut sizes = Vec::new();
    match quant.target.as_ref().map(QuantTarget::aim) {
        Some(Ok(QuantAim::Bytes(bytes))) => sizes.push(("the target's", bytes as f64 / 1e9)),
        Some(Ok(QuantAim::BitsPerWeight(bits))) => sizes.push(("the target's", params_b * bits / 8.0)),
        // What keeps within a divergence is found when it is built.
        Some(_) => return None,
        None => {
            for name in &quant.quant_types {
                sizes.push((name.as_str(), params_b * bits_per_weight(name)? / 8.0));
            }
        }
    }
    let list = |pick: &dyn Fn(f64) -> bool| -> Vec<String> {
        let picked = sizes.iter().filter(|(_, gb)| pick(*gb));
        picked.map(|(name, gb)| format!("{name} {} GB", rounded(*gb))).collect()
    };
    let limit = plain(limit_gb);
    let too_large = list(&|gb| gb > limit_gb);
    let tight = list(&|gb| gb <= limit_gb && gb > limit_gb * TIGHT);
    if sizes.is_empty() || too_large.is_empty() && tight.is_empty() {
        return None;
    }
    let weights = rounded(params_b);
    Some(if too_large.len() == sizes.len() {
        let message = format!(
            "no listed type fits the {limit} GB of {rule}: {} ({weights} billion weights)",
            too_large.join(", ")
        );
        Finding::error(key, message).hint(smaller_type(params_b, limit_gb))
    } else if !too_large.is_empty() {
        let message = format!(
            "some types do not fit the {limit} GB of {rule}: {} ({weights} billion weights)",
            too_large.join(", ")
        );
        Finding::warning(key, message).hint("the part passes on the others; remove these or raise the limit")
    } else {
        let message = format!("hardly any of the {limit} GB of {rule} is left for the context: {}", tight.join(", "));
        Finding::warning(key, message).hint("a smaller type, or more pruning, leaves room")
    })
}

fn smaller_type(params_b: f64, limit_gb: f64) -> String {
    let fitting = TABLE.iter().find(|(_, bits)| params_b * bits / 8.0 <= limit_gb * TIGHT);
    match fitting {
        Some((name, bits)) => {
            let gb = rounded(params_b * bits / 8.0);
            format!("{name} would take {gb} GB; or keep less of the model, or raise the limit")
        }
        None => "keep less of the model, or raise the limit".to_owned(),
    }
}

/// Two decimals below ten, one above.
pub(super) fn rounded(x: f64) -> String {
    let digits = if x < 10.0 { 100.0 } else { 10.0 };
    plain((x * digits).round() / digits)
}

/// Parameters, in 10^9, of the model that stage `index` reads, as far as the recipe states what is needed to tell.
///
/// Expert pruning keeps `non_expert + expert · kept / total`. Head pruning counts as removing nothing: whether the
/// heads leave the tensors is not the recipe's to say.
pub fn params_after(recipe: &Recipe, index: usize) -> Option<f64> {
    let total = recipe.source.total_params_b.filter(|p| *p > 0.0 && *p < 100_000.0)?;
    let kept = recipe.stages[..index.min(recipe.stages.len())].iter().filter_map(|s| {
        if let StageSpec::ExpertPrune(p) = s { Some((p.keep()?, p.original_experts_per_layer)) } else { None }
    });
    let Some((keep, stated)) = kept.reduce(|first, last| (last.0, first.1)) else { return Some(total) };
    let before = recipe.source.num_experts_per_layer.or(stated)?;
    let experts = expert_params_b(&recipe.source, total, before)?;
    let share = f64::from(keep.min(before)) / f64::from(before);
    Some(total - experts + experts * share)
}

/// Parameters of all routed experts, in 10^9: from the geometry when it is stated, else from total and active
/// parameters (`active = rest + experts · top_k / count`).
fn expert_params_b(source: &AlloySource, total_b: f64, count: u32) -> Option<f64> {
    let geometry = || {
        let layers = source.num_layers?.checked_sub(source.first_k_dense_replace.unwrap_or(0))?;
        let one = 3.0 * source.hidden_size? as f64 * source.moe_intermediate_size? as f64;
        Some(one * f64::from(count) * f64::from(layers) / 1e9)
    };
    let activity = || {
        let idle_share = 1.0 - f64::from(source.num_activated_experts?) / f64::from(count);
        (idle_share > 0.0).then_some((total_b - source.active_params_b?) / idle_share)
    };
    geometry().filter(|b| *b <= total_b).or_else(activity).filter(|b| (0.0..=total_b).contains(b))
}

/// Bits per weight of whole GGUF files, largest first: what files of models of some billion parameters come to,
/// their few tensors of other types included.
const TABLE: &[(&str, f64)] = &[
    ("F32", 32.0),
    ("F16", 16.0),
    ("BF16", 16.0),
    ("Q8_0", 8.5),
    ("Q6_K", 6.57),
    ("Q5_1", 6.0),
    ("Q5_K_M", 5.69),
    ("Q5_K_S", 5.54),
    ("Q5_0", 5.54),
    ("Q4_1", 5.05),
    ("Q4_K_M", 4.85),
    ("Q4_K_S", 4.6),
    ("IQ4_NL", 4.57),
    ("Q4_0", 4.55),
    ("IQ4_XS", 4.33),
    ("Q3_K_L", 4.27),
    ("Q3_K_M", 3.91),
    ("Q3_K_S", 3.5),
    ("Q2_K", 3.0),
];

/// Bits per weight of a whole file in this type; `None` for a type not in the table.
pub fn bits_per_weight(quant_type: &str) -> Option<f64> {
    TABLE.iter().find(|(name, _)| name.eq_ignore_ascii_case(quant_type)).map(|(_, bits)| *bits)
}
