//! Expert profile: how often the router chooses each expert on a calibration corpus.
//!
//! One pass without the output head; an observer counts the choices of every mixture layer. Nothing is scored and
//! nothing is written here.

use std::collections::BTreeMap;

use super::{CompressError, Corpus, Importance, METRIC_VERSION};
use crate::engine::{Observer, PassOptions, PassProgress, Routing, Scoring, run_pass};
use crate::family::OpenModel;
use crate::model::Tokenizer;

/// Choices per layer and expert.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RouterCounts {
    layers: BTreeMap<usize, Vec<u64>>,
}

impl Observer for RouterCounts {
    fn router(&mut self, routing: &Routing<'_>) {
        let counts = self.layers.entry(routing.layer).or_insert_with(|| vec![0; routing.experts]);
        for &expert in routing.chosen {
            if let Some(count) = counts.get_mut(expert as usize) {
                *count += 1;
            }
        }
    }
}

/// How a corpus becomes sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceLimits {
    /// Tokens of a sequence at most. An example of a `.jsonl` corpus is truncated; a plain text is cut into pieces.
    pub max_length: usize,
    pub max_examples: Option<u64>,
    pub max_tokens: Option<u64>,
}

/// Tokenizes a corpus. Empty examples are left out; `progress` is called with the share of texts done.
pub fn sequences(
    corpus: &Corpus,
    tokenizer: &Tokenizer,
    limits: SequenceLimits,
    progress: &dyn Fn(f64),
) -> Result<Vec<Vec<u32>>, CompressError> {
    let mut out: Vec<Vec<u32>> = Vec::new();
    let mut left = limits.max_tokens.unwrap_or(u64::MAX);
    let most = limits.max_examples.map_or(usize::MAX, |n| n as usize);
    'texts: for (i, text) in corpus.texts.iter().enumerate() {
        progress(i as f64 / corpus.texts.len() as f64);
        let ids = tokenizer.encode(text)?;
        let pieces = if corpus.is_plain_text { usize::MAX } else { 1 };
        for piece in ids.chunks(limits.max_length.max(1)).take(pieces) {
            if out.len() >= most || left == 0 {
                break 'texts;
            }
            let take = piece.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            left -= take as u64;
            out.push(piece[..take].to_vec());
        }
    }
    Ok(out)
}

/// Counts the router's choices of `model` on `sequences`, and asserts that every mixture layer was seen in full.
pub fn profile_experts(
    model: &OpenModel,
    model_name: &str,
    corpus_name: &str,
    sequences: &[Vec<u32>],
    options: &PassOptions,
    progress: &dyn Fn(PassProgress),
) -> Result<Importance, CompressError> {
    let Some((experts, top_k)) = model.spec.experts() else {
        return Err(CompressError::Refused {
            what: "expert profile",
            reason: format!("{} is a dense model, it has no experts", model.path.display()),
            hint: "remove the expert stages, or choose a mixture-of-experts model",
        });
    };
    let mut counts = RouterCounts::default();
    run_pass(model, sequences, Scoring::None, options, &mut [&mut counts], progress)?;
    let importance = Importance {
        model: model_name.to_owned(),
        calibration_corpus: corpus_name.to_owned(),
        calibration_examples: sequences.len() as u64,
        calibration_tokens: sequences.iter().map(|s| s.len() as u64).sum(),
        num_hidden_layers: model.spec.blocks.len(),
        num_experts: experts,
        num_experts_per_tok: top_k,
        activation_counts: counts.layers,
        metric_version: METRIC_VERSION.into(),
        tool: concat!("factoryline ", env!("CARGO_PKG_VERSION"), " expert-activation-profile").into(),
    };
    let moe_layers: Vec<usize> = model.spec.blocks.iter().filter(|b| b.moe().is_some()).map(|b| b.index).collect();
    importance.assert_complete(&moe_layers)?;
    Ok(importance)
}
