//! Observers: callers that look on while a pass runs. They see values, they cannot change them.

use super::batch::Batch;

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

/// Hooks of a pass; each does nothing unless overridden. Calls come from the thread that runs the pass, in the order
/// layer, micro-batch.
pub trait Observer {
    /// A router has chosen.
    fn router(&mut self, _routing: &Routing<'_>) {}

    /// True to be given [`Observer::block_input`] (it costs a copy of the hidden states).
    fn wants_block_inputs(&self) -> bool {
        false
    }

    /// The hidden states `[rows, hidden]` of one micro-batch before a block.
    fn block_input(&mut self, _layer: usize, _batch: &Batch, _hidden: &[f32]) {}

    /// True to be given [`Observer::logits`].
    fn wants_logits(&self) -> bool {
        false
    }

    /// Logits `[rows, vocab]` of a vocabulary chunk for `rows` consecutive scored positions.
    fn logits(&mut self, _logits: &LogitChunk<'_>) {}
}

/// A rectangle of the logit matrix.
pub struct LogitChunk<'a> {
    /// Number of the first scored position of the pass that `values` covers.
    pub first_position: usize,
    pub rows: usize,
    /// The token ids covered.
    pub vocab: std::ops::Range<usize>,
    /// `[rows, vocab.len()]`.
    pub values: &'a [f32],
}
