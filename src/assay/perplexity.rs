//! Perplexity: exp of the mean negative log-likelihood of a text's tokens.

use super::statistics::Mean;
use super::windows::{cut, sequences};
use super::{AssayError, Convention, Measurement, Request, Runner};
use crate::engine::{PassOptions, PassProgress, PassReport, run_pass};
use crate::family::OpenModel;

/// How the ids of a text are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PerplexityOptions {
    /// Window length in tokens.
    pub context: usize,
    pub convention: Convention,
    /// The token that llama.cpp puts in front of a text and of every window, if the model's tokenizer adds one.
    pub bos: Option<u32>,
}

/// The figures of one perplexity pass; see [`Measurement`] for their meaning.
#[derive(Clone, Debug, PartialEq)]
pub struct Score {
    pub tokens: usize,
    pub scored: usize,
    pub nll: f64,
    pub nll_stderr: f64,
    pub perplexity: f64,
    pub seconds: f64,
    pub tokens_per_s: f64,
    pub peak_rss_bytes: u64,
    pub predicted_peak_bytes: u64,
}

impl Score {
    /// `nll`: those of the model in question, of the pass that `report` tells of.
    pub(super) fn of(report: &PassReport, nll: &[f64]) -> Self {
        let mean = Mean::of(nll);
        Score {
            tokens: report.tokens,
            scored: nll.len(),
            nll: mean.value,
            nll_stderr: mean.stderr,
            perplexity: mean.value.exp(),
            seconds: report.seconds,
            tokens_per_s: report.tokens_per_s(),
            peak_rss_bytes: report.peak.unwrap_or_default().0,
            predicted_peak_bytes: report.predicted_peak.0,
        }
    }
}

/// Scores a text that is tokenised already, so that several models are measured on the same ids.
///
/// # Errors
/// A context the convention or the model cannot have, fewer ids than one window, or a failing pass.
pub fn perplexity(
    model: &OpenModel,
    ids: &[u32],
    options: PerplexityOptions,
    pass: &PassOptions,
    progress: &dyn Fn(PassProgress),
) -> Result<Score, AssayError> {
    let (tokens, scoring) = cut(model, ids, options, usize::MAX)?;
    let report = run_pass(model, &tokens, scoring, pass, &mut [], progress)?;
    Ok(Score::of(&report, &report.nll))
}

pub struct Perplexity;

impl Runner for Perplexity {
    fn name(&self) -> &'static str {
        "perplexity"
    }

    fn summary(&self) -> &'static str {
        "exp of the mean negative log-likelihood per token, with its standard error"
    }

    fn run(
        &self,
        model: &OpenModel,
        request: &Request<'_>,
        progress: &dyn Fn(PassProgress),
    ) -> Result<Measurement, AssayError> {
        let input = sequences(model, &request.data, request.limit)?;
        let report = run_pass(model, &input.tokens, input.scoring, &request.options, &mut [], progress)?;
        Ok(Measurement::of(self.name(), &input, Score::of(&report, &report.nll)))
    }
}
