//! TQ1_0: super-blocks of 256 values −1, 0, +1 times one f16 scale, five to a byte.
//!
//! A byte holds five base-3 digits, the first the most significant, as `ceil(number · 256 / 243)`: digit n comes back as
//! `(byte · 3ⁿ mod 256) · 3 >> 8`. Bytes 0–31: elements l + 32·n. 32–47: elements 160 + l + 16·n. 48–51: four digits,
//! elements 240 + l + 4·n. 52: the scale. ggml's quantizer takes the largest magnitude for scale; this one fits it, and
//! agrees with ggml's to the bit on values that are ternary already.

use half::f16;

use super::block::{block_codec, decode_blocks, encode_blocks, f16_at, put_f16};
use super::block_grid::{block_grid, scale_of};
use super::ternary::{ternary, ternary_levels};

block_codec! {
    pub struct Tq1_0 = super::Dtype::Tq1_0,
    "ternary, five values to a byte, an f16 scale per 256: 1.6875 bits per weight; for models trained ternary",
    up to 65504.0, encode, decode
}

/// Where the digits of the bytes lie: first byte, bytes, digits, first element.
const PARTS: [(usize, usize, usize, usize); 3] = [(0, 32, 5, 0), (32, 16, 5, 160), (48, 4, 4, 240)];

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode_blocks::<256, 54>(values, importance, bytes, |x, importance, out| {
        let (scale, codes) = ternary(x, importance);
        pack(&codes, scale, out);
    });
}

#[inline(always)]
fn pack(codes: &[u8; 256], scale: f16, out: &mut [u8; 54]) {
    for (first, count, digits, element) in PARTS {
        for l in 0..count {
            let mut number = (0..digits).fold(0u16, |n, k| 3 * n + u16::from(codes[element + l + count * k]));
            if digits == 4 {
                number *= 3;
            }
            out[first + l] = (number * 256).div_ceil(243) as u8;
        }
    }
    put_f16(out, 52, scale);
}

#[inline(always)]
fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_blocks::<256, 54>(bytes, values, |raw, out| {
        let scale = f16_at(raw, 52);
        for (first, count, digits, element) in PARTS {
            let mut power = 1u8;
            for digit in 0..digits {
                for l in 0..count {
                    let digits = u16::from(raw[first + l].wrapping_mul(power));
                    out[element + count * digit + l] = f32::from(((digits * 3) >> 8) as i8 - 1) * scale;
                }
                power = power.wrapping_mul(3);
            }
        }
    });
}

block_grid! {
    Tq1_0, 256 in 54, offsets false,
    |values: (&[f32], &[f32]), out: &mut Vec<super::Levels>| {
        let blocks = values.0.chunks(256).zip(values.1.chunks(256));
        out.extend(blocks.map(|(x, w)| ternary_levels(x, w)));
    },
    |levels, codes, out| pack(codes, scale_of(levels), out)
}
