//! The reload gate: an artifact is opened again from disk, by readers that know nothing of its writer, compared with
//! what it must be, and scored on a few hundred tokens beside its parent.

use std::path::Path;

use super::{Evidence, GateError};
use crate::engine::{PassOptions, PassProgress, Scoring, run_pass};
use crate::family::{ModelSpec, OpenModel, open};

/// Tokens scored at most.
pub const GATE_TOKENS: usize = 512;

/// How much worse than its parent an artifact may score before it counts as broken. Generous on purpose: it tells
/// damage (a permuted matrix, a wrong scale: factors of a thousand) from loss (a few percent, or a few times for a hard
/// prune); how much loss is acceptable is for `acceptanceCriteria` to say.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ScoreLimit {
    /// Perplexity of the artifact over perplexity of the parent.
    pub max_ratio: f64,
}

impl ScoreLimit {
    /// A file that holds the same model in fewer bits.
    pub const QUANT: ScoreLimit = ScoreLimit { max_ratio: 4.0 };
    /// A model that lost experts.
    pub const PRUNE: ScoreLimit = ScoreLimit { max_ratio: 30.0 };
}

/// Opens `path` afresh (which checks that every tensor its header promises is there, with its shape) and compares what
/// it describes with `expected`.
pub fn reopen(path: &Path, subject: &str, expected: &ModelSpec) -> Result<(OpenModel, Evidence), GateError> {
    let model = open(path).map_err(|source| GateError::Unreadable { subject: path.to_owned(), source })?;
    let (found, want) = (describe(&model.spec), describe(expected));
    if found != want {
        let why = format!("read back as {found}, it should be {want}");
        return Err(GateError::Score { subject: subject.to_owned(), why });
    }
    let evidence = Evidence::passed("reload", subject)
        .with("tensors", model.stored.metas().len())
        .with("parameters", model.spec.parameters())
        .with("model", found);
    Ok((model, evidence))
}

/// What two descriptions of one model must agree on.
fn describe(spec: &ModelSpec) -> String {
    let experts = spec.experts().map_or_else(|| "dense".to_owned(), |(n, k)| format!("{n} experts, {k} used"));
    let attention = spec.blocks.iter().find_map(|b| b.attention());
    let heads = attention.map_or_else(String::new, |a| format!("{}/{} heads of {}", a.heads, a.kv_heads, a.head_dim));
    format!(
        "{} layers, hidden {}, {heads}, vocabulary {}, {experts}, {} parameters",
        spec.blocks.len(),
        spec.hidden,
        spec.vocab,
        spec.parameters()
    )
}

/// Mean negative log-likelihood (nats) of `tokens` on `model`, every position from the second.
pub fn short_score(
    model: &OpenModel,
    tokens: &[u32],
    options: &PassOptions,
    progress: &dyn Fn(PassProgress),
) -> Result<f64, GateError> {
    let report = run_pass(model, &[tokens.to_vec()], Scoring::All, options, &mut [], progress)?;
    Ok(report.mean_nll())
}

/// Compares the score of an artifact with its parent's.
pub fn judge_score(
    subject: &str,
    parent: f64,
    artifact: f64,
    tokens: usize,
    limit: ScoreLimit,
) -> Result<Evidence, GateError> {
    let ratio = (artifact - parent).exp();
    if !artifact.is_finite() || ratio > limit.max_ratio {
        let why = format!(
            "perplexity {:.4} on {tokens} tokens, its parent has {:.4}: a factor of {ratio:.2}, more than {}",
            artifact.exp(),
            parent.exp(),
            limit.max_ratio
        );
        return Err(GateError::Score { subject: subject.to_owned(), why });
    }
    Ok(Evidence::passed("score", subject)
        .with("tokens", tokens)
        .with("parent_perplexity", parent.exp())
        .with("perplexity", artifact.exp())
        .with("ratio", ratio)
        .with("max_ratio", limit.max_ratio))
}

/// Compares the score of an artifact with its parent's where how much may be lost is not for a gate to say; returns the
/// ratio of perplexities too.
pub fn compare_score(subject: &str, parent: f64, artifact: f64, tokens: usize) -> Result<(Evidence, f64), GateError> {
    if !artifact.is_finite() {
        let why = format!("its perplexity on {tokens} tokens is not a number");
        return Err(GateError::Score { subject: subject.to_owned(), why });
    }
    let ratio = (artifact - parent).exp();
    let evidence = Evidence::passed("score", subject)
        .with("tokens", tokens)
        .with("parent_perplexity", parent.exp())
        .with("perplexity", artifact.exp())
        .with("ratio", ratio);
    Ok((evidence, ratio))
}

/// Checks that a re-opened model turns its positions as it should.
pub fn same_positions(subject: &str, expected: &ModelSpec, found: &ModelSpec) -> Result<Evidence, GateError> {
    if expected.rope != found.rope || expected.max_positions != found.max_positions {
        let why = format!(
            "read back with {} positions by {:?}, it should have {} by {:?}",
            found.max_positions, found.rope, expected.max_positions, expected.rope
        );
        return Err(GateError::Changed { subject: subject.to_owned(), tensor: "(positions)".into(), why });
    }
    Ok(Evidence::passed("positions", subject)
        .with("positions", found.max_positions)
        .with("rope", format!("{:?}", found.rope)))
}

/// Checks that the tokenizer inside an artifact splits `text` as the tokenizer of its parent does. `None` when either
/// has none.
pub fn same_tokens(
    parent: &OpenModel,
    artifact: &OpenModel,
    text: &str,
    subject: &str,
) -> Result<Option<Evidence>, GateError> {
    let (Some(before), Some(after)) = (parent.open_tokenizer()?, artifact.open_tokenizer()?) else {
        return Ok(None);
    };
    let (before, after) = (before.encode(text)?, after.encode(text)?);
    if before != after {
        let at = before.iter().zip(&after).take_while(|(a, b)| a == b).count();
        let why = format!("its tokenizer differs from its parent's at token {at} of {}", before.len());
        return Err(GateError::Changed { subject: subject.into(), tensor: "(tokenizer)".into(), why });
    }
    Ok(Some(Evidence::passed("tokenizer", subject).with("tokens", before.len())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_passes_and_damage_does_not() {
        let evidence = judge_score("a.gguf", 3.0, 3.1, 512, ScoreLimit::QUANT).unwrap();
        assert!(evidence.passed);
        insta::assert_snapshot!(judge_score("a.gguf", 3.0, 9.0, 512, ScoreLimit::QUANT).unwrap_err(), @"a.gguf: perplexity 8103.0839 on 512 tokens, its parent has 20.0855: a factor of 403.43, more than 4");
        assert!(judge_score("a.gguf", 3.0, f64::NAN, 512, ScoreLimit::QUANT).is_err());
    }
}
