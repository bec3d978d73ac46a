//! IQ4_XS: super-blocks of 256 values in 8 sub-blocks of 32, `value = d·s·level`, levels as in IQ4_NL, s of 6 bits
//! (−32 … 31).
//!
//! Bytes 0–1: d as f16. 2–3: the top two bits of s + 32, sub-block k at bits 2k. 4–7: their low nibbles, even sub-blocks
//! in the low half. 8–135: 16 bytes per sub-block, nibbles as in Q4_0.

use super::block::{block_codec, decode_blocks, encode_blocks, f16_at, put_f16, put_nibbles};
use super::block_grid::{block_grid, fit_linear_supers, linear_super};
use super::iq4_nl::{FACTORS, LEVELS, TABLE, Uneven};
use super::levels::Table;
use super::super_block::{LinearSearch, LinearSuper, encode_linear};
use super::weights::{Plain, weigh};

block_codec! {
    pub struct Iq4Xs = super::Dtype::Iq4Xs,
    "sixteen uneven levels with 6-bit scales per 32 values: 4.25 bits per weight",
    up to 32.0 * 113.0 * 65504.0, encode, decode
}

const SEARCH: LinearSearch = LinearSearch { factors: &FACTORS, low: -32.0, high: 31.0 };

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode_blocks::<256, 136>(values, importance, bytes, |x, importance, out| {
        let mut weights = [0f32; 256];
        weigh(x, importance, Plain::RmsPlusMagnitude(32), &mut weights);
        let best = encode_linear::<_, 32, 8>(Uneven, x, &weights, &SEARCH);
        pack(&best, out);
    });
}

#[inline(always)]
fn pack(best: &LinearSuper<8>, out: &mut [u8; 136]) {
    let scales = best.scales.map(|s| (s + 32) as u8);
    put_f16(out, 0, best.step);
    let tops = (0..8).fold(0u16, |bits, k| bits | (u16::from(scales[k] >> 4) << (2 * k)));
    out[2..4].copy_from_slice(&tops.to_le_bytes());
    for i in 0..4 {
        out[4 + i] = (scales[2 * i] & 15) | (scales[2 * i + 1] << 4);
    }
    for (codes, out) in best.codes.as_chunks::<32>().0.iter().zip(out[8..].chunks_mut(16)) {
        put_nibbles(codes, out);
    }
}

#[inline(always)]
fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_blocks::<256, 136>(bytes, values, |raw, out| {
        let d = f16_at(raw, 0);
        let tops = u16::from_le_bytes([raw[2], raw[3]]);
        for (block, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
            let low = (raw[4 + block / 2] >> (block % 2 * 4)) & 15;
            let top = ((tops >> (2 * block)) & 3) as u8;
            let scale = d * f32::from((low | (top << 4)) as i8 - 32);
            let quants = &raw[8 + 16 * block..][..16];
            for j in 0..16 {
                out[j] = scale * f32::from(LEVELS[usize::from(quants[j] & 15)]);
                out[j + 16] = scale * f32::from(LEVELS[usize::from(quants[j] >> 4)]);
            }
        }
    });
}

block_grid! {
    Iq4Xs, 256 in 136, offsets false,
    |values, out| fit_linear_supers::<_, 32, 8>(Uneven, values, &SEARCH, Table::Uneven(&TABLE), out),
    |levels, codes, out| pack(&linear_super(levels, codes), out)
}
