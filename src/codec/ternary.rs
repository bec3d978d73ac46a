//! The scale of a block of values −1, 0, +1 times one number.

use half::f16;

use super::lanes::{LANES, byte, extreme, inverse, round, within};
use super::levels::{Levels, ScaleType, Store, Table};
use super::super_block::{SUPER, finite_f16};
use super::weights::{Plain, weigh};

/// Inverse scales that are tried, over the largest magnitude: the first is that of values which are ternary already.
const FACTORS: [f32; 10] = [1.0, 1.3, 1.6, 1.9, 2.2, 2.6, 3.1, 4.0, 6.0, 12.0];

/// Scale and codes (value + 1) of least weighted squared error. Values that are ternary already keep their magnitude.
#[inline(always)]
pub(super) fn ternary(values: &[f32; SUPER], importance: Option<&[f32]>) -> (f16, [u8; SUPER]) {
    let largest = extreme(values).abs();
    let mut weights = [1f32; SUPER];
    if importance.is_some() {
        weigh(values, importance, Plain::Square, &mut weights);
    }
    let is_ternary = values.iter().all(|v| v.abs() == largest || *v == 0.0);
    let scale = if is_ternary { largest } else { fit(values, &weights, inverse(largest)) };
    let unit = inverse(scale);
    let mut codes = [0; SUPER];
    for (code, v) in codes.iter_mut().zip(values) {
        *code = byte(level(v * unit) + 1.0);
    }
    (finite_f16(scale), codes)
}

#[inline(always)]
fn fit(values: &[f32; SUPER], weights: &[f32; SUPER], unit: f32) -> f32 {
    let (mut best, mut most) = (0f32, 0f32);
    // After the factors four steps towards a fixed point: the mean of the values above half the scale is the scale.
    for step in 0..FACTORS.len() + 4 {
        let unit = FACTORS.get(step).map_or(inverse(best), |factor| factor * unit);
        let (gain, product) = sums(values, weights, unit);
        let scale = product / gain;
        let taken = scale * product;
        if taken > most {
            (best, most) = (scale, taken);
        }
    }
    best
}

/// Σ w·level² and Σ w·level·x, in eight partial sums.
#[inline(always)]
fn sums(values: &[f32; SUPER], weights: &[f32; SUPER], unit: f32) -> (f32, f32) {
    let (mut gain, mut product) = ([0f32; LANES], [0f32; LANES]);
    for (x, w) in values.as_chunks::<LANES>().0.iter().zip(weights.as_chunks::<LANES>().0) {
        for l in 0..LANES {
            let q = level(x[l] * unit);
            gain[l] += w[l] * q * q;
            product[l] += w[l] * q * x[l];
        }
    }
    (gain.iter().sum(), product.iter().sum())
}

#[inline(always)]
fn level(v: f32) -> f32 {
    round(within(v, -1.0, 1.0))
}

/// Levels −1, 0, +1 of least weighted squared error.
pub(super) fn ternary_levels(values: &[f32], weights: &[f32]) -> Levels {
    let scale = best_ternary_scale(values, weights);
    let store = Store::Scale { kind: ScaleType::F16, signed: false };
    Levels::single(values.len(), Table::Whole(-1.0, 1.0), store, scale, 0.0)
}

/// The scale of least weighted squared error, exactly: whatever it is, the values beyond half of it take it, so with the
/// magnitudes in falling order the best set is the first k for the k of largest `(Σ w|x|)² / Σ w`.
pub(super) fn best_ternary_scale(values: &[f32], weights: &[f32]) -> f32 {
    let mut order: Vec<(f32, f32)> = values.iter().zip(weights).map(|(x, w)| (x.abs(), *w)).collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0));
    let (mut mass, mut product, mut best, mut most) = (0f64, 0f64, 0f64, 0f64);
    for (x, w) in order {
        mass += f64::from(w);
        product += f64::from(w) * f64::from(x);
        let taken = product * product / mass;
        if taken > most {
            (best, most) = (product / mass, taken);
        }
    }
    best as f32
}
