//! Variants: the same model with fewer experts, run beside it in one pass, so that weights are read once for all.

use std::collections::BTreeMap;

use super::EngineError;
use super::backend::Backend;
use super::batch::Batch;
use super::block::Linear;
use crate::family::BlockSpec;

/// A model that differs from the one on disk in which experts its routers may choose.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Variant {
    /// By block; a block that is not here routes as the model does.
    pub layers: BTreeMap<usize, Survivors>,
}

/// The experts of one block that are left.
#[derive(Clone, Debug, PartialEq)]
pub struct Survivors {
    /// Their numbers, ascending. Routing treats them as all the experts there are, as a pruned model's router would.
    pub kept: Vec<u32>,
    /// The router's weight `[experts, hidden]` in place of the model's; only the survivors' rows matter.
    pub router: Option<Vec<f32>>,
}

impl Variant {
    /// A variant that only leaves experts out: block → numbers of those kept, ascending.
    pub fn keeping(kept: &BTreeMap<usize, Vec<usize>>) -> Self {
        let survivors =
            |kept: &Vec<usize>| Survivors { kept: kept.iter().map(|&expert| expert as u32).collect(), router: None };
        Variant { layers: kept.iter().map(|(&layer, kept)| (layer, survivors(kept))).collect() }
    }
}

/// What a variant changes in one block, in compute form.
pub struct Change<'a, B: Backend> {
    pub kept: &'a [u32],
    pub router: Option<Linear<B>>,
}

impl<'a, B: Backend> Change<'a, B> {
    /// What each of `variants` changes in `block`; the model itself stands first and changes nothing.
    pub fn in_block(backend: &B, variants: &'a [Variant], block: &BlockSpec) -> Result<Vec<Option<Self>>, EngineError> {
        let change = |variant: &'a Variant| {
            let (Some(survivors), Some(moe)) = (variant.layers.get(&block.index), block.moe()) else { return Ok(None) };
            let weight = |values: &Vec<f32>| backend.make_weight(values.clone(), moe.router.rows, moe.router.cols);
            let router = survivors.router.as_ref().map(weight).transpose()?;
            Ok(Some(Change { kept: &survivors.kept, router: router.map(|weight| Linear { weight, bias: None }) }))
        };
        std::iter::once(Ok(None)).chain(variants.iter().map(change)).collect()
    }
}

/// One micro-batch through one variant.
#[derive(Clone, Debug, PartialEq)]
pub struct Run {
    pub batch: Batch,
    /// 0: the model as it stands.
    pub variant: usize,
}

/// Every batch through the model and each of `variants` variants; the runs of a batch stand together.
pub fn runs(batches: Vec<Batch>, variants: usize) -> Vec<Run> {
    let of = |batch: Batch| (0..=variants).map(move |variant| Run { batch: batch.clone(), variant });
    batches.into_iter().flat_map(of).collect()
}

/// The columns `kept` of logits `[tokens, experts]`.
pub fn narrowed(logits: &[f32], experts: usize, kept: &[u32]) -> Vec<f32> {
    logits.chunks_exact(experts).flat_map(|row| kept.iter().map(|&expert| row[expert as usize])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_sees_the_survivors_logits_only() {
        assert_eq!(narrowed(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 3, &[0, 2]), [1.0, 3.0, 4.0, 6.0]);
    }

    #[test]
    fn the_runs_of_a_batch_stand_together() {
        let batch = |first: usize| Batch { sequences: first..first + 1, spans: std::iter::once(0..4).collect() };
        let runs: Vec<(usize, usize)> =
            runs(vec![batch(0), batch(1)], 1).iter().map(|run| (run.batch.sequences.start, run.variant)).collect();
        assert_eq!(runs, [(0, 0), (0, 1), (1, 0), (1, 1)]);
    }
}
