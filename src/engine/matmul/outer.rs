//! Sums of outer products over rows: Σ xᵀ·x and Σ (x − y)ᵀ·y, as a quantizer asks of the inputs of its layers.
//!
//! They describe a distribution and are damped afterwards, so AMX computes them from values rounded once to bf16 (the sum is
//! then exactly that of the rounded rows: symmetric, positive semidefinite, off by at most 2⁻⁸ of the sum of absolute
//! products), which is a third of the work of a split product; of a symmetric sum only the half on and above the diagonal is
//! computed. The order of the sum is that of the rows, whatever the number of threads.

use std::borrow::Cow;

use super::{Kernel, amx_outer, portable};

/// Rows of a matrix `[_, columns]`, or differences of rows.
#[derive(Clone, Copy)]
pub enum Lines<'a> {
    All,
    Rows(&'a [u32]),
    /// The first of each pair less the second.
    Apart(&'a [(u32, u32)]),
    /// The second of each pair.
    Seconds(&'a [(u32, u32)]),
}

/// A matrix `[_, columns]` and which of its rows.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    pub x: &'a [f32],
    pub columns: usize,
    pub lines: Lines<'a>,
}

impl<'a> Side<'a> {
    pub fn count(&self) -> usize {
        match self.lines {
            Lines::All => self.x.len() / self.columns.max(1),
            Lines::Rows(rows) => rows.len(),
            Lines::Apart(pairs) | Lines::Seconds(pairs) => pairs.len(),
        }
    }

    /// Row i, and the row that is taken away from it.
    pub(super) fn line(&self, i: usize) -> (&'a [f32], Option<&'a [f32]>) {
        let row = |at: usize| &self.x[at * self.columns..][..self.columns];
        match self.lines {
            Lines::All => (row(i), None),
            Lines::Rows(rows) => (row(rows[i] as usize), None),
            Lines::Apart(pairs) => (row(pairs[i].0 as usize), Some(row(pairs[i].1 as usize))),
            Lines::Seconds(pairs) => (row(pairs[i].1 as usize), None),
        }
    }
}

/// `sum += factor · Σ aᵀ·b`, `[columns, columns]`; of a sum of a side with itself (`b` is `None`) only what stands on and
/// above the diagonal.
///
/// # Panics
/// When the sides or the sum do not fit each other.
pub fn add_outer(kernel: Kernel, a: Side<'_>, b: Option<Side<'_>>, factor: f32, sum: &mut [f32]) {
    let (columns, count) = (a.columns, a.count());
    assert!(sum.len() == columns * columns && b.is_none_or(|b| b.columns == columns && b.count() == count));
    if count == 0 || columns == 0 {
        return;
    }
    match kernel {
        Kernel::Amx(amx) => amx_outer::add(amx, a, b, factor, sum),
        Kernel::Portable => {
            let x = gathered(a);
            match b {
                None => portable::add_outer(&x, &x, columns, true, factor, sum),
                Some(b) => portable::add_outer(&x, &gathered(b), columns, false, factor, sum),
            }
        }
    }
}

/// `[count, columns]` of the rows.
fn gathered(side: Side<'_>) -> Cow<'_, [f32]> {
    if let Lines::All = side.lines {
        return side.x.into();
    }
    let mut out = Vec::with_capacity(side.count() * side.columns);
    for i in 0..side.count() {
        match side.line(i) {
            (row, None) => out.extend_from_slice(row),
            (row, Some(less)) => out.extend(row.iter().zip(less).map(|(value, less)| value - less)),
        }
    }
    out.into()
}

/// What stands above the diagonal of `[size, size]` put below it, too.
pub fn mirror(sum: &mut [f32], size: usize) {
    for i in 1..size {
        let (above, row) = sum.split_at_mut(i * size);
        for (j, value) in row[..i].iter_mut().enumerate() {
            *value = above[j * size + i];
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kernel_sums_what_the_rows_say() {
        // More than one panel and step, neither of them full.
        let (rows, columns) = (75, 70);
        let x: Vec<f32> = (0..rows * columns).map(|i| ((i * 37 % 101) as f32 - 50.0) / 31.0).collect();
        let chosen: Vec<u32> = (0..rows as u32).filter(|row| row % 3 != 1).collect();
        let pairs: Vec<(u32, u32)> = (0..37).map(|i| (i + 37, i)).collect();
        let side = |lines| Side { x: &x, columns, lines };
        let cases = [
            (side(Lines::All), None),
            (side(Lines::Rows(&chosen)), None),
            (side(Lines::Apart(&pairs)), Some(side(Lines::Seconds(&pairs)))),
        ];
        for kernel in Kernel::available() {
            for (a, b) in cases {
                let mut sum = vec![1f32; columns * columns];
                add_outer(kernel, a, b, 2.0, &mut sum);
                if b.is_none() {
                    mirror(&mut sum, columns);
                }
                for (at, found) in sum.iter().enumerate() {
                    let (i, j) = (at / columns, at % columns);
                    let value = |(row, less): (&[f32], Option<&[f32]>), c: usize| row[c] - less.map_or(0.0, |l| l[c]);
                    let terms = (0..a.count()).map(|t| value(a.line(t), i) * value(b.unwrap_or(a).line(t), j));
                    let (wanted, size) = terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()));
                    let apart = (found - 1.0 - 2.0 * wanted).abs();
                    let allowed = if kernel == Kernel::Portable { 1e-5 } else { 1.0 / 128.0 };
                    assert!(apart <= allowed * size + 1e-4, "{} at ({i}, {j}): off by {apart}", kernel.name());
                }
            }
        }
    }
}
