//! The candle backend: every operation composed of candle's own, so it runs on any device candle knows.
//!
//! The residual stream and everything that is not a product stays in f32; products are computed in the device's
//! compute type (bf16 on a GPU, f32 on a CPU).

use std::ops::Range;

use candle_core::{D, DType, Device, Tensor};

use super::EngineError;
use super::backend::{Backend, ChunkScore, HeadShape, RopeTable, RowSizes};
use super::batch::Batch;
use crate::family::LinearSpec;
use crate::model::{Dtype, TensorSource};

type Result<T> = std::result::Result<T, EngineError>;

/// Queries whose scores are held at once, per head: bounds the score matrix of long sequences.
const QUERY_CHUNK: usize = 1024;

/// Computes on a candle device.
pub struct OnDevice {
    device: Device,
    compute: DType,
}

/// Cosines and sines `[positions, half]` on the device.
pub struct DeviceRope {
    cos: Tensor,
    sin: Tensor,
}

impl OnDevice {
    /// Products in bf16 on a GPU and in f32 on a CPU.
    pub fn new(device: &Device) -> Self {
        let compute = if device.is_cpu() { DType::F32 } else { DType::BF16 };
        OnDevice { device: device.clone(), compute }
    }

    fn name(&self) -> &'static str {
        match self.device {
            Device::Cpu => "cpu",
            Device::Cuda(_) => "cuda",
            Device::Metal(_) => "metal",
        }
    }

    fn run<T>(&self, work: impl FnOnce() -> candle_core::Result<T>) -> Result<T> {
        work().map_err(|source| EngineError::Compute { device: self.name(), source })
    }

    fn ids(&self, rows: &[u32]) -> candle_core::Result<Tensor> {
        Tensor::from_slice(rows, rows.len(), &self.device)
    }

    fn weight_from_bf16(&self, bytes: &[u8], n: usize, k: usize) -> Result<Tensor> {
        self.run(|| Tensor::from_raw_buffer(bytes, DType::BF16, &[n, k], &self.device)?.to_dtype(self.compute))
    }

    fn weight_from_f32(&self, values: Vec<f32>, n: usize, k: usize) -> Result<Tensor> {
        self.run(|| Tensor::from_vec(values, (n, k), &self.device)?.to_dtype(self.compute))
    }

    /// Attention of `count` sequences of one length; q `[count, length, heads, d]` and so on; f32 in and out.
    fn attend(&self, q: &Tensor, k: &Tensor, v: &Tensor, shape: HeadShape) -> candle_core::Result<Tensor> {
        let (count, length, _, d) = q.dims4()?;
        let group = shape.heads / shape.kv_heads;
        let scale = 1.0 / (d as f64).sqrt();
        // [count, heads, length, d]; the queries that share a key head lie one after the other.
        let q = (q * scale)?.to_dtype(self.compute)?.transpose(1, 2)?.contiguous()?;
        let k = k.to_dtype(self.compute)?.transpose(1, 2)?.contiguous()?;
        let v = v.to_dtype(self.compute)?.transpose(1, 2)?.contiguous()?;
        let q = q.reshape((count, shape.kv_heads, group, length, d))?;
        let mut parts = Vec::new();
        for start in (0..length).step_by(QUERY_CHUNK) {
            let (rows, seen) = (QUERY_CHUNK.min(length - start), (start + QUERY_CHUNK).min(length));
            let queries = q.narrow(3, start, rows)?.contiguous()?.reshape((count, shape.kv_heads, group * rows, d))?;
            let keys = k.narrow(2, 0, seen)?.contiguous()?;
            let values = v.narrow(2, 0, seen)?.contiguous()?;
            let scores = queries.matmul(&keys.transpose(2, 3)?)?.to_dtype(DType::F32)?;
            let scores = scores.reshape((count * shape.kv_heads * group, rows, seen))?;
            let scores = scores.broadcast_add(&self.causal_mask(start, rows, seen)?)?;
            let weights = candle_nn::ops::softmax_last_dim(&scores)?.to_dtype(self.compute)?;
            let weights = weights.reshape((count, shape.kv_heads, group * rows, seen))?;
            let mixed = weights.matmul(&values)?;
            parts.push(mixed.reshape((count, shape.heads, rows, d))?);
        }
        let mixed = Tensor::cat(&parts, 2)?;
        mixed.transpose(1, 2)?.contiguous()?.reshape((count * length, shape.heads * d))?.to_dtype(DType::F32)
    }

    /// 0 where query `start + i` may see key `j`, -inf elsewhere.
    fn causal_mask(&self, start: usize, rows: usize, seen: usize) -> candle_core::Result<Tensor> {
        let cell = |i: usize, j: usize| if j <= start + i { 0f32 } else { f32::NEG_INFINITY };
        let mask: Vec<f32> = (0..rows).flat_map(|i| (0..seen).map(move |j| cell(i, j))).collect();
        Tensor::from_vec(mask, (1, rows, seen), &self.device)
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
        self.load_weight_rows(source, &linear.weight, 0..linear.rows, linear.cols)
    }

    fn load_weight_rows(
        &self,
        source: &dyn TensorSource,
        name: &str,
        rows: Range<usize>,
        cols: usize,
    ) -> Result<Tensor> {
        let n = rows.len();
        if source.meta(name).is_some_and(|meta| meta.dtype == Dtype::BF16) {
            let bytes = source.bytes(name)?;
            if let Some(part) = bytes.get(rows.start * cols * 2..rows.end * cols * 2) {
                return self.weight_from_bf16(part, n, cols);
            }
        }
        let mut values = Vec::new();
        source.read_rows_f32(name, rows, &mut values)?;
        self.weight_from_f32(values, n, cols)
    }

    fn make_weight(&self, values: Vec<f32>, rows: usize, cols: usize) -> Result<Tensor> {
        self.weight_from_f32(values, rows, cols)
    }

    fn load_vector(&self, source: &dyn TensorSource, name: &str) -> Result<Tensor> {
        let mut values = Vec::new();
        source.read_f32(name, &mut values)?;
        let len = values.len();
        self.run(|| Tensor::from_vec(values, len, &self.device))
    }

    fn rope(&self, table: RopeTable) -> Result<DeviceRope> {
        let shape = (table.cos.len() / table.half, table.half);
        self.run(|| {
            let cos = Tensor::from_vec(table.cos, shape, &self.device)?;
            let sin = Tensor::from_vec(table.sin, shape, &self.device)?;
            Ok(DeviceRope { cos, sin })
        })
    }

    fn upload(&self, values: &[f32], columns: usize) -> Result<Tensor> {
        self.run(|| Tensor::from_slice(values, (values.len() / columns, columns), &self.device))
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
                let y = x.matmul(&weight.t()?)?.to_dtype(DType::F32)?;
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
        self.run(|| candle_nn::ops::rms_norm(x, gain, eps as f32))
    }

    fn rotate(
        &self,
        x: Tensor,
        heads: usize,
        gain: Option<&Tensor>,
        eps: f64,
        rope: &DeviceRope,
        batch: &Batch,
    ) -> Result<Tensor> {
        self.run(|| {
            let (rows, columns) = x.dims2()?;
            let width = columns / heads;
            let half = width / 2;
            let mut x = x.reshape((rows, heads, width))?;
            if let Some(gain) = gain {
                x = candle_nn::ops::rms_norm(&x.contiguous()?, gain, eps as f32)?;
            }
            let positions: Vec<u32> = batch.spans.iter().flat_map(|span| 0..span.len() as u32).collect();
            let positions = self.ids(&positions)?;
            let cos = rope.cos.index_select(&positions, 0)?.reshape((rows, 1, half))?;
            let sin = rope.sin.index_select(&positions, 0)?.reshape((rows, 1, half))?;
            let (low, high) = (x.narrow(D::Minus1, 0, half)?, x.narrow(D::Minus1, half, half)?);
            let turned_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
            let turned_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
            Tensor::cat(&[turned_low, turned_high], D::Minus1)?.reshape((rows, columns))
        })
    }

    fn attention(&self, q: &Tensor, k: &Tensor, v: &Tensor, shape: HeadShape, batch: &Batch) -> Result<Tensor> {
        let part = |start: usize, count: usize, length: usize| {
            let heads_of = |x: &Tensor, heads: usize| {
                x.narrow(0, start, count * length)?.reshape((count, length, heads, shape.head_dim))
            };
            let (q, k) = (heads_of(q, shape.heads)?, heads_of(k, shape.kv_heads)?);
            self.attend(&q, &k, &heads_of(v, shape.kv_heads)?, shape)
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

    fn silu_mul(&self, gate: Tensor, up: Tensor) -> Result<Tensor> {
        self.run(|| gate.silu()? * up)
    }

    fn add(&self, x: Tensor, y: Tensor) -> Result<Tensor> {
        self.run(|| x + y)
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
