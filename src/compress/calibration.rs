//! From a calibration text to token sequences, and which of them a profile must not see.

use super::{CompressError, Corpus};
use crate::model::Tokenizer;

/// How a corpus becomes sequences.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SequenceLimits {
    /// Tokens of a sequence at most. An example of a `.jsonl` corpus is truncated; a plain text is cut into pieces.
    pub max_length: usize,
    pub max_examples: Option<u64>,
    pub max_tokens: Option<u64>,
}

/// A tokenized calibration text in two parts that share no token.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Calibration {
    /// What experts are profiled on.
    pub profiled: Vec<Vec<u32>>,
    /// The end of the text, for judging a decision that rests on the rest.
    pub held_out: Vec<Vec<u32>>,
}

/// One token in this many is held out …
const HELD_OUT_SHARE: usize = 16;
/// … but no fewer than this (if the text is twice as long) …
const HELD_OUT_LEAST: usize = 32;
/// … and no more than this.
pub const HELD_OUT_MOST: usize = 4096;

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

impl Calibration {
    /// Takes the last sixteenth of the tokens away from the profile (at least 32, at most [`HELD_OUT_MOST`], never more
    /// than half): whole sequences from the end, and the end of one.
    pub fn split(mut sequences: Vec<Vec<u32>>) -> Self {
        let total: usize = sequences.iter().map(Vec::len).sum();
        let mut want = (total / HELD_OUT_SHARE).clamp(HELD_OUT_LEAST, HELD_OUT_MOST).min(total / 2);
        let mut held_out = Vec::new();
        // A single token predicts nothing.
        while want >= 2 {
            let Some(last) = sequences.last_mut() else { break };
            let piece = if last.len() <= want {
                sequences.pop().unwrap_or_default()
            } else {
                last.split_off(last.len() - want)
            };
            want -= piece.len();
            if piece.len() >= 2 {
                held_out.push(piece);
            }
        }
        held_out.reverse();
        Calibration { profiled: sequences, held_out }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn split(lengths: &[usize]) -> (Vec<usize>, Vec<usize>) {
        let all = Calibration::split(lengths.iter().map(|&n| vec![7; n]).collect());
        let lengths = |part: Vec<Vec<u32>>| part.iter().map(Vec::len).collect();
        (lengths(all.profiled), lengths(all.held_out))
    }

    #[test]
    fn the_end_is_held_out() {
        assert_eq!(split(&[1600]), (vec![1500], vec![100]));
        assert_eq!(split(&[1000, 550, 50]), (vec![1000, 500], vec![50, 50]));
        assert_eq!(split(&[40]), (vec![20], vec![20]));
        assert_eq!(split(&[1]), (vec![1], vec![]));
        assert_eq!(split(&[1 << 20]).1, [HELD_OUT_MOST]);
    }

    proptest! {
        #[test]
        fn no_token_is_in_both(lengths in prop::collection::vec(1usize..300, 1..20)) {
            let mut next = 0u32;
            let sequences: Vec<Vec<u32>> = lengths.iter().map(|&n| (0..n).map(|_| { next += 1; next }).collect()).collect();
            let all = Calibration::split(sequences);
            let mut seen: Vec<u32> = all.profiled.iter().chain(&all.held_out).flatten().copied().collect();
            let count = seen.len();
            seen.dedup();
            prop_assert_eq!(seen.len(), count);
            prop_assert!(!all.profiled.is_empty());
            prop_assert!(all.held_out.iter().all(|s| s.len() >= 2));
        }
    }
}
