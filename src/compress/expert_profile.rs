//! Expert profile: what the router does with each expert on a calibration text, and how large each expert's outputs
//! are, for every score of [`Metric`] in one pass.
//!
//! The pass runs without the output head and computes only the experts tokens are routed to; the weight-only scores
//! come from the weights as the pass reads them. Nothing is judged and nothing is written here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::importance::PerLayer;
use super::weight_scores::{Weighed, mixtures, router_norms};
use super::{CompressError, Importance, METRIC_VERSION, Metric};
use crate::engine::{
    ExpertOutputs, Observer, PassOptions, PassProgress, PassReport, Routing, Scoring, Subject, run_subject,
};
use crate::family::OpenModel;
use crate::units::Sha;

/// Sums over the tokens routed to one expert, in double precision and in the order of the pass.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Sums {
    tokens: u64,
    gates: f64,
    norms: f64,
    squares: f64,
    gated_norms: f64,
    peak: f64,
}

impl Sums {
    fn score(&self, metric: Metric) -> Option<f64> {
        // An expert that no token chose has no mean; it ranks last.
        let mean = |sum: f64| if self.tokens == 0 { 0.0 } else { sum / self.tokens as f64 };
        match metric {
            Metric::ActivationCount => Some(self.tokens as f64),
            Metric::WeightedCount => Some(self.gates),
            Metric::EanSum => Some(self.norms),
            Metric::EanMean => Some(mean(self.norms)),
            Metric::Msan => Some(mean(self.squares)),
            Metric::WeightedEanSum => Some(self.gated_norms),
            Metric::Reap => Some(mean(self.gated_norms)),
            Metric::MaxActivation => Some(self.peak),
            Metric::RouterL2 | Metric::Aimer => None,
        }
    }
}

/// The observer of a profile pass.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct ExpertSums {
    /// Choices of the router, counted where they are made.
    chosen: PerLayer<u64>,
    /// What the experts computed.
    computed: PerLayer<Sums>,
}

impl Observer for ExpertSums {
    fn router(&mut self, routing: &Routing<'_>) {
        let counts = self.chosen.entry(routing.layer).or_insert_with(|| vec![0; routing.experts]);
        for &expert in routing.chosen {
            counts[expert as usize] += 1;
        }
        self.computed.entry(routing.layer).or_insert_with(|| vec![Sums::default(); routing.experts]);
    }

    fn wants_expert_outputs(&self) -> bool {
        true
    }

    fn save(&mut self) -> Option<Vec<u8>> {
        serde_json::to_vec(self).ok()
    }

    fn restore(&mut self, saved: &[u8]) -> bool {
        serde_json::from_slice(saved).map(|saved| *self = saved).is_ok()
    }

    fn expert_outputs(&mut self, outputs: &ExpertOutputs<'_>) {
        let Some(sums) = self.computed.get_mut(&outputs.layer).and_then(|layer| layer.get_mut(outputs.expert)) else {
            return;
        };
        sums.tokens += outputs.rows.len() as u64;
        for ((&gate, &norm), &peak) in outputs.gates.iter().zip(outputs.norms).zip(outputs.peaks) {
            let (gate, norm) = (f64::from(gate), f64::from(norm));
            sums.gates += gate;
            sums.norms += norm;
            sums.squares += norm * norm;
            sums.gated_norms += gate * norm;
            sums.peak = sums.peak.max(f64::from(peak));
        }
    }
}

/// Where a profile comes from, for its table.
#[derive(Clone, Debug, Default)]
pub struct ProfileOrigin {
    pub model: String,
    pub corpus: String,
    pub corpus_sha256: Option<Sha>,
    /// Tokens at the end of the corpus that are not among the sequences.
    pub held_out_tokens: u64,
    /// Experts that see fewer tokens are listed as under-observed.
    pub min_observations: u64,
}

/// A profile, and what the pass took.
pub struct Profile {
    pub importance: Importance,
    pub report: PassReport,
}

/// Profiles the experts of `model` on `sequences`, and asserts that every mixture layer was seen in full.
///
/// # Errors
/// A dense model, no tokens, a value that is not finite, a layer whose choices do not add up, a failing pass.
pub fn profile_experts(
    model: &OpenModel,
    origin: &ProfileOrigin,
    sequences: &[Vec<u32>],
    options: &PassOptions,
    progress: &dyn Fn(PassProgress),
) -> Result<Profile, CompressError> {
    let Some((experts, top_k)) = model.spec.experts() else {
        return Err(CompressError::Refused {
            what: "expert profile",
            reason: format!("{} is a dense model, it has no experts", model.path.display()),
            hint: "remove the expert stages, or choose a mixture-of-experts model",
        });
    };
    let weighed = Weighed::new(model);
    let subject = Subject { tensors: &weighed, ..Subject::of(model) };
    let mut sums = ExpertSums::default();
    let report = run_subject(&subject, sequences, Scoring::None, options, &mut [&mut sums], progress)?;
    let mut importance = Importance {
        model: origin.model.clone(),
        calibration_corpus: origin.corpus.clone(),
        calibration_sha256: origin.corpus_sha256,
        calibration_examples: sequences.len() as u64,
        calibration_tokens: sequences.iter().map(|s| s.len() as u64).sum(),
        held_out_tokens: origin.held_out_tokens,
        num_hidden_layers: model.spec.blocks.len(),
        num_experts: experts,
        num_experts_per_tok: top_k,
        scores: scores(model, &weighed, &sums.computed)?,
        activation_counts: sums.chosen,
        under_observed: None,
        metric_version: METRIC_VERSION.into(),
        tool: concat!("factoryline ", env!("CARGO_PKG_VERSION"), " expert-activation-profile").into(),
    };
    let moe_layers: Vec<usize> = mixtures(&model.spec).map(|(layer, _)| layer).collect();
    importance.assert_complete(&moe_layers)?;
    assert_computed(&importance, &sums.computed)?;
    importance.note_under_observed(origin.min_observations);
    Ok(Profile { importance, report })
}

/// Every choice of the router must have met its expert: two hooks that saw the same.
fn assert_computed(importance: &Importance, computed: &PerLayer<Sums>) -> Result<(), CompressError> {
    for (&layer, counts) in &importance.activation_counts {
        let seen = computed.get(&layer).map(Vec::as_slice).unwrap_or_default();
        if let Some(expert) = (0..counts.len()).find(|&e| seen.get(e).map(|s| s.tokens) != Some(counts[e])) {
            let found = seen.get(expert).map_or(0, |s| s.tokens);
            let reason = format!("expert {expert} was chosen {} times and computed {found} times", counts[expert]);
            return Err(CompressError::Coverage { layer, reason });
        }
    }
    Ok(())
}

fn scores(
    model: &OpenModel,
    weighed: &Weighed,
    computed: &PerLayer<Sums>,
) -> Result<BTreeMap<Metric, PerLayer<f64>>, CompressError> {
    let mut out: BTreeMap<Metric, PerLayer<f64>> = BTreeMap::new();
    for metric in Metric::ALL.into_iter().filter(|&metric| metric != Metric::ActivationCount) {
        for (layer, moe) in mixtures(&model.spec) {
            let scores = match metric {
                Metric::RouterL2 => router_norms(model.tensors.as_ref(), moe)?,
                Metric::Aimer => weighed.aimer(moe)?,
                observed => {
                    let sums = computed.get(&layer).map(Vec::as_slice).unwrap_or_default();
                    sums.iter().filter_map(|sums| sums.score(observed)).collect()
                }
            };
            out.entry(metric).or_default().insert(layer, scores);
        }
    }
    Ok(out)
}
