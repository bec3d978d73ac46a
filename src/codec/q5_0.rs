//! Q5_0: blocks of 32 values, one f16 scale, 32 high bits, 32 nibbles. `value = scale * (q - 16)`.
//!
//! Nibbles lie as in Q4_0; bit j of the 32-bit word is the fifth bit of element j. Without an importance bit-exact with
//! ggml's reference quantizer: the value of largest magnitude (the first one, with its sign) over −16 is the scale.

use half::f16;

use super::block::{block_codec, decode_blocks, encode_blocks, encode_fitted, f16_at, put_f16};
use super::fit_linear::{Grid, Whole};
use super::lanes::{byte, extreme, inverse};

block_codec! {
    pub struct Q5_0 = super::Dtype::Q5_0,
    "5-bit integers with an f16 scale per 32 values: 5.5 bits per weight",
    up to 16.0 * 65504.0, encode, decode
}

type Levels = Whole<-16, 15>;
const FACTORS: [f32; 11] = [-14.5, -15.0, -15.3, -15.6, -15.8, -16.0, -16.2, -16.4, -16.7, -17.0, 15.5];

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    if importance.is_some() {
        return encode_fitted::<Levels, 32, 22>(values, importance, bytes, &FACTORS, |x, d, out| {
            let unit = inverse(d.to_f32());
            write(x, d, out, |v| Levels::code(v * unit));
        });
    }
    encode_blocks::<32, 22>(values, None, bytes, |x, _, out| {
        let scale = extreme(x) / -16.0;
        let unit = if scale != 0.0 { 1.0 / scale } else { 0.0 };
        write(x, f16::from_f32(scale), out, |v| byte(v * unit + 16.5).min(31));
    });
}

#[inline(always)]
fn write(x: &[f32; 32], scale: f16, out: &mut [u8; 22], code: impl Fn(f32) -> u8) {
    put_f16(out, 0, scale);
    write_five_bits(x, &mut out[2..], code);
}

/// The fifth bits, then the nibbles.
#[inline(always)]
pub(super) fn write_five_bits(x: &[f32; 32], out: &mut [u8], code: impl Fn(f32) -> u8) {
    let mut fifth = 0u32;
    for j in 0..16 {
        let (a, b) = (code(x[j]), code(x[j + 16]));
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
