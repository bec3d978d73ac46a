//! `expert-activation-profile`: every score of every expert, from one pass over a calibration corpus.

use std::path::PathBuf;

use super::calibration::calibration;
use super::{Admission, Place, Product, Span, Stage, StageContext, predict};
use crate::compress::{COUNTS_VERSION, IMPORTANCE_FILE, METRIC_VERSION, ProfileOrigin, UnderObserved, profile_experts};
use crate::engine::PassProgress;
use crate::fault::{Fault, Outcome};
use crate::gate::Evidence;
use crate::recipe::{self, Finding, PlannedStage, StageSpec};

pub(super) struct ExpertActivationProfile;

impl Stage for ExpertActivationProfile {
    fn type_name(&self) -> &'static str {
        "expert-activation-profile"
    }

    fn summary(&self) -> &'static str {
        "score every expert by what it does on a calibration corpus"
    }

    fn plan(&self, admission: &mut Admission<'_>, spec: &StageSpec, place: Place) -> PlannedStage {
        let StageSpec::ExpertActivationProfile(profile) = spec else { return place.planned(spec) };
        check_settings(admission, profile, place);
        let corpus = corpus_name(admission, profile);
        let bytes = admission.find_text(place.key("calibrationCorpus"), &corpus);
        let mut planned = place.planned(spec);
        planned.title = format!("profile experts on {}", profile.calibration_corpus);
        planned.inputs = vec![place.key("calibrationCorpus")];
        planned.outputs = vec![IMPORTANCE_FILE.into()];
        if let (Some(bytes), Some(source), Some(model)) = (bytes, admission.source(), admission.model()) {
            let tokens = predict::tokens(bytes).min(profile.calibration_tokens.unwrap_or(u64::MAX));
            let stored = source.stored.metas().iter().map(|m| m.bytes).sum();
            planned.predicted = predict::pass(model, stored, tokens, admission.node.forge.threads, false);
        }
        admission.has_importance = true;
        planned
    }

    fn run(&self, cx: &StageContext<'_>, planned: &PlannedStage, span: Span<'_>) -> Outcome<Product> {
        let StageSpec::ExpertActivationProfile(profile) = cx.spec(planned)? else {
            return Err(Fault::internal("plan: this is no expert-activation-profile"));
        };
        let model = cx.open_model()?;
        let tokenize = span.part(0.0, 0.05);
        let (split, text) = calibration(cx, &model, planned, &profile, &|done| tokenize.at(done, "tokenize"))?;
        let pass = span.part(0.05, 1.0);
        let report = |p: PassProgress| pass.at_rate(p.fraction, "route", Some(p.tokens_per_s));
        let origin = ProfileOrigin {
            model: cx.plan.source.base_model.clone(),
            corpus: profile.calibration_corpus.clone(),
            corpus_sha256: Some(text.sha256),
            held_out_tokens: split.held_out.iter().map(|s| s.len() as u64).sum(),
            min_observations: profile.min_observations(),
        };
        let options = cx.resumable("profile", "");
        let found = profile_experts(&model, &origin, &split.profiled, &options, &report)?;
        cx.tell_savepoints(&options);
        let importance = found.importance;
        importance.write(&cx.work.join(IMPORTANCE_FILE))?;
        let (examples, tokens) = (importance.calibration_examples, importance.calibration_tokens);
        let (layers, few) = (importance.activation_counts.len(), importance.under_observed.unwrap_or_default());
        let evidence = Evidence::passed("coverage", IMPORTANCE_FILE)
            .with("tokens", tokens)
            .with("held_out_tokens", importance.held_out_tokens)
            .with("choices_per_layer", tokens * importance.num_experts_per_tok as u64)
            .with("expert_multiplications", found.report.expert_multiplications)
            .with("fewer_than", few.fewer_than)
            .with("under_observed", serde_json::json!(few.experts));
        let summary = format!(
            "{tokens} tokens of {examples} sequences through {layers} layers; {} experts under-observed",
            few.count()
        );
        Ok(Product {
            files: vec![PathBuf::from(IMPORTANCE_FILE)],
            importance: Some(PathBuf::from(IMPORTANCE_FILE)),
            warnings: warning(&few).into_iter().collect(),
            evidence: vec![evidence],
            summary: Some(summary),
            ..Product::default()
        })
    }
}

/// Experts named in the warning; the table and the result list all.
const NAMED: usize = 12;

/// One line about experts whose scores rest on little.
fn warning(few: &UnderObserved) -> Option<String> {
    let all: Vec<(usize, usize)> =
        few.experts.iter().flat_map(|(&layer, experts)| experts.iter().map(move |&e| (layer, e))).collect();
    let named: Vec<String> = all.iter().take(NAMED).map(|(layer, expert)| format!("{layer}.{expert}")).collect();
    let more = match all.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(" and {more} more, listed in {IMPORTANCE_FILE}"),
    };
    let (count, least) = (all.len(), few.fewer_than);
    (count > 0).then(|| {
        format!(
            "{count} experts saw fewer than {least} tokens, so their scores are guesses (layer.expert: {}{more})",
            named.join(", ")
        )
    })
}

fn check_settings(admission: &mut Admission<'_>, profile: &recipe::stages::ExpertActivationProfile, place: Place) {
    let known = [METRIC_VERSION, COUNTS_VERSION];
    if let Some(version) = profile.metric_version.as_deref().filter(|version| !known.contains(version)) {
        let message = format!("{version:?} is not known, this build writes {METRIC_VERSION:?}");
        admission.report(Finding::error(place.key("metricVersion"), message));
    }
    if admission.model().is_some_and(|model| model.experts().is_none()) {
        admission.report(
            Finding::error(place.key("type"), "the source is a dense model, it has no experts")
                .hint("remove the expert stages, or choose a mixture-of-experts model"),
        );
    }
    if admission.source().is_some_and(|source| !matches!(source.tokenizer(), Ok(Some(_)))) {
        admission.report(
            Finding::error(place.key("calibrationCorpus"), "the source has no usable tokenizer.json")
                .hint("a corpus of text needs the model's tokenizer"),
        );
    }
}

/// What to look for: the file the stage names, else the file of the corpus listed under this name, else the name.
fn corpus_name(admission: &Admission<'_>, profile: &recipe::stages::ExpertActivationProfile) -> String {
    let name = &profile.calibration_corpus;
    let listed = admission.recipe.calibration_corpora.iter().flatten().find(|corpus| corpus.id == *name);
    let file = profile.calibration_corpus_file.as_ref().or(listed.map(|corpus| &corpus.path));
    file.unwrap_or(name).clone()
}
