//! Causal attention on the CPU, tile by tile: a few dozen queries of one head against the keys they may see. Scores
//! never leave the tile; keys after the tile's last query, and keys outside the window of all its queries, are skipped.

use std::cell::RefCell;

use rayon::prelude::*;

use super::backend::AttentionShape;
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

/// out[t, h] = softmax(scale · q[t, h] · k[s, h']ᵀ, s ≤ t within the window) · v[s, h'] within each sequence, h' the
/// key head that h shares; `sinks`, one per query head, are scores without a value.
///
/// `q` is `[rows, heads · key_dim]`, `k` `[rows, kv_heads · key_dim]`, `v` `[rows, kv_heads · value_dim]`, `out`
/// `[rows, heads · value_dim]`.
pub fn causal(
    kernel: Kernel,
    qkv: [&[f32]; 3],
    sinks: Option<&[f32]>,
    shape: &AttentionShape,
    batch: &Batch,
    out: &mut [f32],
) {
    match kernel {
        Kernel::Amx(amx) => matmul::causal(amx, qkv, sinks, shape, &batch.spans, out),
        Kernel::Portable => causal_in_f32(qkv, sinks, shape, batch, out),
    }
}

/// [`causal`] with f32 products on any machine.
fn causal_in_f32(
    [q, k, v]: [&[f32]; 3],
    sinks: Option<&[f32]>,
    shape: &AttentionShape,
    batch: &Batch,
    out: &mut [f32],
) {
    let (rows, &AttentionShape { heads, kv_heads, key_dim, value_dim, scale, .. }) = (batch.rows(), shape);
    let (query_stride, key_stride) = (heads * key_dim, kv_heads * key_dim);
    let (value_stride, wide) = (kv_heads * value_dim, heads * value_dim);
    assert!(q.len() == rows * query_stride && k.len() == rows * key_stride, "{shape:?}");
    assert!(v.len() == rows * value_stride && out.len() == rows * wide, "{shape:?}");
    let mut tiles = Vec::new();
    for span in &batch.spans {
        for start in (0..span.len()).step_by(TILE).rev() {
            // Late tiles see the most keys: they start first so that no long one is left to the end.
            tiles.extend((0..heads).map(|head| (span.clone(), start, head)));
        }
    }
    let output = Output(out.as_mut_ptr());
    let output = &output;
    tiles.into_par_iter().for_each(|(span, start, head)| {
        SCORES.with_borrow_mut(|scores| {
            let count = TILE.min(span.len() - start);
            // The keys some query of the tile sees.
            let keys_from = shape.first_seen(start);
            let seen = start + count - keys_from;
            let shared = head / shape.group();
            let (first, first_key) = (span.start + start, span.start + keys_from);
            let queries = &q[first * query_stride + head * key_dim..];
            let keys = &k[first_key * key_stride + shared * key_dim..];
            let values = &v[first_key * value_stride + shared * value_dim..];
            let corner = first * wide + head * value_dim;
            scores.resize(scores.len().max(count * seen), 0.0);
            let scores = &mut scores[..count * seen];
            // SAFETY: `queries` holds `count` rows and `keys` `seen` rows of the strides given, because the span lies
            // within the asserted arrays; `scores` has the asserted size.
            unsafe {
                product(
                    (count, seen, key_dim),
                    (scores.as_mut_ptr(), seen, 1),
                    (queries.as_ptr(), query_stride, 1),
                    (keys.as_ptr(), 1, key_stride),
                    scale,
                );
            }
            let mut inverse = [0f32; TILE];
            for (i, row) in scores.chunks_exact_mut(seen).enumerate() {
                let position = start + i;
                let visible = shape.first_seen(position) - keys_from..position + 1 - keys_from;
                row[..visible.start].fill(0.0);
                row[visible.end..].fill(0.0);
                let total = match sinks {
                    Some(sinks) => vector::exp_in_place_beside(&mut row[visible], sinks[head]),
                    None => vector::exp_in_place(&mut row[visible]),
                };
                inverse[i] = 1.0 / total;
            }
            // SAFETY: as above; the output rectangle of (rows of the tile, head) belongs to this task alone.
            unsafe {
                let corner = output.0.add(corner);
                product(
                    (count, value_dim, seen),
                    (corner, wide, 1),
                    (scores.as_ptr(), seen, 1),
                    (values.as_ptr(), value_stride, 1),
                    1.0,
                );
                for (i, &factor) in inverse[..count].iter().enumerate() {
                    vector::scale(std::slice::from_raw_parts_mut(corner.add(i * wide), value_dim), factor);
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
    use super::super::vector::noise;
    use super::*;

    /// The definition, one query at a time, in f64.
    fn by_definition([q, k, v]: [&[f32]; 3], sinks: Option<&[f32]>, shape: &AttentionShape, batch: &Batch) -> Vec<f32> {
        let &AttentionShape { heads, kv_heads, key_dim, value_dim, scale, window } = shape;
        let mut out = vec![0f32; batch.rows() * heads * value_dim];
        for span in &batch.spans {
            for t in span.clone() {
                for head in 0..heads {
                    let shared = head / (heads / kv_heads);
                    let query = &q[(t * heads + head) * key_dim..][..key_dim];
                    let score = |s: usize| {
                        let key = &k[(s * kv_heads + shared) * key_dim..][..key_dim];
                        query.iter().zip(key).map(|(a, b)| f64::from(a * b)).sum::<f64>() * f64::from(scale)
                    };
                    let sees = |s: &usize| window.is_none_or(|window| t - s < window);
                    let keys: Vec<usize> = (span.start..=t).filter(sees).collect();
                    let weights: Vec<f64> = keys.iter().map(|&s| score(s).exp()).collect();
                    let sink = sinks.map_or(0.0, |sinks| f64::from(sinks[head]).exp());
                    let total = weights.iter().sum::<f64>() + sink;
                    for i in 0..value_dim {
                        let mix = |(w, s): (&f64, &usize)| w * f64::from(v[(s * kv_heads + shared) * value_dim + i]);
                        let sum: f64 = weights.iter().zip(&keys).map(mix).sum();
                        out[(t * heads + head) * value_dim + i] = (sum / total) as f32;
                    }
                }
            }
        }
        out
    }

    fn worst(out: &[f32], wanted: &[f32]) -> f32 {
        out.iter().zip(wanted).map(|(a, b)| (a - b).abs()).fold(0.0, |m, d| if d.is_nan() { d } else { m.max(d) })
    }

    /// Plain attention of `head_dim` wide heads.
    fn plain(heads: usize, kv_heads: usize, head_dim: usize) -> AttentionShape {
        let scale = 1.0 / (head_dim as f32).sqrt();
        AttentionShape { heads, kv_heads, key_dim: head_dim, value_dim: head_dim, scale, window: None }
    }

    fn check(shape: &AttentionShape, sinks: Option<&[f32]>) {
        let batch = Batch { sequences: 0..4, spans: vec![0..1, 1..71, 71..71, 71..301] };
        let q = noise(301 * shape.heads * shape.key_dim, 1);
        let k = noise(301 * shape.kv_heads * shape.key_dim, 2);
        let v = noise(301 * shape.kv_heads * shape.value_dim, 3);
        let wanted = by_definition([&q, &k, &v], sinks, shape, &batch);
        let mut out = vec![f32::NAN; wanted.len()];
        causal_in_f32([&q, &k, &v], sinks, shape, &batch, &mut out);
        assert!(worst(&out, &wanted) < 1e-5, "{shape:?} in f32: off by {}", worst(&out, &wanted));
        match Kernel::available()[0] {
            Kernel::Amx(amx) => {
                out.fill(f32::NAN);
                matmul::causal(amx, [&q, &k, &v], sinks, shape, &batch.spans, &mut out);
                assert!(worst(&out, &wanted) < 2e-5, "{shape:?} on AMX: off by {}", worst(&out, &wanted));
            }
            Kernel::Portable => eprintln!("amx-bf16 skipped: the processor or the system does not offer it"),
        }
    }

    #[test]
    fn tiles_agree_with_the_definition_for_ragged_grouped_sequences() {
        for (heads, kv_heads, head_dim) in [(4, 2, 8), (3, 1, 64), (2, 2, 33), (4, 4, 96)] {
            check(&plain(heads, kv_heads, head_dim), None);
        }
    }

    #[test]
    fn windows_cut_keys_off_wherever_they_end() {
        for window in [1, 8, 31, 32, 33, 65, 128, 300, 301, 1000] {
            check(&AttentionShape { window: Some(window), ..plain(4, 2, 16) }, None);
        }
    }

    #[test]
    fn sinks_take_their_share_and_give_nothing() {
        for window in [None, Some(8)] {
            check(&AttentionShape { window, ..plain(4, 2, 16) }, Some(&[0.5, -3.0, 4.0, 30.0]));
        }
    }

    #[test]
    fn values_may_be_wider_or_narrower_than_keys_and_scores_scaled_at_will() {
        for (key_dim, value_dim) in [(24, 16), (16, 40), (96, 64), (33, 70)] {
            check(&AttentionShape { key_dim, value_dim, scale: 0.3, ..plain(4, 4, 1) }, None);
        }
    }

    #[test]
    fn sharp_and_large_scores_are_kept() {
        let shape = plain(1, 1, 32);
        let batch = Batch { sequences: 0..2, spans: vec![0..100, 100..100] };
        let large: Vec<f32> = noise(3200, 5).iter().map(|v| v * 40.0).collect();
        let (k, v) = (noise(3200, 6), noise(3200, 7));
        let wanted = by_definition([&large, &k, &v], None, &shape, &batch);
        let mut out = vec![f32::NAN; 3200];
        causal(matmul::kernel(), [&large, &k, &v], None, &shape, &batch, &mut out);
        // Scores reach about ±100: 2⁻¹⁶ of the sum of magnitudes is an absolute error of some 1e-3 in the exponent.
        assert!(worst(&out, &wanted) < 2e-3, "off by {}", worst(&out, &wanted));
    }
}
