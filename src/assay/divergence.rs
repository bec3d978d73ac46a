//! What a model loses against the one it was made from, on the same positions: Kullback-Leibler divergence, agreement on
//! the best token, change of the right token's probability, perplexity. Several models, or variants of one, are measured
//! in one pass; no logits are stored.

use serde::{Deserialize, Serialize};

use super::meter::Meter;
use super::perplexity::Score;
use super::statistics::{Mean, quantile};
use super::windows::common_sequences;
use super::{AssayError, Measurement, Request, Runner};
use crate::engine::{PassOptions, PassProgress, PassReport, Scoring, Subject, Variant, run_beside, run_subject};
use crate::family::OpenModel;

/// What a model loses against its base, on the same positions, in the terms of llama.cpp's `--kl-divergence`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Divergence {
    /// Positions compared; each predicts the next token.
    pub positions: usize,
    /// Mean KL(base ‖ model) per position, nats.
    pub kld: f64,
    /// Standard error of `kld`.
    pub kld_stderr: f64,
    /// Half of the positions diverge no more than this.
    pub kld_median: f64,
    /// 99 % of the positions diverge no more than this.
    pub kld_p99: f64,
    /// 99.9 % of the positions diverge no more than this.
    #[serde(rename = "kld_p99_9")]
    pub kld_p999: f64,
    pub kld_max: f64,
    /// Share of positions where both rank the same token first (of equal logits the lowest token counts), 0 to 1.
    pub same_top: f64,
    /// Standard error of `same_top`.
    pub same_top_stderr: f64,
    /// Root of the mean squared change of the probability of the token that really comes, 0 to 1.
    pub rms_delta_p: f64,
    pub base_perplexity: f64,
    pub perplexity: f64,
    /// ln(`perplexity` ÷ `base_perplexity`).
    pub ln_ratio: f64,
    /// Standard error of `ln_ratio`, from the differences position by position.
    pub ln_ratio_stderr: f64,
}

impl Divergence {
    /// Of the other with this number (from 0). `report` is the pass that `meter` watched.
    fn of(meter: &Meter, report: &PassReport, other: usize) -> Self {
        let (mut klds, same): (Vec<f64>, Vec<bool>) = meter.positions(other).unzip();
        let kld = Mean::of(&klds);
        klds.sort_by(f64::total_cmp);
        let same: Vec<f64> = same.into_iter().map(|same| f64::from(u8::from(same))).collect();
        let same_top = Mean::of(&same);
        let (base, nll) = (&report.nll, &report.variant_nll[other]);
        let pairs = || base.iter().zip(nll);
        let ratio = Mean::of(&pairs().map(|(base, nll)| nll - base).collect::<Vec<_>>());
        let change = Mean::of(&pairs().map(|(base, nll)| ((-nll).exp() - (-base).exp()).powi(2)).collect::<Vec<_>>());
        Divergence {
            positions: klds.len(),
            kld: kld.value,
            kld_stderr: kld.stderr,
            kld_median: quantile(&klds, 0.5),
            kld_p99: quantile(&klds, 0.99),
            kld_p999: quantile(&klds, 0.999),
            kld_max: quantile(&klds, 1.0),
            same_top: same_top.value,
            same_top_stderr: same_top.stderr,
            rms_delta_p: change.value.sqrt(),
            base_perplexity: Mean::of(base).value.exp(),
            perplexity: Mean::of(nll).value.exp(),
            ln_ratio: ratio.value,
            ln_ratio_stderr: ratio.stderr,
        }
    }
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
    let mut meter = Meter::new(variants.len());
    let subject = Subject { variants, ..Subject::of(model) };
    let report = run_subject(&subject, sequences, Scoring::All, options, &mut [&mut meter], progress)?;
    if report.nll.is_empty() {
        return Err(AssayError::NothingScored);
    }
    Ok((0..variants.len()).map(|other| Divergence::of(&meter, &report, other)).collect())
}

/// Compares each of `others` with `base`, in one pass on every position of `sequences` that has a next token: models
/// whose tensors are read another way, for instance.
///
/// # Errors
/// No position to score; vocabularies of different sizes; a failing pass.
pub fn diverge(
    base: &Subject<'_>,
    others: &[Subject<'_>],
    sequences: &[Vec<u32>],
    options: &PassOptions,
    progress: &dyn Fn(PassProgress),
) -> Result<Vec<Divergence>, AssayError> {
    let mut meter = Meter::new(others.len());
    let report = run_beside(base, others, sequences, Scoring::All, options, &mut [&mut meter], progress)?;
    if report.nll.is_empty() {
        return Err(AssayError::NothingScored);
    }
    Ok((0..others.len()).map(|other| Divergence::of(&meter, &report, other)).collect())
}

/// Measures `base` and each of `others` beside it, in one pass on the same tokens: first the base's measurement, then
/// one with a [`Divergence`] for each other model. Times and memory are those of the whole pass.
///
/// # Errors
/// The data cannot be used with one of the models, their tokenizers or vocabularies differ, or the pass fails.
pub fn compare(
    base: &OpenModel,
    others: &[&OpenModel],
    request: &Request<'_>,
    progress: &dyn Fn(PassProgress),
) -> Result<Vec<Measurement>, AssayError> {
    let input = common_sequences(base, others, &request.data, request.limit)?;
    let (first, options) = (Subject::of(base), &request.options);
    let beside: Vec<Subject<'_>> = others.iter().map(|other| Subject::of(other)).collect();
    let mut meter = Meter::new(others.len());
    let report = run_beside(&first, &beside, &input.tokens, input.scoring, options, &mut [&mut meter], progress)?;
    if report.nll.is_empty() {
        return Err(AssayError::NothingScored);
    }
    let runner = KlDivergence.name();
    let measured = |nll: &[f64]| Measurement::of(runner, &input, Score::of(&report, nll));
    let other = |(other, nll): (usize, &Vec<f64>)| Measurement {
        divergence: Some(Divergence::of(&meter, &report, other)),
        ..measured(nll)
    };
    let others = report.variant_nll.iter().enumerate().map(other);
    Ok(std::iter::once(measured(&report.nll)).chain(others).collect())
}

pub struct KlDivergence;

impl Runner for KlDivergence {
    fn name(&self) -> &'static str {
        "divergence"
    }

    fn summary(&self) -> &'static str {
        "KL divergence from another model, agreement on the best token, and perplexity of both"
    }

    fn compares(&self) -> bool {
        true
    }

    fn run(
        &self,
        model: &OpenModel,
        request: &Request<'_>,
        progress: &dyn Fn(PassProgress),
    ) -> Result<Measurement, AssayError> {
        let base = request.against.ok_or(AssayError::NoBase { runner: self.name() })?;
        let mut measured = compare(base, &[model], request, progress)?;
        measured.pop().ok_or(AssayError::NothingScored)
    }
}
