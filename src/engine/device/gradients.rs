//! Operations of a learning block that candle would compose of many, each with a gradient written out: on the CPU a
//! composition costs a pass over memory per part, forward and back. Other devices compose.

use candle_core::{CpuStorage, CustomOp1, CustomOp2, D, Device, Layout, Result, Shape, Tensor};
use half::bf16;
use rayon::prelude::*;

use super::super::matmul::{PackedWeight, matmul};

/// x · Wᵀ for x `[m, k]` and W `[n, k]`.
pub(super) fn product(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    match x.device().is_cpu() {
        true => x.contiguous()?.apply_op2(&weight.contiguous()?, Product),
        false => x.matmul(&weight.t()?),
    }
}

/// exp(x) over its sum along the last dimension.
pub(super) fn softmax(x: &Tensor) -> Result<Tensor> {
    if x.device().is_cpu() {
        return x.contiguous()?.apply_op1(Softmax);
    }
    // It does not depend on what is taken off, so that needs no gradient.
    let powers = x.broadcast_sub(&x.max_keepdim(D::Minus1)?.detach())?.exp()?;
    powers.broadcast_div(&powers.sum_keepdim(D::Minus1)?)
}

/// x over the root mean square of its last dimension, times the gain, which does not learn.
pub(super) fn rms_norm(x: &Tensor, gain: &Tensor, eps: f64) -> Result<Tensor> {
    match x.device().is_cpu() {
        true => x.contiguous()?.apply_op2(gain, RmsNorm { eps: eps as f32 }),
        false => candle_nn::ops::rms_norm_slow(x, gain, eps as f32),
    }
}

/// silu(gate) · up.
pub(super) fn silu_times(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    match gate.device().is_cpu() {
        true => gate.contiguous()?.apply_op2(&up.contiguous()?, SiluTimes),
        false => gate.silu()? * up,
    }
}

/// Values that lie one after the other.
fn values<'a>(storage: &'a CpuStorage, layout: &Layout) -> Result<&'a [f32]> {
    match layout.contiguous_offsets() {
        Some((start, end)) => Ok(&storage.as_slice::<f32>()?[start..end]),
        None => Err(candle_core::Error::msg("values that do not lie one after the other")),
    }
}

/// Calls `work` with the values of some tensors of one device, the CPU, and shapes what it gives like the first of them.
fn on_values<const N: usize>(
    tensors: [&Tensor; N],
    shape: &Shape,
    work: impl FnOnce([&[f32]; N]) -> Vec<f32>,
) -> Result<Tensor> {
    let mut held = Vec::with_capacity(N);
    for tensor in tensors {
        held.push(tensor.contiguous()?);
    }
    let guards: Vec<_> = held.iter().map(Tensor::storage_and_layout).collect();
    let mut slices: [&[f32]; N] = [&[]; N];
    for (slice, (storage, layout)) in slices.iter_mut().zip(&guards) {
        *slice = match &**storage {
            candle_core::Storage::Cpu(storage) => values(storage, layout)?,
            _ => return Err(candle_core::Error::msg("values on another device")),
        };
    }
    Tensor::from_vec(work(slices), shape, &Device::Cpu)
}

fn last(layout: &Layout) -> usize {
    layout.dims().last().copied().unwrap_or(1).max(1)
}

/// The second operand counts in bf16: enough to go downhill by.
struct Product;

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "product"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, w: &CpuStorage, wl: &Layout) -> Result<(CpuStorage, Shape)> {
        let ((m, k), (n, _)) = (xl.shape().dims2()?, wl.shape().dims2()?);
        let y = multiply(values(x, xl)?, m, values(w, wl)?, n, k);
        Ok((CpuStorage::F32(y), Shape::from((m, n))))
    }

    fn bwd(&self, x: &Tensor, w: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let ((m, k), (n, _)) = (x.dims2()?, w.dims2()?);
        // grad · W, for an input that itself depends on what learns; and gradᵀ · x.
        let of_x = || on_values([grad, w], x.shape(), |[grad, w]| multiply(grad, m, &transposed(w, n, k), k, n));
        let of_x = if x.track_op() { Some(of_x()?) } else { None };
        let of_w = |[grad, x]: [&[f32]; 2]| multiply(&transposed(grad, m, n), n, &transposed(x, m, k), k, m);
        let of_w = if w.track_op() { Some(on_values([grad, x], w.shape(), of_w)?) } else { None };
        Ok((of_x, of_w))
    }
}

fn multiply(x: &[f32], m: usize, w: &[f32], n: usize, k: usize) -> Vec<f32> {
    let mut bytes = vec![0u8; 2 * w.len()];
    bytes.par_chunks_mut(1 << 15).zip(w.par_chunks(1 << 14)).for_each(|(bytes, values)| {
        for (bytes, value) in bytes.as_chunks_mut::<2>().0.iter_mut().zip(values) {
            *bytes = bf16::from_f32(*value).to_le_bytes();
        }
    });
    let mut y = vec![0f32; m * n];
    matmul(x, m, &PackedWeight::from_bf16_le(&bytes, n, k), &mut y, None);
    y
}

/// `[rows, cols]` to `[cols, rows]`.
fn transposed(values: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    const TILE: usize = 32;
    let mut out = vec![0f32; values.len()];
    out.par_chunks_mut(TILE * rows.max(1)).enumerate().for_each(|(strip, out)| {
        let first = strip * TILE;
        let wide = out.len() / rows.max(1);
        for top in (0..rows).step_by(TILE) {
            for r in top..(top + TILE).min(rows) {
                let row = &values[r * cols + first..r * cols + first + wide];
                row.iter().enumerate().for_each(|(c, value)| out[c * rows + r] = *value);
            }
        }
    });
    out
}

struct Softmax;

impl CustomOp1 for Softmax {
    fn name(&self) -> &'static str {
        "softmax"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> Result<(CpuStorage, Shape)> {
        let (mut y, width) = (values(x, layout)?.to_vec(), last(layout));
        y.par_chunks_mut(width).for_each(|row| {
            let most = row.iter().fold(f32::NEG_INFINITY, |most, v| most.max(*v));
            row.iter_mut().for_each(|v| *v = (*v - most).exp());
            let scale = 1.0 / row.iter().sum::<f32>();
            row.iter_mut().for_each(|v| *v *= scale);
        });
        Ok((CpuStorage::F32(y), layout.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, y: &Tensor, grad: &Tensor) -> Result<Option<Tensor>> {
        let width = x.dims().last().copied().unwrap_or(1).max(1);
        let work = |[y, grad]: [&[f32]; 2]| {
            let mut out = grad.to_vec();
            out.par_chunks_mut(width).zip(y.par_chunks(width)).for_each(|(out, y)| {
                let mean: f32 = out.iter().zip(y).map(|(g, y)| g * y).sum();
                out.iter_mut().zip(y).for_each(|(g, y)| *g = y * (*g - mean));
            });
            out
        };
        on_values([y, grad], x.shape(), work).map(Some)
    }
}

struct RmsNorm {
    eps: f32,
}

impl RmsNorm {
    /// One over the root mean square of a row.
    fn inverse(&self, row: &[f32]) -> f32 {
        1.0 / (row.iter().map(|v| v * v).sum::<f32>() / row.len() as f32 + self.eps).sqrt()
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(&self, x: &CpuStorage, xl: &Layout, gain: &CpuStorage, gl: &Layout) -> Result<(CpuStorage, Shape)> {
        let (mut y, gain) = (values(x, xl)?.to_vec(), values(gain, gl)?);
        y.par_chunks_mut(last(xl)).for_each(|row| {
            let scale = self.inverse(row);
            row.iter_mut().zip(gain).for_each(|(v, gain)| *v *= scale * gain);
        });
        Ok((CpuStorage::F32(y), xl.shape().clone()))
    }

    fn bwd(&self, x: &Tensor, gain: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let width = x.dims().last().copied().unwrap_or(1).max(1);
        let work = |[x, gain, grad]: [&[f32]; 3]| {
            let mut out = grad.to_vec();
            out.par_chunks_mut(width).zip(x.par_chunks(width)).for_each(|(out, x)| {
                let scale = self.inverse(x);
                out.iter_mut().zip(gain).for_each(|(g, gain)| *g *= gain);
                let along = out.iter().zip(x).map(|(g, x)| g * x).sum::<f32>() * scale * scale / width as f32;
                out.iter_mut().zip(x).for_each(|(g, x)| *g = scale * (*g - along * x));
            });
            out
        };
        Ok((Some(on_values([x, gain, grad], x.shape(), work)?), None))
    }
}

struct SiluTimes;

impl CustomOp2 for SiluTimes {
    fn name(&self) -> &'static str {
        "silu-times"
    }

    fn cpu_fwd(&self, gate: &CpuStorage, gl: &Layout, up: &CpuStorage, ul: &Layout) -> Result<(CpuStorage, Shape)> {
        let (mut y, up) = (values(gate, gl)?.to_vec(), values(up, ul)?);
        y.par_iter_mut()
            .zip(up)
            .with_min_len(1 << 13)
            .for_each(|(gate, up)| *gate = *gate * up / (1.0 + (-*gate).exp()));
        Ok((CpuStorage::F32(y), gl.shape().clone()))
    }

    fn bwd(&self, gate: &Tensor, up: &Tensor, _y: &Tensor, grad: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let (shape, slopes) = (gate.shape(), |[gate, up, grad]: [&[f32]; 3]| {
            let mut out = grad.to_vec();
            out.par_iter_mut().zip(gate).zip(up).with_min_len(1 << 13).for_each(|((g, x), up)| {
                let open = 1.0 / (1.0 + (-x).exp());
                *g *= up * open * (1.0 + x * (1.0 - open));
            });
            out
        });
        let of_gate = on_values([gate, up, grad], shape, slopes)?;
        let of_up = on_values([gate, grad], shape, |[gate, grad]| {
            let mut out = grad.to_vec();
            out.par_iter_mut().zip(gate).with_min_len(1 << 13).for_each(|(g, x)| *g *= x / (1.0 + (-x).exp()));
            out
        })?;
        Ok((Some(of_gate), Some(of_up)))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;

    fn noise(rows: usize, cols: usize, seed: u32) -> Var {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1u32 << 24) as f32 * 2.0 - 1.0
        };
        let values: Vec<f32> = (0..rows * cols).map(|_| next()).collect();
        Var::from_tensor(&Tensor::from_vec(values, (rows, cols), &Device::Cpu).unwrap()).unwrap()
    }

    /// Value and gradients of the written-out operation and of candle's own composition, as large as a loss would have
    /// them; `learned` are those it has a gradient for.
    fn agree(
        what: &str,
        learned: &[&Var],
        written: impl Fn() -> Result<Tensor>,
        composed: impl Fn() -> Result<Tensor>,
        tolerance: f32,
    ) {
        let weigh = |y: &Tensor| {
            let weights = noise(y.dims()[0], y.elem_count() / y.dims()[0], 77);
            (y * weights.as_tensor()).unwrap().sum_all().unwrap()
        };
        let (ours, theirs) = (written().unwrap(), composed().unwrap());
        let far = |a: &Tensor, b: &Tensor| {
            let most = |t: &Tensor| t.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
            most(&(a - b).unwrap()) / most(b)
        };
        assert!(far(&ours, &theirs) <= tolerance, "{what}: {}", far(&ours, &theirs));
        let (ours, theirs) = (weigh(&ours).backward().unwrap(), weigh(&theirs).backward().unwrap());
        for (number, variable) in learned.iter().enumerate() {
            let (ours, theirs) = (ours.get(variable).unwrap(), theirs.get(variable).unwrap());
            assert!(far(ours, theirs) <= tolerance, "{what}, gradient {number}: {}", far(ours, theirs));
        }
    }

    #[test]
    fn values_and_gradients_are_those_of_the_compositions() {
        let (x, y, gain) = (noise(37, 70, 1), noise(37, 70, 2), noise(1, 70, 3).flatten_all().unwrap().detach());
        agree("softmax", &[&x], || softmax(&x), || candle_nn::ops::softmax(&x, D::Minus1), 1e-5);
        let (norm, slow) = (|| rms_norm(&x, &gain, 1e-5), || candle_nn::ops::rms_norm_slow(&x, &gain, 1e-5));
        agree("rms norm", &[&x], norm, slow, 1e-5);
        agree("silu times", &[&x, &y], || silu_times(&x, &y), || x.silu()? * y.as_tensor(), 1e-5);
        // The second operand of each product is rounded to 8 bits.
        agree("product", &[&x, &y], || product(&x, &y), || x.matmul(&y.t()?), 1e-2);
    }
}
