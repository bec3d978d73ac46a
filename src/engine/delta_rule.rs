//! The gated delta rule on the CPU (arXiv 2412.06464, equation 10): a matrix per head remembers values by key.
//!
//! Per token, with the state S `[key_dim, value_dim]` of a head, decay g and strength b in (0, 1):
//! S ← g·S, S ← S + k ⊗ b·(v − Sᵀk), output Sᵀq. Queries and keys are divided by their lengths first, queries also
//! by √key_dim. The columns of S do not meet, so a head is computed a few columns at a time, for all tokens: that part
//! of the state stays in the first-level cache.

use rayon::prelude::*;

use super::backend::DeltaShape;
use super::batch::Batch;
use super::pool::Buffer;
use super::vector::wide;

/// Columns of the state taken through a sequence together.
const COLUMNS: usize = 64;
/// What is added to the squared length of a key or query before the root is taken.
const LENGTH_EPS: f32 = 1e-6;
/// Rows one task normalises.
const ROWS_PER_TASK: usize = 32;

/// What a delta rule reads beside queries, keys and values: decay input and strength `[rows, value_heads]` before
/// their functions, the decay's constants `[value_heads]`.
pub struct Gates<'a> {
    pub a: &'a [f32],
    pub a_log: &'a [f32],
    pub dt_bias: &'a [f32],
    pub strength: &'a [f32],
}

impl Gates<'_> {
    /// Decay and strength of a token (row) in a head.
    fn of(&self, row: usize, head: usize, heads: usize) -> (f32, f32) {
        let x = f64::from(self.a[row * heads + head]) + f64::from(self.dt_bias[head]);
        let softplus = if x > 20.0 { x } else { x.exp().ln_1p() };
        let decay = (-f64::from(self.a_log[head]).exp() * softplus).exp();
        let strength = 1.0 / (1.0 + (-f64::from(self.strength[row * heads + head])).exp());
        (decay as f32, strength as f32)
    }
}

/// The output, shared by the tasks.
struct Output(*mut f32);
// SAFETY: each task writes the rows of one sequence in the columns of one head (see `delta_rule`).
unsafe impl Sync for Output {}

/// Runs every head over every sequence of the batch. `qkv` is `[rows, 2 · key_heads · key_dim + value_heads ·
/// value_dim]`, `out` `[rows, value_heads · value_dim]`.
///
/// # Panics
/// When a length does not fit the shape.
pub fn delta_rule(qkv: &[f32], gates: &Gates<'_>, shape: &DeltaShape, batch: &Batch, out: &mut [f32]) {
    let &DeltaShape { key_heads, value_heads, key_dim, value_dim } = shape;
    let (rows, keys_wide, values_wide) = (batch.rows(), key_heads * key_dim, value_heads * value_dim);
    let stride = 2 * keys_wide + values_wide;
    assert!(qkv.len() == rows * stride && out.len() == rows * values_wide, "{shape:?}");
    assert!(gates.a.len() == rows * value_heads && gates.strength.len() == rows * value_heads, "{shape:?}");
    assert!(gates.a_log.len() == value_heads && gates.dt_bias.len() == value_heads, "{shape:?}");

    let mut unit = Buffer::dirty(rows * 2 * keys_wide);
    let step = ROWS_PER_TASK * 2 * keys_wide;
    unit.par_chunks_mut(step).zip(qkv.par_chunks(ROWS_PER_TASK * stride)).for_each(|(unit, qkv)| {
        for (unit, row) in unit.chunks_exact_mut(2 * keys_wide).zip(qkv.chunks_exact(stride)) {
            unit.copy_from_slice(&row[..2 * keys_wide]);
            for (i, head) in unit.chunks_exact_mut(key_dim).enumerate() {
                let factor = if i < key_heads { 1.0 / (key_dim as f32).sqrt() } else { 1.0 };
                to_length(head, factor);
            }
        }
    });

    let tasks: Vec<_> = batch.spans.iter().flat_map(|span| (0..value_heads).map(move |head| (span, head))).collect();
    let output = &Output(out.as_mut_ptr());
    tasks.into_par_iter().for_each(|(span, head)| {
        let key_head = head / (value_heads / key_heads);
        let gates: Vec<(f32, f32)> = span.clone().map(|row| gates.of(row, head, value_heads)).collect();
        let mut state = vec![0f32; key_dim * COLUMNS];
        for from in (0..value_dim).step_by(COLUMNS) {
            let width = COLUMNS.min(value_dim - from);
            state.fill(0.0);
            for (row, &(decay, strength)) in span.clone().zip(&gates) {
                let unit = &unit[row * 2 * keys_wide..][..2 * keys_wide];
                let query = &unit[key_head * key_dim..][..key_dim];
                let key = &unit[keys_wide + key_head * key_dim..][..key_dim];
                let mut value = [0f32; COLUMNS];
                let at = row * stride + 2 * keys_wide + head * value_dim + from;
                value[..width].copy_from_slice(&qkv[at..at + width]);
                step_columns(&mut state, query, key, &mut value, decay, strength);
                // SAFETY: these columns of this row belong to this task alone, inside the asserted output.
                let target = unsafe {
                    let at = output.0.add(row * values_wide + head * value_dim + from);
                    std::slice::from_raw_parts_mut(at, width)
                };
                target.copy_from_slice(&value[..width]);
            }
        }
    });
}

wide! {
    /// x = factor · x / |x|
    fn to_length(x: &mut [f32], factor: f32) {
        let squares: f32 = x.iter().map(|v| v * v).sum();
        let scale = factor / (squares + LENGTH_EPS).sqrt();
        for v in x.iter_mut() {
            *v *= scale;
        }
    }
}

wide! {
    /// One token through `COLUMNS` columns of a state: the value goes in, the output comes out in its place.
    fn step_columns(
        state: &mut [f32],
        query: &[f32],
        key: &[f32],
        value: &mut [f32; COLUMNS],
        decay: f32,
        strength: f32,
    ) {
        // What the state holds at the key and at the query, before it decays and changes: two sums in one reading.
        let (mut at_key, mut at_query) = ([0f32; COLUMNS], [0f32; COLUMNS]);
        let mut overlap = 0.0;
        for ((row, &k), &q) in state.as_chunks::<COLUMNS>().0.iter().zip(key).zip(query) {
            overlap += k * q;
            for i in 0..COLUMNS {
                at_key[i] += row[i] * k;
                at_query[i] += row[i] * q;
            }
        }
        let mut change = [0f32; COLUMNS];
        for i in 0..COLUMNS {
            change[i] = strength * (value[i] - decay * at_key[i]);
            value[i] = decay * at_query[i] + overlap * change[i];
        }
        for (row, &k) in state.as_chunks_mut::<COLUMNS>().0.iter_mut().zip(key) {
            for i in 0..COLUMNS {
                row[i] = decay * row[i] + k * change[i];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::vector::noise;
    use super::*;

    /// The definition, token by token with whole matrices, in f64.
    fn by_definition(qkv: &[f32], gates: &Gates<'_>, shape: &DeltaShape, batch: &Batch) -> Vec<f32> {
        let &DeltaShape { key_heads, value_heads, key_dim, value_dim } = shape;
        let stride = 2 * key_heads * key_dim + value_heads * value_dim;
        let mut out = vec![0f32; batch.rows() * value_heads * value_dim];
        for span in &batch.spans {
            for head in 0..value_heads {
                let mut state = vec![vec![0f64; value_dim]; key_dim];
                for row in span.clone() {
                    let part = |first: usize, width: usize| -> Vec<f64> {
                        qkv[row * stride + first..][..width].iter().map(|&v| f64::from(v)).collect()
                    };
                    let unit = |x: Vec<f64>| -> Vec<f64> {
                        let length = (x.iter().map(|v| v * v).sum::<f64>() + 1e-6).sqrt();
                        x.iter().map(|v| v / length).collect()
                    };
                    let key_head = head / (value_heads / key_heads);
                    let q = unit(part(key_head * key_dim, key_dim));
                    let k = unit(part((key_heads + key_head) * key_dim, key_dim));
                    let v = part(2 * key_heads * key_dim + head * value_dim, value_dim);
                    let x = f64::from(gates.a[row * value_heads + head] + gates.dt_bias[head]);
                    let decay = (-f64::from(gates.a_log[head]).exp() * x.exp().ln_1p()).exp();
                    let strength = 1.0 / (1.0 + f64::from(-gates.strength[row * value_heads + head]).exp());
                    state.iter_mut().flatten().for_each(|s| *s *= decay);
                    for j in 0..value_dim {
                        let held: f64 = (0..key_dim).map(|i| state[i][j] * k[i]).sum();
                        let change = strength * (v[j] - held);
                        (0..key_dim).for_each(|i| state[i][j] += k[i] * change);
                        let read: f64 = (0..key_dim).map(|i| state[i][j] * q[i]).sum();
                        out[(row * value_heads + head) * value_dim + j] = (read / (key_dim as f64).sqrt()) as f32;
                    }
                }
            }
        }
        out
    }

    #[test]
    fn columns_at_a_time_agree_with_the_definition() {
        let batch = Batch { sequences: 0..4, spans: vec![0..1, 1..71, 71..71, 71..161] };
        for (key_heads, value_heads, key_dim, value_dim) in [(2, 4, 16, 16), (1, 1, 33, 70), (2, 2, 8, 64)] {
            let shape = DeltaShape { key_heads, value_heads, key_dim, value_dim };
            let qkv = noise(161 * (2 * key_heads * key_dim + value_heads * value_dim), 1);
            let (a, strength) = (noise(161 * value_heads, 2), noise(161 * value_heads, 3));
            let (a_log, dt_bias) = (noise(value_heads, 4), noise(value_heads, 5));
            let gates = Gates { a: &a, a_log: &a_log, dt_bias: &dt_bias, strength: &strength };
            let wanted = by_definition(&qkv, &gates, &shape, &batch);
            let mut out = vec![f32::NAN; wanted.len()];
            delta_rule(&qkv, &gates, &shape, &batch, &mut out);
            let worst = out.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst < 1e-5 && out.iter().all(|v| v.is_finite()), "{shape:?}: off by {worst}");
        }
    }
}
