//! From data to the sequences a pass runs: windows of a text by convention, or lists of ids as they are.

use std::path::Path;

use super::{AssayError, Convention, Data, PerplexityOptions};
use crate::engine::Scoring;
use crate::family::OpenModel;
use crate::node::MOST_TEXT;
use crate::units::{Sha, read_at_most};

/// Sequences ready to run, and what the result must say about them.
pub struct Sequences {
    pub tokens: Vec<Vec<u32>>,
    pub scoring: Scoring,
    pub convention: &'static str,
    pub context: usize,
    pub data_sha256: Sha,
}

/// Reads the data and cuts it; at most `limit` sequences.
///
/// # Errors
/// The file cannot be read or is not what it should be, no window fills, or the context is longer than the model's.
pub fn sequences(model: &OpenModel, data: &Data, limit: Option<usize>) -> Result<Sequences, AssayError> {
    let limit = limit.unwrap_or(usize::MAX);
    match data {
        Data::Text { path, context, convention } => text(model, path, *context, *convention, limit),
        Data::TokenIds { path } => token_ids(model, path, limit),
    }
}

/// Sequences on which `base` and `others` can be compared: every one that has a tokenizer must make the same of the data.
///
/// # Errors
/// As [`sequences`], for any of the models; tokenizers that differ.
pub fn common_sequences(
    base: &OpenModel,
    others: &[&OpenModel],
    data: &Data,
    limit: Option<usize>,
) -> Result<Sequences, AssayError> {
    let mut agreed: Option<(&OpenModel, Sequences)> = None;
    for &model in std::iter::once(&base).chain(others) {
        let own = match sequences(model, data, limit) {
            Err(AssayError::NoTokenizer { .. }) => continue,
            own => own?,
        };
        match &agreed {
            None => agreed = Some((model, own)),
            Some((first, known)) => same_tokens(first, &known.tokens, model, &own.tokens)?,
        }
    }
    let (_, agreed) = agreed.ok_or_else(|| AssayError::NoTokenizer { path: base.path.clone() })?;
    std::iter::once(&base).chain(others).try_for_each(|model| check_context(model, agreed.context))?;
    Ok(agreed)
}

fn same_tokens(first: &OpenModel, ours: &[Vec<u32>], other: &OpenModel, theirs: &[Vec<u32>]) -> Result<(), AssayError> {
    if ours == theirs {
        return Ok(());
    }
    let sequence = ours.iter().zip(theirs).position(|(a, b)| a != b).unwrap_or(ours.len().min(theirs.len()));
    let token = match (ours.get(sequence), theirs.get(sequence)) {
        (Some(a), Some(b)) => a.iter().zip(b).take_while(|(a, b)| a == b).count(),
        _ => 0,
    };
    Err(AssayError::Tokenizers { first: first.path.clone(), other: other.path.clone(), sequence, token })
}

/// Cuts the ids of a text into windows by convention.
///
/// # Errors
/// A context the convention or the model cannot have; fewer ids than one window.
pub fn cut(
    model: &OpenModel,
    ids: &[u32],
    options: PerplexityOptions,
    limit: usize,
) -> Result<(Vec<Vec<u32>>, Scoring), AssayError> {
    let PerplexityOptions { context, convention, bos } = options;
    let (least, scoring, hint) = match convention {
        Convention::Windowed => (2, Scoring::All, "a window scores every token but its first"),
        Convention::LlamaCpp => (3, Scoring::SecondHalf, "a window scores the tokens of its second half"),
    };
    if context < least {
        return Err(AssayError::Context { context, what: "short", hint: hint.to_owned() });
    }
    check_context(model, context)?;
    let tokens = windows(ids, context, convention, bos, limit);
    if tokens.is_empty() {
        return Err(AssayError::TooFewTokens { tokens: ids.len(), context });
    }
    Ok((tokens, scoring))
}

fn check_context(model: &OpenModel, context: usize) -> Result<(), AssayError> {
    let positions = model.spec.max_positions;
    if context <= positions {
        return Ok(());
    }
    Err(AssayError::Context { context, what: "long", hint: format!("the model has {positions} positions") })
}

fn read(path: &Path) -> Result<Vec<u8>, AssayError> {
    read_at_most(path, MOST_TEXT).map_err(|source| AssayError::Read { path: path.to_owned(), source })
}

fn text(
    model: &OpenModel,
    path: &Path,
    context: usize,
    convention: Convention,
    limit: usize,
) -> Result<Sequences, AssayError> {
    let bytes = read(path)?;
    let data_sha256 = Sha::of(&bytes);
    let text = String::from_utf8(bytes)
        .map_err(|e| AssayError::NotText { path: path.to_owned(), at: e.utf8_error().valid_up_to() })?;
    // Opened here and dropped before the pass: a vocabulary takes tens of megabytes.
    let tokenizer = model.open_tokenizer()?.ok_or_else(|| AssayError::NoTokenizer { path: model.path.clone() })?;
    let ids = tokenizer.encode(&text)?;
    let bos = tokenizer.bos().filter(|_| tokenizer.add_bos());
    drop((tokenizer, text));
    let (tokens, scoring) = cut(model, &ids, PerplexityOptions { context, convention, bos }, limit)?;
    Ok(Sequences { tokens, scoring, convention: convention.as_str(), context, data_sha256 })
}

/// Full windows without overlap. With a beginning-of-text token the text starts with it, and every later window gets
/// it in the place of its first token.
fn windows(ids: &[u32], context: usize, convention: Convention, bos: Option<u32>, limit: usize) -> Vec<Vec<u32>> {
    let bos = bos.filter(|_| convention == Convention::LlamaCpp);
    let ids: Vec<u32> = bos.into_iter().chain(ids.iter().copied()).collect();
    let with_bos = |window: &[u32]| {
        let mut window = window.to_vec();
        if let Some(bos) = bos {
            window[0] = bos;
        }
        window
    };
    ids.chunks_exact(context).take(limit).map(with_bos).collect()
}

fn token_ids(model: &OpenModel, path: &Path, limit: usize) -> Result<Sequences, AssayError> {
    let bytes = read(path)?;
    let not_ids = |cause: String| AssayError::NotTokenIds { path: path.to_owned(), cause };
    let mut tokens: Vec<Vec<u32>> = serde_json::from_slice(&bytes).map_err(|e| not_ids(e.to_string()))?;
    tokens.truncate(limit);
    if let Some(sequence) = tokens.iter().position(|t| t.len() < 2) {
        return Err(AssayError::ShortSequence { path: path.to_owned(), sequence, tokens: tokens[sequence].len() });
    }
    let context = tokens.iter().map(Vec::len).max().ok_or_else(|| not_ids("the list is empty".to_owned()))?;
    check_context(model, context)?;
    Ok(Sequences { tokens, scoring: Scoring::All, convention: "token-ids", context, data_sha256: Sha::of(&bytes) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_do_not_overlap_and_the_rest_is_dropped() {
        let ids: Vec<u32> = (10..20).collect();
        let got = windows(&ids, 4, Convention::Windowed, Some(1), usize::MAX);
        assert_eq!(got, [[10, 11, 12, 13], [14, 15, 16, 17]]);
        assert_eq!(windows(&ids, 4, Convention::Windowed, None, 1).len(), 1);
    }

    #[test]
    fn the_beginning_token_leads_the_text_and_replaces_the_first_of_later_windows() {
        let ids: Vec<u32> = (10..20).collect();
        let got = windows(&ids, 4, Convention::LlamaCpp, Some(1), usize::MAX);
        assert_eq!(got, [[1, 10, 11, 12], [1, 14, 15, 16]]);
        let got = windows(&ids, 4, Convention::LlamaCpp, None, usize::MAX);
        assert_eq!(got[1], [14, 15, 16, 17]);
    }
}
