//! What the block formats share: cutting slices into blocks, and the registered item around two functions.

use half::f16;

use super::fit_affine::{Offsets, fit_affine};
use super::fit_linear::{LevelSet, Sign, fit_linear};
use super::lanes::{Blocks, LANES, byte, inverse, round, within};
use super::super_block::finite_f16;
use super::weights::{Plain, weigh};

/// Encodes block by block. `importance`, where given, has one number per value.
#[inline(always)]
pub(super) fn encode_blocks<const ELEMS: usize, const BYTES: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    bytes: &mut [u8],
    each: impl Fn(&[f32; ELEMS], Option<&[f32]>, &mut [u8; BYTES]),
) {
    let (blocks, rest) = values.as_chunks::<ELEMS>();
    assert!(rest.is_empty() && bytes.len() == blocks.len() * BYTES, "whole blocks in and out");
    for (i, (block, out)) in blocks.iter().zip(bytes.as_chunks_mut::<BYTES>().0).enumerate() {
        each(block, importance.map(|all| &all[i * ELEMS..(i + 1) * ELEMS]), out);
    }
}

#[inline(always)]
pub(super) fn decode_blocks<const ELEMS: usize, const BYTES: usize>(
    bytes: &[u8],
    values: &mut [f32],
    each: impl Fn(&[u8; BYTES], &mut [f32; ELEMS]),
) {
    let (blocks, rest) = values.as_chunks_mut::<ELEMS>();
    assert!(rest.is_empty() && bytes.len() == blocks.len() * BYTES, "whole blocks in and out");
    for (block, raw) in blocks.iter_mut().zip(bytes.as_chunks::<BYTES>().0) {
        each(raw, block);
    }
}

/// The f16 at these two bytes.
#[inline(always)]
pub(super) fn f16_at(raw: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([raw[at], raw[at + 1]]).to_f32()
}

#[inline(always)]
pub(super) fn put_f16(raw: &mut [u8], at: usize, v: f16) {
    raw[at..at + 2].copy_from_slice(&v.to_le_bytes());
}

/// 32 codes of 4 bits in 16 bytes: element j in the low nibble of byte j, element j + 16 in its high one.
#[inline(always)]
pub(super) fn put_nibbles(codes: &[u8; 32], out: &mut [u8]) {
    for j in 0..16 {
        out[j] = codes[j] | (codes[j + 16] << 4);
    }
}

/// Finds a scale for every block of `N` values and has `each` write the codes it gives.
#[inline(always)]
pub(super) fn encode_fitted<S: LevelSet, const N: usize, const BYTES: usize>(
    set: S,
    values: &[f32],
    importance: Option<&[f32]>,
    bytes: &mut [u8],
    factors: &[f32],
    each: impl Fn(&[u8; N], f16, &mut [u8; BYTES]),
) {
    assert!(values.len().is_multiple_of(N) && bytes.len() == values.len() / N * BYTES, "whole blocks in and out");
    let mut weights = vec![0f32; values.len()];
    weigh(values, importance, Plain::RmsPlusMagnitude(N), &mut weights);
    let groups = values.chunks(LANES * N).zip(weights.chunks(LANES * N)).zip(bytes.chunks_mut(LANES * BYTES));
    for ((values, weights), bytes) in groups {
        let lanes = Blocks::<N>::gather(values, weights);
        let fit = fit_linear(set, &lanes.x, &lanes.w, factors, Sign::Any);
        let blocks = values.as_chunks::<N>().0.iter().zip(bytes.as_chunks_mut::<BYTES>().0);
        for ((block, out), &scale) in blocks.zip(&fit.scale) {
            let scale = finite_f16(scale);
            let unit = inverse(scale.to_f32());
            each(&block.map(|x| set.code(x * unit)), scale, out);
        }
    }
}

/// Finds a scale and an offset (added) for every block of 32 values and has `each` write the codes they give.
#[inline(always)]
pub(super) fn encode_fitted_affine<const BYTES: usize>(
    values: &[f32],
    importance: &[f32],
    bytes: &mut [u8],
    (top, trials): (f32, &[f32]),
    each: impl Fn(&[u8; 32], f16, f16, &mut [u8; BYTES]),
) {
    const N: usize = 32;
    assert!(values.len().is_multiple_of(N) && bytes.len() == values.len() / N * BYTES, "whole blocks in and out");
    let mut weights = vec![0f32; values.len()];
    weigh(values, Some(importance), Plain::RmsPlusMagnitude(N), &mut weights);
    let groups = values.chunks(LANES * N).zip(weights.chunks(LANES * N)).zip(bytes.chunks_mut(LANES * BYTES));
    for ((values, weights), bytes) in groups {
        let lanes = Blocks::<N>::gather(values, weights);
        let fit = fit_affine(&lanes.x, &lanes.w, top, trials, Offsets::Any);
        let blocks = values.as_chunks::<N>().0.iter().zip(bytes.as_chunks_mut::<BYTES>().0);
        for (lane, (block, out)) in blocks.enumerate() {
            let (scale, offset) = (finite_f16(fit.scale[lane]), finite_f16(fit.offset[lane]));
            let (unit, low) = (inverse(scale.to_f32()), offset.to_f32());
            each(&block.map(|x| byte(round(within((x - low) * unit, 0.0, top)))), scale, offset, out);
        }
    }
}

/// A codec made of `encode(values, importance, bytes)` and `decode(bytes, values)`, both compiled for two processors.
macro_rules! block_codec {
    ($(#[$doc:meta])* pub struct $name:ident = $dtype:expr, $summary:literal, up to $max:expr, $encode:ident, $decode:ident) => {
        $(#[$doc])*
        pub struct $name;

        impl super::Codec for $name {
            fn dtype(&self) -> super::Dtype {
                $dtype
            }
            fn summary(&self) -> &'static str {
                $summary
            }
            fn max_magnitude(&self) -> f32 {
                $max
            }
            fn encode(&self, values: &[f32], bytes: &mut [u8]) {
                quantize(values, None, bytes);
            }
            fn encode_weighted(&self, values: &[f32], importance: &[f32], bytes: &mut [u8]) {
                assert_eq!(values.len(), importance.len(), "one importance per value");
                quantize(values, Some(importance), bytes);
            }
            fn decode(&self, bytes: &[u8], values: &mut [f32]) {
                dequantize(bytes, values);
            }
            fn grid(&self) -> Option<&dyn super::Grid> {
                Some(self)
            }
        }

        super::multiversion! {
            fn quantize(values: &[f32], importance: Option<&[f32]>, bytes: &mut [u8]) = $encode
        }
        super::multiversion! {
            fn dequantize(bytes: &[u8], values: &mut [f32]) = $decode
        }

        #[cfg(test)]
        #[test]
        fn both_compilations_agree_to_the_bit() {
            super::tests::same_everywhere(&$name, $encode, $decode);
        }
    };
}
pub(super) use block_codec;
