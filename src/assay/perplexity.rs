//! Perplexity: exp of the mean negative log-likelihood of a text's tokens.

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
    fn of(report: &PassReport) -> Self {
        let nll = report.mean_nll();
        Score {
            tokens: report.tokens,
            scored: report.nll.len(),
            nll,
            nll_stderr: report.nll_stderr(),
            perplexity: nll.exp(),
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
    Ok(Score::of(&run_pass(model, &tokens, scoring, pass, &mut [], progress)?))
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
        request: &Request,
        progress: &dyn Fn(PassProgress),
    ) -> Result<Measurement, AssayError> {
        let input = sequences(model, &request.data, request.limit)?;
        let report = run_pass(model, &input.tokens, input.scoring, &request.options, &mut [], progress)?;
        let score = Score::of(&report);
        Ok(Measurement {
            runner: self.name().to_owned(),
            convention: input.convention.to_owned(),
            context: input.context,
            tokens: score.tokens,
            scored: score.scored,
            nll: score.nll,
            nll_stderr: score.nll_stderr,
            perplexity: score.perplexity,
            seconds: score.seconds,
            tokens_per_s: score.tokens_per_s,
            peak_rss_bytes: score.peak_rss_bytes,
            predicted_peak_bytes: score.predicted_peak_bytes,
            data_sha256: input.data_sha256,
            model_hash: request.model_hash,
        })
    }
}
