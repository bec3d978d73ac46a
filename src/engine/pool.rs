//! Recycled f32 buffers. Fresh memory costs a page fault per 4 kB, which for the wide activations of a block is as
//! dear as the product that fills them.

use std::ops::{Deref, DerefMut};
use std::sync::Mutex;

/// Buffers in nobody's hands. A pass needs the same few sizes again and again.
static FREE: Mutex<Vec<Vec<f32>>> = Mutex::new(Vec::new());
/// Kept at most.
const KEPT: usize = 12;

/// A buffer of `len` values; goes back to the pool when dropped.
pub struct Buffer {
    data: Vec<f32>,
    len: usize,
}

impl Buffer {
    /// A buffer whose contents are arbitrary.
    pub fn dirty(len: usize) -> Self {
        let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
        // The smallest that fits, so that large buffers stay for large wants.
        let best = (0..free.len()).filter(|&i| free[i].len() >= len).min_by_key(|&i| free[i].len());
        let data = best.map(|i| free.swap_remove(i));
        drop(free);
        Buffer { data: data.unwrap_or_else(|| vec![0.0; len]), len }
    }

    pub fn zeroed(len: usize) -> Self {
        let mut buffer = Self::dirty(len);
        buffer.fill(0.0);
        buffer
    }

    pub fn copy_of(values: &[f32]) -> Self {
        let mut buffer = Self::dirty(values.len());
        buffer.copy_from_slice(values);
        buffer
    }
}

/// Gives every free buffer back to the system: between the blocks and the head, whose sizes differ.
pub fn drain() {
    FREE.lock().unwrap_or_else(|e| e.into_inner()).clear();
    super::matmul::release_buffers();
}

impl Deref for Buffer {
    type Target = [f32];
    fn deref(&self) -> &[f32] {
        &self.data[..self.len]
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [f32] {
        &mut self.data[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = FREE.lock().unwrap_or_else(|e| e.into_inner());
        free.push(std::mem::take(&mut self.data));
        if free.len() > KEPT {
            // The smallest is the cheapest to make again.
            if let Some(least) = (0..free.len()).min_by_key(|&i| free[i].len()) {
                free.swap_remove(least);
            }
        }
    }
}
