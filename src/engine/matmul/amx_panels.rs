//! The product over packed panels: cuts the output into blocks that suit the caches and hands them to the threads.

use std::ops::Range;

use rayon::prelude::*;

use super::amx::Amx;
use super::tiles::{PANEL, TileRow, input_panel_len, weight_panel_len};

/// Input bytes that one block walks again and again: with the weights and outputs that pass by they must stay in a
/// 2 MiB second-level cache (measured: 512 to 768 KiB, twice that costs a quarter of the speed).
const INPUT_BYTES: usize = 640 << 10;
/// Blocks per thread, so that a thread that is held up by other load does not hold up the product.
const BLOCKS_PER_THREAD: usize = 4;
/// Multiply-adds below which a block is not worth handing over (about 10 µs).
const SMALLEST_BLOCK: usize = 1 << 22;

/// One product of packed operands.
pub struct Product<'a> {
    pub amx: Amx,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// Input panels, one after the other.
    pub input: &'a [TileRow],
    /// Weight panels, one after the other.
    pub weight: &'a [TileRow],
    pub exact: bool,
    pub bias: Option<&'a [f32]>,
}

/// The output, shared by threads that write disjoint blocks of it.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: the pointer is used only by `Product::block`, whose calls of one `run` cover disjoint blocks.
unsafe impl Sync for Output {}

impl Output {
    fn at(&self, offset: usize) -> *mut f32 {
        self.0.wrapping_add(offset)
    }
}

impl Product<'_> {
    /// Computes y [m, n].
    pub fn run(&self, y: &mut [f32]) {
        let (row_panels, column_panels) = (self.m.div_ceil(PANEL), self.n.div_ceil(PANEL));
        assert!(y.len() == self.m * self.n);
        assert!(self.input.len() == row_panels * input_panel_len(self.k));
        assert!(self.weight.len() == column_panels * weight_panel_len(self.k, self.exact));

        let cached = INPUT_BYTES / (input_panel_len(self.k) * size_of::<TileRow>());
        let rows = row_panels.div_ceil(row_panels.div_ceil(cached.clamp(1, row_panels)));
        let row_blocks = row_panels.div_ceil(rows);
        let work = self.m * self.n * self.k;
        let wanted = (rayon::current_num_threads() * BLOCKS_PER_THREAD).min(work.div_ceil(SMALLEST_BLOCK));
        let columns = column_panels.div_ceil(wanted.div_ceil(row_blocks).min(column_panels));
        let column_blocks = column_panels.div_ceil(columns);

        let output = Output(y.as_mut_ptr());
        let block = |i: usize| {
            let (row, column) = ((i / column_blocks) * rows, (i % column_blocks) * columns);
            let rows = row..row_panels.min(row + rows);
            self.block(rows, column..column_panels.min(column + columns), &output);
        };
        match row_blocks * column_blocks {
            1 => block(0),
            blocks => (0..blocks).into_par_iter().with_max_len(1).for_each(block),
        }
    }

    /// The output rows of `rows` and columns of `columns` (both in panels).
    fn block(&self, rows: Range<usize>, columns: Range<usize>, y: &Output) {
        let tiles = self.amx.configure();
        let mut scratch = Scratch([0.0; PANEL * PANEL]);
        for column in columns {
            let weight = panel(self.weight, column, weight_panel_len(self.k, self.exact));
            let width = PANEL.min(self.n - column * PANEL);
            for row in rows.clone() {
                let input = panel(self.input, row, input_panel_len(self.k));
                let height = PANEL.min(self.m - row * PANEL);
                let at = y.at(row * PANEL * self.n + column * PANEL);
                let half = height <= PANEL / 2;
                if height == PANEL && width == PANEL && self.bias.is_none() {
                    // SAFETY: 32 rows of 32 columns from `at` lie inside the output, and are this block's alone.
                    unsafe { tiles.multiply(input, weight, self.exact, half, at, self.n * size_of::<f32>()) };
                    continue;
                }
                // SAFETY: the scratch block has 32 rows of 32 values.
                unsafe {
                    let stride = PANEL * size_of::<f32>();
                    tiles.multiply(input, weight, self.exact, half, scratch.0.as_mut_ptr(), stride);
                }
                for r in 0..height {
                    // SAFETY: row and width lie inside the output, and are this block's alone.
                    let out = unsafe { std::slice::from_raw_parts_mut(at.wrapping_add(r * self.n), width) };
                    self.finish(out, &scratch, r, half, column * PANEL);
                }
            }
        }
    }

    /// Row `r` of a scratch block to its place, with the low halves of a half panel and the bias added.
    fn finish(&self, out: &mut [f32], scratch: &Scratch, r: usize, half: bool, column: usize) {
        out.copy_from_slice(&scratch.0[r * PANEL..][..out.len()]);
        if half {
            out.iter_mut().zip(&scratch.0[(r + PANEL / 2) * PANEL..]).for_each(|(y, low)| *y += low);
        }
        if let Some(bias) = self.bias {
            out.iter_mut().zip(&bias[column..]).for_each(|(y, b)| *y += b);
        }
    }
}

/// A 32 × 32 block of products.
#[repr(align(64))]
struct Scratch([f32; PANEL * PANEL]);

fn panel(panels: &[TileRow], index: usize, len: usize) -> &[TileRow] {
    &panels[index * len..(index + 1) * len]
}
