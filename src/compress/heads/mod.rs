//! Attention-head pruning: which heads matter least ([`score_heads`]), which of them go ([`plan_heads`]), and the
//! streaming rewrite that takes them out of the tensors ([`rewrite_heads`]).
//!
//! Only plain grouped-query attention has heads that can be taken out one by one; layers with another mixer (latent or
//! linear attention) are left as they are. In `pad` mode every shape stays and a removed head becomes zeros; in `slice`
//! mode whole key/value groups leave the tensors, the same number in every layer, so that the config can say so.

mod edit;
mod plan;
mod rewrite;
mod scores;

use crate::family::{AttentionSpec, ModelSpec};

pub use edit::{Axis, HeadEdit};
pub use plan::{Defrag, HeadOptions, HeadPlan, LayerHeads, plan_heads, removable, sliceable};
pub use rewrite::{HeadReport, config_with_heads, rewrite_heads, with_heads};
pub use scores::{HeadMetric, HeadScores, SAMPLE_LENGTH, score_heads};

/// The layers whose heads can be pruned, with what they are made of.
pub fn prunable(spec: &ModelSpec) -> Vec<(usize, &AttentionSpec)> {
    spec.blocks.iter().filter_map(|block| Some((block.index, block.attention()?))).collect()
}
