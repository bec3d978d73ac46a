//! The f32 product on any machine: the `gemm` crate, as candle calls it.

use rayon::prelude::*;

/// y[m, n] = x[m, k] · w[n, k]ᵀ (+ bias).
pub fn matmul(x: &[f32], m: usize, w: &[f32], n: usize, k: usize, y: &mut [f32], bias: Option<&[f32]>) {
    assert!(x.len() == m * k && w.len() == n * k && y.len() == m * n);
    let (row, column) = (k as isize, n as isize);
    // SAFETY: the three matrices have the asserted sizes and the strides of row-major storage; w is read as its
    // transpose; y is written only (read_dst is false).
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            y.as_mut_ptr(),
            1,
            column,
            false,
            x.as_ptr(),
            1,
            row,
            w.as_ptr(),
            row,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::Rayon(0),
        );
    }
    if let Some(bias) = bias {
        y.par_chunks_exact_mut(n).for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y += b));
    }
}
