//! Making up for inputs that are no longer what they were: a layer behind compressed ones is given x where it was given
//! x₀, and aims at the output it had.
//!
//! With `H = Σ x xᵀ` and `D = Σ (x₀ − x) xᵀ` the weights of least `Σ ‖W x₀ − W* x‖²` are `W + W D H⁻¹`; a share of the
//! way there generalises better than all of it (quantization error propagation, Arai and Ichikawa 2025).

use rayon::prelude::*;

use super::Moments;
use super::factor::Metric;
use super::product::{add_product, product_turned};

/// Fewer inputs than this many times the columns say too little about drift.
const FEWEST_PER_COLUMN: u64 = 4;
/// Damping below this lets directions that hardly occur grow.
const LEAST_DAMPING: f64 = 0.01;

/// Moves weights `[rows, size]` by `share` of the way to those that make up for the drift. Left alone where the moments
/// rest on few inputs or cannot be inverted.
pub fn make_up_for_drift(values: &mut [f32], moments: &Moments, drift: &[f32], share: f32, damping: f64) {
    let size = moments.size;
    if moments.tokens < FEWEST_PER_COLUMN * size as u64 {
        return;
    }
    let order: Vec<usize> = (0..size).collect();
    let Some(metric) = Metric::new(moments, &order, 1.0, damping.max(LEAST_DAMPING)) else { return };
    // The metric is scaled so that the mean of its diagonal is about one.
    let mean = (0..size).map(|i| f64::from(moments.sum[i * size + i])).sum::<f64>() / size as f64;
    let scale = share / mean as f32;
    const PANEL: usize = 32;
    values.par_chunks_mut(PANEL * size).for_each(|values| {
        let rows = values.len() / size;
        let mut moved = vec![0f32; values.len()];
        add_product((rows, size, size), (values, size), (drift, size), (&mut moved, size), false);
        divide(&mut moved, size, &metric.upper);
        values.iter_mut().zip(&moved).for_each(|(value, moved)| *value += scale * moved);
    });
}

/// Columns solved at a time.
const BLOCK: usize = 64;

/// `rows · (V Vᵀ)⁻¹` in place for rows of `size`, V upper triangular: both substitutions by blocks of columns, so that all
/// but the blocks on the diagonal are products.
fn divide(rows: &mut [f32], size: usize, upper: &[f32]) {
    let count = rows.len() / size;
    let mut apart = vec![0f32; count * BLOCK];
    // z Vᵀ = rows, the last column first.
    for start in (0..size).step_by(BLOCK).rev() {
        let end = (start + BLOCK).min(size);
        let width = end - start;
        let apart = &mut apart[..count * width];
        if end < size {
            let behind = (&upper[start * size + end..], size);
            product_turned((count, size - end, width), (&rows[end..], size), behind, (apart, width));
        } else {
            apart.fill(0.0);
        }
        let turned = diagonal_turned(upper, size, start, end);
        for (row, apart) in rows.chunks_mut(size).zip(apart.chunks(width)) {
            let row = &mut row[start..end];
            row.iter_mut().zip(apart).for_each(|(x, apart)| *x -= apart);
            for j in (0..width).rev() {
                let z = row[j] / turned[j][j];
                row[j] = z;
                row[..j].iter_mut().zip(&turned[j][..j]).for_each(|(x, v)| *x -= z * v);
            }
        }
    }
    // y V = z, the first column first.
    for start in (0..size).step_by(BLOCK) {
        let end = (start + BLOCK).min(size);
        let width = end - start;
        for (row, solved) in rows.chunks_mut(size).zip(apart.chunks_mut(width)) {
            let row = &mut row[start..end];
            for j in 0..width {
                let v = &upper[(start + j) * size + start + j..][..width - j];
                let y = row[j] / v[0];
                row[j] = y;
                row[j + 1..].iter_mut().zip(&v[1..]).for_each(|(x, v)| *x -= y * v);
            }
            solved.iter_mut().zip(&*row).for_each(|(solved, y)| *solved = -y);
        }
        let behind = (&upper[start * size + end..], size);
        add_product((count, width, size - end), (&apart, width), behind, (&mut rows[end..], size), true);
    }
}

/// A block on the diagonal with rows and columns exchanged.
fn diagonal_turned(upper: &[f32], size: usize, start: usize, end: usize) -> [[f32; BLOCK]; BLOCK] {
    let mut turned = [[0f32; BLOCK]; BLOCK];
    for i in start..end {
        for j in i..end {
            turned[j - start][i - start] = upper[i * size + j];
        }
    }
    turned
}

#[cfg(test)]
mod tests {
    use super::super::tests::correlated;
    use super::*;

    #[test]
    fn rows_are_divided_by_the_factor_and_its_transpose() {
        // More than two blocks, the last one short; a few rows at once.
        let (size, count) = (150, 3);
        let moments = correlated(size, 400, 4);
        let order: Vec<usize> = (0..size).collect();
        let metric = Metric::new(&moments, &order, 1.0, 0.05).unwrap();
        let wanted: Vec<f32> = (0..count * size).map(|i| ((i * 29 % 31) as f32 - 15.0) / 16.0).collect();
        let mut rows = vec![0f32; wanted.len()];
        add_product((count, size, size), (&wanted, size), (&metric.full, size), (&mut rows, size), false);
        divide(&mut rows, size, &metric.upper);
        let worst = rows.iter().zip(&wanted).map(|(a, b)| (a - b).abs()).fold(0f32, f32::max);
        assert!(worst < 1e-2, "{worst}");
    }

    #[test]
    fn all_the_way_the_outputs_are_those_before_the_drift() {
        // x₀ = x A for a fixed matrix A: W A makes up for it exactly, so H⁻¹ and the layout of D are put to the proof.
        let size = 24;
        let moments = Moments { tokens: 10_000, ..correlated(size, 400, 3) };
        let a = |i: usize, j: usize| if i == j { 1.1 } else { 0.02 * ((i * 7 + j * 3) % 5) as f32 };
        // D = Σ (A x − x) xᵀ = (A − 1) H with A [size, size] acting on columns x.
        let mut drift = vec![0f32; size * size];
        for i in 0..size {
            for j in 0..size {
                drift[i * size + j] =
                    (0..size).map(|k| (a(i, k) - f32::from(u8::from(i == k))) * moments.sum[k * size + j]).sum();
            }
        }
        let weights: Vec<f32> = (0..3 * size).map(|i| ((i * 13 % 17) as f32 - 8.0) / 9.0).collect();
        let mut found = weights.clone();
        make_up_for_drift(&mut found, &moments, &drift, 1.0, 0.0);
        let lost = |share: f32, found: &[f32]| -> f32 {
            let wanted = |r: usize, j: usize| -> f32 {
                (0..size)
                    .map(|k| weights[r * size + k] * (a(k, j) * share + f32::from(u8::from(k == j)) * (1.0 - share)))
                    .sum()
            };
            let off = |r: usize, j: usize| (wanted(r, j) - found[r * size + j]).powi(2);
            (0..3).flat_map(|r| (0..size).map(move |j| (r, j))).map(|(r, j)| off(r, j)).sum::<f32>()
        };
        // The damping leaves a little.
        assert!(lost(1.0, &found) < 0.1 * lost(1.0, &weights), "{} of {}", lost(1.0, &found), lost(1.0, &weights));
    }
}
