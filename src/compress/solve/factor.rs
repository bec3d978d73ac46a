//! The metric a solver works in: damped moments and their triangular factor.
//!
//! With `H = V Vᵀ`, V upper triangular, the error `e H eᵀ` of a row is `Σ_k (Σ_{j≤k} e_j V_jk)²`: deciding columns in
//! order, column k makes its own term small by aiming at `w_k + Σ_{j<k} e_j V_jk / V_kk`. That is GPTQ (Frantar et al.
//! 2022) in the form of LDLQ (Chee et al. 2023), and needs no inverse.

use rayon::prelude::*;

use super::Moments;

/// Damped moments, scaled so that the mean of the diagonal is about one, and their factor.
pub(super) struct Metric {
    pub size: usize,
    /// H, `[size, size]`.
    pub full: Vec<f32>,
    /// V, `[size, size]`, zero below the diagonal.
    pub upper: Vec<f32>,
    /// What it took beyond the damping asked for.
    pub notes: Vec<String>,
}

/// How often a failing factorisation is tried again with ten times the damping.
const RAISES: usize = 4;

impl Metric {
    /// The metric of these moments with the columns in this order, off-diagonal moments times `keep` and the diagonal
    /// raised by `damping` of its mean; `None` when the inputs were all zero or no damping makes it positive definite.
    pub fn new(moments: &Moments, order: &[usize], keep: f64, damping: f64) -> Option<Self> {
        let size = moments.size;
        let mean = (0..size).map(|i| f64::from(moments.sum[i * size + i])).sum::<f64>() / size.max(1) as f64;
        if !(mean > 0.0 && mean.is_finite()) {
            return None;
        }
        let mut notes = Vec::new();
        let mut damping = damping;
        for _ in 0..=RAISES {
            let at = |i: usize, j: usize| {
                let v = f64::from(moments.sum[order[i] * size + order[j]]) / mean;
                if i == j { v + damping } else { v * keep }
            };
            // Factored from the last column up: turned round, an upper factor is a lower one.
            let last = size - 1;
            let mut turned = vec![0f64; size * size];
            turned.par_chunks_mut(size).enumerate().for_each(|(i, row)| {
                row.iter_mut().enumerate().take(i + 1).for_each(|(j, v)| *v = at(last - i, last - j));
            });
            if cholesky(&mut turned, size) {
                let mut upper = vec![0f32; size * size];
                let mut full = vec![0f32; size * size];
                upper.par_chunks_mut(size).zip(full.par_chunks_mut(size)).enumerate().for_each(|(i, (v, h))| {
                    for j in 0..size {
                        h[j] = at(i, j) as f32;
                        v[j] = if j < i { 0.0 } else { turned[(last - i) * size + last - j] as f32 };
                    }
                });
                return Some(Metric { size, full, upper, notes });
            }
            damping = (damping * 10.0).max(1e-6);
            notes = vec![format!("damping raised to {damping:.0e}")];
        }
        None
    }
}

/// Columns factored at a time.
const BLOCK: usize = 64;

/// The lower Cholesky factor of a symmetric matrix in place (its lower triangle is read and written); false when it is
/// not positive definite. Right-looking by blocks; every sum has one order whatever the number of threads.
pub(super) fn cholesky(a: &mut [f64], size: usize) -> bool {
    let mut panel = Vec::new();
    for start in (0..size).step_by(BLOCK) {
        let end = (start + BLOCK).min(size);
        let width = end - start;
        if !diagonal_block(a, size, start, end) {
            return false;
        }
        // The block's factor transposed, so that the substitution below runs along rows.
        let mut across = [[0f64; BLOCK]; BLOCK];
        for i in 0..width {
            for j in 0..=i {
                across[j][i] = a[(start + i) * size + start + j];
            }
        }
        let (_, below) = a.split_at_mut(end * size);
        below.par_chunks_mut(size).for_each(|row| {
            let row = &mut row[start..end];
            for j in 0..width {
                let x = row[j] / across[j][j];
                row[j] = x;
                for i in j + 1..width {
                    row[i] -= x * across[j][i];
                }
            }
        });
        panel.clear();
        below.chunks(size).for_each(|row| panel.extend_from_slice(&row[start..end]));
        let panel = &panel;
        below.par_chunks_mut(BLOCK * size).enumerate().for_each(|(chunk, rows)| {
            subtract_outer(rows, size, end, panel, width, chunk * BLOCK);
        });
    }
    true
}

/// Factors the block on the diagonal by itself.
fn diagonal_block(a: &mut [f64], size: usize, start: usize, end: usize) -> bool {
    for j in start..end {
        let pivot = a[j * size + j] - (start..j).map(|k| a[j * size + k] * a[j * size + k]).sum::<f64>();
        if !(pivot > 0.0 && pivot.is_finite()) {
            return false;
        }
        let pivot = pivot.sqrt();
        a[j * size + j] = pivot;
        for i in j + 1..end {
            let dot: f64 = (start..j).map(|k| a[i * size + k] * a[j * size + k]).sum();
            a[i * size + j] = (a[i * size + j] - dot) / pivot;
        }
    }
    true
}

/// `rows[.., from..] −= panel_i · panelᵀ` for the rows beginning with panel row `first`, left of and on the diagonal block.
fn subtract_outer(rows: &mut [f64], size: usize, from: usize, panel: &[f64], width: usize, first: usize) {
    let count = rows.len() / size;
    let cols = first + count;
    assert!(panel.len() >= cols * width && from + cols <= size);
    // SAFETY: `count` rows of `cols` numbers from column `from` lie within `rows`, `cols` rows of `width` within `panel`
    // (both just asserted); the output is uniquely borrowed.
    unsafe {
        gemm::gemm(
            count,
            cols,
            width,
            rows.as_mut_ptr().add(from),
            1,
            size as isize,
            true,
            panel.as_ptr().add(first * width),
            1,
            width as isize,
            panel.as_ptr(),
            width as isize,
            1,
            1.0,
            -1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::correlated;
    use super::*;

    #[test]
    fn the_factor_times_its_transpose_is_the_damped_matrix() {
        // Not a multiple of the block, and more than two blocks.
        let size = 150;
        let moments = correlated(size, 400, 4);
        let order: Vec<usize> = (0..size).rev().collect();
        let metric = Metric::new(&moments, &order, 0.9, 0.01).unwrap();
        let mean = (0..size).map(|i| moments.sum[i * size + i]).sum::<f32>() / size as f32;
        for i in 0..size {
            for j in 0..size {
                let product: f32 = (0..size).map(|k| metric.upper[i * size + k] * metric.upper[j * size + k]).sum();
                let h = metric.full[i * size + j];
                assert!((product - h).abs() < 1e-4, "({i}, {j}): {product}, not {h}");
                let plain = moments.sum[order[i] * size + order[j]] / mean;
                let expected = if i == j { plain + 0.01 } else { plain * 0.9 };
                assert!((h - expected).abs() < 1e-5, "({i}, {j})");
                assert!(j >= i || metric.upper[i * size + j] == 0.0);
            }
        }
    }

    #[test]
    fn what_is_not_positive_definite_is_not_factored() {
        assert!(!cholesky(&mut [1.0, 0.0, 2.0, 1.0], 2));
        assert!(!cholesky(&mut [f64::NAN], 1));
        let mut good = [4.0, 0.0, 2.0, 5.0];
        assert!(cholesky(&mut good, 2));
        assert_eq!(good, [2.0, 0.0, 1.0, 2.0]);
    }
}
