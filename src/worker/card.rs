//! The model card: a short text whose every number comes from the result.

use std::fmt::Write;

use super::certify::{Outcomes, Shipped};
use crate::assay::Divergence;
use crate::stage::Measurement;

/// `README.md` of the artifact folder.
pub(super) fn render(outcomes: &Outcomes<'_>) -> String {
    let recipe = outcomes.recipe.recipe();
    let plan = outcomes.cx.plan;
    let mut out = String::new();
    let mut line = |text: &str| {
        out.push_str(text);
        out.push('\n');
    };
    line("---");
    line(&format!("license: {}", recipe.license.as_deref().unwrap_or("apache-2.0")));
    line(&format!("base_model: {}", plan.source.base_model));
    line("---");
    line(&format!("# {}\n", plan.name));
    if let Some(text) = recipe.user_summary.as_deref().or(recipe.description.as_deref()).filter(|t| !t.is_empty()) {
        line(&format!("{text}\n"));
    }
    line(&format!("Made from `{}` by these stages:\n", plan.source.base_model));
    for stage in &outcomes.summary.stages {
        let summary = stage.summary.as_deref().map_or_else(String::new, |s| format!(": {s}"));
        line(&format!("- {}{summary}", stage.title));
    }
    line("");
    line(&table(outcomes));
    if let Some(m) =
        outcomes.base().next().or_else(|| outcomes.artifacts.iter().find_map(|a| a.measurements.first().copied()))
    {
        line(&format!(
            "Perplexity: convention `{}`, windows of {} tokens, {} tokens scored, the same text for every row \
             (SHA-256 `{}`). ± is the standard error of the mean, carried over to the perplexity.\n",
            m.convention, m.context, m.tokens, m.data_sha256
        ));
    }
    if outcomes.artifacts.iter().any(|a| a.divergences().next().is_some()) {
        line(
            "KLD: mean Kullback-Leibler divergence from the base on the same tokens, over the whole vocabulary, in nats \
             per token. Same top-1: how often base and file think the same next token best.\n",
        );
    }
    let gguf: Vec<&Shipped<'_>> = outcomes.artifacts.iter().filter(|a| a.artifact.format == "gguf").collect();
    if let Some(first) = gguf.first() {
        line("## Run it\n");
        line(&format!("```sh\nllama-cli -m {} -p \"Once upon a time\" -n 64\n```\n", first.name));
    }
    line("## Provenance\n");
    line(&format!("- source model hash: `{}`", plan.source.model_hash.tagged()));
    if let Some(sha) = outcomes.model_hash {
        line(&format!("- model hash: `{}`", sha.tagged()));
    }
    for file in &outcomes.weights {
        line(&format!("- `{}`: {} bytes, SHA-256 `{}`", file.path.display(), file.size, file.sha256));
    }
    line(&format!("- recipe: `{}.alloy.json` (as written: SHA-256 `{}`)", plan.part, plan.alloy_hash));
    line(&format!("- made by factoryline {}, {}", env!("CARGO_PKG_VERSION"), outcomes.completed_at));
    out
}

fn table(outcomes: &Outcomes<'_>) -> String {
    let mut out = String::from(
        "| | bits per weight | bytes | parameters | perplexity | KLD | same top-1 |\n|---|---|---|---|---|---|---|\n",
    );
    let not_measured = || "not measured".to_owned();
    let ppl = |m: &Measurement| format!("{:.4} ± {:.4}", m.perplexity, m.perplexity * m.nll_stderr);
    let base = outcomes.base().next().map_or_else(not_measured, ppl);
    let is_weights = |name: &str| name.ends_with(".safetensors") || name.ends_with(".gguf");
    let source = &outcomes.cx.plan.source;
    let bytes: u64 = source.files.iter().filter(|file| is_weights(&file.name)).map(|file| file.size.0).sum();
    let _ = writeln!(out, "| base `{}` | | {bytes} | | {base} | | |", source.base_model);
    for shipped in &outcomes.artifacts {
        let a = shipped.artifact;
        let name = if shipped.name == "." { &a.format } else { &shipped.name };
        let measured = shipped.measurements.first().map_or_else(not_measured, |m| ppl(m));
        let kld = |d: &Divergence| format!("{:.6} ± {:.6}", d.kld, d.kld_stderr);
        let same = |d: &Divergence| format!("{:.2} ± {:.2} %", 100.0 * d.same_top, 100.0 * d.same_top_stderr);
        let divergence = shipped.divergences().next();
        let (kld, same) = (divergence.map_or_else(not_measured, kld), divergence.map_or_else(not_measured, same));
        let _ = writeln!(
            out,
            "| `{name}` ({}) | {:.2} | {} | {} | {measured} | {kld} | {same} |",
            a.dtype, a.bits_per_weight, a.bytes, a.parameters
        );
    }
    out
}
