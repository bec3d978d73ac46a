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

/// Rows of a sum that are computed together: of a symmetric sum only what stands beside them and right of them.
const STRIPE: usize = 192;

/// `sum += factor · xᵀ·y`, x and y `[count, columns]`; `upper`: at least on and above the diagonal.
pub fn add_outer(x: &[f32], y: &[f32], columns: usize, upper: bool, factor: f32, sum: &mut [f32]) {
    let count = x.len() / columns;
    assert!(x.len() == count * columns && y.len() == x.len() && sum.len() == columns * columns);
    let stride = columns as isize;
    for start in (0..columns).step_by(STRIPE) {
        let from = if upper { start } else { 0 };
        let part = &mut sum[start * columns + from..];
        // SAFETY: x is read as its transpose from column `start` on and y from column `from` on, `count` rows of `columns`
        // each; the part of the sum holds rows `start` to `start + STRIPE` at most, from column `from` on.
        unsafe {
            gemm::gemm(
                STRIPE.min(columns - start),
                columns - from,
                count,
                part.as_mut_ptr(),
                1,
                stride,
                true,
                x[start..].as_ptr(),
                stride,
                1,
                y[from..].as_ptr(),
                1,
                stride,
                1.0,
                factor,
                false,
                false,
                false,
                gemm::Parallelism::Rayon(0),
            );
        }
    }
}
