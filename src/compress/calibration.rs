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

/// Tokenizes a corpus. Empty examples are left out; `progress` is called with the share of texts done. A plain text is
/// cut into pieces; of several, one piece of each is taken in turn as long as each has one, so that all have equal parts
/// in any number of sequences.
pub fn sequences(
    corpus: &Corpus,
    tokenizer: &Tokenizer,
    limits: SequenceLimits,
    progress: &dyn Fn(f64),
) -> Result<Vec<Vec<u32>>, CompressError> {
    let mut out = Sequences { all: Vec::new(), left: limits.max_tokens.unwrap_or(u64::MAX), most: limits.most() };
    let share = |i: usize| i as f64 / corpus.texts.len() as f64;
    if corpus.is_plain_text {
        let mut texts = Vec::new();
        for (i, text) in corpus.texts.iter().enumerate() {
            progress(share(i));
            texts.push(tokenizer.encode(text)?);
        }
        let pieces: Vec<Vec<&[u32]>> = texts.iter().map(|ids| ids.chunks(limits.max_length.max(1)).collect()).collect();
        let turns = pieces.iter().map(Vec::len).min().unwrap_or(0);
        (0..turns).flat_map(|turn| pieces.iter().map(move |text| text[turn])).for_each(|piece| out.add(piece));
    } else {
        for (i, text) in corpus.texts.iter().enumerate() {
            if out.is_full() {
                break;
            }
            progress(share(i));
            let ids = tokenizer.encode(text)?;
            out.add(&ids[..ids.len().min(limits.max_length.max(1))]);
        }
    }
    Ok(out.all)
}

impl SequenceLimits {
    fn most(&self) -> usize {
        self.max_examples.map_or(usize::MAX, |n| n as usize)
    }
}

/// Sequences under way, and what may still come.
struct Sequences {
    all: Vec<Vec<u32>>,
    /// Tokens.
    left: u64,
    most: usize,
}

impl Sequences {
    fn is_full(&self) -> bool {
        self.all.len() >= self.most || self.left == 0
    }

    fn add(&mut self, piece: &[u32]) {
        if self.is_full() || piece.is_empty() {
            return;
        }
        let take = piece.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= take as u64;
        self.all.push(piece[..take].to_vec());
    }
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

    #[test]
    fn plain_texts_take_turns_and_end_together() {
        let model = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("recipes/demo/model");
        let tokenizer = Tokenizer::open(&model).unwrap();
        let mix = crate::compress::default_calibration().corpus;
        let of_kind: Vec<Vec<u32>> = mix.texts.iter().map(|text| tokenizer.encode(text).unwrap()).collect();
        let limits = |max_examples| SequenceLimits { max_length: 256, max_examples, max_tokens: None };
        let all = sequences(&mix, &tokenizer, limits(None), &|_| ()).unwrap();
        let shorter = of_kind.iter().map(Vec::len).min().unwrap();
        assert_eq!(all.len(), 2 * shorter.div_ceil(256));
        for (turn, pair) in all.chunks(2).enumerate() {
            for (kind, piece) in of_kind.iter().zip(pair) {
                assert_eq!(kind[turn * 256..][..piece.len()], piece[..]);
            }
        }
        let few = sequences(&mix, &tokenizer, limits(Some(5)), &|_| ()).unwrap();
        assert_eq!(few, all[..5]);
        let tokens = SequenceLimits { max_tokens: Some(300), ..limits(None) };
        let lengths: Vec<usize> = sequences(&mix, &tokenizer, tokens, &|_| ()).unwrap().iter().map(Vec::len).collect();
        assert_eq!(lengths, [256, 44]);
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
