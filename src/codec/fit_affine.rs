//! The best scale and offset of blocks stored as `scale · q + offset` with whole q from 0 to `top`.
//!
//! Inverse scales around `top / (max − min)` are tried; for the codes each gives, scale and offset follow from weighted
//! least squares, and those of least weighted squared error stay (the search of llama.cpp's k-quants). The error comes
//! from the same sums as the solution, so every trial is one pass over the values.

use super::lanes::{LANES, Lanes, inverse, lanes, round, within};

/// Per block: the fit, and what it weighs.
pub(super) struct Affine {
    pub scale: Lanes,
    pub offset: Lanes,
    /// Σ w·q²: what an error of the scale costs.
    pub gain: Lanes,
    /// Σ w: what an error of the offset costs.
    pub mass: Lanes,
}

/// What offsets the format can store.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Offsets {
    Any,
    /// None above zero.
    Negative,
}

struct Totals {
    low: Lanes,
    high: Lanes,
    w: Lanes,
    wx: Lanes,
    wxx: Lanes,
}

/// Sums over the codes of one trial.
struct Codes {
    wq: Lanes,
    wqq: Lanes,
    wqx: Lanes,
}

/// Times the values are coded anew with the best fit so far and fitted again.
const REFITS: usize = 2;

/// `x` and `w`: values and the weights of their squared errors, eight blocks side by side. `trials` are added to `top`
/// before the division by the range.
#[inline(always)]
pub(super) fn fit_affine(x: &[Lanes], w: &[Lanes], top: f32, trials: &[f32], offsets: Offsets) -> Affine {
    let all = totals(x, w, offsets);
    let span = lanes(|l| inverse(all.high[l] - all.low[l]));
    let first = codes(x, w, &all.low, &lanes(|l| top * span[l]), top);
    let mut best =
        Affine { scale: lanes(|l| (all.high[l] - all.low[l]) / top), offset: all.low, gain: first.wqq, mass: all.w };
    let mut least = lanes(|l| error(&all, &first, l, best.scale[l], best.offset[l]));
    for step in 0..trials.len() + REFITS {
        let codes = match trials.get(step) {
            Some(trial) => codes(x, w, &all.low, &lanes(|l| (top + trial) * span[l]), top),
            None => codes(x, w, &best.offset, &lanes(|l| inverse(best.scale[l])), top),
        };
        for (l, least) in least.iter_mut().enumerate() {
            let (scale, offset) = solve(&all, &codes, l, offsets);
            let error = error(&all, &codes, l, scale, offset);
            // False for the NaN of a block of one code.
            let better = error < *least;
            *least = if better { error } else { *least };
            best.scale[l] = if better { scale } else { best.scale[l] };
            best.offset[l] = if better { offset } else { best.offset[l] };
            best.gain[l] = if better { codes.wqq[l] } else { best.gain[l] };
        }
    }
    best
}

#[inline(always)]
fn totals(x: &[Lanes], w: &[Lanes], offsets: Offsets) -> Totals {
    let first = x.first().copied().unwrap_or_default();
    let mut all = Totals { low: first, high: first, w: [0.0; 8], wx: [0.0; 8], wxx: [0.0; 8] };
    for (x, w) in x.iter().zip(w) {
        for l in 0..LANES {
            all.low[l] = if x[l] < all.low[l] { x[l] } else { all.low[l] };
            all.high[l] = if x[l] > all.high[l] { x[l] } else { all.high[l] };
            all.w[l] += w[l];
            all.wx[l] += w[l] * x[l];
            all.wxx[l] += w[l] * x[l] * x[l];
        }
    }
    if offsets == Offsets::Negative {
        all.low = lanes(|l| if all.low[l] < 0.0 { all.low[l] } else { 0.0 });
    }
    all
}

#[inline(always)]
fn codes(x: &[Lanes], w: &[Lanes], offset: &Lanes, inverse: &Lanes, top: f32) -> Codes {
    let mut sums = Codes { wq: [0.0; 8], wqq: [0.0; 8], wqx: [0.0; 8] };
    for (x, w) in x.iter().zip(w) {
        for l in 0..LANES {
            let q = round(within((x[l] - offset[l]) * inverse[l], 0.0, top));
            let wq = w[l] * q;
            sums.wq[l] += wq;
            sums.wqq[l] += wq * q;
            sums.wqx[l] += wq * x[l];
        }
    }
    sums
}

/// Scale and offset of least weighted squared error for given codes; NaN when the codes do not tell them apart.
#[inline(always)]
fn solve(all: &Totals, codes: &Codes, l: usize, offsets: Offsets) -> (f32, f32) {
    let product = all.w[l] * codes.wqq[l];
    let determinant = product - codes.wq[l] * codes.wq[l];
    // Below this the difference is rounding.
    let determinant = if determinant > 1e-5 * product { determinant } else { f32::NAN };
    let scale = (all.w[l] * codes.wqx[l] - all.wx[l] * codes.wq[l]) / determinant;
    let offset = (codes.wqq[l] * all.wx[l] - codes.wq[l] * codes.wqx[l]) / determinant;
    let clamped = offsets == Offsets::Negative && offset > 0.0;
    (if clamped { codes.wqx[l] / codes.wqq[l] } else { scale }, if clamped { 0.0 } else { offset })
}

/// Σ w·(scale·q + offset − x)².
#[inline(always)]
fn error(all: &Totals, codes: &Codes, l: usize, scale: f32, offset: f32) -> f32 {
    let by_scale = scale * (scale * codes.wqq[l] - 2.0 * codes.wqx[l]);
    let by_offset = offset * (offset * all.w[l] + 2.0 * (scale * codes.wq[l] - all.wx[l]));
    all.wxx[l] + by_scale + by_offset
}
