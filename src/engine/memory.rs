//! How much memory a pass will take, and how much the process has taken.

use super::backend::Backend;
use crate::family::{BlockSpec, FfnSpec, MixerSpec, ModelSpec, Role};
use crate::model::{Dtype, TensorSource};
use crate::node::memory_of;
use crate::units::Bytes;

/// Tokens of a micro-batch on the CPU: enough to keep products busy, few enough for the activations to stay small.
const ROWS_ON_CPU: usize = 1024;
/// The same for mixtures of experts, whose tokens are spread over many small products.
const MOE_ROWS_ON_CPU: usize = 4096;
/// Tokens each expert should get of a micro-batch, on average.
const ROWS_PER_EXPERT: usize = 256;
/// Tokens of a micro-batch on a device, where products want to be larger.
const ROWS_ON_DEVICE: usize = 8192;
/// Hidden states kept in memory when the caller sets no budget.
const RESIDENT_BY_DEFAULT: u64 = 192_000_000;
/// Values of the logit rectangle computed at once.
const LOGIT_VALUES: usize = 1024 * 8192;

/// The layout of a pass in memory, decided before it starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MemoryPlan {
    /// Tokens a micro-batch aims at.
    pub batch_rows: usize,
    /// Rows of the vocabulary computed at once.
    pub vocab_chunk: usize,
    /// Hidden states go to a file.
    pub spill: bool,
    /// Two blocks' weights and what converting them takes.
    pub weights: Bytes,
    /// Activations of one micro-batch, or the head's logits, whichever is more.
    pub activations: Bytes,
    /// Hidden states in memory.
    pub hidden: Bytes,
}

impl MemoryPlan {
    /// What the pass takes beyond what the process holds already.
    pub fn total(&self) -> Bytes {
        self.weights + self.activations + self.hidden
    }

    /// Lays a pass of `tokens` tokens in sequences of at most `longest` out within `budget`.
    ///
    /// Weights and the activations of one micro-batch are taken as needed (a pass cannot do with less); hidden states
    /// stay in memory as far as the rest of the budget allows.
    pub(super) fn new<B: Backend>(
        backend: &B,
        spec: &ModelSpec,
        source: &dyn TensorSource,
        tokens: usize,
        longest: usize,
        on_device: bool,
        budget: Option<Bytes>,
    ) -> Self {
        let weights = Bytes(2 * block_weights(backend, spec, source) + conversion(spec, source));
        let wanted = if on_device { ROWS_ON_DEVICE } else { rows_on_cpu(spec) };
        let mut batch_rows = longest.max(wanted).min(tokens.max(1));
        let per_row = row_bytes(spec);
        if let Some(budget) = budget {
            let free = budget.saturating_sub(weights).0 / 2;
            batch_rows = batch_rows.min((free / per_row) as usize).max(longest.min(tokens)).max(1);
        }
        let vocab_chunk = (LOGIT_VALUES / batch_rows).clamp(256, 16_384).min(spec.vocab);
        let logits = (batch_rows * vocab_chunk * 4) as u64 + 2 * backend.weight_bytes(vocab_chunk, spec.hidden, false);
        let activations = Bytes((batch_rows as u64 * per_row).max(logits));
        let all_hidden = (tokens * spec.hidden * 4) as u64;
        let resident = match budget {
            Some(budget) => budget.saturating_sub(weights + activations).0,
            None => RESIDENT_BY_DEFAULT,
        };
        let spill = all_hidden > resident;
        // A spilled batch is in memory three times for a moment: as values, as bytes read, as rows.
        let hidden = Bytes(if spill { (3 * batch_rows * spec.hidden * 4) as u64 } else { all_hidden });
        MemoryPlan { batch_rows, vocab_chunk, spill, weights, activations, hidden }
    }

    /// The layout of one pass over several models, each planned with the hidden states of all: they go through their
    /// blocks one after the other, and share the room for a part of the head.
    pub(super) fn beside(self, others: &[MemoryPlan]) -> MemoryPlan {
        let both = |a: MemoryPlan, b: &MemoryPlan| MemoryPlan {
            batch_rows: a.batch_rows.min(b.batch_rows),
            vocab_chunk: a.vocab_chunk.min(b.vocab_chunk),
            spill: a.spill || b.spill,
            weights: a.weights.max(b.weights),
            activations: a.activations.max(b.activations),
            hidden: a.hidden.max(b.hidden),
        };
        let joint = others.iter().fold(self, both);
        if others.is_empty() {
            return joint;
        }
        let share = joint.vocab_chunk / (1 + others.len());
        // Whole tiles of the vocabulary.
        MemoryPlan { vocab_chunk: (share / 64).max(4) * 64, ..joint }
    }
}

fn rows_on_cpu(spec: &ModelSpec) -> usize {
    let spread = spec.experts().map_or(1, |(experts, top_k)| experts.div_ceil(top_k));
    (spread * ROWS_PER_EXPERT).clamp(ROWS_ON_CPU, MOE_ROWS_ON_CPU)
}

/// Bytes of the largest block's weights, loaded.
fn block_weights<B: Backend>(backend: &B, spec: &ModelSpec, source: &dyn TensorSource) -> u64 {
    let bytes = |block: &BlockSpec| -> u64 {
        let tensor = |t: crate::family::ExpectedTensor| {
            let exact = source.meta(&t.name).is_some_and(|meta| meta.dtype == Dtype::BF16);
            match t.shape[..] {
                [rows, cols] => backend.weight_bytes(rows, cols, exact),
                _ => 4 * t.elements(),
            }
        };
        block.tensors().into_iter().map(tensor).sum()
    };
    spec.blocks.iter().map(bytes).max().unwrap_or(0)
}

/// The largest tensor of a block once more: as mapped pages, and as f32 values when it has to be decoded.
fn conversion(spec: &ModelSpec, source: &dyn TensorSource) -> u64 {
    let tensors =
        spec.blocks.iter().flat_map(BlockSpec::tensors).filter(|t| !matches!(t.role, Role::Embed | Role::Head));
    let bytes = |t: crate::family::ExpectedTensor| {
        let (on_disk, exact) = source.meta(&t.name).map_or((0, true), |m| (m.bytes, m.dtype == Dtype::BF16));
        on_disk + if exact { 0 } else { 4 * t.elements() }
    };
    tensors.map(bytes).max().unwrap_or(0)
}

/// Bytes of activations per token of a micro-batch.
///
/// Buffers are kept for the next block, and those of a mixer are seldom as wide as those of a feed-forward half: what
/// both take at their widest, in whichever blocks, is held at once.
fn row_bytes(spec: &ModelSpec) -> u64 {
    let widest = |values: fn(&BlockSpec) -> usize| spec.blocks.iter().map(values).max().unwrap_or(0);
    let wide = widest(|block| mixer_values(&block.mixer).0) + widest(|block| ffn_values(&block.ffn).0);
    // Beside them hidden states, the normed input and a result; inputs of products once more in packed form, as are
    // keys and values.
    let packed = spec.hidden + widest(|block| mixer_values(&block.mixer).1) + widest(|block| ffn_values(&block.ffn).1);
    4 * (3 * spec.hidden + wide + packed) as u64
}

/// Values per token at the widest moment of a mixer, and those of its keys and values.
fn mixer_values(mixer: &MixerSpec) -> (usize, usize) {
    match mixer {
        MixerSpec::Attention(a) => (2 * a.q.rows + a.k.rows + a.v.rows, a.k.rows + a.v.rows),
        MixerSpec::Latent(a) => {
            let (key, value) = (a.heads * (a.nope_dim + a.rope_dim), a.heads * a.value_dim);
            (3 * key + 2 * value, key + value)
        }
        // Before and after the convolution (then with queries and keys once more), the gate, the output and its norm.
        MixerSpec::DeltaNet(d) => (2 * d.qkv.rows + 3 * d.z.rows, d.z.rows),
    }
}

/// Values per token at the widest moment of a feed-forward half, and those of the widest input of its products.
fn ffn_values(ffn: &FfnSpec) -> (usize, usize) {
    match ffn {
        FfnSpec::Dense(mlp) => (2 * mlp.gate.rows, mlp.gate.rows),
        FfnSpec::Moe(moe) => {
            // Every token could meet the same expert.
            let routed = moe.experts.first().map_or(0, |e| e.gate.rows);
            let inner = moe.shared.as_ref().map_or(0, |shared| shared.mlp.gate.rows).max(routed);
            (2 * inner + 2 * moe.router.cols, inner.max(moe.router.rows))
        }
    }
}

/// Memory the process holds now.
pub fn resident() -> Option<Bytes> {
    memory_of(None, "VmRSS")
}

/// The most memory the process ever held.
pub fn peak_resident() -> Option<Bytes> {
    memory_of(None, "VmHWM")
}
