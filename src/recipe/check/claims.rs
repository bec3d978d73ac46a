//! Whether what a recipe says in words and in counted figures follows from its keys, by arithmetic.
//!
//! A number in a name or a description is read only where it can mean one thing: `40→20` or `80 of 128 experts`, a size
//! beside a quantization type (`22 GB Q4_K_M`), a count of parameters behind `compacted` or `pruned` in the name.

use super::fit::{TIGHT, bits_per_weight, params_after, rounded};
use super::values::plain;
use crate::recipe::finding::Finding;
use crate::recipe::root::{AlloySource, Recipe};
use crate::recipe::stages::{ExpertPrune, Quant, StageSpec};

/// Stated and computed figures may differ by this share: parameters are rounded, files hold more than weights.
const ROUNDING: f64 = 0.1;
/// The same for the size of a file, which depends on the writer's choice of types.
const FILE_ROUNDING: f64 = 0.2;
/// Benchmarks by what goes into the model beside text.
const SEES: [&str; 4] = ["mmmu", "chartqa", "docvqa", "ai2d"];
const HEARS: [&str; 3] = ["covost2", "librispeech", "gtzan"];

pub(super) fn check(recipe: &Recipe) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(activity(&recipe.source));
    findings.extend(name_size(recipe));
    for (key, text) in [("description", &recipe.description), ("userSummary", &recipe.user_summary)] {
        let Some(text) = text else { continue };
        findings.extend(expert_counts(recipe, text).map(|(message, hint)| Finding::warning(key, message).hint(hint)));
        findings.extend(file_sizes(recipe, text, key));
    }
    for (i, stage) in recipe.stages.iter().enumerate() {
        if let StageSpec::ExpertPrune(prune) = stage {
            removed_counts(&recipe.source, i, prune, &mut findings);
        }
    }
    findings.extend(padded_heads(recipe));
    findings.extend(unheard(recipe));
    findings
}

/// Total and active parameters differ by the experts a token does not use; so does the geometry.
fn activity(source: &AlloySource) -> Option<Finding> {
    let (total, active) = (source.total_params_b?, source.active_params_b?);
    let (count, used) = (source.num_experts_per_layer?, source.num_activated_experts?);
    let layers = source.num_layers?.checked_sub(source.first_k_dense_replace.unwrap_or(0))?;
    let one = 3.0 * source.hidden_size? as f64 * source.moe_intermediate_size? as f64;
    let idle = one * f64::from(count.checked_sub(used)?) * f64::from(layers) / 1e9;
    let stated = total - active;
    ((idle - stated).abs() > ROUNDING * stated.max(0.0)).then(|| {
        let message = format!(
            "{} billion parameters in all and {} active leave {} idle, but the geometry stated ({layers} layers with \
             {count} experts, {used} of them used) leaves {}",
            plain(total),
            plain(active),
            rounded(stated),
            rounded(idle)
        );
        Finding::warning("source.totalParamsB", message).hint("take the figures from the model's config.json")
    })
}

/// `…-compacted-70b`: the result's parameters, if they can be told.
fn name_size(recipe: &Recipe) -> Option<Finding> {
    let mut words = recipe.name.split('-').skip_while(|word| !["compacted", "pruned"].contains(word)).skip(1);
    let (word, stated) = words.find_map(|word| Some((word, word.strip_suffix('b')?.parse::<f64>().ok()?)))?;
    let params = params_after(recipe, recipe.stages.len()).filter(|_| prunes_experts(recipe))?;
    ((stated - params).abs() > ROUNDING * params).then(|| {
        let message = format!("`{word}` in the name, but {} billion parameters are left", rounded(params));
        Finding::warning("name", message).hint("correct the name or the number of experts kept")
    })
}

fn prunes_experts(recipe: &Recipe) -> bool {
    recipe.stages.iter().any(|stage| matches!(stage, StageSpec::ExpertPrune(_)))
}

/// Experts per layer before the first and after the last prune.
fn experts(recipe: &Recipe) -> Option<(u32, u32)> {
    let prunes: Vec<&ExpertPrune> = recipe
        .stages
        .iter()
        .filter_map(|stage| if let StageSpec::ExpertPrune(prune) = stage { Some(prune) } else { None })
        .collect();
    let before = recipe.source.num_experts_per_layer.or(prunes.first()?.original_experts_per_layer)?;
    Some((before, prunes.last()?.keep()?))
}

/// `128→80`, `128 -> 80`, `80 of 128 experts`.
fn expert_counts(recipe: &Recipe, text: &str) -> Option<(String, String)> {
    let (before, kept) = experts(recipe)?;
    let hint = || format!("the keys say {before} → {kept}");
    for arrow in ["→", "->"] {
        for (at, _) in text.match_indices(arrow) {
            let from = trailing_count(&text[..at]);
            let to = leading_count(&text[at + arrow.len()..]);
            if let (Some(from), Some(to)) = (from, to)
                && from == before
                && to != kept
            {
                return Some((format!("`{from}→{to}`, but {kept} experts per layer are kept"), hint()));
            }
        }
    }
    let words: Vec<&str> = text.split_whitespace().collect();
    for window in words.windows(4) {
        let [some, "of", all, next] = window else { continue };
        let (Ok(some), Ok(all)) = (some.parse::<u32>(), all.parse::<u32>()) else { continue };
        let about_experts = next.starts_with("expert") || *next == "routed";
        if about_experts && (some, all) != (kept, before) && (before - kept.min(before), before) != (some, all) {
            return Some((format!("`{some} of {all} experts`, but {kept} of {before} are kept"), hint()));
        }
    }
    None
}

fn trailing_count(text: &str) -> Option<u32> {
    let text = text.trim_end();
    let digits = text.len() - text.bytes().rev().take_while(u8::is_ascii_digit).count();
    text[digits..].parse().ok()
}

fn leading_count(text: &str) -> Option<u32> {
    let text = text.trim_start();
    text[..text.bytes().take_while(u8::is_ascii_digit).count()].parse().ok()
}

/// A size in GB that stands beside the name of a type: `~22 GB Q4_K_M`, `Q8_0 (21 GB)`.
fn file_sizes(recipe: &Recipe, text: &str, key: &str) -> Vec<Finding> {
    let Some(params) = params_after(recipe, recipe.stages.len()) else { return Vec::new() };
    let words: Vec<&str> = text
        .split_whitespace()
        .map(|word| word.trim_matches(|c: char| !c.is_ascii_alphanumeric()))
        .filter(|word| !word.is_empty())
        .collect();
    let size = |i: usize| words.get(i)?.parse::<f64>().ok().filter(|_| words.get(i + 1) == Some(&"GB"));
    let mut findings = Vec::new();
    for (i, word) in words.iter().enumerate() {
        let Some(bits) = bits_per_weight(word) else { continue };
        let Some(stated) = i.checked_sub(2).and_then(size).or_else(|| size(i + 1)) else { continue };
        let computed = params * bits / 8.0;
        if (stated - computed).abs() > FILE_ROUNDING * computed {
            let message = format!(
                "{} GB in {word}, but {} billion weights take {} GB",
                plain(stated),
                rounded(params),
                rounded(computed)
            );
            findings.push(Finding::warning(key, message).hint("correct the text or what is kept"));
        }
    }
    findings
}

/// What a prune is said to have dropped, renamed and cut. Published recipes count an expert as its three tensors.
fn removed_counts(source: &AlloySource, i: usize, prune: &ExpertPrune, findings: &mut Vec<Finding>) {
    let layers = source.num_layers.and_then(|n| n.checked_sub(source.first_k_dense_replace.unwrap_or(0)));
    let before = source.num_experts_per_layer.or(prune.original_experts_per_layer);
    let (Some(layers), Some(before), Some(kept)) = (layers, before, prune.keep()) else { return };
    let layers = u64::from(layers);
    let counts = [
        ("expertsDropped", prune.experts_dropped, layers * u64::from(before.saturating_sub(kept))),
        ("expertsRenamed", prune.experts_renamed, layers * u64::from(kept)),
        ("routerSlicedLayers", prune.router_sliced_layers, layers),
    ];
    for (key, stated, counted) in counts {
        let Some(stated) = stated else { continue };
        if stated != counted && (key == "routerSlicedLayers" || stated != 3 * counted) {
            let message = format!("{stated}, but {layers} layers with {before} → {kept} experts make {counted}");
            let hint = "remove the key: it tells what was done, and the build counts for itself";
            findings.push(Finding::warning(format!("stages[{i}].{key}"), message).hint(hint));
        }
    }
}

/// Heads set to zero stay in the files: where the limit on memory is nearly or wholly used up, they do not help.
fn padded_heads(recipe: &Recipe) -> Option<Finding> {
    let limit = recipe.acceptance_criteria.as_ref()?.hardware.as_ref()?.max_vram_gb?;
    let padded = |stage: &StageSpec| match stage {
        StageSpec::Prune(prune) => prune.level > 0.0 && prune.defrag_mode.as_deref() != Some("slice"),
        _ => false,
    };
    let i = recipe.stages.iter().position(padded)?;
    let quants: Vec<&Quant> = recipe
        .stages
        .iter()
        .filter_map(|stage| if let StageSpec::Quant(quant) = stage { Some(quant) } else { None })
        .collect();
    // A target counts the bytes that are there.
    if quants.iter().any(|quant| quant.target.is_some()) {
        return None;
    }
    let types = quants.into_iter().map(|quant| &quant.quant_types);
    let smallest = types.flatten().filter_map(|name| bits_per_weight(name)).reduce(f64::min).unwrap_or(16.0);
    let needed = params_after(recipe, recipe.stages.len())? * smallest / 8.0;
    (needed > limit * TIGHT).then(|| {
        let message = format!(
            "padded heads stay in the tensors as zeros and free no bytes: the smallest file takes {} GB, maxVramGb is {}",
            rounded(needed),
            plain(limit)
        );
        Finding::warning(format!("stages[{i}].defragMode"), message).hint("write `slice`, or take a smaller type")
    })
}

/// A model that hears is not shown to do so by benchmarks that only see.
fn unheard(recipe: &Recipe) -> Option<Finding> {
    let of_source = recipe.source.extra.get("modalities").and_then(|m| m.as_array());
    let stated = of_source.into_iter().flatten().filter_map(|word| word.as_str());
    let aimed = recipe.target.iter().flat_map(|t| t.modalities.iter().flatten()).map(String::as_str);
    let speaks = recipe.source.extra.contains_key("numTalkerLayers");
    if !speaks && !stated.chain(aimed).any(|word| word == "audio") {
        return None;
    }
    let floors = recipe.acceptance_criteria.as_ref()?.benchmarks.as_ref()?;
    let any = |list: &[&str]| floors.keys().any(|name| list.contains(&name.as_str()));
    (any(&SEES) && !any(&HEARS)).then(|| {
        let message = "the model takes audio, but every criterion is on vision: damage to what it hears goes unseen";
        let hint =
            format!("add a criterion on one of {}, or say in `limitations` that it is not shown", HEARS.join(", "));
        Finding::warning("acceptanceCriteria.benchmarks", message).hint(hint)
    })
}

#[cfg(test)]
mod tests;
