//! How far the logits of other models stray from those of a base, position by position, as a pass shows them.
//!
//! The divergence is over the whole vocabulary, without ever holding a row of it: with base logits a and another
//! model's logits b, KL(P‖Q) = Σᵢ pᵢ (aᵢ − bᵢ) − lse(a) + lse(b), and each of the three sums is kept online over the
//! chunks of the vocabulary, in double precision, relative to the largest logit so far.

use rayon::prelude::*;

use crate::engine::{LogitChunk, Observer, exponential_sum, exponentials, largest, weighted_difference};

/// A softmax over the chunks seen so far.
#[derive(Clone, Copy, Debug)]
struct Softmax {
    max: f64,
    /// Σ exp(logit − max).
    sum: f64,
    /// The token with the largest logit.
    top: usize,
}

impl Softmax {
    const START: Softmax = Softmax { max: f64::NEG_INFINITY, sum: 0.0, top: usize::MAX };

    /// Looks at the next chunk; returns the factor by which sums relative to the old maximum shrink.
    fn advance(&mut self, first_token: usize, logits: &[f32]) -> f64 {
        let (before, largest) = (self.max, largest(logits));
        if f64::from(largest) > before {
            let place = logits.iter().position(|&logit| logit == largest).unwrap_or(0);
            (self.max, self.top) = (f64::from(largest), first_token + place);
        }
        let shrink = (before - self.max).exp();
        self.sum *= shrink;
        shrink
    }

    fn log_sum(&self) -> f64 {
        self.max + self.sum.ln()
    }
}

/// Another model beside the base at one position.
#[derive(Clone, Copy, Debug)]
struct Joint {
    softmax: Softmax,
    /// Σ exp(a − max a) (a − b).
    gap: f64,
}

impl Joint {
    /// KL(base ‖ other) in nats; rounding below zero is zero.
    fn kld(&self, base: &Softmax) -> f64 {
        (self.gap / base.sum - base.log_sum() + self.softmax.log_sum()).max(0.0)
    }
}

/// The observer: one state per position and model, and the base's rectangle until the others' have come.
#[derive(Default)]
pub struct Meter {
    base: Vec<Softmax>,
    /// Factor by which each base sum shrank with the rectangle at hand, by position.
    shrink: Vec<f64>,
    others: Vec<Vec<Joint>>,
    rectangle: Vec<f32>,
    /// exp(logit − max) of the rectangle.
    weights: Vec<f64>,
}

impl Meter {
    /// For a pass of a base and `others` variants or models.
    pub fn new(others: usize) -> Self {
        Meter { others: vec![Vec::new(); others], ..Meter::default() }
    }

    /// Of the other with this number (from 0), at every position: KL(base ‖ other) in nats, and whether both rank the
    /// same token first (of equal logits the lowest token counts).
    pub fn positions(&self, other: usize) -> impl Iterator<Item = (f64, bool)> {
        let pairs = self.base.iter().zip(&self.others[other]);
        pairs.map(|(base, joint)| (joint.kld(base), base.top == joint.softmax.top))
    }
}

impl Observer for Meter {
    fn wants_logits(&self) -> bool {
        true
    }

    fn logits(&mut self, chunk: &LogitChunk<'_>) {
        let (first, width) = (chunk.vocab.start, chunk.vocab.len());
        let rows = chunk.first_position..chunk.first_position + chunk.rows;
        let states = rows.end.max(self.base.len());
        if chunk.variant == 0 {
            self.base.resize(states, Softmax::START);
            self.shrink.resize(states, 1.0);
            self.rectangle.clear();
            self.rectangle.extend_from_slice(chunk.values);
            self.weights.resize(chunk.values.len(), 0.0);
            let states = self.base[rows.clone()].par_iter_mut().zip(&mut self.shrink[rows]);
            let logits = chunk.values.par_chunks_exact(width).zip(self.weights.par_chunks_exact_mut(width));
            states.zip(logits).for_each(|((base, shrink), (logits, weights))| {
                *shrink = base.advance(first, logits);
                base.sum += exponentials(logits, base.max, weights);
            });
            return;
        }
        let other = &mut self.others[chunk.variant - 1];
        other.resize(states, Joint { softmax: Softmax::START, gap: 0.0 });
        let joints = other[rows.clone()].par_iter_mut().zip(&self.shrink[rows]);
        let ours = self.weights.par_chunks_exact(width).zip(self.rectangle.par_chunks_exact(width));
        joints.zip(ours.zip(chunk.values.par_chunks_exact(width))).for_each(
            |((joint, shrink), ((weights, ours), theirs))| {
                joint.softmax.advance(first, theirs);
                joint.softmax.sum += exponential_sum(theirs, joint.softmax.max);
                // Before the first chunk there is nothing to shrink (and the factor is 0).
                joint.gap = joint.gap * shrink + weighted_difference(weights, ours, theirs);
            },
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The divergence of two rows, each taken in as chunks of `chunk` logits.
    fn online(a: &[f32], b: &[f32], chunk: usize) -> (f64, bool) {
        let mut meter = Meter::new(1);
        for start in (0..a.len()).step_by(chunk) {
            let vocab = start..(start + chunk).min(a.len());
            for (variant, values) in [(0, &a[vocab.clone()]), (1, &b[vocab.clone()])] {
                meter.logits(&LogitChunk { variant, first_position: 0, rows: 1, vocab: vocab.clone(), values });
            }
        }
        meter.positions(0).next().unwrap()
    }

    fn dense(a: &[f32], b: &[f32]) -> f64 {
        let log_softmax = |row: &[f32]| -> Vec<f64> {
            let total: f64 = row.iter().map(|&v| f64::from(v).exp()).sum();
            row.iter().map(|&v| f64::from(v) - total.ln()).collect()
        };
        let (p, q) = (log_softmax(a), log_softmax(b));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum()
    }

    #[test]
    fn equal_rows_do_not_diverge_whatever_their_offset() {
        let row = [1.0f32, 2.0, -3.0, 0.5];
        let shifted: Vec<f32> = row.iter().map(|v| v + 4.0).collect();
        let (kld, same_top) = online(&row, &shifted, 3);
        assert!(kld < 1e-12 && same_top);
    }

    proptest! {
        #[test]
        fn chunks_give_what_whole_rows_give(
            pairs in prop::collection::vec((-30f32..30.0, -30f32..30.0), 2..60), chunk in 1usize..20
        ) {
            let (a, b): (Vec<f32>, Vec<f32>) = pairs.into_iter().unzip();
            let (kld, _) = online(&a, &b, chunk);
            let exact = dense(&a, &b);
            prop_assert!((kld - exact).abs() <= 1e-9 * (1.0 + exact), "{kld} and {exact}");
        }
    }
}
