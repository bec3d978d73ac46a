//! The assay: runners that measure a model and change nothing.
//!
//! Enters: an open model, a [`Request`] (what to measure it on). Leaves: a [`Measurement`], the same fields for every
//! caller (`foreman assay`, the eval stage, the gate). A new runner is one file and one line in [`RUNNERS`].

mod error;
mod meter;
mod statistics;
mod windows;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

pub use divergence::{Divergence, compare, diverge, divergence};
pub use error::AssayError;
pub use perplexity::{PerplexityOptions, Score, perplexity};

use crate::engine::{PassOptions, PassProgress};
use crate::family::OpenModel;
use crate::units::{Bytes, Sha};

/// Something that measures a model.
pub trait Runner: Sync {
    /// Name in recipes and on the command line.
    fn name(&self) -> &'static str;
    /// One line: what the figure means.
    fn summary(&self) -> &'static str;
    /// Measures a model against another, [`Request::against`].
    fn compares(&self) -> bool {
        false
    }
    /// Measures.
    ///
    /// # Errors
    /// The data cannot be used with this model, or the pass fails.
    fn run(
        &self,
        model: &OpenModel,
        request: &Request<'_>,
        progress: &dyn Fn(PassProgress),
    ) -> Result<Measurement, AssayError>;
}

crate::registry! {
    /// Every runner of this build.
    pub RUNNERS: dyn Runner {
        perplexity => Perplexity,
        divergence => KlDivergence,
    }
}

/// The runner with this name.
///
/// # Errors
/// There is none; the error lists those there are.
pub fn runner(name: &str) -> Result<&'static dyn Runner, AssayError> {
    let found = RUNNERS.iter().copied().find(|r| r.name() == name);
    found.ok_or_else(|| AssayError::UnknownRunner {
        name: name.to_owned(),
        known: RUNNERS.iter().map(|r| r.name()).collect::<Vec<_>>().join(", "),
    })
}

/// What a model is measured on.
#[derive(Clone, Debug)]
pub enum Data {
    /// A UTF-8 text, tokenised whole and cut into windows.
    Text { path: PathBuf, context: usize, convention: Convention },
    /// A JSON list of lists of token ids; each is one sequence, scored from its second token.
    TokenIds { path: PathBuf },
}

/// How a text is cut and which of its tokens count. Figures of different conventions cannot be compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Convention {
    /// Windows of N tokens without overlap; every token but a window's first is scored.
    #[serde(rename = "windowed")]
    Windowed,
    /// As llama.cpp's perplexity tool: windows of N, the first token replaced by the beginning-of-text token if the
    /// tokenizer adds one, and only the second half scored.
    #[serde(rename = "llama.cpp")]
    LlamaCpp,
}

impl Convention {
    pub const ALL: [Convention; 2] = [Convention::Windowed, Convention::LlamaCpp];

    pub fn as_str(self) -> &'static str {
        match self {
            Convention::Windowed => "windowed",
            Convention::LlamaCpp => "llama.cpp",
        }
    }

    /// The convention with this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|c| c.as_str() == name)
    }
}

/// One measurement to make.
#[derive(Clone)]
pub struct Request<'a> {
    pub data: Data,
    /// The model to compare with, for a runner that compares.
    pub against: Option<&'a OpenModel>,
    /// At most this many windows or sequences, from the start.
    pub limit: Option<usize>,
    pub options: PassOptions,
}

/// A figure with everything needed to compare or repeat it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Measurement {
    pub runner: String,
    /// `windowed`, `llama.cpp` or `token-ids`.
    pub convention: String,
    /// Window length in tokens; the longest sequence for token ids.
    pub context: usize,
    /// Tokens that went through the model.
    pub tokens: usize,
    /// Tokens whose probability counts.
    pub scored: usize,
    /// Mean negative log-likelihood per scored token, nats.
    pub nll: f64,
    /// Standard error of `nll` over the scored tokens.
    pub nll_stderr: f64,
    /// exp(`nll`).
    pub perplexity: f64,
    pub seconds: f64,
    pub tokens_per_s: f64,
    /// The most memory the process has held, bytes; 0 where the system does not say.
    pub peak_rss_bytes: u64,
    /// What the engine had predicted, bytes.
    pub predicted_peak_bytes: u64,
    pub data_sha256: Sha,
    /// From the model that was compared with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub divergence: Option<Divergence>,
}

impl Measurement {
    fn of(runner: &str, input: &windows::Sequences, score: Score) -> Self {
        Measurement {
            runner: runner.to_owned(),
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
            divergence: None,
        }
    }

    pub fn predicted_peak(&self) -> Bytes {
        Bytes(self.predicted_peak_bytes)
    }
}
