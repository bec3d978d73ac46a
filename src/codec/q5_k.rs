//! Q5_K: super-blocks of 256 values in 8 sub-blocks of 32, `value = d·s·q − dmin·m` with q of 5 bits, s and m of 6.
//!
//! As Q4_K, with 32 bytes of fifth bits between the scales and the nibbles: byte l bit k for element 32·k + l.

use super::block::{block_codec, decode_blocks, encode_blocks, f16_at, put_f16};
use super::block_grid::{affine_super, block_grid, fit_affine_supers};
use super::super_block::{AffineSearch, AffineSuper, encode_affine};
use super::weights::{Plain, weigh};
use super::{Dtype, six_bit};

block_codec! {
    pub struct Q5K = Dtype::Q5K,
    "5-bit integers with 6-bit scales and offsets per 32 values: 5.5 bits per weight",
    up to 63.0 * 65504.0, encode, decode
}

const SEARCH: AffineSearch =
    AffineSearch { top: 31.0, most: 63.0, trials: &[-0.8, -0.5, -0.25, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.3] };

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode_blocks::<256, 176>(values, importance, bytes, |x, importance, out| {
        let mut weights = [0f32; 256];
        weigh(x, importance, Plain::RmsPlusMagnitude(32), &mut weights);
        let best = encode_affine::<32, 8>(x, &weights, &SEARCH);
        pack(&best, out);
    });
}

#[inline(always)]
fn pack(best: &AffineSuper<8>, out: &mut [u8; 176]) {
    put_f16(out, 0, best.step);
    put_f16(out, 2, best.offset_step);
    out[4..16].copy_from_slice(&six_bit::pack(&best.scales, &best.offsets));
    for l in 0..32 {
        out[16 + l] = (0..8).fold(0, |bits, k| bits | (best.codes[32 * k + l] >> 4 << k));
    }
    for (codes, out) in best.codes.as_chunks::<64>().0.iter().zip(out[48..].as_chunks_mut::<32>().0) {
        for l in 0..32 {
            out[l] = (codes[l] & 15) | (codes[l + 32] << 4);
        }
    }
}

#[inline(always)]
fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_blocks::<256, 176>(bytes, values, |raw, out| {
        let (d, dmin) = (f16_at(raw, 0), f16_at(raw, 2));
        let (scales, offsets) = six_bit::unpack(&raw[4..16]);
        for (block, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let (s, m) = (d * f32::from(scales[block]), dmin * f32::from(offsets[block]));
            let quants = &raw[48 + block / 2 * 32..][..32];
            let shift = block % 2 * 4;
            for ((v, q), fifth) in out.iter_mut().zip(quants).zip(&raw[16..48]) {
                *v = s * f32::from(((q >> shift) & 15) | (((fifth >> block) & 1) << 4)) - m;
            }
        }
    });
}

block_grid! {
    Q5K, 256 in 176, offsets true,
    |values, out| fit_affine_supers::<32, 8>(values, &SEARCH, out),
    |levels, codes, out| pack(&affine_super(levels, codes), out)
}
