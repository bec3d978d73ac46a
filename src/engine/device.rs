//! The candle backend: every operation composed of candle's own, so it runs on any device candle knows.
//!
//! The residual stream and everything that is not a product stays in f32; products are computed in the device's
//! compute type (bf16 on a GPU, f32 on a CPU).

mod delta;
mod gradients;
mod learned;

use std::ops::Range;

use candle_core::{DType, Device, Tensor};
use candle_nn::ops::sigmoid;

use super::EngineError;
use super::backend::{
    AttentionShape, Backend, ChunkScore, DecayInput, DeltaShape, RopeTable, Rotation, RowSizes, positions,
};
use super::batch::Batch;
use crate::family::{Activation, LinearSpec, Pairing};
use crate::model::TensorSource;

pub use learned::Learned;

type Result<T> = std::result::Result<T, EngineError>;

/// Queries whose scores are held at once, per head: bounds the score matrix of long sequences.
const QUERY_CHUNK: usize = 1024;

/// Computes on a candle device.
pub struct OnDevice {
    device: Device,
    compute: DType,
    /// Weights whose gradients are wanted: then only operations that have one are used.
    learned: Option<Learned>,
}

/// Cosines and sines `[positions, half]` on the device.
pub struct DeviceRope {
    pairing: Pairing,
    cos: Tensor,
    sin: Tensor,
}

impl OnDevice {
    /// Products in bf16 on a GPU and in f32 on a CPU.
    pub fn new(device: &Device) -> Self {
        let compute = if device.is_cpu() { DType::F32 } else { DType::BF16 };
        OnDevice { device: device.clone(), compute, learned: None }
    }

    /// The same for a block that is loaded to learn: gradients of the weights named can be asked for.
    pub fn learning(device: &Device, weights: impl IntoIterator<Item = String>) -> Self {
        OnDevice { learned: Some(Learned::new(weights)), ..OnDevice::new(device) }
    }

    /// The weights that learn, once loaded.
    pub fn learned(&self) -> Option<&Learned> {
        self.learned.as_ref()
    }

    fn softmax(&self, scores: &Tensor) -> candle_core::Result<Tensor> {
        match self.learned {
            Some(_) => gradients::softmax(scores),
            None => candle_nn::ops::softmax_last_dim(scores),
        }
    }

    /// Over the root mean square of the last dimension, times the gain.
    fn rms_norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> candle_core::Result<Tensor> {
        match self.learned {
            Some(_) => gradients::rms_norm(x, gain, eps),
            None => candle_nn::ops::rms_norm(x, gain, eps as f32),
        }
    }

    fn name(&self) -> &'static str {
        match self.device {
            Device::Cpu => "cpu",
            Device::Cuda(_) => "cuda",
            Device::Metal(_) => "metal",
        }
    }

    pub(super) fn run<T>(&self, work: impl FnOnce() -> candle_core::Result<T>) -> Result<T> {
        work().map_err(|source| EngineError::Compute { device: self.name(), source })
    }

    fn ids(&self, rows: &[u32]) -> candle_core::Result<Tensor> {
        Tensor::from_slice(rows, rows.len(), &self.device)
    }

    /// Attention of `count` sequences of one length; q `[count, length, heads, key_dim]` and so on; f32 in and out.
    fn attend(
        &self,
        [q, k, v]: [&Tensor; 3],
        sinks: Option<&Tensor>,
        shape: &AttentionShape,
    ) -> candle_core::Result<Tensor> {
        let (count, length, _, d) = q.dims4()?;
        let (kv_heads, group) = (shape.kv_heads, shape.group());
        // [count, heads, length, d]; the queries that share a key head lie one after the other.
        let q = (q * f64::from(shape.scale))?.to_dtype(self.compute)?.transpose(1, 2)?.contiguous()?;
        let k = k.to_dtype(self.compute)?.transpose(1, 2)?.contiguous()?;
        let v = v.to_dtype(self.compute)?.transpose(1, 2)?.contiguous()?;
        let q = q.reshape((count, kv_heads, group, length, d))?;
        let mut parts = Vec::new();
        for start in (0..length).step_by(QUERY_CHUNK) {
            let rows = QUERY_CHUNK.min(length - start);
            let keys_from = shape.first_seen(start);
            let seen = start + rows - keys_from;
            let queries = q.narrow(3, start, rows)?.contiguous()?.reshape((count, kv_heads, group * rows, d))?;
            let keys = k.narrow(2, keys_from, seen)?.contiguous()?;
            let values = v.narrow(2, keys_from, seen)?.contiguous()?;
            let scores = queries.matmul(&keys.transpose(2, 3)?)?.to_dtype(DType::F32)?;
            let scores = scores.reshape((count, kv_heads * group, rows, seen))?;
            let scores = scores.broadcast_add(&self.mask(shape, start, rows, seen)?)?;
            let weights = match sinks {
                None => self.softmax(&scores)?,
                Some(sinks) => {
                    let sinks = sinks.reshape((1, shape.heads, 1, 1))?.broadcast_as((count, shape.heads, rows, 1))?;
                    let weights = self.softmax(&Tensor::cat(&[&scores, &sinks.contiguous()?], 3)?)?;
                    weights.narrow(3, 0, seen)?.contiguous()?
                }
            };
            let weights = weights.to_dtype(self.compute)?.reshape((count, kv_heads, group * rows, seen))?;
            let mixed = weights.matmul(&values)?;
            parts.push(mixed.reshape((count, shape.heads, rows, shape.value_dim))?);
        }
        let mixed = Tensor::cat(&parts, 2)?;
        let columns = shape.heads * shape.value_dim;
        mixed.transpose(1, 2)?.contiguous()?.reshape((count * length, columns))?.to_dtype(DType::F32)
    }

    /// 0 where the query at `start + i` sees key `j` of those from the first that any of the queries sees, -inf
    /// elsewhere.
    fn mask(&self, shape: &AttentionShape, start: usize, rows: usize, seen: usize) -> candle_core::Result<Tensor> {
        let keys_from = shape.first_seen(start);
        let row = |i: usize| {
            let visible = shape.first_seen(start + i)..=start + i;
            (keys_from..keys_from + seen).map(move |j| if visible.contains(&j) { 0f32 } else { f32::NEG_INFINITY })
        };
        Tensor::from_vec((0..rows).flat_map(row).collect(), (1, 1, rows, seen), &self.device)
    }
}

impl Backend for OnDevice {
    type Rows = Tensor;
    type Weight = Tensor;
    type Vector = Tensor;
    type Rope = DeviceRope;

    fn weight_bytes(&self, rows: usize, cols: usize, _exact: bool) -> u64 {
        (rows * cols * self.compute.size_in_bytes()) as u64
    }

    fn load_weight(&self, source: &dyn TensorSource, linear: &LinearSpec) -> Result<Tensor> {
        match self.learned.as_ref().filter(|learned| learned.wants(&linear.weight)) {
            Some(learned) => {
                let mut values = Vec::new();
                source.read_f32(&linear.weight, &mut values)?;
                self.run(|| {
                    let weight = Tensor::from_vec(values, (linear.rows, linear.cols), &self.device)?;
                    learned.add(&linear.weight, &weight)
                })
            }
            None => self.load_weight_rows(source, &linear.weight, 0..linear.rows, linear.cols),
        }
    }

    fn make_weight_from_bf16(&self, bytes: &[u8], rows: usize, cols: usize) -> Result<Tensor> {
        self.run(|| Tensor::from_raw_buffer(bytes, DType::BF16, &[rows, cols], &self.device)?.to_dtype(self.compute))
    }

    fn make_weight(&self, values: Vec<f32>, rows: usize, cols: usize) -> Result<Tensor> {
        self.run(|| Tensor::from_vec(values, (rows, cols), &self.device)?.to_dtype(self.compute))
    }

    fn make_vector(&self, values: Vec<f32>) -> Result<Tensor> {
        let len = values.len();
        self.run(|| Tensor::from_vec(values, len, &self.device))
    }

    fn rope(&self, table: RopeTable) -> Result<DeviceRope> {
        let shape = (table.cos.len() / table.half, table.half);
        self.run(|| {
            let cos = Tensor::from_vec(table.cos, shape, &self.device)?;
            let sin = Tensor::from_vec(table.sin, shape, &self.device)?;
            Ok(DeviceRope { pairing: table.pairing, cos, sin })
        })
    }

    fn upload(&self, values: &[f32], columns: usize) -> Result<Tensor> {
        self.run(|| Tensor::from_slice(values, (values.len() / columns, columns), &self.device))
    }

    fn copy(&self, x: &Tensor) -> Result<Tensor> {
        // Tensors do not change: another handle will do.
        Ok(x.clone())
    }

    fn row_count(&self, x: &Tensor) -> usize {
        x.dims().first().copied().unwrap_or(0)
    }

    fn stack(&self, x: Tensor, y: &Tensor) -> Result<Tensor> {
        self.run(|| Tensor::cat(&[&x, y], 0))
    }

    fn download(&self, x: &Tensor) -> Result<Vec<f32>> {
        self.run(|| x.flatten_all()?.to_vec1())
    }

    fn linears<const N: usize>(
        &self,
        x: &Tensor,
        rows: Option<&[u32]>,
        layers: [(&Tensor, Option<&Tensor>); N],
    ) -> Result<[Tensor; N]> {
        self.run(|| {
            let x = match rows {
                Some(rows) => &x.index_select(&self.ids(rows)?, 0)?,
                None => x,
            };
            let x = x.to_dtype(self.compute)?;
            let product = |(weight, bias): (&Tensor, Option<&Tensor>)| {
                let y = match self.learned {
                    Some(_) => gradients::product(&x, &weight.to_dtype(self.compute)?)?,
                    None => x.matmul(&weight.t()?)?,
                };
                let y = y.to_dtype(DType::F32)?;
                match bias {
                    Some(bias) => y.broadcast_add(bias),
                    None => Ok(y),
                }
            };
            let products: candle_core::Result<Vec<Tensor>> = layers.into_iter().map(product).collect();
            products?.try_into().map_err(|_| candle_core::Error::msg("a product is missing"))
        })
    }

    fn norm(&self, x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
        self.run(|| {
            let (rows, columns) = x.dims2()?;
            let runs = x.contiguous()?.reshape((rows * columns / gain.elem_count(), gain.elem_count()))?;
            self.rms_norm(&runs, gain, eps)?.reshape((rows, columns))
        })
    }

    fn layer_norm(&self, x: &Tensor, gain: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
        self.run(|| {
            let centred = x.broadcast_sub(&x.mean_keepdim(1)?)?;
            let deviation = (centred.sqr()?.mean_keepdim(1)? + eps)?.sqrt()?;
            centred.broadcast_div(&deviation)?.broadcast_mul(gain)?.broadcast_add(bias)
        })
    }

    fn rotate(&self, x: Tensor, rotation: &Rotation<'_, Self>) -> Result<Tensor> {
        let &Rotation { heads, first, head_norm, rope, batch } = rotation;
        self.run(|| {
            let (rows, columns) = x.dims2()?;
            let (width, half) = (columns / heads, rope.cos.dim(1)?);
            let mut x = x.reshape((rows, heads, width))?;
            if let Some((gain, eps)) = head_norm {
                x = self.rms_norm(&x.contiguous()?, gain, eps)?;
            }
            let positions = self.ids(&positions(batch))?;
            let pairs = x.narrow(2, first, 2 * half)?.contiguous()?;
            // The dimension that tells the two of a pair apart.
            let (pairs, side) = match rope.pairing {
                Pairing::Half => (pairs.reshape((rows, heads, 2, half))?, 2),
                Pairing::Adjacent => (pairs.reshape((rows, heads, half, 2))?, 3),
            };
            let cos = rope.cos.index_select(&positions, 0)?.reshape((rows, 1, half))?.unsqueeze(side)?;
            let sin = rope.sin.index_select(&positions, 0)?.reshape((rows, 1, half))?.unsqueeze(side)?;
            let (low, high) = (pairs.narrow(side, 0, 1)?, pairs.narrow(side, 1, 1)?);
            let turned_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
            let turned_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
            let turned = Tensor::cat(&[turned_low, turned_high], side)?.reshape((rows, heads, 2 * half))?;
            let mut parts = vec![turned];
            if first > 0 {
                parts.insert(0, x.narrow(2, 0, first)?);
            }
            let after = first + 2 * half;
            if after < width {
                parts.push(x.narrow(2, after, width - after)?);
            }
            Tensor::cat(&parts, 2)?.reshape((rows, columns))
        })
    }

    fn attention(
        &self,
        qkv: [&Tensor; 3],
        sinks: Option<&Tensor>,
        shape: &AttentionShape,
        batch: &Batch,
    ) -> Result<Tensor> {
        let part = |start: usize, count: usize, length: usize| {
            let heads_of = |x: &Tensor, heads: usize, width: usize| {
                x.narrow(0, start, count * length)?.reshape((count, length, heads, width))
            };
            let q = heads_of(qkv[0], shape.heads, shape.key_dim)?;
            let k = heads_of(qkv[1], shape.kv_heads, shape.key_dim)?;
            self.attend([&q, &k, &heads_of(qkv[2], shape.kv_heads, shape.value_dim)?], sinks, shape)
        };
        self.run(|| match batch.uniform() {
            Some(length) => part(0, batch.spans.len(), length),
            None => {
                let parts: candle_core::Result<Vec<Tensor>> =
                    batch.spans.iter().map(|span| part(span.start, 1, span.len())).collect();
                Tensor::cat(&parts?, 0)
            }
        })
    }

    fn causal_conv(&self, x: Tensor, weight: &Tensor, batch: &Batch) -> Result<Tensor> {
        self.run(|| {
            let columns = x.dim(1)?;
            let kernel = weight.elem_count() / columns;
            let taps = weight.reshape((columns, kernel))?;
            let one = |span: &Range<usize>| {
                let zeros = Tensor::zeros((kernel - 1, columns), DType::F32, &self.device)?;
                let padded = Tensor::cat(&[zeros, x.narrow(0, span.start, span.len())?], 0)?;
                let mut sum = Tensor::zeros((span.len(), columns), DType::F32, &self.device)?;
                for tap in 0..kernel {
                    let weight = taps.narrow(1, tap, 1)?.reshape((1, columns))?;
                    sum = (sum + padded.narrow(0, tap, span.len())?.broadcast_mul(&weight)?)?;
                }
                sum.silu()
            };
            let parts: candle_core::Result<Vec<Tensor>> = batch.spans.iter().map(one).collect();
            Tensor::cat(&parts?, 0)
        })
    }

    fn delta_rule(
        &self,
        qkv: &Tensor,
        decay: DecayInput<'_, Self>,
        strength: &Tensor,
        shape: &DeltaShape,
        batch: &Batch,
    ) -> Result<Tensor> {
        self.run(|| delta::over_sequences(qkv, decay, strength, shape, batch))
    }

    fn activate(&self, gate: Tensor, up: Tensor, activation: Activation) -> Result<Tensor> {
        self.run(|| match activation {
            Activation::Silu if self.learned.is_some() => gradients::silu_times(&gate, &up),
            Activation::Silu => gate.silu()? * up,
            Activation::ClampedSwiglu { alpha, limit } => {
                let gate = gate.minimum(limit)?;
                let up = up.clamp(-limit, limit)?;
                (&gate * sigmoid(&(&gate * alpha)?)?)? * (up + 1.0)?
            }
        })
    }

    fn gate(&self, x: Tensor, gate: &Tensor) -> Result<Tensor> {
        self.run(|| x.broadcast_mul(&sigmoid(gate)?))
    }

    fn clamp(&self, x: Tensor, limit: f64) -> Result<Tensor> {
        self.run(|| x.clamp(-limit, limit))
    }

    fn split<const N: usize>(&self, x: &Tensor, heads: usize, widths: [usize; N]) -> Result<[Tensor; N]> {
        self.run(|| {
            let rows = x.dim(0)?;
            let x = x.reshape((rows, heads, widths.iter().sum::<usize>()))?;
            let mut first = 0;
            let part = |width: usize| {
                let part = x.narrow(2, first, width)?.contiguous()?.reshape((rows, heads * width));
                first += width;
                part
            };
            let parts: candle_core::Result<Vec<Tensor>> = widths.into_iter().map(part).collect();
            parts?.try_into().map_err(|_| candle_core::Error::msg("a part is missing"))
        })
    }

    fn join(&self, x: &Tensor, shared: &Tensor, heads: usize) -> Result<Tensor> {
        self.run(|| {
            let (rows, columns) = x.dims2()?;
            let own = x.reshape((rows, heads, columns / heads))?;
            let shared = shared.unsqueeze(1)?.broadcast_as((rows, heads, shared.dim(1)?))?.contiguous()?;
            let whole = columns + heads * shared.dim(2)?;
            Tensor::cat(&[own, shared], 2)?.reshape((rows, whole))
        })
    }

    fn add(&self, x: Tensor, y: Tensor) -> Result<Tensor> {
        self.run(|| x + y)
    }

    fn scale(&self, x: Tensor, factor: f64) -> Result<Tensor> {
        self.run(|| x * factor)
    }

    fn zeros(&self, rows: usize, columns: usize) -> Result<Tensor> {
        self.run(|| Tensor::zeros((rows, columns), DType::F32, &self.device))
    }

    fn add_rows(&self, out: Tensor, rows: &[u32], weights: &[f32], x: &Tensor) -> Result<Tensor> {
        self.run(|| {
            let weights = Tensor::from_slice(weights, (weights.len(), 1), &self.device)?;
            out.index_add(&self.ids(rows)?, &x.broadcast_mul(&weights)?, 0)
        })
    }

    fn add_gram(&self, x: &Tensor, rows: Option<&[u32]>, factor: f32, sum: &mut Vec<f32>) -> Result<usize> {
        let (gram, count) = self.run(|| {
            let x = match rows {
                Some(rows) => x.index_select(&self.ids(rows)?, 0)?,
                None => x.clone(),
            };
            let gram = x.t()?.contiguous()?.matmul(&x.contiguous()?)?;
            Ok((gram.flatten_all()?.to_vec1::<f32>()?, x.dim(0)?))
        })?;
        sum.resize(gram.len(), 0.0);
        super::vector::add_scaled(sum, factor, &gram);
        Ok(count)
    }

    fn add_drift(&self, x: &Tensor, pairs: &[(u32, u32)], sum: &mut Vec<f32>) -> Result<()> {
        let (a, b): (Vec<u32>, Vec<u32>) = pairs.iter().copied().unzip();
        let drift = self.run(|| {
            let own = x.index_select(&self.ids(&b)?, 0)?;
            let apart = x.index_select(&self.ids(&a)?, 0)?.sub(&own)?;
            apart.t()?.contiguous()?.matmul(&own)?.flatten_all()?.to_vec1::<f32>()
        })?;
        sum.resize(drift.len(), 0.0);
        super::vector::add(sum, &drift);
        Ok(())
    }

    fn take_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        self.run(|| x.index_select(&self.ids(rows)?, 0))
    }

    fn row_sizes(&self, x: &Tensor) -> Result<RowSizes> {
        self.run(|| {
            let norms = x.sqr()?.sum(1)?.sqrt()?.to_vec1::<f32>()?;
            Ok(RowSizes { norms, peaks: x.abs()?.max(1)?.to_vec1::<f32>()? })
        })
    }

    fn is_finite(&self, x: &Tensor) -> Result<bool> {
        let sum = self.run(|| x.affine(0.0, 0.0)?.sum_all()?.to_scalar::<f32>())?;
        Ok(sum == 0.0)
    }

    fn chunk_scores(&self, logits: &Tensor, targets: &[Option<u32>]) -> Result<Vec<ChunkScore>> {
        self.run(|| {
            let max = logits.max_keepdim(1)?;
            let exp_sum = logits.broadcast_sub(&max)?.exp()?.sum(1)?.to_vec1::<f32>()?;
            let columns: Vec<u32> = targets.iter().map(|t| t.unwrap_or(0)).collect();
            let columns = Tensor::from_vec(columns, (targets.len(), 1), &self.device)?;
            let found = logits.gather(&columns, 1)?.flatten_all()?.to_vec1::<f32>()?;
            let max = max.flatten_all()?.to_vec1::<f32>()?;
            let score =
                |i: usize| ChunkScore { max: max[i], exp_sum: exp_sum[i], target: targets[i].map(|_| found[i]) };
            Ok((0..targets.len()).map(score).collect())
        })
    }
}
