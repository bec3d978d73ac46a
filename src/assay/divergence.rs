//! How far variants of a model stray from it: Kullback-Leibler divergence, agreement on the best token and perplexity,
//! from one pass in which every block and every part of the head is read once for all.
//!
//! The divergence is over the whole vocabulary, without ever holding a row of it: with base logits a and a variant's
//! logits b, KL(P‖Q) = Σᵢ pᵢ (aᵢ − bᵢ) − lse(a) + lse(b), and each of the three sums is kept online over the chunks of
//! the vocabulary, in double precision, relative to the largest logit so far.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::AssayError;
use crate::engine::{LogitChunk, Observer, PassOptions, PassProgress, Scoring, Subject, Variant, run_subject};
use crate::family::OpenModel;

/// What a variant loses against its base, on the same positions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Positions compared; each predicts the next token.
    pub positions: usize,
    /// Mean KL(base ‖ variant) per position, nats.
    pub kld: f64,
    /// Standard error of `kld`.
    pub kld_stderr: f64,
    /// Share of positions where both rank the same token first (of equal logits the lowest token counts).
    pub same_top: f64,
    pub base_perplexity: f64,
    pub perplexity: f64,
}

/// Compares each of `variants` with `model` on every position of `sequences` that has a next token.
///
/// # Errors
/// No position to score; a failing pass.
pub fn divergence(
    model: &OpenModel,
    variants: &[Variant],
    sequences: &[Vec<u32>],
    options: &PassOptions,
    progress: &dyn Fn(PassProgress),
) -> Result<Vec<Divergence>, AssayError> {
    let mut meter = Meter { variants: vec![Vec::new(); variants.len()], ..Meter::default() };
    let subject = Subject { variants, ..Subject::of(model) };
    let report = run_subject(&subject, sequences, Scoring::All, options, &mut [&mut meter], progress)?;
    if report.nll.is_empty() {
        return Err(AssayError::NothingScored);
    }
    let perplexity = |nll: &[f64]| (nll.iter().sum::<f64>() / nll.len() as f64).exp();
    let base_perplexity = perplexity(&report.nll);
    let all = meter.variants.iter().zip(&report.variant_nll);
    Ok(all.map(|(rows, nll)| summary(&meter.base, rows, base_perplexity, perplexity(nll))).collect())
}

fn summary(base: &[Softmax], variant: &[Joint], base_perplexity: f64, perplexity: f64) -> Divergence {
    let klds: Vec<f64> = base.iter().zip(variant).map(|(base, joint)| joint.kld(base)).collect();
    let count = klds.len() as f64;
    let kld = klds.iter().sum::<f64>() / count;
    let squares: f64 = klds.iter().map(|v| (v - kld).powi(2)).sum();
    let same = base.iter().zip(variant).filter(|(base, joint)| base.top == joint.softmax.top).count();
    Divergence {
        positions: klds.len(),
        kld,
        // One position has no deviation.
        kld_stderr: if klds.len() > 1 { (squares / (count - 1.0) / count).sqrt() } else { 0.0 },
        same_top: same as f64 / count,
        base_perplexity,
        perplexity,
    }
}

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

    /// Takes a chunk in; returns the factor by which sums relative to the old maximum shrink.
    fn join(&mut self, first_token: usize, logits: &[f32]) -> f64 {
        let (mut max, mut top) = (self.max, self.top);
        for (i, &logit) in logits.iter().enumerate() {
            if f64::from(logit) > max {
                (max, top) = (f64::from(logit), first_token + i);
            }
        }
        let shrink = (self.max - max).exp();
        let sum: f64 = logits.iter().map(|&logit| (f64::from(logit) - max).exp()).sum();
        *self = Softmax { max, sum: self.sum * shrink + sum, top };
        shrink
    }

    fn log_sum(&self) -> f64 {
        self.max + self.sum.ln()
    }
}

/// A variant beside its base at one position.
#[derive(Clone, Copy, Debug)]
struct Joint {
    softmax: Softmax,
    /// Σ exp(a − max a) (a − b).
    gap: f64,
}

impl Joint {
    /// KL(base ‖ variant); rounding below zero is zero.
    fn kld(&self, base: &Softmax) -> f64 {
        (self.gap / base.sum - base.log_sum() + self.softmax.log_sum()).max(0.0)
    }
}

/// The observer: one state per position and variant, and the base's rectangle until its variants' have come.
#[derive(Default)]
struct Meter {
    base: Vec<Softmax>,
    /// Factor by which each base sum shrank with the rectangle at hand, by position.
    shrink: Vec<f64>,
    variants: Vec<Vec<Joint>>,
    rectangle: Vec<f32>,
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
            let base = self.base[rows.clone()].par_iter_mut().zip(&mut self.shrink[rows]);
            base.zip(chunk.values.par_chunks_exact(width)).for_each(|((base, shrink), logits)| {
                *shrink = base.join(first, logits);
            });
            self.rectangle.clear();
            self.rectangle.extend_from_slice(chunk.values);
            return;
        }
        let variant = &mut self.variants[chunk.variant - 1];
        variant.resize(states, Joint { softmax: Softmax::START, gap: 0.0 });
        let joints = variant[rows.clone()].par_iter_mut().zip(&self.base[rows.clone()]).zip(&self.shrink[rows]);
        let logits = self.rectangle.par_chunks_exact(width).zip(chunk.values.par_chunks_exact(width));
        joints.zip(logits).for_each(|(((joint, base), shrink), (ours, theirs))| {
            joint.softmax.join(first, theirs);
            let gap = |(&a, &b): (&f32, &f32)| {
                let (a, b) = (f64::from(a), f64::from(b));
                (a - base.max).exp() * (a - b)
            };
            // Before the first chunk there is nothing to shrink (and the factor is 0).
            joint.gap = joint.gap * shrink + ours.iter().zip(theirs).map(gap).sum::<f64>();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The divergence of two rows, each taken in as chunks of `chunk` logits.
    fn online(a: &[f32], b: &[f32], chunk: usize) -> (f64, bool) {
        let mut meter = Meter { variants: vec![Vec::new()], ..Meter::default() };
        for start in (0..a.len()).step_by(chunk) {
            let vocab = start..(start + chunk).min(a.len());
            for (variant, values) in [(0, &a[vocab.clone()]), (1, &b[vocab.clone()])] {
                meter.logits(&LogitChunk { variant, first_position: 0, rows: 1, vocab: vocab.clone(), values });
            }
        }
        let joint = meter.variants[0][0];
        (joint.kld(&meter.base[0]), joint.softmax.top == meter.base[0].top)
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
