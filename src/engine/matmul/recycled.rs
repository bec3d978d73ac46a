//! Buffers for packed operands that live for one product, kept for the next: fresh pages for every product would cost
//! about as much as the product.

use std::sync::Mutex;

use super::tiles::{TileBuffer, TileRow};

/// Buffers in nobody's hands.
static POOL: Mutex<Vec<TileBuffer>> = Mutex::new(Vec::new());
/// How many are kept.
const POOL_SIZE: usize = 4;

/// Tile rows from the pool; dropping gives them back. What they hold at first is left over from earlier use.
pub struct Recycled {
    buffer: TileBuffer,
    len: usize,
}

impl Recycled {
    pub fn new(len: usize) -> Self {
        let mut pool = POOL.lock().unwrap_or_else(|e| e.into_inner());
        let fitting = (0..pool.len()).filter(|&i| pool[i].len() >= len).min_by_key(|&i| pool[i].len());
        let found = fitting.map(|i| pool.swap_remove(i));
        drop(pool);
        Self { buffer: found.unwrap_or_else(|| TileBuffer::zeroed(len)), len }
    }

    pub fn rows(&self) -> &[TileRow] {
        &self.buffer.rows()[..self.len]
    }

    pub fn rows_mut(&mut self) -> &mut [TileRow] {
        &mut self.buffer.rows_mut()[..self.len]
    }
}

impl Drop for Recycled {
    fn drop(&mut self) {
        let mut pool = POOL.lock().unwrap_or_else(|e| e.into_inner());
        pool.push(std::mem::take(&mut self.buffer));
        if pool.len() > POOL_SIZE {
            // The smallest is the cheapest to make again.
            if let Some(least) = (0..pool.len()).min_by_key(|&i| pool[i].len()) {
                pool.swap_remove(least);
            }
        }
    }
}

/// Frees the buffers kept for reuse (after a pass, or between phases whose sizes differ).
pub fn release_buffers() {
    POOL.lock().unwrap_or_else(|e| e.into_inner()).clear();
}
