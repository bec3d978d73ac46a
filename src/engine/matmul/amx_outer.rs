//! Sums of outer products by AMX: rows rounded to bf16, packed as both operands of a tile product, summed over rows.

use std::arch::x86_64::*;

use rayon::prelude::*;

use super::amx::Amx;
use super::amx_pack::{lanes_of_pairs, store, store_transposed};
use super::outer::Side;
use super::recycled::Recycled;
use super::tiles::{PANEL, STEP, TileRow};

/// Bytes of the first operand that one job walks again and again; see the products of linear layers.
const INPUT_BYTES: usize = 640 << 10;
/// Jobs per thread.
const JOBS_PER_THREAD: usize = 4;

/// See [`super::outer::add_outer`].
pub fn add(amx: Amx, a: Side<'_>, b: Option<Side<'_>>, factor: f32, sum: &mut [f32]) {
    let (columns, count) = (a.columns, a.count());
    let (panels, len) = (columns.div_ceil(PANEL), count.div_ceil(STEP) * PANEL);
    let (mut first, mut second) = (Recycled::new(panels * len), Recycled::new(panels * len));
    let pack = |side: &Side<'_>, turned: bool, tiles: &mut Recycled| {
        tiles.rows_mut()[..panels * len].par_chunks_exact_mut(len).enumerate().for_each(|(i, panel)| {
            // SAFETY: `amx` proves the features.
            unsafe { pack_panel(side, i * PANEL, turned, panel) }
        });
    };
    pack(&a, true, &mut first);
    pack(&b.unwrap_or(a), false, &mut second);
    let (first, second) = (&first.rows()[..panels * len], &second.rows()[..panels * len]);
    let cached = (INPUT_BYTES / (len * size_of::<TileRow>())).max(1);
    let group = cached.min(panels.div_ceil(rayon::current_num_threads() * JOBS_PER_THREAD).max(1));
    sum.par_chunks_mut(group * PANEL * columns).with_max_len(1).enumerate().for_each(|(job, rows)| {
        let tiles = amx.configure();
        let (from, mut scratch) = (job * group, Scratch([0.0; PANEL * PANEL]));
        let inputs = from..panels.min(from + group);
        for column in if b.is_none() { from } else { 0 }..panels {
            let weight = &second[column * len..(column + 1) * len];
            for row in inputs.clone().take_while(|row| b.is_some() || *row <= column) {
                let input = &first[row * len..(row + 1) * len];
                // SAFETY: the scratch block has 32 rows of 32 values.
                unsafe {
                    tiles.multiply_rounded(input, weight, scratch.0.as_mut_ptr(), PANEL * size_of::<f32>());
                }
                let width = PANEL.min(columns - column * PANEL);
                let rows = rows.chunks_mut(columns).skip((row - from) * PANEL);
                for (out, product) in rows.zip(scratch.0.chunks(PANEL)) {
                    let out = &mut out[column * PANEL..][..width];
                    out.iter_mut().zip(product).for_each(|(sum, product)| *sum += factor * product);
                }
            }
        }
    });
}

/// A 32 × 32 block of products.
#[repr(align(64))]
struct Scratch([f32; PANEL * PANEL]);

/// Packs up to 32 columns of all rows of a side, from column `first`: per step of 32 rows two tiles of 16 columns. `turned`:
/// as the first operand (a tile row is 32 rows of one column), else as the second (a tile row is two rows of 16 columns,
/// pair by pair).
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
fn pack_panel(side: &Side<'_>, first: usize, turned: bool, panel: &mut [TileRow]) {
    let order = lanes_of_pairs();
    let count = side.count();
    for (step, tiles) in panel.chunks_exact_mut(PANEL).enumerate() {
        for (half, tile) in tiles.chunks_exact_mut(16).enumerate() {
            let from = first + 16 * half;
            let mask = ((1u32 << side.columns.saturating_sub(from).min(16)) - 1) as u16;
            let value = |i: usize| {
                if i >= count || mask == 0 {
                    return _mm512_setzero_ps();
                }
                let (row, less) = side.line(i);
                // SAFETY: the masked-in values lie inside the row: `mask` ends with its columns.
                unsafe {
                    let value = _mm512_maskz_loadu_ps(mask, row.as_ptr().wrapping_add(from));
                    match less {
                        Some(less) => {
                            _mm512_sub_ps(value, _mm512_maskz_loadu_ps(mask, less.as_ptr().wrapping_add(from)))
                        }
                        None => value,
                    }
                }
            };
            let mut lines = [_mm512_setzero_si512(); 16];
            for (pair, line) in lines.iter_mut().enumerate() {
                let at = step * STEP + 2 * pair;
                // SAFETY: __m512bh and __m512i are both 64 bytes of plain bits.
                let both: __m512i = unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(value(at + 1), value(at))) };
                *line = _mm512_permutexvar_epi16(order, both);
            }
            if turned {
                store_transposed(tile, lines);
            } else {
                tile.iter_mut().zip(lines).for_each(|(row, line)| store(row, line));
            }
        }
    }
}
