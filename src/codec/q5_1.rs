//! Q5_1: blocks of 32 values, f16 scale, f16 offset, 32 high bits, 32 nibbles. `value = scale * q + offset`.
//!
//! Codes lie as in Q5_0. Without an importance bit-exact with ggml's reference quantizer: offset = minimum,
//! scale = range / 31, `q = trunc((x − min) / scale + 0.5)`.

use half::f16;

use super::block::{block_codec, decode_blocks, encode_blocks, encode_fitted_affine, f16_at, put_f16};
use super::block_grid::{block_grid, fit_scales_and_offsets, offset_of, scale_of};
use super::lanes::{bounds, byte};
use super::q5_0::{five_bits, put_five_bits};

block_codec! {
    pub struct Q5_1 = super::Dtype::Q5_1,
    "5-bit integers with an f16 scale and offset per 32 values: 6 bits per weight",
    up to 65504.0, encode, decode
}

const TRIALS: [f32; 9] = [-1.0, -0.6, -0.3, 0.0, 0.2, 0.4, 0.6, 0.9, 1.2];

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    if let Some(importance) = importance {
        return encode_fitted_affine::<24>(values, importance, bytes, (31.0, &TRIALS), pack);
    }
    encode_blocks::<32, 24>(values, None, bytes, |x, _, out| {
        let (low, high) = bounds(x);
        let scale = (high - low) / 31.0;
        let unit = if scale != 0.0 { 1.0 / scale } else { 0.0 };
        let codes = x.map(|v| byte((v - low) * unit + 0.5).min(31));
        pack(&codes, f16::from_f32(scale), f16::from_f32(low), out);
    });
}

#[inline(always)]
fn pack(codes: &[u8; 32], scale: f16, offset: f16, out: &mut [u8; 24]) {
    put_f16(out, 0, scale);
    put_f16(out, 2, offset);
    put_five_bits(codes, &mut out[4..]);
}

#[inline(always)]
fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_blocks::<32, 24>(bytes, values, |raw, out| {
        let (scale, offset) = (f16_at(raw, 0), f16_at(raw, 2));
        for (v, q) in out.iter_mut().zip(five_bits(&raw[4..])) {
            *v = f32::from(q) * scale + offset;
        }
    });
}

block_grid! {
    Q5_1, 32 in 24, offsets true,
    |values, out| fit_scales_and_offsets(values, 31.0, &TRIALS, out),
    |levels, codes, out| pack(codes, scale_of(levels), offset_of(levels), out)
}
