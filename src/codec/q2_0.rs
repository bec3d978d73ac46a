//! Q2_0: blocks of 64 values, one f16 scale, four levels. `value = scale * (q - 1)`, so −1, 0, +1 and +2 times the scale.
//!
//! Element j lies in byte j / 4 at bits 2·(j mod 4). The scale may be negative, which puts the fourth level on the side
//! that needs it. ggml's quantizer takes the largest magnitude for scale and uses three levels; this one fits scale and
//! sign, and agrees with ggml's to the bit on values that are ternary already.

use half::f16;

use super::block::{block_codec, decode_blocks, encode_blocks, encode_fitted, f16_at, put_f16};
use super::block_grid::{block_grid, fit_scales, scale_of};
use super::fit_linear::{LevelSet, Whole};
use super::lanes::{extreme, inverse};
use super::levels::Table;

block_codec! {
    pub struct Q2_0 = super::Dtype::Q2_0,
    "four levels with an f16 scale of either sign per 64 values: 2.25 bits per weight",
    up to 65504.0, encode, decode
}

const LEVELS: Whole<-1, 2> = Whole;
const FACTORS: [f32; 22] = [
    1.0, 1.2, 1.4, 1.6, 1.8, 2.0, 2.2, 2.45, 2.7, 3.0, 3.5, -0.8, -1.0, -1.2, -1.4, -1.6, -1.8, -2.0, -2.2, -2.5, -2.8,
    -3.3,
];

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode_fitted(LEVELS, values, importance, bytes, &FACTORS, pack);
    // Values that are ternary already keep their magnitude to the bit.
    encode_blocks::<64, 18>(values, None, bytes, |x, _, out| {
        let largest = extreme(x).abs();
        if x.iter().all(|v| v.abs() == largest || *v == 0.0) {
            let scale = f16::from_f32(largest);
            let unit = inverse(scale.to_f32());
            pack(&x.map(|v| LEVELS.code(v * unit)), scale, out);
        }
    });
}

#[inline(always)]
fn pack(codes: &[u8; 64], scale: f16, out: &mut [u8; 18]) {
    put_f16(out, 0, scale);
    for (byte, codes) in out[2..].iter_mut().zip(codes.as_chunks::<4>().0) {
        *byte = (0..4).fold(0, |bits, k| bits | (codes[k] << (2 * k)));
    }
}

#[inline(always)]
fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_blocks::<64, 18>(bytes, values, |raw, out| {
        let scale = f16_at(raw, 0);
        for (v, at) in out.iter_mut().zip(0..) {
            *v = f32::from(((raw[2 + at / 4] >> (at % 4 * 2)) & 3) as i8 - 1) * scale;
        }
    });
}

block_grid! {
    Q2_0, 64 in 18, offsets false,
    |values, out| fit_scales::<_, 64>(LEVELS, values, &FACTORS, Table::Whole(-1.0, 2.0), out),
    |levels, codes, out| pack(codes, scale_of(levels), out)
}
