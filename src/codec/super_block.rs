//! Super-blocks of 256 values: sub-blocks whose scales (and offsets) are whole multiples of one f16 step.
//!
//! The sub-blocks are fitted on their own, the step is fitted to their scales, and then each sub-block takes, of the two
//! multiples around its scale (and of those of its offset), the one that leaves least error with its values coded anew.

use half::f16;

use super::fit_affine::{Offsets, fit_affine};
use super::fit_linear::{LevelSet, Sign, fit_linear, linear_errors};
use super::lanes::{Blocks, LANES, Lanes, byte, inverse, lanes, round, within};

pub(super) const SUPER: usize = 256;

/// An f16 that stays finite.
pub(super) fn finite_f16(v: f32) -> f16 {
    f16::from_f32(within(v, -65504.0, 65504.0))
}

/// A super-block of sub-blocks `step · scale · q − offset_step · offset`; `BLOCKS` sub-blocks.
pub(super) struct AffineSuper<const BLOCKS: usize> {
    pub step: f16,
    pub offset_step: f16,
    pub scales: [u8; BLOCKS],
    pub offsets: [u8; BLOCKS],
    /// q of every value, in order.
    pub codes: [u8; SUPER],
}

/// How an affine format searches.
pub(super) struct AffineSearch {
    /// The largest q.
    pub top: f32,
    /// The largest multiple a scale or an offset can be.
    pub most: f32,
    /// See [`fit_affine`].
    pub trials: &'static [f32],
}

/// `N · BLOCKS` is 256.
#[inline(always)]
pub(super) fn encode_affine<const N: usize, const BLOCKS: usize>(
    values: &[f32; SUPER],
    weights: &[f32; SUPER],
    search: &AffineSearch,
) -> AffineSuper<BLOCKS> {
    let (mut scales, mut offsets) = ([0f32; BLOCKS], [0f32; BLOCKS]);
    let (mut gains, mut masses) = ([0f32; BLOCKS], [0f32; BLOCKS]);
    for first in (0..BLOCKS).step_by(LANES) {
        let blocks = Blocks::<N>::gather(&values[first * N..], &weights[first * N..]);
        let fit = fit_affine(&blocks.x, &blocks.w, search.top, search.trials, Offsets::Negative);
        scales[first..first + LANES].copy_from_slice(&fit.scale);
        offsets[first..first + LANES].copy_from_slice(&lanes(|l| -fit.offset[l]));
        gains[first..first + LANES].copy_from_slice(&fit.gain);
        masses[first..first + LANES].copy_from_slice(&fit.mass);
    }
    let mut out = AffineSuper {
        step: fit_step(&scales, &gains, 0.0, search.most),
        offset_step: fit_step(&offsets, &masses, 0.0, search.most),
        scales: [0; BLOCKS],
        offsets: [0; BLOCKS],
        codes: [0; SUPER],
    };
    let (step, offset_step) = (out.step.to_f32(), out.offset_step.to_f32());
    for first in (0..BLOCKS).step_by(LANES) {
        let blocks = Blocks::<N>::gather(&values[first * N..], &weights[first * N..]);
        let fitted = lanes(|l| offsets[first + l]);
        let below = lanes(|l| within(scales[first + l] * inverse(step), 0.0, search.most).floor());
        let (mut scale, mut offset, mut least) = (below, [0f32; LANES], [f32::INFINITY; LANES]);
        for up in [-1.0, 0.0, 1.0, 2.0] {
            let try_scale = lanes(|l| within(below[l] + up, 0.0, search.most));
            let real_scale = lanes(|l| step * try_scale[l]);
            let real = best_offset(&blocks, &real_scale, &fitted, search.top);
            for beside in [-1.0, 0.0, 1.0] {
                let try_offset = lanes(|l| round(within(real[l] * inverse(offset_step) + beside, 0.0, search.most)));
                let real_offset = lanes(|l| offset_step * try_offset[l]);
                let errors = affine_errors(&blocks, &real_scale, &real_offset, search.top);
                for l in 0..LANES {
                    let better = errors[l] < least[l];
                    least[l] = if better { errors[l] } else { least[l] };
                    scale[l] = if better { try_scale[l] } else { scale[l] };
                    offset[l] = if better { try_offset[l] } else { offset[l] };
                }
            }
        }
        for l in 0..LANES {
            let block = first + l;
            (out.scales[block], out.offsets[block]) = (byte(scale[l]), byte(offset[l]));
            let (offset, inverse) = (offset_step * offset[l], inverse(step * scale[l]));
            let span = block * N..(block + 1) * N;
            for (q, x) in out.codes[span.clone()].iter_mut().zip(&values[span]) {
                *q = byte(round(within((x + offset) * inverse, 0.0, search.top)));
            }
        }
    }
    out
}

/// The offset (subtracted) of least weighted squared error for values coded under `scale` and `offset`.
#[inline(always)]
fn best_offset<const N: usize>(blocks: &Blocks<N>, scale: &Lanes, offset: &Lanes, top: f32) -> Lanes {
    let unit = lanes(|l| inverse(scale[l]));
    let (mut over, mut mass) = ([0f32; LANES], [0f32; LANES]);
    for (x, w) in blocks.x.iter().zip(&blocks.w) {
        for l in 0..LANES {
            let q = round(within((x[l] + offset[l]) * unit[l], 0.0, top));
            over[l] += w[l] * (scale[l] * q - x[l]);
            mass[l] += w[l];
        }
    }
    lanes(|l| over[l] * inverse(mass[l]))
}

/// Σ w·(scale·q − offset − x)² of every sub-block.
#[inline(always)]
fn affine_errors<const N: usize>(blocks: &Blocks<N>, scale: &Lanes, offset: &Lanes, top: f32) -> Lanes {
    let unit = lanes(|l| inverse(scale[l]));
    let mut errors = [0f32; LANES];
    for (x, w) in blocks.x.iter().zip(&blocks.w) {
        for l in 0..LANES {
            let shifted = x[l] + offset[l];
            let off = scale[l] * round(within(shifted * unit[l], 0.0, top)) - shifted;
            errors[l] += w[l] * off * off;
        }
    }
    errors
}

/// A super-block of sub-blocks `step · scale · level`.
pub(super) struct LinearSuper<const BLOCKS: usize> {
    pub step: f16,
    /// Between the bounds of the search.
    pub scales: [i8; BLOCKS],
    /// What is stored for every value, in order.
    pub codes: [u8; SUPER],
}

/// How a format without offsets searches.
pub(super) struct LinearSearch {
    /// See [`fit_linear`].
    pub factors: &'static [f32],
    /// The multiples a scale can be.
    pub low: f32,
    pub high: f32,
}

/// `N · BLOCKS` is 256.
#[inline(always)]
pub(super) fn encode_linear<S: LevelSet, const N: usize, const BLOCKS: usize>(
    set: S,
    values: &[f32; SUPER],
    weights: &[f32; SUPER],
    search: &LinearSearch,
) -> LinearSuper<BLOCKS> {
    let (mut scales, mut gains) = ([0f32; BLOCKS], [0f32; BLOCKS]);
    for first in (0..BLOCKS).step_by(LANES) {
        let blocks = Blocks::<N>::gather(&values[first * N..], &weights[first * N..]);
        let fit = fit_linear(set, &blocks.x, &blocks.w, search.factors, Sign::Any);
        scales[first..first + LANES].copy_from_slice(&fit.scale);
        gains[first..first + LANES].copy_from_slice(&fit.gain);
    }
    let step = fit_step(&scales, &gains, search.low, search.high);
    let mut out = LinearSuper { step, scales: [0; BLOCKS], codes: [0; SUPER] };
    let step = step.to_f32();
    for first in (0..BLOCKS).step_by(LANES) {
        let blocks = Blocks::<N>::gather(&values[first * N..], &weights[first * N..]);
        let below = lanes(|l| within(scales[first + l] * inverse(step), search.low, search.high).floor());
        let above = lanes(|l| within(below[l] + 1.0, search.low, search.high));
        let at_below = linear_errors(set, &blocks.x, &blocks.w, &lanes(|l| step * below[l]));
        let at_above = linear_errors(set, &blocks.x, &blocks.w, &lanes(|l| step * above[l]));
        for l in 0..LANES {
            let block = first + l;
            let scale = if at_above[l] < at_below[l] { above[l] } else { below[l] };
            out.scales[block] = byte(scale + 128.0).wrapping_sub(128) as i8;
            let inverse = inverse(step * scale);
            let span = block * N..(block + 1) * N;
            for (q, x) in out.codes[span.clone()].iter_mut().zip(&values[span]) {
                *q = set.code(x * inverse);
            }
        }
    }
    out
}

/// The step of which `numbers` are best taken for whole multiples from `low` to `high`, an error of number i costing
/// `costs[i]` per square. With `low` below zero the number of largest magnitude tends to become `low`.
#[inline(always)]
fn fit_step(numbers: &[f32], costs: &[f32], low: f32, high: f32) -> f16 {
    let extreme = numbers.iter().fold(0f32, |extreme, &n| if n.abs() > extreme.abs() { n } else { extreme });
    let bound = if low < 0.0 { low } else { high };
    let (mut step, mut most) = (extreme / bound, 0f32);
    for trial in -4..5i8 {
        let unit = inverse(extreme) * bound * (1.0 + 0.25 * f32::from(trial) / bound.abs());
        let (mut gain, mut product) = (0f32, 0f32);
        for (n, cost) in numbers.iter().zip(costs) {
            let whole = round(within(n * unit, low, high));
            gain += cost * whole * whole;
            product += cost * whole * n;
        }
        let taken = product / gain * product;
        if taken > most {
            (step, most) = (product / gain, taken);
        }
    }
    finite_f16(step)
}
