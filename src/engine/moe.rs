//! Mixture of experts: choose experts per token, group the tokens by expert, one product per expert and matrix.

use std::sync::atomic::Ordering::Relaxed;

use rayon::prelude::*;

use super::EngineError;
use super::backend::Backend;
use super::block::{Linear, Mlp, Setting};
use super::observer::{ExpertOutputs, Observer, Routing};
use super::variant::narrowed;
use crate::family::MoeSpec;

type Result<T> = std::result::Result<T, EngineError>;

/// The experts chosen for each of some tokens.
#[derive(Debug, PartialEq)]
pub struct Choices {
    /// `[tokens · top_k]`, best first.
    pub chosen: Vec<u32>,
    /// `[tokens · top_k]`.
    pub weights: Vec<f32>,
}

/// The routed output for normed hidden states x `[rows, hidden]`.
pub fn mixture<B: Backend>(
    cx: &Setting<'_, B>,
    spec: &MoeSpec,
    router: &Linear<B>,
    experts: &[Mlp<B>],
    x: &B::Rows,
    observers: &mut [&mut dyn Observer],
) -> Result<B::Rows> {
    let backend = cx.backend;
    let choices = route(cx, spec, router, x)?;
    let routing = Routing {
        layer: cx.spec.index,
        experts: spec.experts.len(),
        top_k: spec.top_k,
        chosen: &choices.chosen,
        weights: &choices.weights,
        batch: cx.batch,
    };
    for observer in observers.iter_mut() {
        observer.router(&routing);
    }
    let mut out = backend.zeros(cx.batch.rows(), spec.router.cols)?;
    for (expert, tokens) in by_expert(&choices, experts.len(), spec.top_k).iter().enumerate() {
        if !tokens.rows.is_empty() {
            let y = experts[expert].apply(backend, x, Some(&tokens.rows))?;
            cx.expert_work.fetch_add(tokens.rows.len() as u64 * spec.experts[expert].elements(), Relaxed);
            show_outputs(cx, expert, tokens, &y, observers)?;
            out = backend.add_rows(out, &tokens.rows, &tokens.weights, &y)?;
        }
    }
    Ok(out)
}

/// The router's choices; those of a variant are made among its survivors as if there were no others.
fn route<B: Backend>(cx: &Setting<'_, B>, spec: &MoeSpec, router: &Linear<B>, x: &B::Rows) -> Result<Choices> {
    let experts = spec.experts.len();
    let Some(change) = cx.change else {
        let logits = cx.backend.download(&router.apply(cx.backend, x)?)?;
        return Ok(choose(&logits, experts, spec.top_k, spec.renormalises()));
    };
    let weight = change.router.as_ref().map_or(&router.weight, |other| &other.weight);
    let [logits] = cx.backend.linears(x, None, [(weight, router.bias.as_ref())])?;
    let logits = narrowed(&cx.backend.download(&logits)?, experts, change.kept);
    let mut choices = choose(&logits, change.kept.len(), spec.top_k, spec.renormalises());
    choices.chosen.iter_mut().for_each(|expert| *expert = change.kept[*expert as usize]);
    Ok(choices)
}

fn show_outputs<B: Backend>(
    cx: &Setting<'_, B>,
    expert: usize,
    tokens: &Tokens,
    y: &B::Rows,
    observers: &mut [&mut dyn Observer],
) -> Result<()> {
    if !observers.iter().any(|o| o.wants_expert_outputs()) {
        return Ok(());
    }
    let sizes = cx.backend.row_sizes(y)?;
    let outputs = ExpertOutputs {
        layer: cx.spec.index,
        expert,
        rows: &tokens.rows,
        gates: &tokens.weights,
        norms: &sizes.norms,
        peaks: &sizes.peaks,
        batch: cx.batch,
    };
    for observer in observers.iter_mut().filter(|o| o.wants_expert_outputs()) {
        observer.expert_outputs(&outputs);
    }
    Ok(())
}

/// Softmax over all experts, then the `top_k` largest; equal probabilities go to the lower expert number.
pub fn choose(logits: &[f32], experts: usize, top_k: usize, normalise: bool) -> Choices {
    let tokens = logits.len() / experts;
    let mut chosen = vec![0u32; tokens * top_k];
    let mut weights = vec![0f32; tokens * top_k];
    let outputs = chosen.par_chunks_mut(top_k).zip(weights.par_chunks_mut(top_k));
    outputs.zip(logits.par_chunks(experts)).with_min_len(64).for_each(|((chosen, weights), row)| {
        let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let total: f32 = row.iter().map(|&v| (v - max).exp()).sum();
        let mut order: Vec<u32> = (0..experts as u32).collect();
        let rank = |&a: &u32, &b: &u32| row[b as usize].total_cmp(&row[a as usize]).then(a.cmp(&b));
        if top_k < experts {
            order.select_nth_unstable_by(top_k - 1, rank);
            order.truncate(top_k);
        }
        order.sort_unstable_by(rank);
        for ((slot, weight), &expert) in chosen.iter_mut().zip(weights.iter_mut()).zip(&order) {
            *slot = expert;
            *weight = (row[expert as usize] - max).exp() / total;
        }
        if normalise {
            let sum: f32 = weights.iter().sum();
            weights.iter_mut().for_each(|w| *w /= sum);
        }
    });
    Choices { chosen, weights }
}

/// The tokens of one expert.
#[derive(Clone, Default)]
struct Tokens {
    rows: Vec<u32>,
    weights: Vec<f32>,
}

fn by_expert(choices: &Choices, experts: usize, top_k: usize) -> Vec<Tokens> {
    let mut groups = vec![Tokens::default(); experts];
    for (i, (&expert, &weight)) in choices.chosen.iter().zip(&choices.weights).enumerate() {
        let group = &mut groups[expert as usize];
        group.rows.push((i / top_k) as u32);
        group.weights.push(weight);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_are_chosen_and_ties_go_to_the_lower_number() {
        let got = choose(&[0.0, 1.0, 1.0, 1.0], 4, 2, true);
        assert_eq!(got, Choices { chosen: vec![1, 2], weights: vec![0.5, 0.5] });
    }

    #[test]
    fn weights_are_probabilities_over_all_experts_unless_normalised() {
        let logits = [2f32.ln(), 0.0, 0.0];
        let raw = choose(&logits, 3, 1, false);
        assert_eq!(raw.chosen, [0]);
        assert!((raw.weights[0] - 0.5).abs() < 1e-6);
        assert_eq!(choose(&logits, 3, 1, true).weights, [1.0]);
        let all = choose(&logits, 3, 3, false);
        assert_eq!(all.chosen, [0, 1, 2]);
        assert!((all.weights.iter().sum::<f32>() - 1.0).abs() < 1e-6);
    }

    #[test]
    fn every_choice_lands_in_exactly_one_group() {
        let choices = Choices { chosen: vec![2, 0, 2, 1], weights: vec![0.6, 0.4, 0.7, 0.3] };
        let groups = by_expert(&choices, 3, 2);
        assert_eq!(groups.iter().map(|g| g.rows.len()).sum::<usize>(), 4);
        assert_eq!(groups[2].rows, [0, 1]);
        assert_eq!(groups[2].weights, [0.6, 0.7]);
    }
}
