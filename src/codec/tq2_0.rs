//! TQ2_0: super-blocks of 256 values −1, 0, +1 times one f16 scale, four to a byte.
//!
//! Of each half of 128 values 32 bytes, byte l holding elements l, l + 32, l + 64, l + 96 (plus one) from the lowest bits
//! up; then the scale. A fourth code stands for twice the scale and is read, never written. Scales as in TQ1_0.

use half::f16;

use super::block::{block_codec, decode_blocks, encode_blocks, f16_at, put_f16};
use super::block_grid::{block_grid, scale_of};
use super::ternary::{ternary, ternary_levels};

block_codec! {
    pub struct Tq2_0 = super::Dtype::Tq2_0,
    "ternary, four values to a byte, an f16 scale per 256: 2.0625 bits per weight; for models trained ternary",
    up to 65504.0, encode, decode
}

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode_blocks::<256, 66>(values, importance, bytes, |x, importance, out| {
        let (scale, codes) = ternary(x, importance);
        pack(&codes, scale, out);
    });
}

#[inline(always)]
fn pack(codes: &[u8; 256], scale: f16, out: &mut [u8; 66]) {
    for half in 0..2 {
        let codes = &codes[128 * half..];
        for l in 0..32 {
            out[32 * half + l] = (0..4).fold(0, |bits, k| bits | (codes[32 * k + l] << (2 * k)));
        }
    }
    put_f16(out, 64, scale);
}

#[inline(always)]
fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_blocks::<256, 66>(bytes, values, |raw, out| {
        let scale = f16_at(raw, 64);
        for (block, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (quants, shift) = (&raw[block / 4 * 32..][..32], block % 4 * 2);
            for (v, q) in out.iter_mut().zip(quants) {
                *v = f32::from(((q >> shift) & 3) as i8 - 1) * scale;
            }
        }
    });
}

block_grid! {
    Tq2_0, 256 in 66, offsets false,
    |values: (&[f32], &[f32]), out: &mut Vec<super::Levels>| {
        let blocks = values.0.chunks(256).zip(values.1.chunks(256));
        out.extend(blocks.map(|(x, w)| ternary_levels(x, w)));
    },
    |levels, codes, out| pack(codes, scale_of(levels), out)
}
