//! From shares of output energy to nats: what rounding each group of tensors does to the model.

use std::collections::HashMap;

use super::rounded::Rounded;
use super::{Candidates, ErrorTable, Offer};
use crate::model::gguf::ALIGNMENT;
use crate::model::{Dtype, TensorSource};

/// The share of its output that a probed tensor shall lose, about: enough to show on a short text, little enough that
/// divergence still grows in proportion.
const PROBED_SHARE: f64 = 0.01;
/// No group counts less than this part of the mean: a divergence measured as nothing is not nothing on every text.
const LEAST_PART: f64 = 0.01;

/// One group rounded, everything else as it is.
#[derive(Clone, Debug)]
pub struct Probe {
    /// The type of every weight that is rounded.
    pub types: HashMap<String, Dtype>,
    /// The shares of output energy that the group's tensors lose, added up.
    pub share: f64,
}

impl ErrorTable {
    /// The probe of every group of the candidates, each of its tensors in the type that loses nearest to a hundredth.
    pub fn probes(&self, candidates: &Candidates) -> Vec<Probe> {
        let mut probes = vec![Probe { types: HashMap::new(), share: 0.0 }; candidates.groups.len()];
        for (candidate, shares) in candidates.tensors.iter().zip(&self.shares) {
            let Some(group) = candidate.group else { continue };
            let off = |&nth: &usize| (shares[nth].max(1e-9) / PROBED_SHARE).ln().abs();
            let Some(nth) = (0..shares.len()).min_by(|a, b| off(a).total_cmp(&off(b))) else { continue };
            let weights = candidate.tensor.sources().into_iter().map(|name| (name.to_owned(), candidate.types[nth]));
            probes[group].types.extend(weights);
            probes[group].share += shares[nth];
        }
        probes
    }

    /// The type of every weight under these picks, by tensor as [`Candidates::plan`] takes them.
    pub fn picked(&self, candidates: &Candidates, picks: &[usize]) -> HashMap<String, Dtype> {
        let choices = candidates.tensors.iter().zip(picks).filter(|(candidate, _)| candidate.group.is_some());
        let weights = |(candidate, &pick): (&super::Candidate, &usize)| {
            let dtype = candidate.types[pick];
            candidate.tensor.sources().into_iter().map(|name| (name.to_owned(), dtype)).collect::<Vec<_>>()
        };
        choices.flat_map(weights).collect()
    }

    /// The tensors of `base`, those named rounded to the nearest in their types.
    pub fn rounded<'a>(&'a self, base: &'a dyn TensorSource, types: &HashMap<String, Dtype>) -> Rounded<'a> {
        Rounded::new(base, types, &self.importance)
    }

    /// What every type of every tensor takes in the file, padding included, and is expected to cost in nats per token,
    /// when the groups' probes diverged by `klds`.
    pub fn offers(&self, candidates: &Candidates, probes: &[Probe], klds: &[f64]) -> Vec<Vec<Offer>> {
        let sensitivity = sensitivities(probes, klds);
        let of_tensor = |(candidate, shares): (&super::Candidate, &Vec<f64>)| {
            let per_share = candidate.group.map_or(0.0, |group| sensitivity[group]);
            let bytes = |dtype: &Dtype| dtype.checked_bytes(&candidate.tensor.shape).unwrap_or(u64::MAX / 2);
            let offer = |(dtype, share): (&Dtype, &f64)| Offer {
                bytes: bytes(dtype).next_multiple_of(ALIGNMENT),
                loss: per_share * share,
            };
            candidate.types.iter().zip(shares).map(offer).collect()
        };
        candidates.tensors.iter().zip(&self.shares).map(of_tensor).collect()
    }
}

/// Nats per token for each share of output energy that a group's tensors lose.
fn sensitivities(probes: &[Probe], klds: &[f64]) -> Vec<f64> {
    let measured = |(probe, kld): (&Probe, &f64)| (probe.share > 0.0).then(|| kld.max(0.0) / probe.share);
    let found: Vec<Option<f64>> = probes.iter().zip(klds).map(measured).collect();
    let known: Vec<f64> = found.iter().flatten().copied().collect();
    let mean = known.iter().sum::<f64>() / known.len().max(1) as f64;
    let mean = if mean > 0.0 { mean } else { 1.0 };
    found.into_iter().map(|sensitivity| sensitivity.unwrap_or(mean).max(LEAST_PART * mean)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_costs_what_its_probe_cost_and_never_nothing() {
        let probe = |share| Probe { types: HashMap::new(), share };
        let probes = [probe(0.02), probe(0.01), probe(0.0), probe(0.05)];
        let found = sensitivities(&probes, &[0.04, 0.01, 0.0, 0.0]);
        assert_eq!(found, [2.0, 1.0, 1.0, 0.01]);
        assert_eq!(sensitivities(&probes[2..3], &[0.0]), [1.0], "shares alone compare where nothing was measured");
    }
}
