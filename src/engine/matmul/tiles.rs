//! The packed layouts the tile kernel reads.
//!
//! Everything is cut into *panels* of 32 rows and *steps* of 32 along k; a tile is 16 rows of 64 bytes.
//!
//! * input panel, per step: four tiles: high halves of rows 0..16, of rows 16..32, then the low halves of both. A
//!   tile row is 32 consecutive k of one input row.
//! * weight panel (32 weight rows = 32 output columns), per step: two tiles (columns 0..16, 16..32), and for
//!   weights that are not exact in bf16 two more with the low halves. Tile row r holds k = 2r and 2r + 1 of sixteen
//!   columns, pair by pair, as TDPBF16PS wants it.
//!
//! What lies past the matrix (k not a multiple of 32, weight rows not a multiple of 32) is zero.

/// Rows in a panel.
pub const PANEL: usize = 32;
/// k in a step.
pub const STEP: usize = 32;

/// One cache line of bf16 bit patterns: a row of a tile.
#[repr(C, align(64))]
#[derive(Clone, Copy)]
pub struct TileRow(pub [u16; 32]);

/// Tile rows on the heap, zero at first.
///
/// Large buffers begin as zero pages that no thread has touched: allocating `TileRow`s as such would write them all on
/// one thread (the system's zeroed allocation knows no 64-byte alignment) before packing writes them again.
#[derive(Default)]
pub struct TileBuffer {
    /// One row more than asked for, so that an aligned stretch fits.
    storage: Vec<u16>,
}

impl TileBuffer {
    pub fn zeroed(len: usize) -> Self {
        Self { storage: vec![0; (len + 1) * 32] }
    }

    /// Rows it holds.
    pub fn len(&self) -> usize {
        (self.storage.len() / 32).saturating_sub(1)
    }

    pub fn rows(&self) -> &[TileRow] {
        // SAFETY: a tile row is 32 of these integers, only aligned.
        let (_, rows, _) = unsafe { self.storage.align_to::<TileRow>() };
        &rows[..self.len()]
    }

    pub fn rows_mut(&mut self) -> &mut [TileRow] {
        let len = self.len();
        // SAFETY: as above.
        let (_, rows, _) = unsafe { self.storage.align_to_mut::<TileRow>() };
        &mut rows[..len]
    }
}

/// Tile rows of one input panel.
pub fn input_panel_len(k: usize) -> usize {
    k.div_ceil(STEP) * 2 * PANEL
}

/// Tile rows of one weight panel.
pub fn weight_panel_len(k: usize, exact: bool) -> usize {
    k.div_ceil(STEP) * if exact { PANEL } else { 2 * PANEL }
}

/// Up to 32 rows of a weight matrix, contiguous and row-major.
#[derive(Clone, Copy)]
pub enum SourceRows<'w> {
    /// bf16, little-endian, any alignment.
    Bf16(&'w [u8]),
    F32(&'w [f32]),
}
