//! MXFP4 (OCP microscaling): blocks of 32 values, one power of two, 32 four-bit floats (E2M1).
//!
//! Byte 0: the exponent plus 127. Then nibbles as in Q4_0: sign and one of 0, 0.5, 1, 1.5, 2, 3, 4, 6. Encoded as ggml
//! does: the exponent of the largest magnitude less two, every value to its nearest level, of two equally near ones
//! to the smaller magnitude.

use super::block::{block_codec, decode_blocks, encode_blocks};
use super::block_grid::block_grid;
use super::lanes::extreme;
use super::levels::{Levels, Store, Table};

block_codec! {
    pub struct Mxfp4 = super::Dtype::Mxfp4,
    "4-bit floats with a power of two per 32 values: 4.25 bits per weight",
    up to 3.0e38, encode, decode
}

/// Twice the magnitudes: whole numbers, under half the power of two.
const DOUBLED: [i8; 8] = [0, 1, 2, 3, 4, 6, 8, 12];

#[inline(always)]
fn encode(values: &[f32], _importance: Option<&[f32]>, bytes: &mut [u8]) {
    encode_blocks::<32, 17>(values, None, bytes, |x, _, out| {
        // The exponent field of the largest magnitude is its power of two plus 127.
        let field = (extreme(x).to_bits() >> 23) & 0xff;
        let exponent = field.saturating_sub(2) as u8;
        let half = half_power(exponent);
        out[0] = exponent;
        for j in 0..16 {
            out[1 + j] = code(x[j], half) | (code(x[j + 16], half) << 4);
        }
    });
}

#[inline(always)]
fn code(v: f32, half: f32) -> u8 {
    let magnitude = v.abs();
    let mut code = 0;
    for k in 0..7 {
        // The boundary is exact: sums of two levels, scaled by powers of two.
        let boundary = f32::from(DOUBLED[k] + DOUBLED[k + 1]) * (half * 0.5);
        code += u8::from(magnitude > boundary);
    }
    if v < 0.0 && code > 0 { code | 8 } else { code }
}

/// Half of 2^(exponent − 127), subnormal results included.
#[inline(always)]
fn half_power(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 => 0x0020_0000,
        1 => 0x0040_0000,
        _ => (u32::from(exponent) - 1) << 23,
    })
}

#[inline(always)]
fn decode(bytes: &[u8], values: &mut [f32]) {
    decode_blocks::<32, 17>(bytes, values, |raw, out| {
        let half = half_power(raw[0]);
        let value = |code: u8| {
            let level = DOUBLED[usize::from(code & 7)];
            f32::from(if code & 8 == 0 { level } else { -level }) * half
        };
        for j in 0..16 {
            out[j] = value(raw[1 + j] & 15);
            out[j + 16] = value(raw[1 + j] >> 4);
        }
    });
}

/// The levels ascending, doubled: what the sorted codes of the grid number.
static TABLE: [f32; 15] = [-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];

block_grid! {
    Mxfp4, 32 in 17, offsets false,
    |values: (&[f32], &[f32]), out: &mut Vec<Levels>| {
        out.extend(values.0.chunks(32).zip(values.1.chunks(32)).map(|(x, w)| fit_power(x, w)));
    },
    pack
}

/// The power of two of least weighted squared error among the one ggml takes and its neighbours.
fn fit_power(x: &[f32], w: &[f32]) -> Levels {
    let exponent = ((extreme(x).to_bits() >> 23) & 0xff).saturating_sub(2) as u8;
    let candidates = [exponent, exponent.saturating_sub(1), exponent.saturating_add(1)];
    let mut best: Option<(f32, Levels)> = None;
    for exponent in candidates {
        let levels = Levels::single(32, Table::Uneven(&TABLE), Store::Power, half_power(exponent), 0.0);
        let rungs = levels.rungs(0);
        let error = x.iter().zip(w).map(|(x, w)| w * (rungs.nearest(*x).1 - x).powi(2)).sum();
        if best.as_ref().is_none_or(|(least, _)| error < *least) {
            best = Some((error, levels));
        }
    }
    best.map_or_else(|| Levels::single(32, Table::Uneven(&TABLE), Store::Power, 0.0, 0.0), |(_, levels)| levels)
}

#[inline(always)]
fn pack(levels: &Levels, codes: &[u8; 32], out: &mut [u8; 17]) {
    // Twice the step is the power; its exponent field is what is stored.
    out[0] = ((levels.steps[0].to_bits() >> 23) + 1).min(254) as u8;
    let stored = |rank: u8| if rank < 7 { 8 | (7 - rank) } else { rank - 7 };
    for j in 0..16 {
        out[1 + j] = stored(codes[j]) | (stored(codes[j + 16]) << 4);
    }
}
