//! The operations a block is made of, and where they run.
//!
//! A block's forward pass is written once over [`Backend`]. [`super::host::Host`] runs it on the CPU over plain slices;
//! [`super::device::OnDevice`] runs it as candle operations on any candle device (and on the CPU, where the tests hold
//! the two against each other). All arrays are two-dimensional, row-major `[rows, columns]`; one row per token.

use super::EngineError;
use super::batch::Batch;
use crate::family::LinearSpec;
use crate::model::TensorSource;

/// Shape of an attention: `heads` query heads over `kv_heads` key/value heads of `head_dim` elements.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct HeadShape {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

/// Cosines and sines `[positions, head_dim / 2]` of the rotary embedding, attention factor included.
pub struct RopeTable {
    pub half: usize,
    pub cos: Vec<f32>,
    pub sin: Vec<f32>,
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

    fn load_weight(&self, source: &dyn TensorSource, linear: &LinearSpec) -> Result<Self::Weight>;
    /// Rows `rows` of a matrix as a weight of its own (a chunk of the vocabulary).
    fn load_weight_rows(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: std::ops::Range<usize>,
        cols: usize,
    ) -> Result<Self::Weight>;
    /// A weight `[rows, cols]` from values at hand, row-major.
    fn make_weight(&self, values: Vec<f32>, rows: usize, cols: usize) -> Result<Self::Weight>;
    fn load_vector(&self, source: &dyn TensorSource, name: &str) -> Result<Self::Vector>;
    fn rope(&self, table: RopeTable) -> Result<Self::Rope>;

    fn upload(&self, values: &[f32], columns: usize) -> Result<Self::Rows>;
    fn download(&self, x: &Self::Rows) -> Result<Vec<f32>>;

    /// x · Wᵀ + b for several weights that read the same input; with `rows`, only those rows of x, in that order.
    fn linears<const N: usize>(
        &self,
        x: &Self::Rows,
        rows: Option<&[u32]>,
        layers: [(&Self::Weight, Option<&Self::Vector>); N],
    ) -> Result<[Self::Rows; N]>;
    fn norm(&self, x: &Self::Rows, gain: &Self::Vector, eps: f64) -> Result<Self::Rows>;
    /// Normalises each head if there is a gain, then turns it by its token's position.
    fn rotate(
        &self,
        x: Self::Rows,
        heads: usize,
        gain: Option<&Self::Vector>,
        eps: f64,
        rope: &Self::Rope,
        batch: &Batch,
    ) -> Result<Self::Rows>;
    /// Causal attention within each sequence; returns `[rows, heads · head_dim]`.
    fn attention(
        &self,
        q: &Self::Rows,
        k: &Self::Rows,
        v: &Self::Rows,
        shape: HeadShape,
        batch: &Batch,
    ) -> Result<Self::Rows>;
    /// silu(gate) · up.
    fn silu_mul(&self, gate: Self::Rows, up: Self::Rows) -> Result<Self::Rows>;
    fn add(&self, x: Self::Rows, y: Self::Rows) -> Result<Self::Rows>;
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
