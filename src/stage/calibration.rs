//! The calibration text of a part, as an expert profile and what rests on it see it: one split, made the same way for
//! both.

use super::{Place, StageContext};
use crate::compress::{Calibration, SequenceLimits, read_corpus, sequences};
use crate::family::OpenModel;
use crate::fault::{Fault, Outcome};
use crate::model::Tokenizer;
use crate::recipe::stages::{ExpertActivationProfile, ExpertPrune};
use crate::recipe::{PlannedStage, ResolvedText, StageSpec};

/// Text that no decision rests on yet.
pub(super) struct HeldOut {
    pub sequences: Vec<Vec<u32>>,
    /// Which text this is, for the record.
    pub origin: String,
}

/// The text of a profile stage, tokenized and split.
pub(super) fn calibration<'a>(
    cx: &'a StageContext<'_>,
    model: &OpenModel,
    planned: &PlannedStage,
    profile: &ExpertActivationProfile,
    progress: &dyn Fn(f64),
) -> Outcome<(Calibration, &'a ResolvedText)> {
    let text = cx.text(&Place(planned.index).key("calibrationCorpus"))?;
    let limits = SequenceLimits {
        max_length: (profile.max_length() as usize).min(model.spec.max_positions),
        max_examples: profile.calibration_examples,
        max_tokens: profile.calibration_tokens,
    };
    let all = sequences(&read_corpus(&text.path)?, &tokenizer(model)?, limits, progress)?;
    Ok((Calibration::split(all), text))
}

/// The profile stage whose scores are those a prune at `planned` reads, if there is one.
pub(super) fn profile_before(
    cx: &StageContext<'_>,
    planned: &PlannedStage,
) -> Outcome<Option<(PlannedStage, ExpertActivationProfile)>> {
    let before = cx.plan.stages.iter().take_while(|stage| stage.index < planned.index);
    let Some(stage) = before.filter(|stage| stage.type_name == "expert-activation-profile").last() else {
        return Ok(None);
    };
    match cx.spec(stage)? {
        StageSpec::ExpertActivationProfile(profile) => Ok(Some((stage.clone(), profile))),
        _ => Err(Fault::internal(format!("plan: stage {} is no profile", stage.index))),
    }
}

/// The held-out text of a prune: what its `heldOut` names, else the end of its profile's text; `None` without either.
pub(super) fn held_out(
    cx: &StageContext<'_>,
    model: &OpenModel,
    planned: &PlannedStage,
    prune: &ExpertPrune,
) -> Outcome<Option<HeldOut>> {
    let most = usize::try_from(prune.held_out_tokens()).unwrap_or(usize::MAX);
    if let Some(name) = &prune.held_out {
        let text = cx.text(&Place(planned.index).key("heldOut"))?;
        let max_length = 2048.min(model.spec.max_positions);
        let limits = SequenceLimits { max_length, max_examples: None, max_tokens: Some(most as u64) };
        let sequences = sequences(&read_corpus(&text.path)?, &tokenizer(model)?, limits, &|_| ())?;
        return Ok(Some(HeldOut { sequences: at_most(sequences, most), origin: name.clone() }));
    }
    let Some((stage, profile)) = profile_before(cx, planned)? else { return Ok(None) };
    let (split, _) = calibration(cx, model, &stage, &profile, &|_| ())?;
    let sequences = at_most(split.held_out, most);
    let tokens: usize = sequences.iter().map(Vec::len).sum();
    let origin = format!("{tokens} tokens at the end of {}, which the profile did not see", profile.calibration_corpus);
    Ok(Some(HeldOut { sequences, origin }))
}

/// The first `most` tokens, in sequences that predict something.
fn at_most(sequences: Vec<Vec<u32>>, most: usize) -> Vec<Vec<u32>> {
    let mut left = most;
    let mut cut = |mut sequence: Vec<u32>| {
        sequence.truncate(left);
        left -= sequence.len();
        sequence
    };
    sequences.into_iter().map(&mut cut).filter(|sequence| sequence.len() >= 2).collect()
}

fn tokenizer(model: &OpenModel) -> Outcome<Tokenizer> {
    model.open_tokenizer()?.ok_or_else(|| {
        Fault::source(format!("{} has no tokenizer.json", model.path.display()))
            .hint("a corpus of text needs the model's tokenizer")
    })
}
