//! Micro-batches: whole sequences laid end to end, without padding.

use std::ops::Range;

/// Some sequences that go through a block together. Rows are numbered from 0 within the batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// Which of the pass's sequences these are.
    pub sequences: Range<usize>,
    /// The rows of each sequence.
    pub spans: Vec<Range<usize>>,
}

impl Batch {
    /// Tokens in the batch.
    pub fn rows(&self) -> usize {
        self.spans.last().map_or(0, |span| span.end)
    }

    /// The same sequences once more behind themselves.
    pub fn twice(&self) -> Batch {
        let again = self.spans.iter().map(|span| span.start + self.rows()..span.end + self.rows());
        Batch { sequences: self.sequences.clone(), spans: self.spans.iter().cloned().chain(again).collect() }
    }

    /// Longest sequence.
    pub fn longest(&self) -> usize {
        self.spans.iter().map(Range::len).max().unwrap_or(0)
    }

    /// The common length, when all sequences have the same.
    pub fn uniform(&self) -> Option<usize> {
        let first = self.spans.first()?.len();
        self.spans.iter().all(|span| span.len() == first).then_some(first)
    }
}

/// Groups sequences in order so that a batch holds at most `target` tokens and only sequences whose lengths are of one
/// `class`; a longer sequence gets a batch of its own.
pub fn batches<C: PartialEq>(lengths: &[usize], target: usize, class: impl Fn(usize) -> C) -> Vec<Batch> {
    let mut out: Vec<Batch> = Vec::new();
    for (index, &length) in lengths.iter().enumerate() {
        let fits = |batch: &Batch| batch.rows() + length <= target && class(batch.longest()) == class(length);
        match out.last_mut() {
            Some(batch) if fits(batch) => {
                let start = batch.rows();
                batch.spans.push(start..start + length);
                batch.sequences.end = index + 1;
            }
            _ => out.push(Batch { sequences: index..index + 1, spans: std::iter::once(0..length).collect() }),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sequences_keep_their_order_and_are_never_cut() {
        let made = batches(&[3, 4, 9, 1, 1], 8, |_| 0);
        let rows: Vec<usize> = made.iter().map(Batch::rows).collect();
        assert_eq!(rows, [7, 9, 2]);
        assert_eq!(made[0].spans, [0..3, 3..7]);
        assert_eq!(made[2].sequences, 3..5);
        assert_eq!(made[2].uniform(), Some(1));
        assert_eq!(made[0].uniform(), None);
    }

    #[test]
    fn a_batch_holds_one_class_of_lengths() {
        let long = |length: usize| if length > 4 { length } else { 0 };
        let made = batches(&[3, 4, 9, 9, 5, 1], 100, long);
        let sequences: Vec<Range<usize>> = made.into_iter().map(|batch| batch.sequences).collect();
        assert_eq!(sequences, [0..2, 2..4, 4..5, 5..6]);
    }
}
