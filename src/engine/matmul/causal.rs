//! Causal attention on AMX tiles: blocks of 32 queries of one head against the keys they may see.
//!
//! Enters: queries, keys and values in f32, one row per token, heads side by side. Leaves: the mixed values in the
//! layout of the queries. Keys and values are split into bf16 halves and packed once per call; the scores of a block
//! stay in the second-level cache, and key panels above the diagonal or outside the window of every query of a block
//! are not computed. Accuracy as in [`super`]: the products lose at most 3·2⁻¹⁶ of the sum of magnitudes.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::super::backend::AttentionShape;
use super::super::vector;
use super::amx::Amx;
use super::recycled::Recycled;
use super::tiles::{PANEL, STEP, TileBuffer, TileRow, input_panel_len, weight_panel_len};

/// out[t, h] = softmax(scale · q[t, h] · k[s, h']ᵀ, s ≤ t within the window) · v[s, h'] within each span of rows (a
/// sequence); h' is the key head that h shares. `sinks`, one per query head, are scores that have no value.
///
/// `q` is [rows, heads · key_dim], `k` [rows, kv_heads · key_dim], `v` [rows, kv_heads · value_dim], `out` [rows, heads ·
/// value_dim]. Rows outside every span are left alone.
///
/// # Panics
/// When a length does not fit the shapes, or spans overlap or leave the rows.
pub fn causal(
    amx: Amx,
    [q, k, v]: [&[f32]; 3],
    sinks: Option<&[f32]>,
    shape: &AttentionShape,
    spans: &[Range<usize>],
    out: &mut [f32],
) {
    let (key_stride, value_stride) = (shape.kv_heads * shape.key_dim, shape.kv_heads * shape.value_dim);
    let wide = shape.heads * shape.value_dim;
    assert!(value_stride > 0 && key_stride > 0 && shape.heads.is_multiple_of(shape.kv_heads), "{shape:?}");
    let rows = k.len() / key_stride;
    assert!(q.len() == rows * shape.heads * shape.key_dim && out.len() == rows * wide, "{shape:?}");
    assert!(k.len() == rows * key_stride && v.len() == rows * value_stride, "{shape:?}");
    assert!(sinks.is_none_or(|sinks| sinks.len() == shape.heads), "{shape:?}");
    let mut sorted: Vec<_> = spans.iter().filter(|span| !span.is_empty()).collect();
    sorted.sort_by_key(|span| span.start);
    assert!(sorted.windows(2).all(|pair| pair[0].end <= pair[1].start), "sequences overlap");
    assert!(sorted.last().is_none_or(|last| last.end <= rows), "a sequence ends past row {rows}");

    let key_rows = |span: &Range<usize>| span.len().div_ceil(PANEL) * weight_panel_len(shape.key_dim, false);
    let value_rows = |span: &Range<usize>| shape.value_dim.div_ceil(PANEL) * weight_panel_len(span.len(), false);
    let total: usize = sorted.iter().map(|span| shape.kv_heads * (key_rows(span) + value_rows(span))).sum();
    let mut packed = Recycled::new(total);
    let mut pairs = Vec::new();
    let mut rest = packed.rows_mut();
    for &span in &sorted {
        for head in 0..shape.kv_heads {
            let (keys, tail) = rest.split_at_mut(key_rows(span));
            let (values, tail) = tail.split_at_mut(value_rows(span));
            rest = tail;
            pairs.push((span, head, keys, values));
        }
    }
    pairs.par_iter_mut().for_each(|(span, head, keys, values)| {
        let from = &k[span.start * key_stride + *head * shape.key_dim..];
        pack_keys(amx, from, key_stride, span.len(), shape.key_dim, keys);
        let from = &v[span.start * value_stride + *head * shape.value_dim..];
        pack_values(amx, from, value_stride, span.len(), shape.value_dim, values);
    });

    let mut blocks = Vec::new();
    for (span, kv_head, keys, values) in &pairs {
        for start in (0..span.len()).step_by(PANEL) {
            for head in kv_head * shape.group()..(kv_head + 1) * shape.group() {
                let first = span.start + start;
                let count = PANEL.min(span.len() - start);
                let sink = sinks.map(|sinks| sinks[head]);
                blocks.push(Block { first, start, count, head, sink, span: span.len(), keys, values });
            }
        }
    }
    // Late queries see the most keys: they go first, so that no long block is left to the end.
    blocks.sort_by_key(|block| std::cmp::Reverse(block.start));
    let output = Output(out.as_mut_ptr());
    blocks.par_iter().for_each(|block| {
        WORKSPACE.with_borrow_mut(|space| {
            block.run(amx, q, shape, space);
            for i in 0..block.count {
                let at = (block.first + i) * wide + block.head * shape.value_dim;
                // SAFETY: the row lies inside the output (spans were checked) and (row, head) is this block's alone.
                let row = unsafe { std::slice::from_raw_parts_mut(output.at(at), shape.value_dim) };
                space.finish(i, shape.value_dim, row);
            }
        });
    });
}

/// Packs the keys of one head of one sequence.
fn pack_keys(amx: Amx, k: &[f32], stride: usize, count: usize, width: usize, panels: &mut [TileRow]) {
    for (i, panel) in panels.chunks_exact_mut(weight_panel_len(width, false)).enumerate() {
        let from = i * PANEL;
        amx.pack_strided(&k[from * stride..], stride, PANEL.min(count - from), width, panel);
    }
}

/// Packs the values of one head of one sequence, transposed.
fn pack_values(amx: Amx, v: &[f32], stride: usize, count: usize, width: usize, panels: &mut [TileRow]) {
    for (i, panel) in panels.chunks_exact_mut(weight_panel_len(count, false)).enumerate() {
        let from = i * PANEL;
        amx.pack_transposed(&v[from..], stride, count, PANEL.min(width - from), panel);
    }
}

/// The output, shared by blocks that write disjoint parts of it.
struct Output(*mut f32);

// SAFETY: see the only use, in `causal`.
unsafe impl Sync for Output {}

impl Output {
    fn at(&self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

/// Up to 32 queries of one head.
struct Block<'a> {
    /// Row of the first query.
    first: usize,
    /// Its position in the sequence.
    start: usize,
    count: usize,
    head: usize,
    sink: Option<f32>,
    /// Tokens of the sequence.
    span: usize,
    keys: &'a [TileRow],
    values: &'a [TileRow],
}

thread_local! {
    static WORKSPACE: RefCell<Workspace> = RefCell::default();
}

/// A thread's intermediate results, kept between blocks.
#[derive(Default)]
struct Workspace {
    queries: Vec<f32>,
    /// [32, keys of the panels seen], rows [`score_stride`] apart.
    scores: Vec<f32>,
    /// [32, value_dim, padded to panels].
    mixed: Vec<f32>,
    tiles: TileBuffer,
    inverse: [f32; PANEL],
}

impl Block<'_> {
    /// Leaves the unnormalised mix of the values and the factors in the workspace.
    fn run(&self, amx: Amx, q: &[f32], shape: &AttentionShape, space: &mut Workspace) {
        let d = shape.key_dim;
        // The panels from the first key the block's first query sees to the last query's own; scores count from there.
        let first_panel = shape.first_seen(self.start) / PANEL;
        let end_panel = (self.start + self.count).div_ceil(PANEL);
        let (from, padded) = (first_panel * PANEL, (end_panel - first_panel) * PANEL);
        let wide = shape.value_dim.next_multiple_of(PANEL);
        grow(&mut space.queries, PANEL * d);
        let stride = score_stride(padded);
        grow(&mut space.scores, PANEL * stride);
        grow(&mut space.mixed, PANEL * wide);
        let needed = input_panel_len(d.max(padded));
        if space.tiles.len() < needed {
            space.tiles = TileBuffer::zeroed(needed);
        }
        let tiles = amx.configure();

        for i in 0..self.count {
            let at = (self.first + i) * shape.heads * d + self.head * d;
            let row = space.queries[i * d..][..d].iter_mut();
            row.zip(&q[at..at + d]).for_each(|(to, from)| *to = from * shape.scale);
        }
        let input = &mut space.tiles.rows_mut()[..input_panel_len(d)];
        amx.pack_input(|i| &space.queries[i * d..][..d], self.count, input);
        let panels = self.keys.chunks_exact(weight_panel_len(d, false));
        for (i, panel) in panels.take(end_panel).skip(first_panel).enumerate() {
            let target = &mut space.scores[i * PANEL..];
            debug_assert!(target.len() >= 31 * stride + PANEL);
            // SAFETY: 32 rows of 32 scores, `stride` apart, lie inside the scores.
            unsafe { tiles.multiply(input, panel, false, false, target.as_mut_ptr(), stride * size_of::<f32>()) };
        }

        for (i, row) in space.scores.chunks_exact_mut(stride).take(self.count).enumerate() {
            let position = self.start + i;
            let seen = shape.first_seen(position) - from..position + 1 - from;
            row[..seen.start].fill(0.0);
            row[seen.end..padded].fill(0.0);
            let total = match self.sink {
                Some(sink) => vector::exp_in_place_beside(&mut row[seen], sink),
                None => vector::exp_in_place(&mut row[seen]),
            };
            space.inverse[i] = 1.0 / total;
        }
        let input = &mut space.tiles.rows_mut()[..input_panel_len(padded)];
        amx.pack_input(|i| &space.scores[i * stride..][..padded], self.count, input);
        let steps = from / STEP * 2 * PANEL..(from + padded) / STEP * 2 * PANEL;
        for (i, panel) in self.values.chunks_exact(weight_panel_len(self.span, false)).enumerate() {
            let target = &mut space.mixed[i * PANEL..];
            debug_assert!(target.len() >= 31 * wide + PANEL);
            // SAFETY: 32 rows of 32 columns, `wide` apart, lie inside the mix.
            unsafe {
                let stride = wide * size_of::<f32>();
                tiles.multiply(input, &panel[steps.clone()], false, false, target.as_mut_ptr(), stride);
            }
        }
    }
}

impl Workspace {
    /// Writes normalised row `i` of a block.
    fn finish(&self, i: usize, width: usize, out: &mut [f32]) {
        let row = &self.mixed[i * width.next_multiple_of(PANEL)..];
        out.iter_mut().zip(row).for_each(|(to, from)| *to = from * self.inverse[i]);
    }
}

/// Values from one row of scores to the next: a line more than the keys, so that the rows of a tile do not all fall into
/// the same few sets of the first-level cache when the number of keys is a power of two.
fn score_stride(padded: usize) -> usize {
    padded + 16
}

fn grow(values: &mut Vec<f32>, len: usize) {
    if values.len() < len {
        values.resize(len, 0.0);
    }
}
