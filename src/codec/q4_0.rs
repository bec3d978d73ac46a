//! Q4_0: blocks of 32 values, one f16 scale and 32 nibbles. `value = scale * (q - 8)`.
//!
//! Byte j holds element j in its low and element j + 16 in its high nibble. Bit-exact with ggml's reference quantizer:
//! the scale is the value of largest magnitude (the first one, with its sign) divided by -8, so that this value is hit
//! exactly; the quotients use the scale before it is rounded to f16; `q = min(15, trunc(quotient + 8.5))`. With an
//! importance the scale is searched.

use half::f16;

use super::block::{encode_fitted, put_f16, put_nibbles};
use super::block_grid::{block_grid, fit_scales, scale_of};
use super::fit_linear::Whole;
use super::levels::Table;
use super::{Codec, Dtype, multiversion};

const ELEMS: usize = 32;
const BYTES: usize = 18;

pub struct Q4_0;

impl Codec for Q4_0 {
    fn dtype(&self) -> Dtype {
        Dtype::Q4_0
    }
    fn summary(&self) -> &'static str {
        "4-bit integers with an f16 scale per 32 values: 4.5 bits per weight"
    }
    fn max_magnitude(&self) -> f32 {
        8.0 * 65504.0
    }
    fn encode(&self, values: &[f32], bytes: &mut [u8]) {
        quantize_q4_0(values, bytes);
    }
    fn encode_weighted(&self, values: &[f32], importance: &[f32], bytes: &mut [u8]) {
        assert_eq!(values.len(), importance.len(), "one importance per value");
        quantize_weighted(values, importance, bytes);
    }
    fn decode(&self, bytes: &[u8], values: &mut [f32]) {
        dequantize_q4_0(bytes, values);
    }
    fn grid(&self) -> Option<&dyn super::Grid> {
        Some(self)
    }
}

multiversion! {
    /// Quantizes finite values, a whole number of blocks, to Q4_0.
    ///
    /// # Panics
    /// When `values` is not a whole number of blocks or `bytes` does not hold exactly their encoding.
    pub fn quantize_q4_0(values: &[f32], bytes: &mut [u8]) = quantize_body
}

#[inline(always)]
fn quantize_body(values: &[f32], bytes: &mut [u8]) {
    let (blocks, rest) = values.as_chunks::<ELEMS>();
    assert!(rest.is_empty() && bytes.len() == blocks.len() * BYTES, "whole Q4_0 blocks in and out");
    let (outs, _) = bytes.as_chunks_mut::<BYTES>();
    for (block, out) in blocks.iter().zip(outs) {
        let scale = extreme(block) / -8.0;
        let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
        let (head, quants) = out.split_at_mut(2);
        head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        let (low, high) = block.split_at(ELEMS / 2);
        for ((q, a), b) in quants.iter_mut().zip(low).zip(high) {
            *q = nibble(a * inverse) | (nibble(b * inverse) << 4);
        }
    }
}

const LEVELS: Whole<-8, 7> = Whole;
const FACTORS: [f32; 13] = [-6.6, -7.0, -7.3, -7.5, -7.7, -7.85, -8.0, -8.15, -8.35, -8.6, -9.0, 7.0, 7.5];

multiversion! {
    fn quantize_weighted(values: &[f32], importance: &[f32], bytes: &mut [u8]) = quantize_weighted_body
}

#[inline(always)]
fn quantize_weighted_body(values: &[f32], importance: &[f32], bytes: &mut [u8]) {
    encode_fitted(LEVELS, values, Some(importance), bytes, &FACTORS, pack);
}

#[inline(always)]
fn pack(codes: &[u8; ELEMS], scale: f16, out: &mut [u8; BYTES]) {
    put_f16(out, 0, scale);
    put_nibbles(codes, &mut out[2..]);
}

/// The value of largest magnitude with its sign; of equal ones the first.
#[inline(always)]
fn extreme(block: &[f32; ELEMS]) -> f32 {
    let largest = block.iter().fold(0f32, |max, &v| if v > max { v } else { max });
    let smallest = block.iter().fold(0f32, |min, &v| if v < min { v } else { min });
    if largest > -smallest {
        largest
    } else if largest < -smallest {
        smallest
    } else {
        // Both signs reach the same magnitude (or the block is all zero): the first one decides.
        block.iter().copied().find(|v| v.abs() == largest && *v != 0.0).unwrap_or(0.0)
    }
}

#[inline(always)]
fn nibble(quotient: f32) -> u8 {
    let shifted = quotient + 8.5;
    // SAFETY: finite input keeps the sum within 0.5 ..= 16.5; anything else is replaced first.
    let q: i32 = unsafe { if shifted.abs() < 1e6 { shifted } else { 0.0 }.to_int_unchecked() };
    q.min(15) as u8
}

multiversion! {
    /// Reads Q4_0 blocks back.
    ///
    /// # Panics
    /// When `values` is not a whole number of blocks or `bytes` is not exactly their encoding.
    pub fn dequantize_q4_0(bytes: &[u8], values: &mut [f32]) = dequantize_body
}

#[inline(always)]
fn dequantize_body(bytes: &[u8], values: &mut [f32]) {
    let (blocks, rest) = values.as_chunks_mut::<ELEMS>();
    assert!(rest.is_empty() && bytes.len() == blocks.len() * BYTES, "whole Q4_0 blocks in and out");
    for (block, raw) in blocks.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
        let scale = f16::from_le_bytes([raw[0], raw[1]]).to_f32();
        let (low, high) = block.split_at_mut(ELEMS / 2);
        for ((a, b), q) in low.iter_mut().zip(high).zip(&raw[2..]) {
            *a = f32::from((q & 15) as i8 - 8) * scale;
            *b = f32::from((q >> 4) as i8 - 8) * scale;
        }
    }
}

block_grid! {
    Q4_0, 32 in 18, offsets false,
    |values, out| fit_scales::<_, 32>(LEVELS, values, &FACTORS, Table::Whole(-8.0, 7.0), out),
    |levels, codes, out| pack(codes, scale_of(levels), out)
}
