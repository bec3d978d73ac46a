//! Q4_1: blocks of 32 values, f16 scale, f16 offset, 32 nibbles. `value = scale * q + offset`.
//!
//! Byte j holds element j in its low and element j + 16 in its high nibble. Without an importance bit-exact with ggml's
//! reference quantizer: offset = minimum, scale = range / 15, codes by the scale before it is rounded to f16,
//! `q = min(15, trunc((x − min) / scale + 0.5))`.

use half::f16;

use super::block::{block_codec, decode_blocks, encode_blocks, encode_fitted_affine, f16_at, put_f16, put_nibbles};
use super::block_grid::{block_grid, fit_scales_and_offsets, offset_of, scale_of};
use super::lanes::byte;

block_codec! {
    pub struct Q4_1 = super::Dtype::Q4_1,
    "4-bit integers with an f16 scale and offset per 32 values: 5 bits per weight",
    up to 65504.0, encode, decode
}

const TRIALS: [f32; 12] = [-1.0, -0.8, -0.6, -0.4, -0.2, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2];

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    if let Some(importance) = importance {
        return encode_fitted_affine::<20>(values, importance, bytes, (15.0, &TRIALS), pack);
    }
    encode_blocks::<32, 20>(values, None, bytes, |x, _, out| {
        let (low, high) = super::lanes::bounds(x);
        let scale = (high - low) / 15.0;
        let unit = if scale != 0.0 { 1.0 / scale } else { 0.0 };
        let codes = x.map(|v| byte((v - low) * unit + 0.5).min(15));
        pack(&codes, f16::from_f32(scale), f16::from_f32(low), out);
    });
}

#[inline(always)]
fn pack(codes: &[u8; 32], scale: f16, offset: f16, out: &mut [u8; 20]) {
    put_f16(out, 0, scale);
    put_f16(out, 2, offset);
    put_nibbles(codes, &mut out[4..]);
}

#[inline(always)]
fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_blocks::<32, 20>(bytes, values, |raw, out| {
        let (scale, offset) = (f16_at(raw, 0), f16_at(raw, 2));
        for j in 0..16 {
            out[j] = f32::from(raw[4 + j] & 15) * scale + offset;
            out[j + 16] = f32::from(raw[4 + j] >> 4) * scale + offset;
        }
    });
}

block_grid! {
    Q4_1, 32 in 20, offsets true,
    |values, out| fit_scales_and_offsets(values, 15.0, &TRIALS, out),
    |levels, codes, out| pack(codes, scale_of(levels), offset_of(levels), out)
}
