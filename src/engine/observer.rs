//! Observers: callers that look on while a pass runs. They see values, they cannot change them.

use super::batch::Batch;
pub use super::imitation::Imitation;
use crate::family::AttentionSpec;

/// What the router of one mixture block chose for the tokens of one micro-batch.
pub struct Routing<'a> {
    pub layer: usize,
    /// Experts in the block.
    pub experts: usize,
    pub top_k: usize,
    /// `[tokens · top_k]` expert numbers, best first for each token.
    pub chosen: &'a [u32],
    /// `[tokens · top_k]` the weight of each choice in the mixture.
    pub weights: &'a [f32],
    pub batch: &'a Batch,
}

/// What one expert made of the tokens of one micro-batch that chose it; experts nobody chose are not computed.
pub struct ExpertOutputs<'a> {
    pub layer: usize,
    pub expert: usize,
    /// Rows of the micro-batch, ascending.
    pub rows: &'a [u32],
    /// The weight of the expert in each row's mixture, as the model uses it.
    pub gates: &'a [f32],
    /// Euclidean norm of the expert's output for each row, before its gate.
    pub norms: &'a [f32],
    /// Largest absolute element of the same outputs.
    pub peaks: &'a [f32],
    pub batch: &'a Batch,
}

/// What the attention heads of one block did for the tokens of one micro-batch.
pub struct HeadViews<'a> {
    pub layer: usize,
    pub spec: &'a AttentionSpec,
    /// Queries `[rows, heads · head_dim]`, normed and turned by their positions.
    pub q: &'a [f32],
    /// Keys `[rows, kv_heads · head_dim]`, likewise.
    pub k: &'a [f32],
    /// What the heads hand to the output projection, `[rows, heads · head_dim]`.
    pub mixed: &'a [f32],
    pub batch: &'a Batch,
}

/// Hooks of a pass; each does nothing unless overridden. Calls come from the thread that runs the pass, in the order
/// layer, micro-batch. Hooks of blocks see the (first) model as it stands, never a [variant](super::Variant).
pub trait Observer {
    /// A router has chosen.
    fn router(&mut self, _routing: &Routing<'_>) {}

    /// True to be given [`Observer::expert_outputs`] (it costs a look at every value of every expert's output).
    fn wants_expert_outputs(&self) -> bool {
        false
    }

    /// One expert has computed the tokens of a micro-batch that were routed to it; experts come in ascending order.
    fn expert_outputs(&mut self, _outputs: &ExpertOutputs<'_>) {}

    /// The experts of a block, ascending, whose imitation of the whole mixture this observer wants to see (it costs a
    /// second routing and the work of their experts).
    fn survivors(&self, _layer: usize) -> Option<&[u32]> {
        None
    }

    /// What the survivors would do for some rows of a micro-batch.
    fn imitation(&mut self, _imitation: &Imitation<'_>) {}

    /// True to be given [`Observer::block_input`] (it costs a copy of the hidden states).
    fn wants_block_inputs(&self) -> bool {
        false
    }

    /// The hidden states `[rows, hidden]` of one micro-batch before a block.
    fn block_input(&mut self, _layer: usize, _batch: &Batch, _hidden: &[f32]) {}

    /// True to be given [`Observer::heads`] of this block (it costs copies of three activations).
    fn wants_heads(&self, _layer: usize) -> bool {
        false
    }

    /// The attention heads of a block have run.
    fn heads(&mut self, _heads: &HeadViews<'_>) {}

    /// What has been seen so far, put down between two blocks so that an interrupted pass can go on. `None`: it cannot be
    /// put down, and the pass keeps no savepoints.
    fn save(&mut self) -> Option<Vec<u8>> {
        None
    }

    /// Takes back what [`Observer::save`] gave; false, and unchanged, when it cannot be read.
    fn restore(&mut self, _saved: &[u8]) -> bool {
        false
    }

    /// True to be given [`Observer::logits`].
    fn wants_logits(&self) -> bool {
        false
    }

    /// Logits `[rows, vocab]` of a vocabulary chunk for `rows` consecutive scored positions.
    fn logits(&mut self, _logits: &LogitChunk<'_>) {}
}

/// A rectangle of the logit matrix.
pub struct LogitChunk<'a> {
    /// 0: the (first) model as it stands; then its variants, then each other model and its variants. The same rectangle
    /// of all of them comes in this order before the next one.
    pub variant: usize,
    /// Number of the first scored position of the pass that `values` covers.
    pub first_position: usize,
    pub rows: usize,
    /// The token ids covered.
    pub vocab: std::ops::Range<usize>,
    /// `[rows, vocab.len()]`.
    pub values: &'a [f32],
}
