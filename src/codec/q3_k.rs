//! Q3_K: super-blocks of 256 values in 16 sub-blocks, `value = d·s·(q − 4)` with q of 3 bits, s of 6 (−32 … 31).
//!
//! Bytes 0–31: the third bit of the codes, byte l bit k for element 32·k + l. 32–95: the low two bits as in Q2_K. 96–107:
//! s + 32: low nibbles of 0–7 and of 8–15 in bytes 96–103, their top two bits in bytes 104–107. 108: d as f16.

use super::block::{block_codec, decode_blocks, encode_blocks, f16_at, put_f16};
use super::block_grid::{block_grid, fit_linear_supers, linear_super};
use super::fit_linear::Whole;
use super::levels::Table;
use super::super_block::{LinearSearch, LinearSuper, encode_linear};
use super::weights::{Plain, weigh};

block_codec! {
    pub struct Q3K = super::Dtype::Q3K,
    "3-bit integers with 6-bit scales per 16 values: 3.4375 bits per weight",
    up to 32.0 * 65504.0, encode, decode
}

const LEVELS: Whole<-4, 3> = Whole;
const SEARCH: LinearSearch = LinearSearch {
    factors: &[-2.6, -3.0, -3.3, -3.5, -3.7, -3.85, -4.0, -4.15, -4.3, -4.5, -4.75, -5.0, 2.7, 3.0, 3.3],
    low: -32.0,
    high: 31.0,
};

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode_blocks::<256, 110>(values, importance, bytes, |x, importance, out| {
        let mut weights = [0f32; 256];
        weigh(x, importance, Plain::RmsPlusMagnitude(16), &mut weights);
        let best = encode_linear::<_, 16, 16>(LEVELS, x, &weights, &SEARCH);
        pack(&best, out);
    });
}

#[inline(always)]
fn pack(best: &LinearSuper<16>, out: &mut [u8; 110]) {
    for l in 0..32 {
        out[l] = (0..8).fold(0, |bits, k| bits | (best.codes[32 * k + l] >> 2 << k));
        for half in 0..2 {
            let codes = &best.codes[128 * half..];
            out[32 + 32 * half + l] = (0..4).fold(0, |bits, k| bits | ((codes[32 * k + l] & 3) << (2 * k)));
        }
    }
    let scales = best.scales.map(|s| (s + 32) as u8);
    for i in 0..8 {
        out[96 + i] = (scales[i] & 15) | (scales[i + 8] << 4);
    }
    for i in 0..4 {
        out[104 + i] = (0..4).fold(0, |bits, k| bits | (scales[4 * k + i] >> 4 << (2 * k)));
    }
    put_f16(out, 108, best.step);
}

#[inline(always)]
fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_blocks::<256, 110>(bytes, values, |raw, out| {
        let d = f16_at(raw, 108);
        for (block, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let low = (raw[96 + block % 8] >> (block / 8 * 4)) & 15;
            let high = (raw[104 + block % 4] >> (block / 4 * 2)) & 3;
            let scale = d * f32::from((low | (high << 4)) as i8 - 32);
            let from = block % 2 * 16;
            let quants = &raw[32 + block / 8 * 32 + from..][..16];
            let third = &raw[from..from + 16];
            let (shift, bit) = (block / 2 % 4 * 2, block / 2);
            for ((v, q), h) in out.iter_mut().zip(quants).zip(third) {
                let code = ((q >> shift) & 3) | (((h >> bit) & 1) << 2);
                *v = scale * f32::from(code as i8 - 4);
            }
        }
    });
}

block_grid! {
    Q3K, 256 in 110, offsets false,
    |values, out| fit_linear_supers::<_, 16, 16>(LEVELS, values, &SEARCH, Table::Whole(-4.0, 3.0), out),
    |levels, codes, out| pack(&linear_super(levels, codes), out)
}
