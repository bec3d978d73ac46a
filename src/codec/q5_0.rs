//! Q5_0: blocks of 32 values, one f16 scale, 32 high bits, 32 nibbles. `value = scale * (q - 16)`.
//!
//! Nibbles lie as in Q4_0; bit j of the 32-bit word is the fifth bit of element j. Without an importance bit-exact with
//! ggml's reference quantizer: the value of largest magnitude (the first one, with its sign) over −16 is the scale.

use half::f16;

use super::block::{block_codec, decode_blocks, encode_blocks, encode_fitted, f16_at, put_f16};
use super::block_grid::{block_grid, fit_scales, scale_of};
use super::fit_linear::Whole;
use super::lanes::{byte, extreme};
use super::levels::Table;

block_codec! {
    pub struct Q5_0 = super::Dtype::Q5_0,
    "5-bit integers with an f16 scale per 32 values: 5.5 bits per weight",
    up to 16.0 * 65504.0, encode, decode
}

const LEVELS: Whole<-16, 15> = Whole;
const FACTORS: [f32; 11] = [-14.5, -15.0, -15.3, -15.6, -15.8, -16.0, -16.2, -16.4, -16.7, -17.0, 15.5];

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    if importance.is_some() {
        return encode_fitted(LEVELS, values, importance, bytes, &FACTORS, pack);
    }
    encode_blocks::<32, 22>(values, None, bytes, |x, _, out| {
        let scale = extreme(x) / -16.0;
        let unit = if scale != 0.0 { 1.0 / scale } else { 0.0 };
        pack(&x.map(|v| byte(v * unit + 16.5).min(31)), f16::from_f32(scale), out);
    });
}

#[inline(always)]
fn pack(codes: &[u8; 32], scale: f16, out: &mut [u8; 22]) {
    put_f16(out, 0, scale);
    put_five_bits(codes, &mut out[2..]);
}

/// The fifth bits, then the nibbles.
#[inline(always)]
pub(super) fn put_five_bits(codes: &[u8; 32], out: &mut [u8]) {
    let mut fifth = 0u32;
    for j in 0..16 {
        let (a, b) = (codes[j], codes[j + 16]);
        out[4 + j] = (a & 15) | (b << 4);
        fifth |= (u32::from(a >> 4) << j) | (u32::from(b >> 4) << (j + 16));
    }
    out[..4].copy_from_slice(&fifth.to_le_bytes());
}

/// The codes of a block from its fifth bits and nibbles.
#[inline(always)]
pub(super) fn five_bits(raw: &[u8]) -> [u8; 32] {
    let fifth = u32::from_le_bytes([raw[0], raw[1], raw[2], raw[3]]);
    let mut codes = [0; 32];
    for j in 0..16 {
        codes[j] = (raw[4 + j] & 15) | (((fifth >> j) & 1) << 4) as u8;
        codes[j + 16] = (raw[4 + j] >> 4) | (((fifth >> (j + 16)) & 1) << 4) as u8;
    }
    codes
}

#[inline(always)]
fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_blocks::<32, 22>(bytes, values, |raw, out| {
        let scale = f16_at(raw, 0);
        for (v, q) in out.iter_mut().zip(five_bits(&raw[2..])) {
            *v = f32::from(q as i8 - 16) * scale;
        }
    });
}

block_grid! {
    Q5_0, 32 in 22, offsets false,
    |values, out| fit_scales::<_, 32>(LEVELS, values, &FACTORS, Table::Whole(-16.0, 15.0), out),
    |levels, codes, out| pack(codes, scale_of(levels), out)
}
