//! The grids of GGUF's block formats: their searches with the codes left open, and packing what was chosen.

use half::f16;

use super::fit_affine::{Offsets, fit_affine};
use super::fit_linear::{LevelSet, Sign, fit_linear};
use super::lanes::{Blocks, LANES};
use super::levels::{Levels, MOST_PARTS, ScaleType, Store, Table};
use super::super_block::{AffineSearch, AffineSuper, LinearSearch, LinearSuper, SUPER, encode_affine, encode_linear};

pub(super) const F16_SCALE: Store = Store::Scale { kind: ScaleType::F16, signed: true };

/// One f16 scale per block of `N`; see [`fit_linear`].
#[inline(always)]
pub(super) fn fit_scales<S: LevelSet, const N: usize>(
    set: S,
    (values, weights): (&[f32], &[f32]),
    factors: &[f32],
    table: Table,
    out: &mut Vec<Levels>,
) {
    for (values, weights) in values.chunks(LANES * N).zip(weights.chunks(LANES * N)) {
        let lanes = Blocks::<N>::gather(values, weights);
        let fit = fit_linear(set, &lanes.x, &lanes.w, factors, Sign::Any);
        let scales = fit.scale.iter().take(values.len() / N);
        out.extend(scales.map(|&scale| Levels::single(N, table, F16_SCALE, scale, 0.0)));
    }
}

/// An f16 scale and an f16 offset per block of 32; see [`fit_affine`].
#[inline(always)]
pub(super) fn fit_scales_and_offsets(
    (values, weights): (&[f32], &[f32]),
    top: f32,
    trials: &[f32],
    out: &mut Vec<Levels>,
) {
    const N: usize = 32;
    for (values, weights) in values.chunks(LANES * N).zip(weights.chunks(LANES * N)) {
        let lanes = Blocks::<N>::gather(values, weights);
        let fit = fit_affine(&lanes.x, &lanes.w, top, trials, Offsets::Any);
        let (table, store) = (Table::Whole(0.0, top), Store::ScaleOffset { kind: ScaleType::F16 });
        let fits = fit.scale.iter().zip(&fit.offset).take(values.len() / N);
        out.extend(fits.map(|(&step, &offset)| Levels::single(N, table, store, step, offset)));
    }
}

/// Super-blocks with multiples for scales and offsets; see [`encode_affine`].
#[inline(always)]
pub(super) fn fit_affine_supers<const N: usize, const BLOCKS: usize>(
    (values, weights): (&[f32], &[f32]),
    search: &AffineSearch,
    out: &mut Vec<Levels>,
) {
    let supers = values.as_chunks::<SUPER>().0.iter().zip(weights.as_chunks::<SUPER>().0);
    for (values, weights) in supers {
        let best = encode_affine::<N, BLOCKS>(values, weights, search);
        let multiples = [padded(best.scales.map(i16::from)), padded(best.offsets.map(i16::from))];
        let store = Store::Multiples { low: 0.0, high: search.most, offsets: true };
        let head = [best.step.to_f32(), best.offset_step.to_f32()];
        out.push(Levels::shared(N, Table::Whole(0.0, search.top), store, head, multiples, BLOCKS));
    }
}

/// Super-blocks with multiples for scales; see [`encode_linear`].
#[inline(always)]
pub(super) fn fit_linear_supers<S: LevelSet, const N: usize, const BLOCKS: usize>(
    set: S,
    (values, weights): (&[f32], &[f32]),
    search: &LinearSearch,
    table: Table,
    out: &mut Vec<Levels>,
) {
    let supers = values.as_chunks::<SUPER>().0.iter().zip(weights.as_chunks::<SUPER>().0);
    for (values, weights) in supers {
        let best = encode_linear::<_, N, BLOCKS>(set, values, weights, search);
        let multiples = [padded(best.scales.map(i16::from)), [0; MOST_PARTS]];
        let store = Store::Multiples { low: search.low, high: search.high, offsets: false };
        out.push(Levels::shared(N, table, store, [best.step.to_f32(), 0.0], multiples, BLOCKS));
    }
}

/// The multiples of a group that has fewer parts than there may be.
#[inline(always)]
fn padded<const BLOCKS: usize>(multiples: [i16; BLOCKS]) -> [i16; MOST_PARTS] {
    std::array::from_fn(|part| multiples.get(part).copied().unwrap_or(0))
}

/// The stored scale of a group of one part.
#[inline(always)]
pub(super) fn scale_of(levels: &Levels) -> f16 {
    f16::from_f32(levels.head[0])
}

/// The stored offset of a group of one part.
#[inline(always)]
pub(super) fn offset_of(levels: &Levels) -> f16 {
    f16::from_f32(levels.head[1])
}

#[inline(always)]
pub(super) fn affine_super<const BLOCKS: usize>(levels: &Levels, codes: &[u8; SUPER]) -> AffineSuper<BLOCKS> {
    AffineSuper {
        step: scale_of(levels),
        offset_step: offset_of(levels),
        scales: std::array::from_fn(|part| levels.multiples[0][part] as u8),
        offsets: std::array::from_fn(|part| levels.multiples[1][part] as u8),
        codes: *codes,
    }
}

#[inline(always)]
pub(super) fn linear_super<const BLOCKS: usize>(levels: &Levels, codes: &[u8; SUPER]) -> LinearSuper<BLOCKS> {
    LinearSuper {
        step: scale_of(levels),
        scales: std::array::from_fn(|part| levels.multiples[0][part] as i8),
        codes: *codes,
    }
}

/// A codec's grid, made of `fit((values, weights), &mut levels)`, compiled for two processors, and
/// `pack(levels, codes, block)`.
macro_rules! block_grid {
    ($name:ident, $elems:literal in $bytes:literal, offsets $offsets:literal, $fit:expr, $pack:expr) => {
        impl super::Grid for $name {
            fn name(&self) -> String {
                super::Codec::name(self).to_owned()
            }
            fn group(&self) -> usize {
                $elems
            }
            fn row_bytes(&self, cols: usize) -> Option<usize> {
                cols.is_multiple_of($elems).then_some(cols / $elems * $bytes)
            }
            fn has_offsets(&self) -> bool {
                $offsets
            }
            fn fit(&self, values: &[f32], weights: &[f32], size: usize) -> Vec<super::Levels> {
                assert!(size == $elems && values.len().is_multiple_of(size) && values.len() == weights.len());
                let mut levels = Vec::with_capacity(values.len() / size);
                fit_groups(values, weights, &mut levels);
                levels
            }
            fn pack(&self, levels: &[super::Levels], codes: &[u8], row: &mut [u8]) {
                let (codes, rest) = codes.as_chunks::<$elems>();
                assert!(rest.is_empty() && levels.len() == codes.len() && row.len() == codes.len() * $bytes);
                for ((levels, codes), out) in levels.iter().zip(codes).zip(row.as_chunks_mut::<$bytes>().0) {
                    ($pack)(levels, codes, out);
                }
            }
            fn unpack(&self, row: &[u8], values: &mut [f32]) {
                super::Codec::decode(self, row, values);
            }
        }

        super::multiversion! {
            fn fit_groups(values: &[f32], weights: &[f32], out: &mut Vec<super::Levels>) = fit_groups_body
        }

        #[inline(always)]
        fn fit_groups_body(values: &[f32], weights: &[f32], out: &mut Vec<super::Levels>) {
            ($fit)((values, weights), out);
        }
    };
}
pub(super) use block_grid;
