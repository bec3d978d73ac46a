//! The operations a block is made of, and where they run.
//!
//! A block's forward pass is written once over [`Backend`]. [`super::host::Host`] runs it on the CPU over plain slices;
//! [`super::device::OnDevice`] runs it as candle operations on any candle device (and on the CPU, where the tests hold
//! the two against each other). All arrays are two-dimensional, row-major `[rows, columns]`; one row per token.

use super::EngineError;
use super::batch::Batch;
use crate::family::{Activation, LinearSpec, Pairing};
use crate::model::{Dtype, TensorSource};

/// Shape of a causal attention: `heads` query heads over `kv_heads` key/value heads.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AttentionShape {
    pub heads: usize,
    pub kv_heads: usize,
    /// Width of a query head and of a key head.
    pub key_dim: usize,
    /// Width of a value head and of a head of the output.
    pub value_dim: usize,
    /// Factor on every score.
    pub scale: f32,
    /// A query sees this many keys, its own the last of them; `None`: all up to its own.
    pub window: Option<usize>,
}

impl AttentionShape {
    /// The first key the query at `position` of its sequence sees; the last is its own.
    pub fn first_seen(&self, position: usize) -> usize {
        self.window.map_or(0, |window| (position + 1).saturating_sub(window))
    }

    /// Query heads that share a key/value head.
    pub fn group(&self) -> usize {
        self.heads / self.kv_heads
    }
}

/// Shape of a gated delta rule: `value_heads` states `[key_dim, value_dim]`, whose keys and queries are shared by
/// `value_heads / key_heads` consecutive ones.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DeltaShape {
    pub key_heads: usize,
    pub value_heads: usize,
    pub key_dim: usize,
    pub value_dim: usize,
}

/// Cosines and sines `[positions, half]` of the rotary embedding, attention factor included: `half` pairs are turned.
pub struct RopeTable {
    pub half: usize,
    pub pairing: Pairing,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
}

/// The row of a rope table for each row of a batch: its position in its sequence.
pub fn positions(batch: &Batch) -> Vec<u32> {
    batch.spans.iter().flat_map(|span| 0..span.len() as u32).collect()
}

/// The rotation of some heads, side by side in each row.
pub struct Rotation<'a, B: Backend + ?Sized> {
    pub heads: usize,
    /// Elements of a head before those that turn; those after stay as well.
    pub first: usize,
    /// Gain and epsilon of a norm over each head before it turns.
    pub head_norm: Option<(&'a B::Vector, f64)>,
    pub rope: &'a B::Rope,
    pub batch: &'a Batch,
}

/// How probable the target was within one vocabulary chunk: enough to join chunks into a log-likelihood.
#[derive(Clone, Copy, Debug)]
pub struct ChunkScore {
    pub max: f32,
    /// Sum of exp(logit - max).
    pub exp_sum: f32,
    /// The target's logit, when the target lies in the chunk.
    pub target: Option<f32>,
}

/// How large the rows of an array are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RowSizes {
    /// Euclidean norms.
    pub norms: Vec<f32>,
    /// Largest absolute elements.
    pub peaks: Vec<f32>,
}

type Result<T> = std::result::Result<T, EngineError>;

/// What makes the decay of a delta rule: exp(-exp(a_log) · softplus(a + dt_bias)).
pub struct DecayInput<'a, B: Backend + ?Sized> {
    /// `[rows, value_heads]`
    pub a: &'a B::Rows,
    /// `[value_heads]`
    pub a_log: &'a B::Vector,
    /// `[value_heads]`
    pub dt_bias: &'a B::Vector,
}

/// A place to compute.
pub trait Backend: Sync {
    /// Activations `[rows, columns]`.
    type Rows: Send;
    /// A linear layer's weight in the form products read.
    type Weight: Send;
    /// A norm gain or bias.
    type Vector: Send;
    /// Cosines and sines where the backend wants them.
    type Rope: Send + Sync;

    /// Bytes a weight `[rows, cols]` takes once loaded; `exact` when the source holds bf16.
    fn weight_bytes(&self, rows: usize, cols: usize, exact: bool) -> u64;

    fn load_weight(&self, source: &dyn TensorSource, linear: &LinearSpec) -> Result<Self::Weight> {
        self.load_weight_rows(source, &linear.weight, 0..linear.rows, linear.cols)
    }
    /// Rows `rows` of a matrix as a weight of its own (a chunk of the vocabulary).
    fn load_weight_rows(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: std::ops::Range<usize>,
        cols: usize,
    ) -> Result<Self::Weight> {
        let n = rows.len();
        if source.meta(name).is_some_and(|meta| meta.dtype == Dtype::BF16) {
            let bytes = source.bytes(name)?;
            if let Some(part) = bytes.get(rows.start * cols * 2..rows.end * cols * 2) {
                return self.make_weight_from_bf16(part, n, cols);
            }
        }
        let mut values = Vec::new();
        source.read_rows_f32(name, rows, &mut values)?;
        self.make_weight(values, n, cols)
    }
    /// A weight `[rows, cols]` from raw little-endian bf16, row-major.
    fn make_weight_from_bf16(&self, bytes: &[u8], rows: usize, cols: usize) -> Result<Self::Weight>;
    /// A weight `[rows, cols]` from values at hand, row-major.
    fn make_weight(&self, values: Vec<f32>, rows: usize, cols: usize) -> Result<Self::Weight>;
    fn make_vector(&self, values: Vec<f32>) -> Result<Self::Vector>;
    fn load_vector(&self, source: &dyn TensorSource, name: &str) -> Result<Self::Vector> {
        let mut values = Vec::new();
        source.read_f32(name, &mut values)?;
        self.make_vector(values)
    }
    fn rope(&self, table: RopeTable) -> Result<Self::Rope>;

    fn upload(&self, values: &[f32], columns: usize) -> Result<Self::Rows>;
    fn copy(&self, x: &Self::Rows) -> Result<Self::Rows>;
    fn row_count(&self, x: &Self::Rows) -> usize;
    /// The rows of x, then those of y.
    fn stack(&self, x: Self::Rows, y: &Self::Rows) -> Result<Self::Rows>;
    fn download(&self, x: &Self::Rows) -> Result<Vec<f32>>;

    /// x · Wᵀ + b for several weights that read the same input; with `rows`, only those rows of x, in that order.
    fn linears<const N: usize>(
        &self,
        x: &Self::Rows,
        rows: Option<&[u32]>,
        layers: [(&Self::Weight, Option<&Self::Vector>); N],
    ) -> Result<[Self::Rows; N]>;
    /// Adds `factor · Σ xᵀ·x` over all rows of x or those named to `sum`, `[columns, columns]` (an empty one begins with
    /// zeros), at least on and above the diagonal; says how many rows that are.
    fn add_gram(&self, x: &Self::Rows, rows: Option<&[u32]>, factor: f32, sum: &mut Vec<f32>) -> Result<usize>;
    /// Adds Σ (x[a] − x[b])ᵀ·x[b] over pairs of rows (a, b) to all of `sum`, which may be empty, too.
    fn add_drift(&self, x: &Self::Rows, pairs: &[(u32, u32)], sum: &mut Vec<f32>) -> Result<()>;
    /// Normalises each run of as many columns as the gain has: a row, or each head of a row.
    fn norm(&self, x: &Self::Rows, gain: &Self::Vector, eps: f64) -> Result<Self::Rows>;
    /// (x − mean) / √(variance + eps) · gain + bias of each row.
    fn layer_norm(&self, x: &Self::Rows, gain: &Self::Vector, bias: &Self::Vector, eps: f64) -> Result<Self::Rows>;
    /// Turns each head by its token's position.
    fn rotate(&self, x: Self::Rows, rotation: &Rotation<'_, Self>) -> Result<Self::Rows>;
    /// Causal attention within each sequence, `q`, `k`, `v` each with its heads side by side; returns
    /// `[rows, heads · value_dim]`. With `sinks`, one per query head, each softmax has that score in its sum beside the
    /// keys' own.
    fn attention(
        &self,
        qkv: [&Self::Rows; 3],
        sinks: Option<&Self::Vector>,
        shape: &AttentionShape,
        batch: &Batch,
    ) -> Result<Self::Rows>;
    /// A causal convolution of each column along each sequence, then silu. `weight` is `[columns, kernel]`, its last
    /// element meets the token itself; before a sequence there are zeros.
    fn causal_conv(&self, x: Self::Rows, weight: &Self::Vector, batch: &Batch) -> Result<Self::Rows>;
    /// The gated delta rule over each sequence: see [`super::delta_rule`]. `qkv` is `[rows, 2 · key_heads · key_dim +
    /// value_heads · value_dim]` (queries, keys, values), decay and strength `[rows, value_heads]` before their
    /// functions; returns `[rows, value_heads · value_dim]`.
    fn delta_rule(
        &self,
        qkv: &Self::Rows,
        decay: DecayInput<'_, Self>,
        strength: &Self::Rows,
        shape: &DeltaShape,
        batch: &Batch,
    ) -> Result<Self::Rows>;
    /// The inner values of a gated MLP.
    fn activate(&self, gate: Self::Rows, up: Self::Rows, activation: Activation) -> Result<Self::Rows>;
    /// x · sigmoid(gate); the gate has as many columns as x, or one.
    fn gate(&self, x: Self::Rows, gate: &Self::Rows) -> Result<Self::Rows>;
    /// x within ± limit.
    fn clamp(&self, x: Self::Rows, limit: f64) -> Result<Self::Rows>;
    /// Takes each of the `heads` equal parts of a row apart into pieces of the given widths: N arrays with their pieces
    /// side by side.
    fn split<const N: usize>(&self, x: &Self::Rows, heads: usize, widths: [usize; N]) -> Result<[Self::Rows; N]>;
    /// Each of the `heads` equal parts of a row of x, followed by the row of `shared`.
    fn join(&self, x: &Self::Rows, shared: &Self::Rows, heads: usize) -> Result<Self::Rows>;
    fn add(&self, x: Self::Rows, y: Self::Rows) -> Result<Self::Rows>;
    /// x · factor.
    fn scale(&self, x: Self::Rows, factor: f64) -> Result<Self::Rows>;
    /// An array of zeros to [`Backend::add_rows`] into.
    fn zeros(&self, rows: usize, columns: usize) -> Result<Self::Rows>;
    /// out[rows[i]] += weights[i] · x[i]; `rows` ascend strictly.
    fn add_rows(&self, out: Self::Rows, rows: &[u32], weights: &[f32], x: &Self::Rows) -> Result<Self::Rows>;
    /// The chosen rows of x, in the order given.
    fn take_rows(&self, x: &Self::Rows, rows: &[u32]) -> Result<Self::Rows>;
    /// Euclidean norm and largest absolute element of every row.
    fn row_sizes(&self, x: &Self::Rows) -> Result<RowSizes>;
    fn is_finite(&self, x: &Self::Rows) -> Result<bool>;
    /// One score per row of `logits` `[rows, chunk]`; a target is a column of this chunk or `None`.
    fn chunk_scores(&self, logits: &Self::Rows, targets: &[Option<u32>]) -> Result<Vec<ChunkScore>>;
}
