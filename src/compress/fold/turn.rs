//! Orthogonal matrices that cost little: random signs, then Hadamard matrices along the diagonal.

/// `R = D · H`: D holds signs, H Hadamard matrices of `block` (a power of two) over √block along the diagonal. Of the
/// dimension it turns, runs of as many coordinates as there are signs are turned, `stride` apart from `start` on; what lies
/// between them stays. `Rᵀ = H · D`, since H is symmetric.
#[derive(Clone, Debug, PartialEq)]
pub struct Turn {
    signs: Vec<f32>,
    block: usize,
    start: usize,
    stride: usize,
}

impl Turn {
    /// A turn of runs of `width` coordinates by the largest Hadamard matrix whose size is a power of two that divides
    /// `width`; `None` where that is 1. The signs follow from `seed` alone.
    pub fn new(width: usize, (start, stride): (usize, usize), seed: u64) -> Option<Self> {
        let block = 1 << width.trailing_zeros().min(usize::BITS - 1);
        if width == 0 || block < 2 {
            return None;
        }
        let mut state = seed;
        let mut sign = || {
            // SplitMix64 (Steele, Lea and Flood 2014).
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            if (z ^ (z >> 31)) & 1 == 0 { 1.0 } else { -1.0 }
        };
        Some(Turn { signs: (0..width).map(|_| sign()).collect(), block, start, stride })
    }

    /// A turn of a whole dimension.
    pub fn whole(width: usize, seed: u64) -> Option<Self> {
        Turn::new(width, (0, width), seed)
    }

    /// Size of its Hadamard matrices.
    pub fn block(&self) -> usize {
        self.block
    }

    /// `Rᵀ · W` for rows of a matrix with rows of `cols`; `first` is the number of the first of them in the matrix, and
    /// blocks must not be cut ([`Turn::whole_blocks`]). A vector is a matrix of one column.
    pub fn rows(&self, values: &mut [f32], cols: usize, first: usize) {
        let count = values.len() / cols.max(1);
        let scale = 1.0 / (self.block as f32).sqrt();
        let mut row = 0;
        while row < count {
            let Some(at) = self.within(first + row) else {
                row += 1;
                continue;
            };
            let block = &mut values[row * cols..(row + self.block) * cols];
            let signs = &self.signs[at..at + self.block];
            for (row, sign) in block.chunks_exact_mut(cols).zip(signs) {
                row.iter_mut().for_each(|v| *v *= sign * scale);
            }
            let mut half = 1;
            while half < self.block {
                for pair in block.chunks_exact_mut(2 * half * cols) {
                    let (a, b) = pair.split_at_mut(half * cols);
                    a.iter_mut().zip(b).for_each(|(a, b)| (*a, *b) = (*a + *b, *a - *b));
                }
                half *= 2;
            }
            row += self.block;
        }
    }

    /// `W · R` for whole rows of `cols`.
    pub fn columns(&self, values: &mut [f32], cols: usize) {
        values.chunks_exact_mut(cols.max(1)).for_each(|row| self.rows(row, 1, 0));
    }

    /// The rows that blocks of these rows are made of.
    pub fn whole_blocks(&self, rows: std::ops::Range<usize>) -> std::ops::Range<usize> {
        if rows.is_empty() {
            return rows;
        }
        let begin = |row: usize| self.within(row).map_or(row, |at| row - at % self.block);
        let last = rows.end - 1;
        let end = self.within(last).map_or(rows.end, |at| last - at % self.block + self.block);
        begin(rows.start)..end
    }

    /// Where in its run a coordinate lies; `None` between runs.
    fn within(&self, coordinate: usize) -> Option<usize> {
        let at = coordinate.checked_sub(self.start)? % self.stride;
        (at < self.signs.len()).then_some(at)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// R as numbers, `[size, size]`.
    fn dense(turn: &Turn, size: usize) -> Vec<f32> {
        let mut unit = vec![0f32; size * size];
        (0..size).for_each(|i| unit[i * size + i] = 1.0);
        turn.columns(&mut unit, size);
        unit
    }

    #[test]
    fn a_turn_keeps_lengths_and_mixes_its_runs_only() {
        for (width, place, size) in [(8, (0, 8), 16), (12, (0, 12), 12), (4, (3, 7), 14), (6, (0, 6), 6)] {
            let turn = Turn::new(width, place, 5).unwrap();
            let r = dense(&turn, size);
            for i in 0..size {
                for j in 0..size {
                    let dot: f32 = (0..size).map(|k| r[i * size + k] * r[j * size + k]).sum();
                    let unit = if i == j { 1.0 } else { 0.0 };
                    assert!((dot - unit).abs() < 1e-6, "{width} {place:?}: rows {i} and {j}: {dot}");
                }
            }
            let is_still = |i: &usize| turn.within(*i).is_none();
            assert!((0..size).filter(is_still).all(|i| r[i * size + i] == 1.0), "{width} {place:?}");
        }
        assert_eq!(Turn::whole(12, 0).unwrap().block(), 4);
        assert!(Turn::whole(7, 0).is_none());
        assert_ne!(Turn::whole(64, 1), Turn::whole(64, 2));
    }

    #[test]
    fn rows_are_turned_by_the_transpose_of_what_turns_columns() {
        // (W R) (Rᵀ U) = W U.
        let (size, outer) = (24, 5);
        let turn = Turn::new(8, (2, 11), 3).unwrap();
        let number = |i: usize| ((i * 37 % 101) as f32 - 50.0) / 50.0;
        let w: Vec<f32> = (0..outer * size).map(number).collect();
        let u: Vec<f32> = (0..size * outer).map(|i| number(i + 7)).collect();
        let product = |w: &[f32], u: &[f32]| -> Vec<f32> {
            (0..outer * outer)
                .map(|at| (0..size).map(|k| w[at / outer * size + k] * u[k * outer + at % outer]).sum())
                .collect()
        };
        let before = product(&w, &u);
        let (mut turned_w, mut turned_u) = (w.clone(), u.clone());
        turn.columns(&mut turned_w, size);
        turn.rows(&mut turned_u, outer, 0);
        let after = product(&turned_w, &turned_u);
        assert!(before.iter().zip(&after).all(|(a, b)| (a - b).abs() < 1e-5), "{before:?} {after:?}");
        assert_ne!(w, turned_w);
        // Some rows alone, in whole blocks, are those rows of the whole.
        let part = turn.whole_blocks(5..15);
        assert_eq!(part, 2..21);
        let mut rows = u[part.start * outer..part.end * outer].to_vec();
        turn.rows(&mut rows, outer, part.start);
        assert_eq!(rows, turned_u[part.start * outer..part.end * outer]);
    }
}
