//! The gated delta rule as candle operations, token by token, all sequences of one length and all heads at once; in f32.
//! See [`crate::engine::delta_rule`] for what is computed.

use candle_core::{D, DType, Tensor};
use candle_nn::ops::sigmoid;

use super::super::backend::{DecayInput, DeltaShape};
use super::super::batch::Batch;
use super::OnDevice;

type Result<T> = candle_core::Result<T>;

/// What is added to the squared length of a key or query before the root is taken.
const LENGTH_EPS: f64 = 1e-6;

/// See [`Backend::delta_rule`](super::super::backend::Backend::delta_rule).
pub(super) fn over_sequences(
    qkv: &Tensor,
    decay: DecayInput<'_, OnDevice>,
    strength: &Tensor,
    shape: &DeltaShape,
    batch: &Batch,
) -> Result<Tensor> {
    let &DeltaShape { key_heads, value_heads, key_dim, value_dim } = shape;
    let rows = qkv.dim(0)?;
    let keys_wide = key_heads * key_dim;
    // [rows, value_heads, key_dim], each key head repeated for the value heads that share it.
    let unit = |first: usize| {
        let x = qkv.narrow(1, first, keys_wide)?.contiguous()?.reshape((rows, key_heads, 1, key_dim))?;
        let length = (x.sqr()?.sum_keepdim(D::Minus1)? + LENGTH_EPS)?.sqrt()?;
        let group = value_heads / key_heads;
        let x = x.broadcast_div(&length)?.broadcast_as((rows, key_heads, group, key_dim))?;
        x.contiguous()?.reshape((rows, value_heads, key_dim))
    };
    let queries = (unit(0)? * (1.0 / (key_dim as f64).sqrt()))?;
    let keys = unit(keys_wide)?;
    let values = qkv.narrow(1, 2 * keys_wide, value_heads * value_dim)?.contiguous()?;
    let values = values.reshape((rows, value_heads, value_dim))?;
    let input = decay.a.broadcast_add(decay.dt_bias)?;
    // softplus(x) = max(x, 0) + ln(1 + exp(-|x|)), which does not overflow.
    let softplus = (input.relu()? + (input.abs()?.neg()?.exp()? + 1.0)?.log()?)?;
    let decays = softplus.broadcast_mul(&decay.a_log.exp()?)?.neg()?.exp()?;
    let strengths = sigmoid(strength)?;

    let sequences = |start: usize, count: usize, length: usize| {
        // [count, length, value_heads, …]
        let cut = |x: &Tensor, width: usize| {
            x.narrow(0, start, count * length)?.contiguous()?.reshape((count, length, value_heads, width))
        };
        let [queries, keys, values] = [cut(&queries, key_dim)?, cut(&keys, key_dim)?, cut(&values, value_dim)?];
        let [decays, strengths] = [cut(&decays, 1)?, cut(&strengths, 1)?];
        let mut state = Tensor::zeros((count, value_heads, key_dim, value_dim), DType::F32, qkv.device())?;
        let mut out = Vec::with_capacity(length);
        for t in 0..length {
            // [count, value_heads, 1, width]
            let at = |x: &Tensor| x.narrow(1, t, 1)?.transpose(1, 2)?.contiguous();
            let (query, key, value) = (at(&queries)?, at(&keys)?, at(&values)?);
            state = state.broadcast_mul(&at(&decays)?)?;
            let change = (value - key.matmul(&state)?)?.broadcast_mul(&at(&strengths)?)?;
            state = (state + key.transpose(2, 3)?.contiguous()?.matmul(&change)?)?;
            out.push(query.matmul(&state)?);
        }
        let out = Tensor::cat(&out, 2)?.transpose(1, 2)?.contiguous()?;
        out.reshape((count * length, value_heads * value_dim))
    };
    match batch.uniform() {
        Some(length) => sequences(0, batch.spans.len(), length),
        None => {
            let parts: Result<Vec<Tensor>> =
                batch.spans.iter().map(|span| sequences(span.start, 1, span.len())).collect();
            Tensor::cat(&parts?, 0)
        }
    }
}
