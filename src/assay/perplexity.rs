//! Perplexity: exp of the mean negative log-likelihood of a text's tokens.

use super::windows::sequences;
use super::{AssayError, Measurement, Request, Runner};
use crate::engine::{PassProgress, run_pass};
use crate::family::OpenModel;

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
        let nll = report.mean_nll();
        Ok(Measurement {
            runner: self.name().to_owned(),
            convention: input.convention.to_owned(),
            context: input.context,
            tokens: report.tokens,
            scored: report.nll.len(),
            nll,
            nll_stderr: report.nll_stderr(),
            perplexity: nll.exp(),
            seconds: report.seconds,
            tokens_per_s: report.tokens_per_s(),
            peak_rss_bytes: report.peak.unwrap_or_default().0,
            predicted_peak_bytes: report.predicted_peak.0,
            data_sha256: input.data_sha256,
            model_hash: request.model_hash,
        })
    }
}
