//! The best scale of blocks stored as `scale · level`, the levels being a fixed set.
//!
//! Inverse scales are tried, each a factor over the value of largest magnitude (with its sign); for the levels each
//! gives, the scale follows from weighted least squares. The scale may be negative: sets of levels are lopsided.

use super::lanes::{LANES, Lanes, inverse, lanes, round, within};

/// A set of levels.
pub(super) trait LevelSet: Copy {
    /// The level nearest to `v`.
    fn nearest(self, v: f32) -> f32;
    /// What is stored for the level nearest to `v`.
    fn code(self, v: f32) -> u8;
}

/// Whole numbers from `LOW` to `HIGH`, stored as their distance from `LOW`.
#[derive(Clone, Copy)]
pub(super) struct Whole<const LOW: i8, const HIGH: i8>;

impl<const LOW: i8, const HIGH: i8> LevelSet for Whole<LOW, HIGH> {
    #[inline(always)]
    fn nearest(self, v: f32) -> f32 {
        round(within(v, f32::from(LOW), f32::from(HIGH)))
    }
    #[inline(always)]
    fn code(self, v: f32) -> u8 {
        super::lanes::byte(self.nearest(v) - f32::from(LOW))
    }
}

/// Whole numbers between bounds known at run time.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub low: f32,
    pub high: f32,
}

impl LevelSet for Span {
    #[inline(always)]
    fn nearest(self, v: f32) -> f32 {
        round(within(v, self.low, self.high))
    }
    #[inline(always)]
    fn code(self, v: f32) -> u8 {
        super::lanes::byte(self.nearest(v) - self.low)
    }
}

/// What scales the format can store.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Sign {
    Any,
    Positive,
}

/// Per block: the scale, and Σ w·level², which is what an error of the scale costs.
pub(super) struct Linear {
    pub scale: Lanes,
    pub gain: Lanes,
}

/// Times the values are coded anew with the best scale so far and the scale is fitted again.
const REFITS: usize = 2;

/// `x` and `w`: values and the weights of their squared errors, eight blocks side by side.
#[inline(always)]
pub(super) fn fit_linear<S: LevelSet>(set: S, x: &[Lanes], w: &[Lanes], factors: &[f32], sign: Sign) -> Linear {
    let mut extreme = [0f32; LANES];
    for x in x {
        for l in 0..LANES {
            extreme[l] = if x[l].abs() > extreme[l].abs() { x[l] } else { extreme[l] };
        }
    }
    if sign == Sign::Positive {
        extreme = extreme.map(f32::abs);
    }
    let unit = lanes(|l| inverse(extreme[l]));
    let mut best = Linear { scale: [0.0; LANES], gain: [0.0; LANES] };
    let mut most = [0f32; LANES];
    for step in 0..factors.len() + REFITS {
        let unit = match factors.get(step) {
            Some(factor) => lanes(|l| factor * unit[l]),
            None => lanes(|l| inverse(best.scale[l])),
        };
        let (mut wqq, mut wqx) = ([0f32; LANES], [0f32; LANES]);
        for (x, w) in x.iter().zip(w) {
            for l in 0..LANES {
                let q = set.nearest(x[l] * unit[l]);
                let wq = w[l] * q;
                wqq[l] += wq * q;
                wqx[l] += wq * x[l];
            }
        }
        for l in 0..LANES {
            // How much squared error the best scale for these levels takes away; NaN when all levels are zero.
            let scale = wqx[l] / wqq[l];
            let taken = scale * wqx[l];
            let better = taken > most[l];
            most[l] = if better { taken } else { most[l] };
            best.scale[l] = if better { scale } else { best.scale[l] };
            best.gain[l] = if better { wqq[l] } else { best.gain[l] };
        }
    }
    best
}

/// Σ w·(scale·level − x)² of every block under these scales, each value at its nearest level.
#[inline(always)]
pub(super) fn linear_errors<S: LevelSet>(set: S, x: &[Lanes], w: &[Lanes], scale: &Lanes) -> Lanes {
    let unit = lanes(|l| inverse(scale[l]));
    let mut errors = [0f32; LANES];
    for (x, w) in x.iter().zip(w) {
        for l in 0..LANES {
            let off = scale[l] * set.nearest(x[l] * unit[l]) - x[l];
            errors[l] += w[l] * off * off;
        }
    }
    errors
}
