//! Q6_K: super-blocks of 256 values in 16 sub-blocks, `value = d·s·(q − 32)` with q of 6 bits and s a signed byte.
//!
//! Of each half of 128 values 64 bytes of nibbles (bytes 0–127) and 32 bytes of top bits (128–191): nibble byte l holds
//! elements l and l + 64, byte l + 32 elements l + 32 and l + 96; top-bit byte l holds elements l, l + 32, l + 64,
//! l + 96 from the lowest bits up. 192–207: s. 208: d as f16.

use super::block::{block_codec, decode_blocks, encode_blocks, f16_at, put_f16};
use super::block_grid::{block_grid, fit_linear_supers, linear_super};
use super::fit_linear::Whole;
use super::levels::Table;
use super::super_block::{LinearSearch, LinearSuper, encode_linear};
use super::weights::{Plain, weigh};

block_codec! {
    pub struct Q6K = super::Dtype::Q6K,
    "6-bit integers with 8-bit scales per 16 values: 6.5625 bits per weight",
    up to 128.0 * 65504.0, encode, decode
}

const LEVELS: Whole<-32, 31> = Whole;
const SEARCH: LinearSearch = LinearSearch {
    factors: &[-30.0, -30.5, -31.0, -31.3, -31.6, -31.85, -32.0, -32.15, -32.4, -32.7, -33.0],
    low: -128.0,
    high: 127.0,
};

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode_blocks::<256, 210>(values, importance, bytes, |x, importance, out| {
        let mut weights = [0f32; 256];
        weigh(x, importance, Plain::RmsPlusMagnitude(16), &mut weights);
        let best = encode_linear::<_, 16, 16>(LEVELS, x, &weights, &SEARCH);
        pack(&best, out);
    });
}

#[inline(always)]
fn pack(best: &LinearSuper<16>, out: &mut [u8; 210]) {
    for half in 0..2 {
        let codes = &best.codes[128 * half..];
        for l in 0..32 {
            let q = [codes[l], codes[l + 32], codes[l + 64], codes[l + 96]];
            out[64 * half + l] = (q[0] & 15) | (q[2] << 4);
            out[64 * half + l + 32] = (q[1] & 15) | (q[3] << 4);
            out[128 + 32 * half + l] = (q[0] >> 4) | (q[1] >> 4 << 2) | (q[2] >> 4 << 4) | (q[3] >> 4 << 6);
        }
    }
    for i in 0..16 {
        out[192 + i] = best.scales[i] as u8;
    }
    put_f16(out, 208, best.step);
}

#[inline(always)]
fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_blocks::<256, 210>(bytes, values, |raw, out| {
        let d = f16_at(raw, 208);
        for (block, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let scale = d * f32::from(raw[192 + block] as i8);
            let (half, quarter, within) = (block / 8, block / 2 % 4, block % 2 * 16);
            let nibbles = &raw[64 * half + quarter % 2 * 32 + within..][..16];
            let tops = &raw[128 + 32 * half + within..][..16];
            let (low_shift, top_shift) = (quarter / 2 * 4, quarter * 2);
            for ((v, q), top) in out.iter_mut().zip(nibbles).zip(tops) {
                let code = ((q >> low_shift) & 15) | (((top >> top_shift) & 3) << 4);
                *v = scale * f32::from(code as i8 - 32);
            }
        }
    });
}

block_grid! {
    Q6K, 256 in 210, offsets false,
    |values, out| fit_linear_supers::<_, 16, 16>(LEVELS, values, &SEARCH, Table::Whole(-32.0, 31.0), out),
    |levels, codes, out| pack(&linear_super(levels, codes), out)
}
