//! IQ4_NL: blocks of 32 values, one f16 scale, 32 nibbles that number sixteen unevenly spaced levels.
//!
//! Nibbles lie as in Q4_0. The levels are ggml's: denser around zero, as weights are.

use half::f16;

use super::block::{block_codec, decode_blocks, encode_fitted, f16_at, put_f16, put_nibbles};
use super::block_grid::{block_grid, fit_scales, scale_of};
use super::fit_linear::LevelSet;
use super::levels::Table;

block_codec! {
    pub struct Iq4Nl = super::Dtype::Iq4Nl,
    "sixteen uneven levels with an f16 scale per 32 values: 4.5 bits per weight",
    up to 113.0 * 65504.0, encode, decode
}

/// The levels, ascending.
pub(super) const LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The same as numbers.
pub(super) static TABLE: [f32; 16] = {
    let mut table = [0.0; 16];
    let mut k = 0;
    while k < 16 {
        table[k] = LEVELS[k] as f32;
        k += 1;
    }
    table
};

/// See [`super::fit_linear::fit_linear`].
pub(super) const FACTORS: [f32; 13] =
    [-109.0, -114.0, -118.0, -122.0, -125.0, -128.0, -131.0, -135.0, -140.0, 104.0, 109.0, 113.0, 118.0];

/// The levels as a set to search in.
#[derive(Clone, Copy)]
pub(super) struct Uneven;

/// Half way between level k and the next: from there on the upper one is nearer.
const fn middle(k: usize) -> f32 {
    (LEVELS[k] as f32 + LEVELS[k + 1] as f32) / 2.0
}

impl LevelSet for Uneven {
    #[inline(always)]
    fn nearest(self, v: f32) -> f32 {
        let mut level = f32::from(LEVELS[0]);
        for k in 0..15 {
            level = if v >= middle(k) { f32::from(LEVELS[k + 1]) } else { level };
        }
        level
    }
    #[inline(always)]
    fn code(self, v: f32) -> u8 {
        (0..15).fold(0, |code, k| code + u8::from(v >= middle(k)))
    }
}

#[inline(always)]
fn encode(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode_fitted(Uneven, values, importance, bytes, &FACTORS, pack);
}

#[inline(always)]
fn pack(codes: &[u8; 32], scale: f16, out: &mut [u8; 18]) {
    put_f16(out, 0, scale);
    put_nibbles(codes, &mut out[2..]);
}

#[inline(always)]
fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_blocks::<32, 18>(bytes, values, |raw, out| {
        let scale = f16_at(raw, 0);
        for j in 0..16 {
            out[j] = scale * f32::from(LEVELS[usize::from(raw[2 + j] & 15)]);
            out[j + 16] = scale * f32::from(LEVELS[usize::from(raw[2 + j] >> 4)]);
        }
    });
}

block_grid! {
    Iq4Nl, 32 in 18, offsets false,
    |values, out| fit_scales::<_, 32>(Uneven, values, &FACTORS, Table::Uneven(&TABLE), out),
    |levels, codes, out| pack(codes, scale_of(levels), out)
}
