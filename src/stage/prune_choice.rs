//! Which experts a prune keeps, and what that would cost, found before a byte is written.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::Span;
use super::calibration::HeldOut;
use super::prune_healing::Healing;
use crate::assay::{Divergence, divergence};
use crate::compress::{Importance, Kept, Metric, choose_experts, survivors};
use crate::engine::{PassOptions, PassProgress, Variant};
use crate::family::OpenModel;
use crate::fault::{Fault, Outcome};
use crate::gate::{self, DamageFigures, DamageLimit, Evidence};
use crate::recipe::stages::{ExpertMetric, ExpertPrune, Ranking};

/// One ranking that was looked at.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Candidate {
    pub metric: Metric,
    #[serde(skip)]
    pub kept: Kept,
    /// What keeping its choice would cost; `None` without held-out text.
    pub damage: Option<Divergence>,
}

/// The ranking that was taken, and all that were looked at.
pub(super) struct Choice {
    pub metric: Metric,
    pub kept: Kept,
    pub damage: Option<Divergence>,
    pub candidates: Vec<Candidate>,
    /// Which text the damage was measured on.
    pub held_out: Option<String>,
    /// What router-kd found, when the recipe asked for it.
    pub healing: Option<Healing>,
}

/// Chooses experts by the prune's ranking, on `held_out` text where there is some.
pub(super) fn choose(
    model: &OpenModel,
    metrics: &[Metric],
    importance: Option<&Importance>,
    keep: usize,
    held_out: Option<&HeldOut>,
    pass: &PassOptions,
    span: Span<'_>,
) -> Outcome<Choice> {
    let mut candidates = Vec::with_capacity(metrics.len());
    for &metric in metrics {
        let kept = choose_experts(model, metric, importance, keep)?;
        candidates.push(Candidate { metric, kept, damage: None });
    }
    if let Some(text) = held_out {
        measure(model, &mut candidates, text, pass, span)?;
    }
    // The first of equals: the recipe's order.
    let kld = |candidate: &Candidate| candidate.damage.as_ref().map_or(0.0, |damage| damage.kld);
    let best = candidates.iter().min_by(|a, b| kld(a).total_cmp(&kld(b))).cloned();
    let best = best.ok_or_else(|| Fault::internal("plan: expert-prune without a ranking"))?;
    Ok(Choice {
        metric: best.metric,
        kept: best.kept,
        damage: best.damage,
        candidates,
        held_out: held_out.map(|text| text.origin.clone()),
        healing: None,
    })
}

/// Runs every different choice beside the model, in one pass.
fn measure(
    model: &OpenModel,
    candidates: &mut [Candidate],
    text: &HeldOut,
    pass: &PassOptions,
    span: Span<'_>,
) -> Outcome<()> {
    let mut different: Vec<Kept> = Vec::new();
    for candidate in candidates.iter() {
        if !different.contains(&candidate.kept) {
            different.push(candidate.kept.clone());
        }
    }
    let variants: Vec<Variant> = different.iter().map(|kept| Variant::keeping(&survivors(kept))).collect();
    let report = |p: PassProgress| span.at_rate(p.fraction, "estimate the damage", Some(p.tokens_per_s));
    let found = divergence(model, &variants, &text.sequences, pass, &report)?;
    for candidate in candidates {
        let at = different.iter().position(|kept| *kept == candidate.kept);
        candidate.damage = at.and_then(|at| found.get(at)).cloned();
    }
    Ok(())
}

/// The metrics a prune looks at: its ranking, else the metric of the profile before it, else what an importance table
/// of counts can give.
pub(super) fn metrics(prune: &ExpertPrune, of_profile: Option<ExpertMetric>) -> Outcome<Vec<Metric>> {
    let ranking = prune.ranking().unwrap_or(Ranking::One(of_profile.unwrap_or(ExpertMetric::ActivationCount)));
    let known = |metric: &ExpertMetric| {
        let metric = ExpertMetric::named(metric.as_str());
        Metric::parse(metric.as_str()).ok_or_else(|| {
            Fault::recipe(format!("`{metric}` is no ranking of experts"))
                .hint(Metric::ALL.map(Metric::as_str).join(", "))
        })
    };
    ranking.metrics().iter().map(known).collect()
}

impl Choice {
    /// Holds the damage against the recipe's limits; evidence for the result, or the fault that stops the part.
    pub fn judge(&self, prune: &ExpertPrune, subject: &str) -> Outcome<Option<Evidence>> {
        let Some(damage) = &self.damage else { return Ok(None) };
        let figures = DamageFigures {
            positions: damage.positions,
            kld: damage.kld,
            kld_stderr: damage.kld_stderr,
            base_perplexity: damage.base_perplexity,
            perplexity: damage.perplexity,
        };
        let limit = DamageLimit { max_kld: prune.max_kld, quality_halt: prune.quality_halt() };
        let evidence = gate::judge_damage(subject, figures, limit)?
            .with("metric", self.metric.as_str())
            .with("same_top", damage.same_top)
            .with("held_out", self.held_out.clone());
        let evidence = match &self.healing {
            Some(healing) => evidence.with("router_kd", healing.figures()),
            None => evidence,
        };
        Ok(Some(if self.candidates.len() > 1 { evidence.with("candidates", self.table()) } else { evidence }))
    }

    /// Every candidate with what it would cost.
    pub fn table(&self) -> Value {
        let row = |candidate: &Candidate| {
            let (kld, stderr, same_top, perplexity) = candidate.damage.as_ref().map_or((None, None, None, None), |d| {
                (Some(d.kld), Some(d.kld_stderr), Some(d.same_top), Some(d.perplexity))
            });
            json!({ "metric": candidate.metric, "kld": kld, "kld_stderr": stderr, "same_top": same_top, "perplexity": perplexity })
        };
        self.candidates.iter().map(row).collect()
    }

    /// Survivors for the metadata: those of the blocks by layer.
    pub fn by_layer(&self) -> BTreeMap<usize, Vec<usize>> {
        survivors(&self.kept)
    }
}
