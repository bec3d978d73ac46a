//! Pieces of tensors: how a tensor of one file is made of elements of another file's tensors, and the way back.
//!
//! A family says how its tensors lie in a GGUF file ([`Piece`]s of the model's tensors, and a [`Change`] of their values);
//! reading such a file is the same description turned round ([`Piece::inverse`]), so that the two cannot disagree.

use std::ops::Range;

/// Elements of one tensor in the order of nested loops.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Piece {
    /// The tensor they are taken from.
    pub source: String,
    /// The first element, counted in the tensor's row-major order.
    pub start: usize,
    /// How often each loop runs, and how many elements of the source one turn is; the outermost loop first.
    pub loops: Vec<(usize, usize)>,
}

/// What happens to the values of a tensor on the way into the file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Change {
    None,
    /// x + n
    Plus(f32),
    /// x · n
    Times(f32),
    /// −exp(x)
    NegatedExp,
    /// The mean of each row is taken out of it.
    CentredRows,
    /// The mean of each column is taken out of it, and the rest multiplied.
    CentredColumns {
        factor: f32,
    },
}

impl Change {
    /// The values of a matrix with rows of `cols` as the file has them.
    pub fn apply(self, values: &mut [f32], cols: usize) {
        match self {
            Change::None => {}
            Change::Plus(n) => values.iter_mut().for_each(|v| *v += n),
            Change::Times(n) => values.iter_mut().for_each(|v| *v *= n),
            Change::NegatedExp => values.iter_mut().for_each(|v| *v = -v.exp()),
            Change::CentredRows => values.chunks_exact_mut(cols.max(1)).for_each(|row| {
                let mean = row.iter().map(|&v| f64::from(v)).sum::<f64>() / cols as f64;
                row.iter_mut().for_each(|v| *v = (f64::from(*v) - mean) as f32);
            }),
            Change::CentredColumns { factor } => {
                let rows = values.len() / cols.max(1);
                let mut means = vec![0f64; cols];
                values.iter().enumerate().for_each(|(at, &v)| means[at % cols] += f64::from(v) / rows as f64);
                values
                    .iter_mut()
                    .enumerate()
                    .for_each(|(at, v)| *v = (f64::from(*v) - means[at % cols]) as f32 * factor);
            }
        }
    }

    /// The values as a model of the same function has them: a mean that was taken out stays out.
    pub fn undo(self, values: &mut [f32]) {
        match self {
            Change::None => {}
            Change::Plus(n) => values.iter_mut().for_each(|v| *v -= n),
            Change::Times(n) => values.iter_mut().for_each(|v| *v /= n),
            Change::NegatedExp => values.iter_mut().for_each(|v| *v = (-*v).ln()),
            Change::CentredRows => {}
            Change::CentredColumns { factor } => values.iter_mut().for_each(|v| *v /= factor),
        }
    }
}

impl Piece {
    /// `elements` elements as they lie, from `start` on.
    pub fn run(source: &str, start: usize, elements: usize) -> Self {
        Piece { source: source.to_owned(), start, loops: vec![(elements, 1)] }
    }

    pub fn elements(&self) -> usize {
        self.loops.iter().map(|(count, _)| count).product()
    }

    /// The source's elements between the first and the last that are taken.
    pub fn extent(&self) -> Range<usize> {
        if self.elements() == 0 {
            return self.start..self.start;
        }
        self.start..self.start + self.loops.iter().map(|(count, stride)| (count - 1) * stride).sum::<usize>() + 1
    }

    /// Where element `index` of the piece lies in its source.
    pub fn position(&self, mut index: usize) -> usize {
        let mut at = self.start;
        for &(count, stride) in self.loops.iter().rev() {
            at += index % count * stride;
            index /= count;
        }
        at
    }

    /// True when the piece is made of runs of `length` elements that begin at multiples of `length` in the source: whole
    /// rows, or whole blocks.
    pub fn is_runs_of(&self, length: usize) -> bool {
        match self.loops.split_last() {
            Some((&(count, 1), outer)) => {
                count.is_multiple_of(length)
                    && self.start.is_multiple_of(length)
                    && outer.iter().all(|(_, stride)| stride.is_multiple_of(length))
            }
            _ => length == 1,
        }
    }

    /// Appends the piece's elements, each `size` items wide in `source` (an element, or a block of several).
    pub fn gather<T: Copy>(&self, source: &[T], size: usize, out: &mut Vec<T>) {
        fn walk<T: Copy>(source: &[T], size: usize, at: usize, loops: &[(usize, usize)], out: &mut Vec<T>) {
            match loops {
                [] => out.extend_from_slice(&source[at * size..(at + 1) * size]),
                [(count, 1)] => out.extend_from_slice(&source[at * size..(at + count) * size]),
                [(count, stride), inner @ ..] => {
                    (0..*count).for_each(|turn| walk(source, size, at + turn * stride, inner, out));
                }
            }
        }
        walk(source, size, self.start, &self.loops, out);
    }

    /// The same piece counted in blocks of `length` elements; see [`Piece::is_runs_of`].
    pub fn in_blocks(&self, length: usize) -> Self {
        if length == 1 {
            return self.clone();
        }
        let last = self.loops.len().saturating_sub(1);
        let shrink = |(i, &(count, stride)): (usize, &(usize, usize))| {
            if i == last { (count / length, 1) } else { (count, stride / length) }
        };
        let loops = self.loops.iter().enumerate().map(shrink).collect();
        Piece { source: self.source.clone(), start: self.start / length, loops }
    }

    /// The way back: when this piece stands in tensor `outer` from element `offset` on, the runs of its source that can
    /// be read from there: where each begins in the source, and its piece of `outer`.
    pub fn inverse(&self, outer: &str, offset: usize) -> Vec<(usize, Piece)> {
        // How often, stride in the source, stride in `outer`.
        let mut loops: Vec<(usize, usize, usize)> = Vec::new();
        let mut own = 1;
        for &(count, stride) in self.loops.iter().rev() {
            if count != 1 {
                loops.push((count, stride, own));
            }
            own *= count;
        }
        loops.sort_by_key(|&(_, stride, _)| std::cmp::Reverse(stride));
        // The innermost loops that together run through the source without a gap.
        let mut dense = loops.len();
        let mut run = 1;
        while dense > 0 && loops[dense - 1].1 == run {
            run *= loops[dense - 1].0;
            dense -= 1;
        }
        let (apart, together) = loops.split_at(dense);
        let inner = merged(together.iter().map(|&(count, _, stride)| (count, stride)));
        let mut found = vec![(self.start, offset)];
        for &(count, stride, own) in apart {
            found = found
                .iter()
                .flat_map(|&(at, from)| (0..count).map(move |turn| (at + turn * stride, from + turn * own)))
                .collect();
        }
        let piece = |start| Piece { source: outer.to_owned(), start, loops: inner.clone() };
        found.into_iter().map(|(at, from)| (at, piece(from))).collect()
    }
}

/// Loops with neighbours joined that are one loop together.
fn merged(loops: impl Iterator<Item = (usize, usize)>) -> Vec<(usize, usize)> {
    let mut out: Vec<(usize, usize)> = Vec::new();
    for (count, stride) in loops {
        match out.last_mut() {
            Some(last) if last.1 == count * stride => *last = (last.0 * count, stride),
            _ => out.push((count, stride)),
        }
    }
    if out.is_empty() {
        out.push((1, 1));
    }
    out
}

/// Joins pieces that follow each other in one source.
pub(super) fn joined(pieces: impl IntoIterator<Item = Piece>) -> Vec<Piece> {
    let mut out: Vec<Piece> = Vec::new();
    for piece in pieces {
        if let (Some(last), [(count, 1)]) = (out.last_mut(), piece.loops.as_slice())
            && let [(before, 1)] = last.loops.as_mut_slice()
            && last.source == piece.source
            && last.start + *before == piece.start
        {
            *before += count;
        } else {
            out.push(piece);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn values(pieces: &[Piece], source: &[f32]) -> Vec<f32> {
        let mut out = Vec::new();
        pieces.iter().for_each(|piece| piece.gather(source, 1, &mut out));
        out
    }

    #[test]
    fn elements_are_taken_in_the_order_of_the_loops() {
        let source: Vec<f32> = (0..24).map(|n| n as f32).collect();
        // A [4, 6] matrix: its columns 1 and 2, as rows.
        let piece = Piece { source: "m".into(), start: 1, loops: vec![(2, 1), (4, 6)] };
        assert_eq!(values(std::slice::from_ref(&piece), &source), [1., 7., 13., 19., 2., 8., 14., 20.]);
        assert_eq!((0..8).map(|i| piece.position(i)).collect::<Vec<_>>(), [1, 7, 13, 19, 2, 8, 14, 20]);
        assert_eq!((piece.elements(), piece.extent(), piece.is_runs_of(2)), (8, 1..21, false));
        let rows = Piece { source: "m".into(), start: 6, loops: vec![(2, 12), (6, 1)] };
        assert!(rows.is_runs_of(6) && rows.is_runs_of(2) && !rows.is_runs_of(4));
        assert_eq!(rows.in_blocks(2).loops, [(2, 6), (3, 1)]);
        assert!(piece.is_runs_of(1) && piece.in_blocks(1) == piece);
    }

    #[test]
    fn what_two_pieces_share_out_comes_together_again() {
        // Three heads of (2 + 1) rows of 4: the first two rows transposed into one tensor, the third into another.
        let source: Vec<f32> = (0..36).map(|n| n as f32).collect();
        let first = Piece { source: "m".into(), start: 0, loops: vec![(3, 12), (4, 1), (2, 4)] };
        let second = Piece { source: "m".into(), start: 8, loops: vec![(3, 12), (4, 1)] };
        let stored = [values(std::slice::from_ref(&first), &source), values(std::slice::from_ref(&second), &source)];
        let mut back: Vec<(usize, usize, Piece)> = Vec::new();
        for (which, piece) in [first, second].iter().enumerate() {
            back.extend(piece.inverse("t", 0).into_iter().map(|(at, piece)| (at, which, piece)));
        }
        back.sort_by_key(|(at, ..)| *at);
        let mut read = Vec::new();
        for (at, which, piece) in &back {
            assert_eq!(*at, read.len());
            piece.gather(&stored[*which], 1, &mut read);
        }
        assert_eq!(read, source);
    }

    #[test]
    fn neighbours_become_one_run() {
        let pieces = (0..3).map(|n| Piece::run("m", 4 * n, 4)).chain([Piece::run("other", 12, 4)]);
        assert_eq!(joined(pieces), [Piece::run("m", 0, 12), Piece::run("other", 12, 4)]);
    }

    #[test]
    fn changes_can_be_undone() {
        for change in [Change::None, Change::Plus(1.0), Change::Times(0.25), Change::NegatedExp] {
            let mut values = [0.5, -2.0, 3.25];
            change.apply(&mut values, 3);
            change.undo(&mut values);
            assert!(values.iter().zip([0.5, -2.0, 3.25]).all(|(a, b)| (a - b).abs() < 1e-6), "{change:?}: {values:?}");
        }
        let mut values = [1.0, 5.0, 3.0, 9.0];
        Change::CentredColumns { factor: 2.0 }.apply(&mut values, 2);
        assert_eq!(values, [-2.0, -4.0, 2.0, 4.0]);
        Change::CentredColumns { factor: 2.0 }.undo(&mut values);
        Change::CentredRows.apply(&mut values, 2);
        assert_eq!(values, [0.5, -0.5, -0.5, 0.5]);
    }

    proptest! {
        /// Any order of the loops of a matrix of blocks can be turned round.
        #[test]
        fn an_order_turned_round_restores_the_tensor(sizes in prop::array::uniform4(1usize..5), order in 0usize..24) {
            let elements: usize = sizes.iter().product();
            let mut loops = Vec::new();
            let mut stride = elements;
            for count in sizes {
                stride /= count;
                loops.push((count, stride));
            }
            let mut left = order;
            let shuffled: Vec<(usize, usize)> = (0..4).rev().map(|n| { let at = left % (n + 1); left /= n + 1; loops.remove(at) }).collect();
            let piece = Piece { source: "m".into(), start: 0, loops: shuffled };
            let source: Vec<f32> = (0..elements).map(|n| n as f32).collect();
            let stored = values(std::slice::from_ref(&piece), &source);
            let mut back = piece.inverse("t", 0);
            back.sort_by_key(|(at, _)| *at);
            let pieces: Vec<Piece> = back.into_iter().map(|(_, piece)| piece).collect();
            prop_assert_eq!(values(&joined(pieces), &stored), source);
        }
    }
}
