//! A backend that computes as another one does and meanwhile sums, for the linear layers it is asked to watch, the
//! second moments of their inputs.

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use super::EngineError;
use super::backend::{AttentionShape, Backend, ChunkScore, DecayInput, DeltaShape, RopeTable, Rotation, RowSizes};
use super::batch::Batch;
use crate::family::Activation;
use crate::model::TensorSource;

type Result<T> = std::result::Result<T, EngineError>;

/// Share of a sequence's length that its first token counts for where it is attended to: half the attention, squared.
const FIRST_SHARE: f32 = 0.25;

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// What some linear layers were given: layers that read the same input share it.
#[derive(Clone, Debug, PartialEq)]
pub struct InputSum {
    /// Names of their weights.
    pub tensors: Vec<String>,
    /// Elements of one input.
    pub columns: usize,
    /// Σ x·xᵀ, `[columns, columns]`; first tokens count for more where others attend to them.
    pub sum: Vec<f32>,
    /// Σ (x₀ − x)·xᵀ, x₀ being what the layer is given in the model as it was: only of a pass that follows that too.
    pub drift: Option<Vec<f32>>,
    /// Inputs summed.
    pub rows: u64,
}

/// Another backend, watched.
pub struct Watch<'a, B: Backend> {
    inner: &'a B,
    watched: HashSet<String>,
    /// Those of them whose outputs other tokens attend to.
    attended: HashSet<String>,
    /// First row and length of each sequence of the batch under way.
    sequences: Mutex<Vec<(u32, usize)>>,
    /// Rows of the last product that read some only: what comes after it holds just these.
    chosen: Mutex<Vec<u32>>,
    /// Rows from this one on are those of the model as it was, in the same order; 0: there are none.
    half: AtomicU32,
    sums: Mutex<Sums>,
}

#[derive(Default)]
struct Sums {
    all: Vec<InputSum>,
    /// Where the sum of a weight is, by the name of the first weight watched among those that share it.
    places: HashMap<String, usize>,
}

/// A weight that knows its name.
pub struct Named<W> {
    name: String,
    weight: W,
}

impl<'a, B: Backend> Watch<'a, B> {
    /// Computes on `inner` and sums the inputs of the weights named. Those of a batch after [`Watch::pair`]
    /// rows are not summed but compared with the ones before.
    ///
    /// Of those `attended` the first token of every sequence counts as many times more as a quarter of the sequence is
    /// long: models let half of all attention rest on it (Xiao et al. 2023), so an error there is in every output.
    pub fn new(inner: &'a B, watched: &[String], attended: impl IntoIterator<Item = String>) -> Self {
        Watch {
            inner,
            watched: watched.iter().cloned().collect(),
            attended: attended.into_iter().collect(),
            sequences: Mutex::default(),
            chosen: Mutex::default(),
            half: AtomicU32::new(0),
            sums: Mutex::default(),
        }
    }

    /// The next batch has these sequences.
    pub fn begin(&self, batch: &Batch) {
        let sequences = batch.spans.iter().filter(|span| !span.is_empty());
        *lock(&self.sequences) = sequences.map(|span| (span.start as u32, span.len())).collect();
    }

    /// From here on batches have `half` rows, and the same rows of the model as it was behind them.
    pub fn pair(&self, half: usize) {
        self.half.store(half as u32, Relaxed);
    }

    /// The sums of inputs seen; a weight that met none has none.
    pub fn into_sums(self) -> Vec<InputSum> {
        let mut sums = self.sums.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).all;
        sums.iter_mut().for_each(|sum| super::matmul::mirror(&mut sum.sum, sum.columns));
        sums
    }

    /// Adds what the rows of one product say to a sum.
    fn measure(&self, x: &B::Rows, rows: Option<&[u32]>, sum: &mut InputSum) -> Result<()> {
        let half = self.half.load(Relaxed);
        if half == 0 {
            sum.rows += self.inner.add_gram(x, rows, 1.0, &mut sum.sum)? as u64;
            return Ok(());
        }
        // Which rows of the batch these are. What comes after a product of chosen rows holds those rows only.
        let chosen = match rows {
            Some(rows) => {
                *lock(&self.chosen) = rows.to_vec();
                rows.to_vec()
            }
            None if self.inner.row_count(x) == 2 * half as usize => (0..2 * half).collect(),
            None => lock(&self.chosen).clone(),
        };
        let is_gathered = rows.is_none() && chosen.len() < 2 * half as usize;
        let place = |at: usize| if is_gathered { at as u32 } else { chosen[at] };
        let firsts = chosen.iter().enumerate().filter(|(_, row)| **row < half);
        let (mut own, mut pairs) = (Vec::new(), Vec::new());
        for (at, row) in firsts {
            own.push(place(at));
            // A token that reaches a layer in one of the two models only has not drifted there.
            if let Ok(other) = chosen.binary_search(&(row + half)) {
                pairs.push((place(other), place(at)));
            }
        }
        sum.rows += self.inner.add_gram(x, Some(&own), 1.0, &mut sum.sum)? as u64;
        self.inner.add_drift(x, &pairs, sum.drift.get_or_insert_default())
    }

    /// Adds the first tokens of the batch's sequences once more, as often as they count.
    fn weigh_firsts(&self, x: &B::Rows, sum: &mut Vec<f32>) -> Result<()> {
        let sequences = lock(&self.sequences).clone();
        for same in sequences.chunk_by(|a, b| a.1 == b.1) {
            let rows: Vec<u32> = same.iter().map(|(start, _)| *start).collect();
            self.inner.add_gram(x, Some(&rows), same[0].1 as f32 * FIRST_SHARE, sum)?;
        }
        Ok(())
    }

    fn note(&self, names: &[&str], x: &B::Rows, rows: Option<&[u32]>) -> Result<()> {
        let seen: Vec<&str> = names.iter().copied().filter(|&name| self.watched.contains(name)).collect();
        let Some(&first) = seen.first() else { return Ok(()) };
        let mut sums = lock(&self.sums);
        let place = match sums.places.get(first) {
            Some(place) => *place,
            None => {
                let place = sums.all.len();
                sums.places.insert(first.to_owned(), place);
                let tensors = seen.iter().map(|&name| name.to_owned()).collect();
                sums.all.push(InputSum { tensors, columns: 0, sum: Vec::new(), drift: None, rows: 0 });
                place
            }
        };
        let sum = &mut sums.all[place];
        self.measure(x, rows, sum)?;
        if seen.iter().any(|&name| self.attended.contains(name)) {
            self.weigh_firsts(x, &mut sum.sum)?;
        }
        sum.columns = sum.sum.len().isqrt();
        Ok(())
    }
}

impl<B: Backend> Backend for Watch<'_, B> {
    type Rows = B::Rows;
    type Weight = Named<B::Weight>;
    type Vector = B::Vector;
    type Rope = B::Rope;

    fn weight_bytes(&self, rows: usize, cols: usize, exact: bool) -> u64 {
        self.inner.weight_bytes(rows, cols, exact)
    }

    fn load_weight_rows(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: Range<usize>,
        cols: usize,
    ) -> Result<Self::Weight> {
        Ok(Named { name: name.to_owned(), weight: self.inner.load_weight_rows(source, name, rows, cols)? })
    }

    fn make_weight_from_bf16(&self, bytes: &[u8], rows: usize, cols: usize) -> Result<Self::Weight> {
        Ok(Named { name: String::new(), weight: self.inner.make_weight_from_bf16(bytes, rows, cols)? })
    }

    fn make_weight(&self, values: Vec<f32>, rows: usize, cols: usize) -> Result<Self::Weight> {
        Ok(Named { name: String::new(), weight: self.inner.make_weight(values, rows, cols)? })
    }

    fn make_vector(&self, values: Vec<f32>) -> Result<Self::Vector> {
        self.inner.make_vector(values)
    }

    fn rope(&self, table: RopeTable) -> Result<Self::Rope> {
        self.inner.rope(table)
    }

    fn upload(&self, values: &[f32], columns: usize) -> Result<Self::Rows> {
        self.inner.upload(values, columns)
    }

    fn copy(&self, x: &Self::Rows) -> Result<Self::Rows> {
        self.inner.copy(x)
    }

    fn row_count(&self, x: &Self::Rows) -> usize {
        self.inner.row_count(x)
    }

    fn stack(&self, x: Self::Rows, y: &Self::Rows) -> Result<Self::Rows> {
        self.inner.stack(x, y)
    }

    fn download(&self, x: &Self::Rows) -> Result<Vec<f32>> {
        self.inner.download(x)
    }

    fn linears<const N: usize>(
        &self,
        x: &Self::Rows,
        rows: Option<&[u32]>,
        layers: [(&Self::Weight, Option<&Self::Vector>); N],
    ) -> Result<[Self::Rows; N]> {
        self.note(&layers.map(|(weight, _)| weight.name.as_str()), x, rows)?;
        self.inner.linears(x, rows, layers.map(|(weight, bias)| (&weight.weight, bias)))
    }

    fn add_gram(&self, x: &Self::Rows, rows: Option<&[u32]>, factor: f32, sum: &mut Vec<f32>) -> Result<usize> {
        self.inner.add_gram(x, rows, factor, sum)
    }

    fn add_drift(&self, x: &Self::Rows, pairs: &[(u32, u32)], sum: &mut Vec<f32>) -> Result<()> {
        self.inner.add_drift(x, pairs, sum)
    }

    fn norm(&self, x: &Self::Rows, gain: &Self::Vector, eps: f64) -> Result<Self::Rows> {
        self.inner.norm(x, gain, eps)
    }

    fn layer_norm(&self, x: &Self::Rows, gain: &Self::Vector, bias: &Self::Vector, eps: f64) -> Result<Self::Rows> {
        self.inner.layer_norm(x, gain, bias, eps)
    }

    fn rotate(&self, x: Self::Rows, rotation: &Rotation<'_, Self>) -> Result<Self::Rows> {
        let &Rotation { heads, first, head_norm, rope, batch } = rotation;
        self.inner.rotate(x, &Rotation { heads, first, head_norm, rope, batch })
    }

    fn attention(
        &self,
        qkv: [&Self::Rows; 3],
        sinks: Option<&Self::Vector>,
        shape: &AttentionShape,
        batch: &Batch,
    ) -> Result<Self::Rows> {
        self.inner.attention(qkv, sinks, shape, batch)
    }

    fn causal_conv(&self, x: Self::Rows, weight: &Self::Vector, batch: &Batch) -> Result<Self::Rows> {
        self.inner.causal_conv(x, weight, batch)
    }

    fn delta_rule(
        &self,
        qkv: &Self::Rows,
        decay: DecayInput<'_, Self>,
        strength: &Self::Rows,
        shape: &DeltaShape,
        batch: &Batch,
    ) -> Result<Self::Rows> {
        let DecayInput { a, a_log, dt_bias } = decay;
        self.inner.delta_rule(qkv, DecayInput { a, a_log, dt_bias }, strength, shape, batch)
    }

    fn activate(&self, gate: Self::Rows, up: Self::Rows, activation: Activation) -> Result<Self::Rows> {
        self.inner.activate(gate, up, activation)
    }

    fn gate(&self, x: Self::Rows, gate: &Self::Rows) -> Result<Self::Rows> {
        self.inner.gate(x, gate)
    }

    fn clamp(&self, x: Self::Rows, limit: f64) -> Result<Self::Rows> {
        self.inner.clamp(x, limit)
    }

    fn split<const N: usize>(&self, x: &Self::Rows, heads: usize, widths: [usize; N]) -> Result<[Self::Rows; N]> {
        self.inner.split(x, heads, widths)
    }

    fn join(&self, x: &Self::Rows, shared: &Self::Rows, heads: usize) -> Result<Self::Rows> {
        self.inner.join(x, shared, heads)
    }

    fn add(&self, x: Self::Rows, y: Self::Rows) -> Result<Self::Rows> {
        self.inner.add(x, y)
    }

    fn scale(&self, x: Self::Rows, factor: f64) -> Result<Self::Rows> {
        self.inner.scale(x, factor)
    }

    fn zeros(&self, rows: usize, columns: usize) -> Result<Self::Rows> {
        self.inner.zeros(rows, columns)
    }

    fn add_rows(&self, out: Self::Rows, rows: &[u32], weights: &[f32], x: &Self::Rows) -> Result<Self::Rows> {
        self.inner.add_rows(out, rows, weights, x)
    }

    fn take_rows(&self, x: &Self::Rows, rows: &[u32]) -> Result<Self::Rows> {
        self.inner.take_rows(x, rows)
    }

    fn row_sizes(&self, x: &Self::Rows) -> Result<RowSizes> {
        self.inner.row_sizes(x)
    }

    fn is_finite(&self, x: &Self::Rows) -> Result<bool> {
        self.inner.is_finite(x)
    }

    fn chunk_scores(&self, logits: &Self::Rows, targets: &[Option<u32>]) -> Result<Vec<ChunkScore>> {
        self.inner.chunk_scores(logits, targets)
    }
}
