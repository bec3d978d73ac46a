//! Q4_K: super-blocks of 256 values in 8 sub-blocks of 32, `value = d·s·q − dmin·m` with q of 4 bits, s and m of 6.
//!
//! Bytes 0–3: d and dmin as f16. 4–15: s and m (see `six_bit`). 16–143: of each 64 values 32 bytes, the first 32 in the
//! low, the others in the high nibbles.

use super::block::{block_codec, decode_blocks, encode_blocks, f16_at, put_f16};
use super::block_grid::{affine_super, block_grid, fit_affine_supers};
use super::super_block::{AffineSearch, AffineSuper, encode_affine};
use super::weights::{Plain, weigh};
use super::{Dtype, six_bit};

block_codec! {
    pub struct Q4K = Dtype::Q4K,
    "4-bit integers with 6-bit scales and offsets per 32 values: 4.5 bits per weight",
    up to 63.0 * 65504.0, encode, decode
}

const SEARCH: AffineSearch = AffineSearch {
    top: 15.0,
    most: 63.0,
    trials: &[-1.0, -0.8, -0.6, -0.4, -0.2, 0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.1, 1.4],
};

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode_blocks::<256, 144>(values, importance, bytes, |x, importance, out| {
        let mut weights = [0f32; 256];
        weigh(x, importance, Plain::RmsPlusMagnitude(32), &mut weights);
        let best = encode_affine::<32, 8>(x, &weights, &SEARCH);
        pack(&best, out);
    });
}

#[inline(always)]
fn pack(best: &AffineSuper<8>, out: &mut [u8; 144]) {
    put_f16(out, 0, best.step);
    put_f16(out, 2, best.offset_step);
    out[4..16].copy_from_slice(&six_bit::pack(&best.scales, &best.offsets));
    for (codes, out) in best.codes.as_chunks::<64>().0.iter().zip(out[16..].as_chunks_mut::<32>().0) {
        for l in 0..32 {
            out[l] = codes[l] | (codes[l + 32] << 4);
        }
    }
}

#[inline(always)]
fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_blocks::<256, 144>(bytes, values, |raw, out| {
        let (d, dmin) = (f16_at(raw, 0), f16_at(raw, 2));
        let (scales, offsets) = six_bit::unpack(&raw[4..16]);
        for (pair, (out, quants)) in
            out.as_chunks_mut::<64>().0.iter_mut().zip(raw[16..].as_chunks::<32>().0).enumerate()
        {
            let scale = |i: usize| (d * f32::from(scales[i]), dmin * f32::from(offsets[i]));
            let ((s, m), (s_high, m_high)) = (scale(2 * pair), scale(2 * pair + 1));
            for l in 0..32 {
                out[l] = s * f32::from(quants[l] & 15) - m;
                out[l + 32] = s_high * f32::from(quants[l] >> 4) - m_high;
            }
        }
    });
}

block_grid! {
    Q4K, 256 in 144, offsets true,
    |values, out| fit_affine_supers::<32, 8>(values, &SEARCH, out),
    |levels, codes, out| pack(&affine_super(levels, codes), out)
}
