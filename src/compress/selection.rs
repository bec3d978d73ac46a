//! Which experts stay: the K best of a layer, by a rule that leaves nothing to chance.

use std::cmp::Ordering;

use super::CompressError;

/// What an expert's score is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Metric {
    /// How often the router chose the expert on the calibration corpus.
    ActivationCount,
    /// Euclidean norm of the expert's row in the router weight; needs no corpus.
    RouterL2,
}

impl Metric {
    /// The name recipes and sidecars use.
    pub fn as_str(self) -> &'static str {
        match self {
            Metric::ActivationCount => "activation_count",
            Metric::RouterL2 => "router_l2",
        }
    }

    /// The metric a recipe names; `None` for one this build does not know.
    pub fn parse(name: &str) -> Option<Self> {
        [Metric::ActivationCount, Metric::RouterL2].into_iter().find(|metric| metric.as_str() == name)
    }
}

/// Indices of the `keep` experts to keep, ascending. A higher score wins, and of equal scores the lower index.
///
/// Refuses `keep < top_k` (the router could not choose), `keep >= scores.len()` (nothing to prune), a score that is
/// not finite, and scores that are all zero (the profile saw nothing).
pub fn keep_top(layer: usize, scores: &[f64], keep: usize, top_k: usize) -> Result<Vec<usize>, CompressError> {
    let refuse = |reason: String, hint| CompressError::Refused { what: "expert prune", reason, hint };
    let experts = scores.len();
    if keep < top_k {
        let reason = format!("keep {keep} is below the {top_k} experts the router chooses per token");
        return Err(refuse(reason, "keep at least num_experts_per_tok experts"));
    }
    if keep >= experts {
        return Err(refuse(format!("keep {keep} of {experts} experts prunes nothing"), "keep fewer experts"));
    }
    if let Some(expert) = scores.iter().position(|score| !score.is_finite()) {
        let reason = format!("layer {layer}, expert {expert}: the score is {}", scores[expert]);
        return Err(refuse(reason, "the router weights or the importance table are damaged"));
    }
    if scores.iter().all(|&score| score == 0.0) {
        return Err(refuse(format!("layer {layer}: every score is zero"), "the profile saw no routing in this layer"));
    }
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap_or(Ordering::Equal).then(a.cmp(&b)));
    order.truncate(keep);
    order.sort_unstable();
    Ok(order)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(keep_top(0, &[1.0, 3.0, 1.0, 1.0], 3, 2).unwrap(), [0, 1, 2]);
        assert_eq!(keep_top(0, &[0.0, 0.0, 0.0, 9.0], 2, 1).unwrap(), [0, 3]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let message = |scores: &[f64], keep, top_k| keep_top(7, scores, keep, top_k).unwrap_err().to_string();
        insta::assert_snapshot!(message(&[1.0, 2.0, 3.0], 1, 2), @"expert prune: keep 1 is below the 2 experts the router chooses per token");
        insta::assert_snapshot!(message(&[1.0, 2.0, 3.0], 3, 2), @"expert prune: keep 3 of 3 experts prunes nothing");
        insta::assert_snapshot!(message(&[1.0, f64::NAN, 3.0], 2, 2), @"expert prune: layer 7, expert 1: the score is NaN");
        insta::assert_snapshot!(message(&[0.0; 4], 2, 2), @"expert prune: layer 7: every score is zero");
    }

    proptest! {
        #[test]
        fn kept_are_ascending_and_no_worse_than_dropped(counts in prop::collection::vec(1u32..50, 3..40), cut in 1usize..3) {
            let scores: Vec<f64> = counts.iter().map(|&c| f64::from(c)).collect();
            let keep = scores.len() - cut;
            let kept = keep_top(0, &scores, keep, 1).unwrap();
            prop_assert_eq!(kept.len(), keep);
            prop_assert!(kept.windows(2).all(|w| w[0] < w[1]));
            let worst = kept.iter().map(|&e| scores[e]).fold(f64::MAX, f64::min);
            for dropped in (0..scores.len()).filter(|e| !kept.contains(e)) {
                prop_assert!(scores[dropped] <= worst);
            }
        }
    }
}
