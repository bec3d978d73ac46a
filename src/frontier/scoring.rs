//! Next-token perplexity of a model on whole documents, as the scorers of the contracts define it.
//!
//! One window per document, from its beginning; the first token is not scored; documents of fewer than two tokens are
//! skipped; every scored token of all documents weighs the same. The engine's models are causal, so that one pass over a
//! document gives every position what it would get from its prefix alone.

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::FrontierError;
use super::contract::{Terms, Tokens};
use super::documents::{Choice, Handle, Pool};
use crate::engine::{EngineError, LogitChunk, Observer, PassOptions, PassProgress, Scoring, run_pass};
use crate::family::OpenModel;
use crate::model::Tokenizer;

/// Tokens read of a document when a contract does not say.
const DEFAULT_MAX_TOKENS: usize = 512;
/// A perplexity is exp of at most this, so that it stays a number.
const MOST_NATS: f64 = 700.0;

/// Documents, and how they become tokens.
pub struct Exam {
    texts: Vec<String>,
    pub handle: Handle,
    /// The validator's, where the scorer has one.
    tokenizer: Option<Tokenizer>,
    pub tokenizer_name: String,
}

/// What a model scored.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Score {
    /// Mean over all scored tokens, nats.
    pub cross_entropy_nats: f64,
    pub perplexity: f64,
    /// Tokens scored.
    pub tokens: u64,
    /// Documents scored.
    pub documents: usize,
    /// Documents with nothing to score.
    pub skipped: usize,
}

impl Exam {
    /// Chooses the documents and opens the validator's tokenizer.
    ///
    /// # Errors
    /// Documents that cannot be chosen; a scorer that needs a tokenizer when none is named.
    pub fn prepare(
        terms: &Terms<'_>,
        pool: &Pool,
        choice: &Choice,
        tokenizer: Option<&Path>,
    ) -> Result<Exam, FrontierError> {
        let chosen = choice.choose(pool)?;
        Exam::of(terms, chosen.iter().map(|&i| pool.documents[i].text.clone()).collect(), choice, tokenizer)
    }

    /// An exam on these texts, in this order.
    pub fn of(
        terms: &Terms<'_>,
        texts: Vec<String>,
        choice: &Choice,
        tokenizer: Option<&Path>,
    ) -> Result<Exam, FrontierError> {
        let handle = Handle::of(choice, &texts.iter().map(String::as_str).collect::<Vec<_>>());
        let (tokenizer, tokenizer_name) = match terms.scorer.tokens() {
            Some(Tokens::Bytes) => (None, "autoresearch-byte-utf8".to_owned()),
            Some(Tokens::Artifact) => (None, "artifact".to_owned()),
            Some(Tokens::Validator(id)) => {
                let path = tokenizer.ok_or_else(|| FrontierError::Request {
                    cause: format!("scorer {} reads text by the tokenizer of {id}", terms.scorer.name),
                    hint: "name its tokenizer.json with --tokenizer",
                })?;
                (Some(Tokenizer::open(path)?), id.to_owned())
            }
            Some(Tokens::Proxy) | None => {
                return Err(FrontierError::Request {
                    cause: format!("scorer {} reads no documents", terms.scorer.name),
                    hint: "leave --documents out",
                });
            }
        };
        Ok(Exam { texts, handle, tokenizer, tokenizer_name })
    }

    fn ids(&self, model: &OpenModel, text: &str, most: usize) -> Result<Vec<u32>, FrontierError> {
        let own;
        let tokenizer = match (&self.tokenizer, self.tokenizer_name.as_str()) {
            (Some(tokenizer), _) => tokenizer,
            (None, "artifact") => {
                own = model.tokenizer()?;
                own.ok_or_else(|| {
                    let cause = "has no tokenizer, and the scorer reads text by the artifact's own";
                    FrontierError::artifact(&model.path, cause, "pack tokenizer.json beside config.json")
                })?
            }
            (None, _) => return Ok(text.bytes().take(most).map(|byte| u32::from(byte) + 1).collect()),
        };
        let mut ids = tokenizer.encode_with_special(text)?;
        ids.truncate(most);
        Ok(ids)
    }

    /// Scores a model.
    ///
    /// # Errors
    /// A token the model has no embedding for; a logit or loss that is not finite (unless the scorer passes such losses
    /// on); nothing to score.
    pub fn score(
        &self,
        model: &OpenModel,
        terms: &Terms<'_>,
        options: &PassOptions,
        progress: &dyn Fn(PassProgress),
    ) -> Result<Score, FrontierError> {
        let most = terms.contract.max_tokens.unwrap_or(DEFAULT_MAX_TOKENS);
        let wrong = |cause: String, hint| FrontierError::artifact(&PathBuf::from("model"), cause, hint);
        let mut sequences = Vec::new();
        for text in &self.texts {
            let ids = self.ids(model, text, most)?;
            if let Some(&largest) = ids.iter().max().filter(|&&id| id as usize >= model.spec.vocab) {
                let cause = format!("its vocabulary of {} is smaller than token id {largest}", model.spec.vocab);
                return Err(wrong(
                    cause,
                    "the scorer's byte ids need a vocabulary of 257, a tokenizer's all of its own",
                ));
            }
            if ids.len() >= 2 {
                sequences.push(ids);
            }
        }
        let skipped = self.texts.len() - sequences.len();
        if sequences.is_empty() {
            return Err(wrong(
                format!("none of the {skipped} documents has two tokens: there is nothing to score"),
                "name other documents",
            ));
        }
        let tokens = sequences.iter().map(|ids| ids.len() as u64 - 1).sum();
        let mut logits = FiniteLogits::default();
        let report = run_pass(model, &sequences, Scoring::All, options, &mut [&mut logits], progress);
        let mean = match report {
            Err(EngineError::NotFinite { .. }) if terms.scorer.passes_bad_losses_on() => f64::NAN,
            Err(error) => return Err(error.into()),
            Ok(_) if logits.bad && !terms.scorer.passes_bad_losses_on() => {
                return Err(wrong("gave a logit that is not finite".to_owned(), "look for infinite weights or biases"));
            }
            Ok(report) => report.nll.iter().sum::<f64>() / tokens as f64,
        };
        Ok(Score {
            cross_entropy_nats: mean,
            perplexity: if mean.is_nan() { mean } else { mean.min(MOST_NATS).exp() },
            tokens,
            documents: sequences.len(),
            skipped,
        })
    }
}

/// Notes a logit that is not finite.
#[derive(Default)]
struct FiniteLogits {
    bad: bool,
}

impl Observer for FiniteLogits {
    fn wants_logits(&self) -> bool {
        true
    }
    fn logits(&mut self, chunk: &LogitChunk<'_>) {
        self.bad |= !chunk.values.iter().all(|value| value.is_finite());
    }
}
