//! Causal attention on the CPU, tile by tile: a few dozen queries of one head against the keys they may see. Scores
//! never leave the tile, and the half above the diagonal is not computed.

use std::cell::RefCell;

use rayon::prelude::*;

use super::backend::HeadShape;
use super::batch::Batch;
use super::matmul::{self, Kernel};
use super::vector;

/// Queries in a tile: short tiles waste less above the diagonal, long ones multiply faster.
const TILE: usize = 64;

thread_local! {
    /// A worker's scores `[queries of the tile, keys seen]`, kept between tiles.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// The output, shared by the tasks.
struct Output(*mut f32);
// SAFETY: tasks write disjoint rectangles of the output (see `causal`).
unsafe impl Sync for Output {}

/// out[t, h] = softmax(q[t, h] · k[≤t, h']ᵀ / √d) · v[≤t, h'] within each sequence, h' the key head that h shares.
///
/// `q` and `out` are `[rows, heads · head_dim]`, `k` and `v` `[rows, kv_heads · head_dim]`.
pub fn causal(kernel: Kernel, [q, k, v]: [&[f32]; 3], shape: HeadShape, batch: &Batch, out: &mut [f32]) {
    match kernel {
        Kernel::Amx(amx) => matmul::causal(amx, [q, k, v], shape, &batch.spans, out),
        Kernel::Portable => causal_in_f32(q, k, v, shape, batch, out),
    }
}

/// [`causal`] with f32 products on any machine.
fn causal_in_f32(q: &[f32], k: &[f32], v: &[f32], shape: HeadShape, batch: &Batch, out: &mut [f32]) {
    let rows = batch.rows();
    let (wide, narrow) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
    assert!(q.len() == rows * wide && out.len() == q.len() && k.len() == rows * narrow && v.len() == k.len());
    let mut tiles = Vec::new();
    for span in &batch.spans {
        for start in (0..span.len()).step_by(TILE).rev() {
            // Late tiles see the most keys: they start first so that no long one is left to the end.
            tiles.extend((0..shape.heads).map(|head| (span.clone(), start, head)));
        }
    }
    let output = Output(out.as_mut_ptr());
    let output = &output;
    let scale = 1.0 / (shape.head_dim as f32).sqrt();
    tiles.into_par_iter().for_each(|(span, start, head)| {
        SCORES.with_borrow_mut(|scores| {
            let count = TILE.min(span.len() - start);
            let seen = start + count;
            let shared = head / (shape.heads / shape.kv_heads);
            let (first, key_column) = (span.start + start, shared * shape.head_dim);
            let corner = first * wide + head * shape.head_dim;
            let queries = &q[corner..];
            let keys = &k[span.start * narrow + key_column..];
            let values = &v[span.start * narrow + key_column..];
            scores.resize(scores.len().max(count * seen), 0.0);
            let scores = &mut scores[..count * seen];
            // SAFETY: `queries` holds `count` rows and `keys` `seen` rows of the strides given, because the span lies
            // within the asserted arrays; `scores` has the asserted size.
            unsafe {
                product(
                    (count, seen, shape.head_dim),
                    (scores.as_mut_ptr(), seen, 1),
                    (queries.as_ptr(), wide, 1),
                    (keys.as_ptr(), 1, narrow),
                    scale,
                );
            }
            let mut inverse = [0f32; TILE];
            for (i, row) in scores.chunks_exact_mut(seen).enumerate() {
                let visible = start + i + 1;
                inverse[i] = 1.0 / vector::exp_in_place(&mut row[..visible]);
                row[visible..].fill(0.0);
            }
            // SAFETY: as above; the output rectangle of (rows of the tile, head) belongs to this task alone.
            unsafe {
                let corner = output.0.add(corner);
                product(
                    (count, shape.head_dim, seen),
                    (corner, wide, 1),
                    (scores.as_ptr(), seen, 1),
                    (values.as_ptr(), narrow, 1),
                    1.0,
                );
                for (i, &factor) in inverse[..count].iter().enumerate() {
                    vector::scale(std::slice::from_raw_parts_mut(corner.add(i * wide), shape.head_dim), factor);
                }
            }
        });
    });
}

/// c[m, n] = alpha · a[m, k] · b[k, n] on the calling thread; each matrix is (pointer, row stride, column stride).
///
/// # Safety
/// The matrices must lie within memory the caller may read (a, b) or write (c), and c must not overlap them.
unsafe fn product(
    (m, n, k): (usize, usize, usize),
    c: (*mut f32, usize, usize),
    a: (*const f32, usize, usize),
    b: (*const f32, usize, usize),
    alpha: f32,
) {
    // SAFETY: passed on to the caller.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            c.0,
            c.2 as isize,
            c.1 as isize,
            false,
            a.0,
            a.2 as isize,
            a.1 as isize,
            b.0,
            b.2 as isize,
            b.1 as isize,
            0.0,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition, one query at a time, in f64.
    fn by_definition(q: &[f32], k: &[f32], v: &[f32], shape: HeadShape, batch: &Batch) -> Vec<f32> {
        let (wide, narrow, d) = (shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim, shape.head_dim);
        let mut out = vec![0f32; q.len()];
        for span in &batch.spans {
            for t in span.clone() {
                for head in 0..shape.heads {
                    let shared = head / (shape.heads / shape.kv_heads);
                    let query = &q[t * wide + head * d..][..d];
                    let score = |s: usize| {
                        let key = &k[s * narrow + shared * d..][..d];
                        query.iter().zip(key).map(|(a, b)| f64::from(a * b)).sum::<f64>() / (d as f64).sqrt()
                    };
                    let weights: Vec<f64> = (span.start..=t).map(|s| score(s).exp()).collect();
                    let total: f64 = weights.iter().sum();
                    for i in 0..d {
                        let mix = |(w, s): (&f64, usize)| w * f64::from(v[s * narrow + shared * d + i]);
                        let sum: f64 = weights.iter().zip(span.start..).map(mix).sum();
                        out[t * wide + head * d + i] = (sum / total) as f32;
                    }
                }
            }
        }
        out
    }

    fn noise(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        (0..n).map(|_| next()).collect()
    }

    fn worst(out: &[f32], wanted: &[f32]) -> f32 {
        out.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
    }

    #[test]
    fn tiles_agree_with_the_definition_for_ragged_grouped_sequences() {
        for (heads, kv_heads, head_dim) in [(4, 2, 8), (3, 1, 64), (2, 2, 33), (4, 4, 96)] {
            let shape = HeadShape { heads, kv_heads, head_dim };
            let batch = Batch { sequences: 0..4, spans: vec![0..1, 1..71, 71..71, 71..201] };
            let (wide, narrow) = (heads * head_dim, kv_heads * head_dim);
            let (q, k, v) = (noise(201 * wide, 1), noise(201 * narrow, 2), noise(201 * narrow, 3));
            let wanted = by_definition(&q, &k, &v, shape, &batch);
            let mut out = vec![f32::NAN; q.len()];
            causal_in_f32(&q, &k, &v, shape, &batch, &mut out);
            assert!(worst(&out, &wanted) < 1e-5, "{shape:?} in f32: off by {}", worst(&out, &wanted));
            match Kernel::available()[0] {
                Kernel::Amx(amx) => {
                    out.fill(f32::NAN);
                    matmul::causal(amx, [&q, &k, &v], shape, &batch.spans, &mut out);
                    assert!(worst(&out, &wanted) < 2e-5, "{shape:?} on AMX: off by {}", worst(&out, &wanted));
                }
                Kernel::Portable => eprintln!("amx-bf16 skipped: the processor or the system does not offer it"),
            }
        }
    }

    #[test]
    fn sharp_and_large_scores_are_kept() {
        let shape = HeadShape { heads: 1, kv_heads: 1, head_dim: 32 };
        let batch = Batch { sequences: 0..2, spans: vec![0..100, 100..100] };
        let large: Vec<f32> = noise(3200, 5).iter().map(|v| v * 40.0).collect();
        let (k, v) = (noise(3200, 6), noise(3200, 7));
        let wanted = by_definition(&large, &k, &v, shape, &batch);
        let mut out = vec![f32::NAN; 3200];
        causal(matmul::kernel(), [&large, &k, &v], shape, &batch, &mut out);
        // Scores reach about ±100: 2⁻¹⁶ of the sum of magnitudes is an absolute error of some 1e-3 in the exponent.
        assert!(worst(&out, &wanted) < 2e-3, "off by {}", worst(&out, &wanted));
    }
}
