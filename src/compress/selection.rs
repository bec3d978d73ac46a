//! Which experts stay: the K best of a layer, by a rule that leaves nothing to chance.

use std::cmp::Ordering;
use std::collections::BTreeMap;

use super::weight_scores::{Weighed, router_norms};
use super::{CompressError, Importance, Metric};
use crate::family::{MixtureId, MoeSpec, OpenModel, RoutingRule};

/// Mixture → kept experts, ascending.
pub type Kept = BTreeMap<MixtureId, Vec<usize>>;

/// The experts that stay in every mixture of `model`: the `keep` best by `metric`. A mixture that no pass runs (that of
/// a draft head, carried along) is ranked by its router; one whose tensors were not published is left out.
///
/// # Errors
/// A dense model, a table that is not this model's or lacks the score, a count that cannot be kept (see [`keep_top`]).
pub fn choose_experts(
    model: &OpenModel,
    metric: Metric,
    importance: Option<&Importance>,
    keep: usize,
) -> Result<Kept, CompressError> {
    let Some((experts, _)) = model.spec.experts() else {
        return Err(CompressError::Refused {
            what: "expert prune",
            reason: format!("{} is a dense model, it has no experts", model.path.display()),
            hint: "remove the expert stages, or choose a mixture-of-experts model",
        });
    };
    if let Some(table) = importance {
        check_table(table, model, experts)?;
    }
    let weighed = Weighed::new(model);
    let choose = |(id, moe): (MixtureId, &MoeSpec)| {
        let (layer, metric) = match id {
            MixtureId::Layer(layer) => (layer, metric),
            MixtureId::Carried { number, .. } => (number, Metric::RouterL2),
        };
        let known = importance.filter(|_| matches!(id, MixtureId::Layer(_)));
        let scores = match known.and_then(|table| table.scores(metric, layer)) {
            Some(scores) => scores,
            None => weight_scores(model, &weighed, moe, metric).ok_or_else(|| missing(metric, layer))??,
        };
        let top = Top { layer, keep, top_k: moe.top_k, groups: groups(moe) };
        Ok((id, keep_top(top, &metric.as_rank(scores))?))
    };
    let is_there =
        |id, moe: &MoeSpec| matches!(id, MixtureId::Layer(_)) || model.tensors.meta(&moe.router.weight).is_some();
    model.spec.mixtures().filter(|(id, moe)| is_there(*id, moe)).map(choose).collect()
}

/// The survivors of the blocks, for a pass that runs without the others.
pub fn survivors(kept: &Kept) -> BTreeMap<usize, Vec<usize>> {
    let of_layer = |(id, kept): (&MixtureId, &Vec<usize>)| match id {
        MixtureId::Layer(layer) => Some((*layer, kept.clone())),
        MixtureId::Carried { .. } => None,
    };
    kept.iter().filter_map(of_layer).collect()
}

/// The scores that need no table; `None` for the others.
fn weight_scores(
    model: &OpenModel,
    weighed: &Weighed,
    moe: &MoeSpec,
    metric: Metric,
) -> Option<Result<Vec<f64>, CompressError>> {
    match metric {
        Metric::RouterL2 => Some(router_norms(model.tensors.as_ref(), moe)),
        Metric::Aimer => Some(weighed.aimer(moe)),
        _ => None,
    }
}

fn missing(metric: Metric, layer: usize) -> CompressError {
    CompressError::Refused {
        what: "expert prune",
        reason: format!("the importance table has no {} for layer {layer}", metric.as_str()),
        hint: "profile this model with an expert-activation-profile stage of this build, which gathers every score",
    }
}

/// A table is for one model: counts and sizes must be this model's.
fn check_table(table: &Importance, model: &OpenModel, experts: usize) -> Result<(), CompressError> {
    let layers = model.spec.blocks.len();
    if table.num_experts != experts || table.num_hidden_layers != layers {
        return Err(CompressError::Refused {
            what: "expert prune",
            reason: format!(
                "the importance table is for {} layers of {} experts, {} has {layers} of {experts}",
                table.num_hidden_layers,
                table.num_experts,
                model.path.display()
            ),
            hint: "profile this model, or name the table that belongs to it",
        });
    }
    Ok(())
}

/// Equal groups that a router chooses from, and how many of them a token may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Groups {
    pub count: usize,
    pub used: usize,
}

/// The groups of a mixture; one for most.
pub fn groups(moe: &MoeSpec) -> Groups {
    match moe.rule {
        RoutingRule::GroupLimited { groups, kept_groups, .. } => Groups { count: groups, used: kept_groups },
        _ => Groups { count: 1, used: 1 },
    }
}

/// How many of a layer's experts to keep, under which routing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Top {
    pub layer: usize,
    pub keep: usize,
    pub top_k: usize,
    pub groups: Groups,
}

/// Indices of the `keep` experts to keep, ascending. A higher score wins, and of equal scores the lower index. A router
/// that chooses groups first keeps equally many experts in each.
///
/// Refuses `keep < top_k` (the router could not choose), `keep >= scores.len()` (nothing to prune), a count that does
/// not divide into the groups or leaves the groups a token may use with fewer than `top_k` experts, a score that is not
/// finite, and scores that are all zero (the profile saw nothing).
pub fn keep_top(top: Top, scores: &[f64]) -> Result<Vec<usize>, CompressError> {
    let Top { layer, keep, top_k, groups } = top;
    let refuse = |reason: String, hint| CompressError::Refused { what: "expert prune", reason, hint };
    let experts = scores.len();
    if keep < top_k {
        let reason = format!("keep {keep} is below the {top_k} experts the router chooses per token");
        return Err(refuse(reason, "keep at least num_experts_per_tok experts"));
    }
    if keep >= experts {
        return Err(refuse(format!("keep {keep} of {experts} experts prunes nothing"), "keep fewer experts"));
    }
    if !keep.is_multiple_of(groups.count) || !experts.is_multiple_of(groups.count) {
        let reason = format!("keep {keep} does not divide into the router's {} groups", groups.count);
        return Err(refuse(reason, "keep a multiple of n_group experts"));
    }
    let (of_group, keep_of_group) = (experts / groups.count, keep / groups.count);
    if groups.used * keep_of_group < top_k {
        let (used, left) = (groups.used, groups.used * keep_of_group);
        let reason = format!("keep {keep} leaves {left} experts in the {used} groups of a token, which uses {top_k}");
        return Err(refuse(reason, "keep more experts: topk_group × kept per group must reach num_experts_per_tok"));
    }
    if let Some(expert) = scores.iter().position(|score| !score.is_finite()) {
        let reason = format!("layer {layer}, expert {expert}: the score is {}", scores[expert]);
        return Err(refuse(reason, "the router weights or the importance table are damaged"));
    }
    if scores.iter().all(|&score| score == 0.0) {
        return Err(refuse(format!("layer {layer}: every score is zero"), "the profile saw no routing in this layer"));
    }
    let best = |group: usize| {
        let mut order: Vec<usize> = (group * of_group..(group + 1) * of_group).collect();
        order.sort_by(|&a, &b| scores[b].partial_cmp(&scores[a]).unwrap_or(Ordering::Equal).then(a.cmp(&b)));
        order.truncate(keep_of_group);
        order.sort_unstable();
        order
    };
    Ok((0..groups.count).flat_map(best).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ONE: Groups = Groups { count: 1, used: 1 };

    fn kept(scores: &[f64], keep: usize, top_k: usize, groups: Groups) -> Result<Vec<usize>, String> {
        keep_top(Top { layer: 7, keep, top_k, groups }, scores).map_err(|e| e.to_string())
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(kept(&[1.0, 3.0, 1.0, 1.0], 3, 2, ONE).unwrap(), [0, 1, 2]);
        assert_eq!(kept(&[0.0, 0.0, 0.0, 9.0], 2, 1, ONE).unwrap(), [0, 3]);
    }

    #[test]
    fn what_makes_no_sense_is_refused() {
        let message = |scores: &[f64], keep, top_k| kept(scores, keep, top_k, ONE).unwrap_err();
        insta::assert_snapshot!(message(&[1.0, 2.0, 3.0], 1, 2), @"expert prune: keep 1 is below the 2 experts the router chooses per token");
        insta::assert_snapshot!(message(&[1.0, 2.0, 3.0], 3, 2), @"expert prune: keep 3 of 3 experts prunes nothing");
        insta::assert_snapshot!(message(&[1.0, f64::NAN, 3.0], 2, 2), @"expert prune: layer 7, expert 1: the score is NaN");
        insta::assert_snapshot!(message(&[0.0; 4], 2, 2), @"expert prune: layer 7: every score is zero");
    }

    #[test]
    fn groups_keep_equally_many() {
        let scores = [9.0, 8.0, 7.0, 6.0, 1.0, 3.0, 2.0, 3.0];
        let two = Groups { count: 2, used: 1 };
        assert_eq!(kept(&scores, 4, 2, two).unwrap(), [0, 1, 5, 7]);
        insta::assert_snapshot!(kept(&scores, 5, 2, two).unwrap_err(), @"expert prune: keep 5 does not divide into the router's 2 groups");
        insta::assert_snapshot!(kept(&scores, 4, 3, two).unwrap_err(), @"expert prune: keep 4 leaves 2 experts in the 1 groups of a token, which uses 3");
    }

    proptest! {
        #[test]
        fn kept_are_ascending_and_no_worse_than_dropped(counts in prop::collection::vec(1u32..50, 3..40), cut in 1usize..3) {
            let scores: Vec<f64> = counts.iter().map(|&c| f64::from(c)).collect();
            let keep = scores.len() - cut;
            let kept = kept(&scores, keep, 1, ONE).unwrap();
            prop_assert_eq!(kept.len(), keep);
            prop_assert!(kept.windows(2).all(|w| w[0] < w[1]));
            let worst = kept.iter().map(|&e| scores[e]).fold(f64::MAX, f64::min);
            for dropped in (0..scores.len()).filter(|e| !kept.contains(e)) {
                prop_assert!(scores[dropped] <= worst);
            }
        }
    }
}
