//! `expert-activation-profile`: counts the router's choices on a calibration corpus.

use std::path::PathBuf;

use super::{Admission, Place, Product, Span, Stage, StageContext, predict};
use crate::compress::{IMPORTANCE_FILE, METRIC_VERSION, SequenceLimits, profile_experts, read_corpus, sequences};
use crate::engine::PassProgress;
use crate::fault::{Fault, Outcome};
use crate::recipe::{self, Finding, PlannedStage, StageSpec};

pub(super) struct ExpertActivationProfile;

impl Stage for ExpertActivationProfile {
    fn type_name(&self) -> &'static str {
        "expert-activation-profile"
    }

    fn summary(&self) -> &'static str {
        "count how often each expert is chosen on a calibration corpus"
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
            let stored = source.tensors.metas().iter().map(|m| m.bytes).sum();
            planned.predicted = predict::pass(model, stored, tokens, admission.node.forge.threads, false);
        }
        admission.has_importance = true;
        planned
    }

    fn run(&self, cx: &StageContext<'_>, planned: &PlannedStage, span: Span<'_>) -> Outcome<Product> {
        let StageSpec::ExpertActivationProfile(profile) = cx.spec(planned)? else {
            return Err(Fault::internal("plan: this is no expert-activation-profile"));
        };
        let text = cx.text(&Place(planned.index).key("calibrationCorpus"))?;
        let model = cx.open_model()?;
        let corpus = read_corpus(&text.path)?;
        let Some(tokenizer) = model.open_tokenizer()? else {
            return Err(Fault::source(format!("{} has no tokenizer.json", model.path.display()))
                .hint("a corpus of text needs the model's tokenizer"));
        };
        let limits = SequenceLimits {
            max_length: (profile.max_length() as usize).min(model.spec.max_positions),
            max_examples: profile.calibration_examples,
            max_tokens: profile.calibration_tokens,
        };
        let tokenize = span.part(0.0, 0.05);
        let sequences = sequences(&corpus, &tokenizer, limits, &|done| tokenize.at(done, "tokenize"))?;
        let pass = span.part(0.05, 1.0);
        let report = |p: PassProgress| pass.at_rate(p.fraction, "route", Some(p.tokens_per_s));
        let source = &cx.plan.source.base_model;
        let importance = profile_experts(&model, source, &profile.calibration_corpus, &sequences, &cx.pass, &report)?;
        importance.write(&cx.work.join(IMPORTANCE_FILE))?;
        let unused: usize = importance.activation_counts.values().flatten().filter(|&&count| count == 0).count();
        let (examples, tokens) = (importance.calibration_examples, importance.calibration_tokens);
        let layers = importance.activation_counts.len();
        Ok(Product {
            files: vec![PathBuf::from(IMPORTANCE_FILE)],
            importance: Some(PathBuf::from(IMPORTANCE_FILE)),
            summary: Some(format!(
                "{tokens} tokens of {examples} sequences through {layers} layers; {unused} experts never chosen"
            )),
            ..Product::default()
        })
    }
}

fn check_settings(admission: &mut Admission<'_>, profile: &recipe::stages::ExpertActivationProfile, place: Place) {
    if profile.metric() != recipe::stages::ExpertMetric::ActivationCount {
        let message = format!("this build counts activation_count, not {}", profile.metric().as_str());
        let hint = "use activation_count; router_l2 needs no profile, name it as the metric of expert-prune";
        admission.report(Finding::error(place.key("metric"), message).hint(hint));
    }
    if let Some(version) = profile.metric_version.as_deref().filter(|&version| version != METRIC_VERSION) {
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
