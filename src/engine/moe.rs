//! Mixture of experts: choose experts per token, group the tokens by expert, one product per expert and matrix.

use std::sync::atomic::Ordering::Relaxed;

use super::EngineError;
use super::backend::Backend;
use super::block::{Linear, Mlp, Setting};
use super::imitation;
use super::observer::{ExpertOutputs, Observer, Routing};
use super::routing::{Choices, Router};
use super::variant::narrowed;
use crate::family::{MoeSpec, SharedExpertSpec};
use crate::model::TensorSource;

type Result<T> = std::result::Result<T, EngineError>;

/// A mixture's weights, loaded.
pub struct Mixture<B: Backend> {
    router: Linear<B>,
    correction: Option<Vec<f32>>,
    experts: Vec<Mlp<B>>,
    shared: Option<SharedExpert<B>>,
}

/// An expert that every token passes.
struct SharedExpert<B: Backend> {
    mlp: Mlp<B>,
    gate: Option<Linear<B>>,
}

impl<B: Backend> Mixture<B> {
    pub fn load(backend: &B, source: &dyn TensorSource, spec: &MoeSpec) -> Result<Self> {
        let correction = |name: &String| {
            let mut values = Vec::new();
            source.read_f32(name, &mut values).map(|()| values)
        };
        let shared = |spec: &SharedExpertSpec| {
            let gate = spec.gate.as_ref().map(|gate| Linear::load(backend, source, gate)).transpose()?;
            Ok::<_, EngineError>(SharedExpert { mlp: Mlp::load(backend, source, &spec.mlp)?, gate })
        };
        Ok(Mixture {
            router: Linear::load(backend, source, &spec.router)?,
            correction: spec.correction.as_ref().map(correction).transpose()?,
            experts: spec.experts.iter().map(|e| Mlp::load(backend, source, e)).collect::<Result<_>>()?,
            shared: spec.shared.as_ref().map(shared).transpose()?,
        })
    }

    /// The output for normed hidden states x `[rows, hidden]`: the routed experts' and the shared one's.
    ///
    /// # Errors
    /// The device fails.
    pub fn forward(
        &self,
        cx: &Setting<'_, B>,
        spec: &MoeSpec,
        x: &B::Rows,
        observers: &mut [&mut dyn Observer],
    ) -> Result<B::Rows> {
        let out = self.routed(cx, spec, x, observers)?;
        let Some(shared) = &self.shared else { return Ok(out) };
        let mut y = shared.mlp.apply(cx.backend, x, None)?;
        if let Some(gate) = &shared.gate {
            y = cx.backend.gate(y, &gate.apply(cx.backend, x)?)?;
        }
        cx.backend.add(out, y)
    }

    fn routed(
        &self,
        cx: &Setting<'_, B>,
        spec: &MoeSpec,
        x: &B::Rows,
        observers: &mut [&mut dyn Observer],
    ) -> Result<B::Rows> {
        let backend = cx.backend;
        let choices = self.route(cx, spec, x)?;
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
        for (expert, tokens) in by_expert(&choices, self.experts.len(), spec.top_k).iter().enumerate() {
            if !tokens.rows.is_empty() {
                let y = self.experts[expert].apply(backend, x, Some(&tokens.rows))?;
                cx.expert_work.fetch_add(tokens.rows.len() as u64 * spec.experts[expert].elements(), Relaxed);
                show_outputs(cx, expert, tokens, &y, observers)?;
                out = backend.add_rows(out, &tokens.rows, &tokens.weights, &y)?;
            }
        }
        imitation::show(self, cx, spec, x, &out, observers)?;
        Ok(out)
    }

    pub fn expert(&self, number: usize) -> &Mlp<B> {
        &self.experts[number]
    }

    /// The router's choices; those of a variant are made among its survivors as if there were no others.
    pub fn route(&self, cx: &Setting<'_, B>, spec: &MoeSpec, x: &B::Rows) -> Result<Choices> {
        let experts = spec.experts.len();
        let (rule, top_k, scale) = (spec.rule, spec.top_k, spec.scale as f32);
        let Some(change) = cx.change else {
            let logits = cx.backend.download(&self.router.apply(cx.backend, x)?)?;
            let router = Router { rule, top_k, scale, correction: self.correction.as_deref() };
            return Ok(router.choose(&logits, experts));
        };
        let weight = change.router.as_ref().map_or(&self.router.weight, |other| &other.weight);
        let [logits] = cx.backend.linears(x, None, [(weight, self.router.bias.as_ref())])?;
        let logits = narrowed(&cx.backend.download(&logits)?, experts, change.kept);
        let correction = self.correction.as_ref().map(|values| narrowed(values, experts, change.kept));
        let router = Router { rule, top_k, scale, correction: correction.as_deref() };
        let mut choices = router.choose(&logits, change.kept.len());
        choices.chosen.iter_mut().for_each(|expert| *expert = change.kept[*expert as usize]);
        Ok(choices)
    }
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
    fn every_choice_lands_in_exactly_one_group() {
        let choices = Choices { chosen: vec![2, 0, 2, 1], weights: vec![0.6, 0.4, 0.7, 0.3] };
        let groups = by_expert(&choices, 3, 2);
        assert_eq!(groups.iter().map(|g| g.rows.len()).sum::<usize>(), 4);
        assert_eq!(groups[2].rows, [0, 1]);
        assert_eq!(groups[2].weights, [0.6, 0.7]);
    }
}
