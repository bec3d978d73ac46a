//! Q2_K: super-blocks of 256 values in 16 sub-blocks, `value = d·s·q − dmin·m` with q of 2 bits, s and m of 4.
//!
//! Bytes 0–15: s in the low, m in the high nibble. 16–79: of each half of 128 values 32 bytes, byte l holding elements
//! l, l + 32, l + 64, l + 96 from the lowest bits up. 80–83: d and dmin as f16.

use super::block::{block_codec, decode_blocks, encode_blocks, f16_at, put_f16};
use super::block_grid::{affine_super, block_grid, fit_affine_supers};
use super::super_block::{AffineSearch, AffineSuper, encode_affine};
use super::weights::{Plain, weigh};

block_codec! {
    pub struct Q2K = super::Dtype::Q2K,
    "2-bit integers with 4-bit scales and offsets per 16 values: 2.625 bits per weight",
    up to 15.0 * 65504.0, encode, decode
}

const SEARCH: AffineSearch = AffineSearch {
    top: 3.0,
    most: 15.0,
    trials: &[-0.9, -0.7, -0.5, -0.35, -0.2, -0.1, 0.0, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0],
};

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode_blocks::<256, 84>(values, importance, bytes, |x, importance, out| {
        let mut weights = [0f32; 256];
        weigh(x, importance, Plain::RmsPlusMagnitude(16), &mut weights);
        let best = encode_affine::<16, 16>(x, &weights, &SEARCH);
        pack(&best, out);
    });
}

#[inline(always)]
fn pack(best: &AffineSuper<16>, out: &mut [u8; 84]) {
    for (byte, (scale, offset)) in out.iter_mut().zip(best.scales.iter().zip(&best.offsets)) {
        *byte = scale | (offset << 4);
    }
    for half in 0..2 {
        let codes = &best.codes[128 * half..];
        for l in 0..32 {
            out[16 + 32 * half + l] = codes[l] | (codes[l + 32] << 2) | (codes[l + 64] << 4) | (codes[l + 96] << 6);
        }
    }
    put_f16(out, 80, best.step);
    put_f16(out, 82, best.offset_step);
}

#[inline(always)]
fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_blocks::<256, 84>(bytes, values, |raw, out| {
        let (d, dmin) = (f16_at(raw, 80), f16_at(raw, 82));
        for (block, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let (scale, offset) = (d * f32::from(raw[block] & 15), dmin * f32::from(raw[block] >> 4));
            let from = 16 + block / 8 * 32 + block % 2 * 16;
            let shift = block / 2 % 4 * 2;
            for (v, q) in out.iter_mut().zip(&raw[from..from + 16]) {
                *v = scale * f32::from((q >> shift) & 3) - offset;
            }
        }
    });
}

block_grid! {
    Q2K, 256 in 84, offsets true,
    |values, out| fit_affine_supers::<16, 16>(values, &SEARCH, out),
    |levels, codes, out| pack(&affine_super(levels, codes), out)
}
