//! How fast this machine's GPU multiplies through candle: y = x·Wᵀ with W stored (out, in), as the engine does it.
//! Built by `scripts/gpu_check.sh` only (it needs the `cuda` feature).

use std::time::Instant;

use candle_core::{DType, Device, Result, Tensor};

const REPEATS: usize = 50;

/// Best of three runs of [`REPEATS`] products of `[tokens, width]` with `[width, width]`, in TFLOP/s.
fn matmul(device: &Device, dtype: DType, tokens: usize, width: usize) -> Result<f64> {
    let x = Tensor::randn(0f32, 1., (tokens, width), device)?.to_dtype(dtype)?;
    let w = Tensor::randn(0f32, 1., (width, width), device)?.to_dtype(dtype)?;
    for _ in 0..3 {
        x.matmul(&w.t()?)?;
    }
    device.synchronize()?;
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let started = Instant::now();
        for _ in 0..REPEATS {
            x.matmul(&w.t()?)?;
        }
        device.synchronize()?;
        best = best.min(started.elapsed().as_secs_f64());
    }
    Ok(2.0 * (REPEATS * tokens * width * width) as f64 / best / 1e12)
}

fn main() -> Result<()> {
    let device = Device::new_cuda(0)?;
    println!("TFLOP/s of [tokens, width] x [width, width]");
    println!("{:>8} {:>8} {:>10} {:>10}", "tokens", "width", "bf16", "f32");
    for (tokens, width) in [(1, 4096), (64, 4096), (512, 2048), (2048, 4096), (8192, 8192)] {
        let bf16 = matmul(&device, DType::BF16, tokens, width)?;
        let f32 = matmul(&device, DType::F32, tokens, width)?;
        println!("{tokens:>8} {width:>8} {bf16:>10.2} {f32:>10.2}");
    }
    Ok(())
}
