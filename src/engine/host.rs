//! The CPU backend: plain f32 slices, packed weights, rayon.

use rayon::prelude::*;

use super::attention;
use super::backend::{
    AttentionShape, Backend, ChunkScore, DecayInput, DeltaShape, RopeTable, Rotation, RowSizes, positions,
};
use super::batch::Batch;
use super::delta_rule::{Gates, delta_rule};
use super::matmul::{Kernel, Lines, PackedInput, PackedWeight, Side, add_outer, matmul_packed};
use super::pool::Buffer;
use super::{EngineError, vector};
use crate::family::{Activation, Pairing};

type Result<T> = std::result::Result<T, EngineError>;

/// Rows one rayon task takes of cheap row-wise work.
const ROWS_PER_TASK: usize = 32;

/// Computes on this machine's processors.
pub struct Host {
    /// How products are computed.
    pub kernel: Kernel,
}

/// Activations in memory.
pub struct HostRows {
    pub(super) data: Buffer,
    pub(super) columns: usize,
}

impl HostRows {
    pub(super) fn dirty(rows: usize, columns: usize) -> Self {
        HostRows { data: Buffer::dirty(rows * columns), columns }
    }

    fn rows(&self) -> usize {
        self.data.len().checked_div(self.columns).unwrap_or(0)
    }
}

impl Backend for Host {
    type Rows = HostRows;
    type Weight = PackedWeight;
    type Vector = Vec<f32>;
    type Rope = RopeTable;

    fn weight_bytes(&self, rows: usize, cols: usize, exact: bool) -> u64 {
        match self.kernel {
            Kernel::Portable => (rows * cols * size_of::<f32>()) as u64,
            Kernel::Amx(_) => PackedWeight::predicted_bytes(rows, cols, exact),
        }
    }

    fn make_weight_from_bf16(&self, bytes: &[u8], rows: usize, cols: usize) -> Result<PackedWeight> {
        Ok(PackedWeight::from_bf16_le_for(self.kernel, bytes, rows, cols))
    }

    fn make_weight(&self, values: Vec<f32>, rows: usize, cols: usize) -> Result<PackedWeight> {
        Ok(PackedWeight::from_f32_for(self.kernel, &values, rows, cols))
    }

    fn make_vector(&self, values: Vec<f32>) -> Result<Vec<f32>> {
        Ok(values)
    }

    fn rope(&self, table: RopeTable) -> Result<RopeTable> {
        Ok(table)
    }

    fn upload(&self, values: &[f32], columns: usize) -> Result<HostRows> {
        Ok(HostRows { data: Buffer::copy_of(values), columns })
    }

    fn copy(&self, x: &HostRows) -> Result<HostRows> {
        Ok(HostRows { data: Buffer::copy_of(&x.data), columns: x.columns })
    }

    fn row_count(&self, x: &HostRows) -> usize {
        x.rows()
    }

    fn stack(&self, x: HostRows, y: &HostRows) -> Result<HostRows> {
        let mut data = Buffer::dirty(x.data.len() + y.data.len());
        data[..x.data.len()].copy_from_slice(&x.data);
        data[x.data.len()..].copy_from_slice(&y.data);
        Ok(HostRows { data, columns: x.columns })
    }

    fn download(&self, x: &HostRows) -> Result<Vec<f32>> {
        Ok(x.data.to_vec())
    }

    fn linears<const N: usize>(
        &self,
        x: &HostRows,
        rows: Option<&[u32]>,
        layers: [(&PackedWeight, Option<&Vec<f32>>); N],
    ) -> Result<[HostRows; N]> {
        let input = match rows {
            Some(rows) => PackedInput::gather_for(self.kernel, &x.data, x.columns, rows),
            None => PackedInput::for_kernel(self.kernel, &x.data, x.rows(), x.columns),
        };
        Ok(layers.map(|(weight, bias)| {
            let mut y = HostRows::dirty(input.m(), weight.n());
            matmul_packed(&input, weight, &mut y.data, bias.map(Vec::as_slice));
            y
        }))
    }

    fn add_gram(&self, x: &HostRows, rows: Option<&[u32]>, factor: f32, sum: &mut Vec<f32>) -> Result<usize> {
        let side = Side { x: &x.data, columns: x.columns, lines: rows.map_or(Lines::All, Lines::Rows) };
        sum.resize(x.columns * x.columns, 0.0);
        add_outer(self.kernel, side, None, factor, sum);
        Ok(side.count())
    }

    fn add_drift(&self, x: &HostRows, pairs: &[(u32, u32)], sum: &mut Vec<f32>) -> Result<()> {
        let side = |lines| Side { x: &x.data, columns: x.columns, lines };
        sum.resize(x.columns * x.columns, 0.0);
        add_outer(self.kernel, side(Lines::Apart(pairs)), Some(side(Lines::Seconds(pairs))), 1.0, sum);
        Ok(())
    }

    fn norm(&self, x: &HostRows, gain: &Vec<f32>, eps: f64) -> Result<HostRows> {
        let mut out = HostRows::dirty(x.rows(), x.columns);
        let step = ROWS_PER_TASK * x.columns;
        out.data.par_chunks_mut(step).zip(x.data.par_chunks(step)).for_each(|(out, x_rows)| {
            for (o, row) in out.chunks_exact_mut(gain.len()).zip(x_rows.chunks_exact(gain.len())) {
                vector::rms_norm(row, gain, eps as f32, o);
            }
        });
        Ok(out)
    }

    fn layer_norm(&self, x: &HostRows, gain: &Vec<f32>, bias: &Vec<f32>, eps: f64) -> Result<HostRows> {
        let mut out = HostRows::dirty(x.rows(), x.columns);
        let rows = out.data.par_chunks_exact_mut(x.columns).zip(x.data.par_chunks_exact(x.columns));
        rows.with_min_len(ROWS_PER_TASK).for_each(|(out, row)| vector::layer_norm(row, gain, bias, eps as f32, out));
        Ok(out)
    }

    fn rotate(&self, mut x: HostRows, rotation: &Rotation<'_, Self>) -> Result<HostRows> {
        let &Rotation { heads, first, head_norm, rope, batch } = rotation;
        let positions = positions(batch);
        let (columns, half) = (x.columns, rope.half);
        let turn = match rope.pairing {
            Pairing::Half => vector::rotate,
            Pairing::Adjacent => vector::rotate_adjacent,
        };
        x.data.par_chunks_mut(ROWS_PER_TASK * columns).zip(positions.par_chunks(ROWS_PER_TASK)).for_each(
            |(rows, positions)| {
                for (row, &position) in rows.chunks_exact_mut(columns).zip(positions) {
                    let angles = position as usize * half..(position as usize + 1) * half;
                    for head in row.chunks_exact_mut(columns / heads) {
                        if let Some((gain, eps)) = head_norm {
                            vector::rms_norm_in_place(head, gain, eps as f32);
                        }
                        turn(&mut head[first..first + 2 * half], &rope.cos[angles.clone()], &rope.sin[angles.clone()]);
                    }
                }
            },
        );
        Ok(x)
    }

    fn attention(
        &self,
        [q, k, v]: [&HostRows; 3],
        sinks: Option<&Vec<f32>>,
        shape: &AttentionShape,
        batch: &Batch,
    ) -> Result<HostRows> {
        let mut out = HostRows::dirty(q.rows(), shape.heads * shape.value_dim);
        let sinks = sinks.map(Vec::as_slice);
        attention::causal(self.kernel, [&q.data, &k.data, &v.data], sinks, shape, batch, &mut out.data);
        Ok(out)
    }

    fn causal_conv(&self, x: HostRows, weight: &Vec<f32>, batch: &Batch) -> Result<HostRows> {
        let columns = x.columns;
        let kernel = weight.len() / columns;
        // One run of columns per tap, the token's own tap first.
        let taps: Vec<Vec<f32>> =
            (0..kernel).rev().map(|tap| weight.iter().skip(tap).step_by(kernel).copied().collect()).collect();
        let positions: Vec<usize> = batch.spans.iter().flat_map(|span| 0..span.len()).collect();
        let mut out = HostRows::dirty(x.rows(), columns);
        out.data.par_chunks_exact_mut(columns).zip(positions).enumerate().for_each(|(row, (out, position))| {
            out.fill(0.0);
            for (back, tap) in taps.iter().enumerate().take(position + 1) {
                vector::add_product(out, &x.data[(row - back) * columns..][..columns], tap);
            }
            vector::silu(out);
        });
        Ok(out)
    }

    fn delta_rule(
        &self,
        qkv: &HostRows,
        decay: DecayInput<'_, Self>,
        strength: &HostRows,
        shape: &DeltaShape,
        batch: &Batch,
    ) -> Result<HostRows> {
        let mut out = HostRows::dirty(qkv.rows(), shape.value_heads * shape.value_dim);
        let DecayInput { a, a_log, dt_bias } = decay;
        let gates = Gates { a: &a.data, a_log, dt_bias, strength: &strength.data };
        delta_rule(&qkv.data, &gates, shape, batch, &mut out.data);
        Ok(out)
    }

    fn activate(&self, mut gate: HostRows, up: HostRows, activation: Activation) -> Result<HostRows> {
        let step = ROWS_PER_TASK * gate.columns;
        let pairs = gate.data.par_chunks_mut(step).zip(up.data.par_chunks(step));
        match activation {
            Activation::Silu => pairs.for_each(|(g, u)| vector::silu_mul(g, u)),
            Activation::ClampedSwiglu { alpha, limit } => {
                pairs.for_each(|(g, u)| vector::clamped_swiglu(g, u, alpha as f32, limit as f32));
            }
        }
        Ok(gate)
    }

    fn gate(&self, mut x: HostRows, gate: &HostRows) -> Result<HostRows> {
        let step = ROWS_PER_TASK * x.columns;
        if gate.columns == x.columns {
            let pairs = x.data.par_chunks_mut(step).zip(gate.data.par_chunks(step));
            pairs.for_each(|(x, gate)| vector::sigmoid_mul(x, gate));
        } else {
            x.data.par_chunks_exact_mut(x.columns).zip(&gate.data[..]).for_each(|(row, &gate)| {
                vector::scale(row, 1.0 / (1.0 + (-gate).exp()));
            });
        }
        Ok(x)
    }

    fn clamp(&self, mut x: HostRows, limit: f64) -> Result<HostRows> {
        x.data.par_chunks_mut(ROWS_PER_TASK * x.columns).for_each(|x| vector::clamp(x, limit as f32));
        Ok(x)
    }

    fn split<const N: usize>(&self, x: &HostRows, heads: usize, widths: [usize; N]) -> Result<[HostRows; N]> {
        let whole: usize = widths.iter().sum();
        let mut first = 0;
        Ok(widths.map(|width| {
            let mut out = HostRows::dirty(x.rows(), heads * width);
            let parts = out.data.par_chunks_exact_mut(width).zip(x.data.par_chunks_exact(whole)).with_min_len(64);
            parts.for_each(|(to, from)| to.copy_from_slice(&from[first..first + width]));
            first += width;
            out
        }))
    }

    fn join(&self, x: &HostRows, shared: &HostRows, heads: usize) -> Result<HostRows> {
        let own = x.columns / heads;
        let whole = own + shared.columns;
        let mut out = HostRows::dirty(x.rows(), heads * whole);
        let rows = out.data.par_chunks_exact_mut(heads * whole).zip(x.data.par_chunks_exact(x.columns));
        rows.zip(shared.data.par_chunks_exact(shared.columns)).for_each(|((to, from), shared)| {
            for (to, from) in to.chunks_exact_mut(whole).zip(from.chunks_exact(own)) {
                to[..own].copy_from_slice(from);
                to[own..].copy_from_slice(shared);
            }
        });
        Ok(out)
    }

    fn add(&self, mut x: HostRows, y: HostRows) -> Result<HostRows> {
        let step = ROWS_PER_TASK * x.columns;
        x.data.par_chunks_mut(step).zip(y.data.par_chunks(step)).for_each(|(x, y)| vector::add(x, y));
        Ok(x)
    }

    fn scale(&self, mut x: HostRows, factor: f64) -> Result<HostRows> {
        x.data.par_chunks_mut(ROWS_PER_TASK * x.columns).for_each(|x| vector::scale(x, factor as f32));
        Ok(x)
    }

    fn zeros(&self, rows: usize, columns: usize) -> Result<HostRows> {
        Ok(HostRows { data: Buffer::zeroed(rows * columns), columns })
    }

    fn add_rows(&self, mut out: HostRows, rows: &[u32], weights: &[f32], x: &HostRows) -> Result<HostRows> {
        let columns = out.columns;
        // Rows ascend, so consecutive groups of them touch consecutive parts of the output.
        let mut groups = Vec::new();
        let (mut rest, mut first) = (&mut out.data[..], 0);
        for (group, rows) in rows.chunks(ROWS_PER_TASK).enumerate() {
            let end = rows.last().map_or(first, |&last| last as usize + 1);
            let (part, tail) = rest.split_at_mut((end - first) * columns);
            groups.push((part, first, rows, group * ROWS_PER_TASK));
            (rest, first) = (tail, end);
        }
        groups.into_par_iter().for_each(|(part, first, rows, at)| {
            for (i, &row) in rows.iter().enumerate() {
                let target = &mut part[(row as usize - first) * columns..][..columns];
                vector::add_scaled(target, weights[at + i], &x.data[(at + i) * columns..][..columns]);
            }
        });
        Ok(out)
    }

    fn take_rows(&self, x: &HostRows, rows: &[u32]) -> Result<HostRows> {
        let columns = x.columns;
        let mut out = HostRows::dirty(rows.len(), columns);
        for (o, &row) in out.data.chunks_exact_mut(columns).zip(rows) {
            o.copy_from_slice(&x.data[row as usize * columns..][..columns]);
        }
        Ok(out)
    }

    fn row_sizes(&self, x: &HostRows) -> Result<RowSizes> {
        let sizes = x.data.par_chunks_exact(x.columns).with_min_len(ROWS_PER_TASK).map(vector::norm_and_peak);
        let (norms, peaks) = sizes.unzip();
        Ok(RowSizes { norms, peaks })
    }

    fn is_finite(&self, x: &HostRows) -> Result<bool> {
        Ok(x.data.par_chunks(1 << 16).all(vector::is_finite))
    }

    fn chunk_scores(&self, logits: &HostRows, targets: &[Option<u32>]) -> Result<Vec<ChunkScore>> {
        let score = |(row, target): (&[f32], &Option<u32>)| {
            let (max, exp_sum) = vector::max_and_exp_sum(row);
            ChunkScore { max, exp_sum, target: target.map(|t| row[t as usize]) }
        };
        let rows = logits.data.par_chunks_exact(logits.columns);
        Ok(rows.zip(targets.par_iter()).with_min_len(8).map(score).collect())
    }
}
