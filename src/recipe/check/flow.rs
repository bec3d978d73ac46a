//! Whether the stages follow from each other: what one needs, an earlier one makes.

use std::collections::HashSet;

use super::values::plain;
use crate::recipe::finding::{Finding, suggest};
use crate::recipe::json::excerpt;
use crate::recipe::root::Recipe;
use crate::recipe::stages::{
    Eval, ExpertMetric, ExpertPrune, Lora, Prune, Quant, QuantTarget, Ranking, StagePosition as Position, StageSpec,
    Train,
};

/// What is known about the model while walking the stages.
struct Walk<'a> {
    recipe: &'a Recipe,
    findings: Vec<Finding>,
    /// Experts per layer at this point.
    experts: Option<u32>,
    /// The latest profile.
    profile: Option<Profile>,
    /// The first stage that wrote quantized files.
    quantized: Option<usize>,
    transformed: Option<usize>,
}

struct Profile {
    stage: usize,
    used: bool,
}

pub(super) fn check(recipe: &Recipe) -> Vec<Finding> {
    let mut walk = Walk {
        recipe,
        findings: Vec::new(),
        experts: recipe.source.num_experts_per_layer,
        profile: None,
        quantized: None,
        transformed: None,
    };
    for (i, stage) in recipe.stages.iter().enumerate() {
        walk.order(i, stage);
        match stage {
            StageSpec::ExpertActivationProfile(_) => walk.expert_profile(i),
            StageSpec::ExpertPrune(prune) => walk.expert_prune(i, prune),
            StageSpec::Prune(prune) => walk.head_prune(i, prune),
            StageSpec::Quant(quant) => walk.quant(i, quant),
            StageSpec::Eval(eval) => walk.eval(i, eval),
            StageSpec::Train(Train { learning_rate: Some(rate), .. })
            | StageSpec::Lora(Lora { learning_rate: Some(rate), .. })
                if rate.as_f64().is_none() =>
            {
                walk.error(i, "learningRate", "the learning rate is no number".into(), Some("e.g. \"2e-4\"".into()));
            }
            StageSpec::Publish(publish) if publish.org.is_none() => {
                walk.error(i, "org", "`publish` needs the organisation to publish under".into(), None);
            }
            _ => {}
        }
    }
    walk.unused_profile();
    walk.findings
}

impl Walk<'_> {
    fn error(&mut self, stage: usize, key: &str, message: String, hint: Option<String>) {
        let finding = Finding::error(path(stage, key), message);
        self.findings.push(Finding { hint, ..finding });
    }

    fn warning(&mut self, stage: usize, key: &str, message: String, hint: &str) {
        self.findings.push(Finding::warning(path(stage, key), message).hint(hint));
    }

    fn note(&mut self, stage: usize, key: &str, message: String) {
        self.findings.push(Finding::note(path(stage, key), message));
    }

    /// Inputs, then transforms, then outputs; an `eval` may stand anywhere.
    fn order(&mut self, i: usize, stage: &StageSpec) {
        let name = stage.type_name();
        match stage.position() {
            Position::Input => {
                if let Some(earlier) = self.transformed {
                    let message = format!("`{name}` prepares the source, but stages[{earlier}] has changed it already");
                    self.warning(i, "", message, "move it to the front");
                }
            }
            Position::Transform if changes_weights(stage) => {
                self.transformed.get_or_insert(i);
                if let Some(quant) = self.quantized {
                    let message = format!("`{name}` changes the model after stages[{quant}] has written its files");
                    self.warning(i, "", message, "move `quant` behind it, or the files will not show the change");
                }
            }
            Position::Output if matches!(stage, StageSpec::Quant(_)) => {
                self.quantized.get_or_insert(i);
            }
            Position::Transform | Position::Output => {}
        }
    }

    fn expert_profile(&mut self, i: usize) {
        self.unused_profile();
        self.profile = Some(Profile { stage: i, used: false });
    }

    fn unused_profile(&mut self) {
        if let Some(Profile { stage, used: false, .. }) = self.profile {
            let message = "nothing after it uses the counts".to_owned();
            self.warning(stage, "", message, "put it before the `expert-prune` stage it is meant for, or remove it");
        }
    }

    fn expert_prune(&mut self, i: usize, prune: &ExpertPrune) {
        self.ranking(i, prune);
        let source_says = self.recipe.source.num_experts_per_layer.is_some();
        if let (Some(stated), Some(known)) = (prune.original_experts_per_layer, self.experts)
            && stated != known
        {
            let origin = if source_says { "the source and the stages before" } else { "the stages before" };
            let message = format!("{stated} experts per layer before this stage, but {origin} leave {known}");
            self.warning(i, "originalExpertsPerLayer", message, "correct whichever is wrong: the model decides");
        }
        self.experts = self.experts.or(prune.original_experts_per_layer);
        if let (Some(new), Some(old)) = (prune.keep_experts_per_layer, prune.keep_experts)
            && new != old
        {
            let message = format!("keepExperts says {old} and keepExpertsPerLayer {new}");
            self.error(i, "keepExperts", message, Some("keep `keepExpertsPerLayer` only".into()));
        }
        let Some(keep) = prune.keep() else {
            let message = "the stage does not say how many experts to keep".to_owned();
            return self.error(i, "keepExpertsPerLayer", message, Some("write keepExpertsPerLayer".into()));
        };
        self.keep(i, prune, keep);
        self.experts = Some(self.experts.map_or(keep, |total| keep.min(total)));
    }

    fn keep(&mut self, i: usize, prune: &ExpertPrune, keep: u32) {
        let key = prune.keep_key();
        if let Some(top_k) = self.recipe.source.num_activated_experts.filter(|top_k| keep < *top_k) {
            let message = format!("{keep} experts kept, but every token uses {top_k} (source.numActivatedExperts)");
            self.error(i, key, message, Some(format!("keep at least {top_k}")));
        }
        let Some(total) = self.experts else { return };
        if keep > total {
            let message = format!("{keep} of {total} experts per layer cannot be kept");
            return self.error(i, key, message, Some(format!("keep fewer than {total}")));
        }
        if keep == total {
            let message = format!("all {total} experts per layer are kept: the stage changes nothing");
            return self.warning(i, key, message, "keep fewer, or remove the stage");
        }
        let removed = 100.0 * f64::from(total - keep) / f64::from(total);
        if removed > 50.0 {
            let share = plain(removed.round());
            self.note(i, key, format!("{share} % of the experts go: expect a large loss unless it is trained back"));
        }
        if let Some(stated) = prune.prune_pct.filter(|stated| (stated - removed).abs() > 1.0) {
            let message = format!(
                "{} % stated, but {keep} of {total} means {} %",
                plain(stated),
                plain((removed * 10.0).round() / 10.0)
            );
            let hint = if stated <= 1.0 { "this is counted in percent (0 to 100)" } else { "correct one of the two" };
            self.warning(i, "prunePct", message, hint);
        }
    }

    /// What the experts are ranked by is known by the time it is needed.
    fn ranking(&mut self, i: usize, prune: &ExpertPrune) {
        let ranking = prune.ranking();
        for metric in ranking.iter().flat_map(|ranking| ranking.metrics()) {
            if let ExpertMetric::Other(word) = metric {
                let key = if matches!(ranking, Some(Ranking::BestOf(_))) { "candidates" } else { "metric" };
                let hint = suggest(word, ExpertMetric::NAMES.iter().copied());
                return self.error(i, key, format!("`{}` is no ranking of experts", excerpt(word)), Some(hint));
            }
        }
        if let (None, Some(word)) = (&ranking, &prune.strategy) {
            let message = format!("`{}` names no ranking: the profile's metric decides", excerpt(word));
            self.warning(i, "strategy", message, "name a ranking in `metric`");
        }
        if ranking.is_some_and(|ranking| ranking.metrics().is_empty()) {
            let message = "best-of-family has nothing to choose from".to_owned();
            return self.error(i, "candidates", message, Some("name rankings, or leave the key out".into()));
        }
        if !prune.needs_profile() {
            return;
        }
        let Some(profile) = &mut self.profile else {
            let later = self.recipe.stages[i..].iter().position(|s| matches!(s, StageSpec::ExpertActivationProfile(_)));
            let hint = match later {
                Some(offset) => format!("move stages[{}] before this one", i + offset),
                None => {
                    "add an `expert-activation-profile` stage before it, or name the counts in `importanceJson`".into()
                }
            };
            let message = "experts are ranked by use, and no profile stage before this one has counted it".to_owned();
            return self.error(i, "", message, Some(hint));
        };
        let (stage, used) = (profile.stage, profile.used);
        profile.used = true;
        if used {
            let message =
                format!("the counts of stages[{stage}] name experts that an earlier `expert-prune` has removed");
            self.warning(i, "", message, "count again before this stage");
        }
    }

    fn head_prune(&mut self, i: usize, prune: &Prune) {
        if !(0.0..=0.9).contains(&prune.level) {
            return;
        }
        if prune.level == 0.0 {
            return self.warning(i, "level", "a level of 0 removes nothing".into(), "raise it, or remove the stage");
        }
        let heals =
            |s: &StageSpec| matches!(s, StageSpec::Train(_) | StageSpec::Lora(_) | StageSpec::CompensationLora(_));
        if !self.recipe.stages[i..].iter().any(heals) {
            let share = plain((prune.level * 100.0).round());
            self.note(
                i,
                "level",
                format!("{share} % of the heads go and no later stage trains the rest: expect a loss"),
            );
        }
    }

    fn quant(&mut self, i: usize, quant: &Quant) {
        if let Some(Err(wrong)) = quant.target.as_ref().map(QuantTarget::aim) {
            let hint = "write exactly one of bytes, bitsPerWeight and maxKld, for instance {\"bitsPerWeight\": 4.5}";
            self.error(i, "target", wrong, Some(hint.to_owned()));
        }
        let mut listed = HashSet::new();
        for (j, name) in quant.quant_types.iter().enumerate() {
            let key = format!("quantTypes[{j}]");
            if name.trim().is_empty() {
                self.error(i, &key, "the text is empty".into(), None);
            } else if !listed.insert(name.to_ascii_uppercase()) {
                self.warning(i, &key, format!("`{}` is in the list twice", excerpt(name)), "remove one");
            }
        }
    }

    fn eval(&mut self, i: usize, eval: &Eval) {
        for (j, benchmark) in eval.benchmarks.iter().enumerate() {
            let at = |key: &str| format!("benchmarks[{j}].{key}");
            if !benchmark.reads_text() {
                continue;
            }
            if benchmark.data.is_none() {
                let hint = "name a text file: a path, or a name under `calibration/` of the line".to_owned();
                self.error(i, &at("data"), format!("`{}` needs a text to score", benchmark.name), Some(hint));
            }
            if let Some(most) = benchmark.max_tokens.filter(|most| *most < u64::from(benchmark.context())) {
                let message = format!("{most} tokens are less than one window of {}", benchmark.context());
                self.error(i, &at("maxTokens"), message, Some("raise maxTokens or lower context".into()));
            }
        }
        if let Some(low) = eval.passing_threshold.filter(|low| *low > 0.0 && *low <= 1.0) {
            let message = format!("{} is counted in percent (0 to 100): nearly everything passes", plain(low));
            self.warning(i, "passingThreshold", message, &format!("if it is a share, write {}", plain(low * 100.0)));
        }
    }
}

/// Stages after which the model is another one.
fn changes_weights(stage: &StageSpec) -> bool {
    use StageSpec::*;
    matches!(stage, Prune(_) | Train(_) | Lora(_) | Compact(_) | ExpertPrune(_) | CompensationLora(_))
}

fn path(stage: usize, key: &str) -> String {
    match key {
        "" => format!("stages[{stage}]"),
        key => format!("stages[{stage}].{key}"),
    }
}
