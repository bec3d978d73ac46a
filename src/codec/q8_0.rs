//! Q8_0: blocks of 32 values, one f16 scale and 32 signed bytes. `value = scale * q`.
//!
//! Bit-exact with ggml's reference quantizer: the scale is `amax / 127`; the quotients use the scale before it is
//! rounded to f16; rounding is half away from zero.

use half::f16;

use super::block_grid::{block_grid, fit_scales, scale_of};
use super::fit_linear::Span;
use super::levels::Table;
use super::{Codec, Dtype, multiversion};

const ELEMS: usize = 32;
const BYTES: usize = 34;

pub struct Q8_0;

impl Codec for Q8_0 {
    fn dtype(&self) -> Dtype {
        Dtype::Q8_0
    }
    fn summary(&self) -> &'static str {
        "8-bit integers with an f16 scale per 32 values: 8.5 bits per weight"
    }
    fn max_magnitude(&self) -> f32 {
        127.0 * 65504.0
    }
    fn encode(&self, values: &[f32], bytes: &mut [u8]) {
        quantize_q8_0(values, bytes);
    }
    fn decode(&self, bytes: &[u8], values: &mut [f32]) {
        dequantize_q8_0(bytes, values);
    }
    fn grid(&self) -> Option<&dyn super::Grid> {
        Some(self)
    }
}

multiversion! {
    /// Quantizes finite values, a whole number of blocks, to Q8_0.
    ///
    /// # Panics
    /// When `values` is not a whole number of blocks or `bytes` does not hold exactly their encoding.
    pub fn quantize_q8_0(values: &[f32], bytes: &mut [u8]) = quantize_body
}

#[inline(always)]
fn quantize_body(values: &[f32], bytes: &mut [u8]) {
    let (blocks, rest) = values.as_chunks::<ELEMS>();
    assert!(rest.is_empty() && bytes.len() == blocks.len() * BYTES, "whole Q8_0 blocks in and out");
    let (outs, _) = bytes.as_chunks_mut::<BYTES>();
    for (block, out) in blocks.iter().zip(outs) {
        let amax = block.iter().fold(0f32, |max, v| if v.abs() > max { v.abs() } else { max });
        let scale = amax / 127.0;
        let inverse = if scale != 0.0 { 1.0 / scale } else { 0.0 };
        let (head, quants) = out.split_at_mut(2);
        head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
        for (q, v) in quants.iter_mut().zip(block) {
            *q = round_half_away(v * inverse) as u8;
        }
    }
}

/// C's `roundf` for magnitudes far below 2^23: adding the largest float under one half and truncating.
#[inline(always)]
fn round_half_away(x: f32) -> i32 {
    const UNDER_HALF: f32 = 0.499_999_97;
    let shifted = x + UNDER_HALF.copysign(x);
    // Exact for |x| <= 128 (finite input), and a saturating cast costs a third of the speed.
    // SAFETY: finite input keeps |x| at most 127 and a rounding error; NaN and infinities are clamped away first.
    unsafe { if shifted.abs() < 1e6 { shifted } else { 0.0 }.to_int_unchecked() }
}

multiversion! {
    /// Reads Q8_0 blocks back.
    ///
    /// # Panics
    /// When `values` is not a whole number of blocks or `bytes` is not exactly their encoding.
    pub fn dequantize_q8_0(bytes: &[u8], values: &mut [f32]) = dequantize_body
}

#[inline(always)]
fn dequantize_body(bytes: &[u8], values: &mut [f32]) {
    let (blocks, rest) = values.as_chunks_mut::<ELEMS>();
    assert!(rest.is_empty() && bytes.len() == blocks.len() * BYTES, "whole Q8_0 blocks in and out");
    for (block, raw) in blocks.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
        let scale = f16::from_le_bytes([raw[0], raw[1]]).to_f32();
        for (value, q) in block.iter_mut().zip(&raw[2..]) {
            *value = f32::from(*q as i8) * scale;
        }
    }
}

const FACTORS: [f32; 5] = [127.0, 126.7, 126.4, 126.0, 127.4];

block_grid! {
    Q8_0, 32 in 34, offsets false,
    |values, out| {
        let set = Span { low: -127.0, high: 127.0 };
        fit_scales::<_, 32>(set, values, &FACTORS, Table::Whole(-127.0, 127.0), out);
    },
    |levels, codes: &[u8; 32], out: &mut [u8; 34]| {
        out[..2].copy_from_slice(&scale_of(levels).to_le_bytes());
        for (q, code) in out[2..].iter_mut().zip(codes) {
            *q = code.wrapping_sub(127);
        }
    }
}
