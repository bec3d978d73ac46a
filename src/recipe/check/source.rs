//! Whether the root and the facts stated about the source agree with themselves.

use super::values::plain;
use crate::recipe::finding::Finding;
use crate::recipe::json::excerpt;
use crate::recipe::root::{AlloySource, Recipe};
use crate::recipe::stages::StageSpec;

pub(super) fn check(recipe: &Recipe) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(name(&recipe.name));
    findings.extend(version(&recipe.version));
    placeholders(&recipe.source, &mut findings);
    counts(&recipe.source, &mut findings);
    experts_of_a_dense_model(recipe, &mut findings);
    memory(recipe, &mut findings);
    repeats(recipe, &mut findings);
    findings
}

/// The name becomes a directory.
fn name(name: &str) -> Option<Finding> {
    let bad = name.chars().find(|c| c.is_control() || "/\\:*?\"<>|".contains(*c));
    let cause = if let Some(c) = bad {
        format!("the name {:?} holds {c:?}, and the artifact's directory is named by it", excerpt(name))
    } else if name.starts_with('.') {
        format!("the name {:?} starts with a dot: the artifact would be hidden", excerpt(name))
    } else if name.len() > 200 {
        format!("the name has {} bytes; a directory's name may have 255 with what is added to it", name.len())
    } else {
        return None;
    };
    Some(Finding::error("name", cause).hint("use letters, digits, `.`, `-` and `_`"))
}

fn version(version: &str) -> Option<Finding> {
    let parts: Vec<&str> = version.split('.').collect();
    let number = |part: &&str| !part.is_empty() && part.bytes().all(|c| c.is_ascii_digit());
    let good = parts.len() == 3 && parts.iter().all(number);
    (!good).then(|| {
        Finding::error("version", format!("`{}` is not of the form MAJOR.MINOR.PATCH", excerpt(version)))
            .hint("e.g. 1.0.0")
    })
}

fn placeholders(source: &AlloySource, findings: &mut Vec<Finding>) {
    for (key, text) in [("source.baseModel", &source.base_model), ("source.architecture", &source.architecture)] {
        let upper = text.to_uppercase();
        if ["TODO", "TBD", "XXX"].iter().any(|mark| upper.contains(mark)) {
            findings.push(Finding::error(key, format!("`{}` is a placeholder", excerpt(text))).hint("fill it in"));
        }
    }
}

fn counts(source: &AlloySource, findings: &mut Vec<Finding>) {
    if let (Some(active), Some(experts)) = (source.num_activated_experts, source.num_experts_per_layer)
        && active > experts
    {
        let message = format!("a token cannot use {active} of {experts} experts");
        findings.push(Finding::error("source.numActivatedExperts", message));
    }
    if let (Some(active), Some(total)) = (source.active_params_b, source.total_params_b)
        && active > total
    {
        let message = format!("{} of {} billion parameters cannot be active", plain(active), plain(total));
        findings.push(Finding::error("source.activeParamsB", message));
    }
    for (key, params) in [("totalParamsB", source.total_params_b), ("activeParamsB", source.active_params_b)] {
        if let Some(params) = params.filter(|p| *p > 100_000.0) {
            let message = format!("{} is counted in billions: no model has that many", plain(params));
            let hint = format!("write {}", plain(params / 1e9));
            findings.push(Finding::error(format!("source.{key}"), message).hint(hint));
        }
    }
    if let (Some(dense), Some(layers)) = (source.first_k_dense_replace, source.num_layers)
        && dense > layers
    {
        let message = format!("{dense} layers without experts, but the model has {layers}");
        findings.push(Finding::error("source.firstKDenseReplace", message));
    }
}

fn experts_of_a_dense_model(recipe: &Recipe, findings: &mut Vec<Finding>) {
    if recipe.source.is_moe != Some(false) {
        return;
    }
    for (i, stage) in recipe.stages.iter().enumerate() {
        if matches!(stage, StageSpec::ExpertPrune(_) | StageSpec::ExpertActivationProfile(_)) {
            let message = format!("`{}` needs experts, and source.isMoE says there are none", stage.type_name());
            findings
                .push(Finding::error(format!("stages[{i}]"), message).hint("set source.isMoE, or remove the stage"));
        }
    }
}

fn memory(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let Some(hardware) = &recipe.hardware else { return };
    if let (Some(min), Some(good)) = (hardware.min_vram_gb, hardware.recommended_vram_gb)
        && min > good
    {
        let message = format!("{} GB recommended, but {} GB needed", plain(good), plain(min));
        findings.push(Finding::warning("hardware.recommendedVramGb", message));
    }
    for (key, gb) in [("minVramGb", hardware.min_vram_gb), ("recommendedVramGb", hardware.recommended_vram_gb)] {
        findings.extend(gb.and_then(|gb| looks_like_megabytes(format!("hardware.{key}"), gb)));
    }
}

/// No device has a thousand gigabytes.
pub(super) fn looks_like_megabytes(key: String, gb: f64) -> Option<Finding> {
    (gb > 1000.0).then(|| {
        Finding::warning(key, format!("{} GB of device memory: this is counted in GB", plain(gb)))
            .hint(format!("if these are MB, write {}", plain((gb / 1000.0).round())))
    })
}

fn repeats(recipe: &Recipe, findings: &mut Vec<Finding>) {
    let repeated = |stage: &StageSpec| matches!(stage, StageSpec::ExpertPrune(_));
    if let (true, Some(i)) = (recipe.cycles() > 1, recipe.stages.iter().position(repeated)) {
        let message =
            format!("with {} cycles stages[{i}] runs again on its own result and removes nothing", recipe.cycles());
        findings.push(Finding::warning("cycles", message).hint("write 1, or an `expert-prune` stage per step"));
    }
}
