//! Routing rules: from a router's logits to the experts of each token and their weights.

use rayon::prelude::*;

use crate::family::RoutingRule;

/// The experts chosen for each of some tokens.
#[derive(Debug, PartialEq)]
pub struct Choices {
    /// `[tokens · top_k]`, best first.
    pub chosen: Vec<u32>,
    /// `[tokens · top_k]`.
    pub weights: Vec<f32>,
}

/// How a mixture chooses.
#[derive(Clone, Copy, Debug)]
pub struct Router<'a> {
    pub rule: RoutingRule,
    pub top_k: usize,
    /// Factor on the weights.
    pub scale: f32,
    /// Of each expert: added to its probability for choosing, not for weighing.
    pub correction: Option<&'a [f32]>,
}

impl Router<'_> {
    /// Chooses for every row of `logits` `[tokens, experts]`. What is equal goes to the lower expert number.
    pub fn choose(&self, logits: &[f32], experts: usize) -> Choices {
        let (top_k, tokens) = (self.top_k, logits.len() / experts);
        let mut chosen = vec![0u32; tokens * top_k];
        let mut weights = vec![0f32; tokens * top_k];
        let outputs = chosen.par_chunks_mut(top_k).zip(weights.par_chunks_mut(top_k));
        outputs.zip(logits.par_chunks(experts)).with_min_len(64).for_each(|((chosen, weights), row)| {
            match self.rule {
                RoutingRule::SparseMixer { jitter } => sparse_mixer(row, jitter as f32, chosen, weights),
                rule => self.by_rank(rule, row, chosen, weights),
            }
            weights.iter_mut().for_each(|weight| *weight *= self.scale);
        });
        Choices { chosen, weights }
    }

    fn by_rank(&self, rule: RoutingRule, row: &[f32], chosen: &mut [u32], weights: &mut [f32]) {
        let max = largest(row).1;
        let total: f32 = row.iter().map(|&v| (v - max).exp()).sum();
        let mut order: Vec<u32> = (0..row.len() as u32).collect();
        let corrected: Option<Vec<f32>> = self
            .correction
            .map(|correction| row.iter().zip(correction).map(|(&v, c)| (v - max).exp() / total + c).collect());
        // Logits and probabilities rank alike; the former do not vanish.
        let scores: &[f32] = corrected.as_deref().unwrap_or(row);
        if let RoutingRule::GroupLimited { groups, kept_groups, .. } = rule {
            let kept = best_groups(scores, groups, kept_groups);
            let size = row.len().div_ceil(groups);
            order.retain(|&expert| kept.contains(&(expert as usize / size)));
        }
        let rank = |&a: &u32, &b: &u32| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b));
        if self.top_k < order.len() {
            order.select_nth_unstable_by(self.top_k - 1, rank);
            order.truncate(self.top_k);
        }
        order.sort_unstable_by(rank);
        for ((slot, weight), &expert) in chosen.iter_mut().zip(weights.iter_mut()).zip(&order) {
            *slot = expert;
            *weight = (row[expert as usize] - max).exp() / total;
        }
        let renormalise = match rule {
            RoutingRule::SoftmaxTopK { renormalise } | RoutingRule::GroupLimited { renormalise, .. } => renormalise,
            // Softmax over the chosen alone is their share of the softmax over all.
            RoutingRule::TopKSoftmax | RoutingRule::SparseMixer { .. } => true,
        };
        if renormalise {
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
    }
}

/// The groups whose best expert scores highest, in ascending order of rank.
fn best_groups(scores: &[f32], groups: usize, kept: usize) -> Vec<usize> {
    let best: Vec<f32> = scores.chunks(scores.len().div_ceil(groups)).map(|group| largest(group).1).collect();
    let mut order: Vec<usize> = (0..best.len()).collect();
    order.sort_by(|&a, &b| best[b].total_cmp(&best[a]).then(a.cmp(&b)));
    order.truncate(kept);
    order
}

/// Number and value of the largest; the first of equals.
fn largest(row: &[f32]) -> (usize, f32) {
    let larger = |best: (usize, f32), (at, &value): (usize, &f32)| if value > best.1 { (at, value) } else { best };
    row.iter().enumerate().fold((0, f32::NEG_INFINITY), larger)
}

/// SparseMixer-v2 without its training noise (arXiv 2409.12136): twice, the largest is chosen and weighed by its softmax
/// among those within `2 · jitter` of it, relative to the larger of it and their own size.
fn sparse_mixer(row: &[f32], jitter: f32, chosen: &mut [u32], weights: &mut [f32]) {
    let mut left = row.to_vec();
    for (slot, weight) in chosen.iter_mut().zip(weights) {
        let (best, max) = largest(&left);
        let near = |at: usize| {
            // NaN (0 / 0) counts as near, as in the original's comparison.
            let distance = (max - row[at]) / row[at].abs().max(max);
            left[at] != f32::NEG_INFINITY && (distance.is_nan() || distance <= 2.0 * jitter)
        };
        let total: f32 = (0..row.len()).filter(|&at| near(at)).map(|at| (left[at] - max).exp()).sum();
        (*slot, *weight) = (best as u32, 1.0 / total);
        left[best] = f32::NEG_INFINITY;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn choose(logits: &[f32], experts: usize, top_k: usize, rule: RoutingRule) -> Choices {
        Router { rule, top_k, scale: 1.0, correction: None }.choose(logits, experts)
    }

    fn softmax(renormalise: bool) -> RoutingRule {
        RoutingRule::SoftmaxTopK { renormalise }
    }

    #[test]
    fn the_largest_are_chosen_and_ties_go_to_the_lower_number() {
        let wanted = Choices { chosen: vec![1, 2], weights: vec![0.5, 0.5] };
        assert_eq!(choose(&[0.0, 1.0, 1.0, 1.0], 4, 2, softmax(true)), wanted);
        assert_eq!(choose(&[0.0, 1.0, 1.0, 1.0], 4, 2, RoutingRule::TopKSoftmax), wanted);
    }

    #[test]
    fn weights_are_probabilities_over_all_experts_unless_normalised() {
        let logits = [2f32.ln(), 0.0, 0.0];
        let raw = choose(&logits, 3, 1, softmax(false));
        assert_eq!(raw.chosen, [0]);
        assert!((raw.weights[0] - 0.5).abs() < 1e-6);
        assert_eq!(choose(&logits, 3, 1, softmax(true)).weights, [1.0]);
        let all = choose(&logits, 3, 3, softmax(false));
        assert_eq!(all.chosen, [0, 1, 2]);
        assert!((all.weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        let scaled = Router { rule: softmax(false), top_k: 1, scale: 16.0, correction: None }.choose(&logits, 3);
        assert!((scaled.weights[0] - 8.0).abs() < 1e-5);
    }

    #[test]
    fn a_correction_chooses_but_does_not_weigh() {
        let logits = [2f32.ln(), 0.0, 0.0];
        let router = Router { rule: softmax(false), top_k: 1, scale: 1.0, correction: Some(&[0.0, 0.0, 0.5]) };
        let got = router.choose(&logits, 3);
        assert_eq!(got.chosen, [2]);
        assert!((got.weights[0] - 0.25).abs() < 1e-6);
    }

    #[test]
    fn only_experts_of_the_best_groups_are_chosen() {
        // Groups (0, 1), (2, 3), (4, 5): the last holds the best expert, the first the next best.
        let logits = [4.0, 0.0, 3.0, 3.0, 5.0, 1.0];
        let rule = RoutingRule::GroupLimited { groups: 3, kept_groups: 2, renormalise: false };
        assert_eq!(choose(&logits, 6, 3, rule).chosen, [4, 0, 5]);
        assert_eq!(choose(&logits, 6, 3, softmax(false)).chosen, [4, 0, 2]);
    }

    #[test]
    fn sparse_mixer_weighs_each_choice_among_those_close_to_it() {
        // 2.0 and 1.97 are within 2 % of each other, 1.9 is not within 2 % of 2.0 but is not near 1.97 either.
        let row = [1.0, 2.0, 1.97, 1.9, -3.0];
        let got = choose(&row, 5, 2, RoutingRule::SparseMixer { jitter: 0.01 });
        assert_eq!(got.chosen, [1, 2]);
        let first = 1.0 / (1.0 + (-0.03f32).exp());
        assert!((got.weights[0] - first).abs() < 1e-6, "{:?}", got.weights);
        assert!((got.weights[1] - 1.0).abs() < 1e-6, "1.9 is more than 2 % below 1.97");
    }
}
