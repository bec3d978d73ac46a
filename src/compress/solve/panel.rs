//! Panels of rows: how a matrix is cut for threads, put together from solved rows, and weighed.

use rayon::prelude::*;

use super::product::{add_product, dot};
use super::{Matrix, Method, Moments, SolveOptions, Solved};
use crate::codec::Levels;

/// Rows of a panel. Fixed, so that products and their sums do not depend on the number of threads.
pub(in crate::compress) const PANEL: usize = 32;

/// Levels and codes of a few neighbouring rows.
#[derive(Clone, Debug)]
pub struct Coded {
    /// Per row those of its groups in order.
    pub levels: Vec<Vec<Levels>>,
    /// `[rows, cols]`.
    pub codes: Vec<u8>,
}

/// Solves every panel (given its rows' values) and puts the matrix together.
pub(super) fn by_panels(
    matrix: &Matrix,
    row_bytes: usize,
    (method, options): (Method, &SolveOptions),
    solve: impl Fn(&[f32]) -> Coded + Sync,
) -> Solved {
    let cols = matrix.cols;
    let mut bytes = vec![0u8; matrix.rows * row_bytes];
    let mut values = vec![0f32; matrix.values.len()];
    let solved: Vec<((f64, f64), Option<Coded>)> = matrix
        .values
        .par_chunks(PANEL * cols)
        .zip(values.par_chunks_mut(PANEL * cols))
        .zip(bytes.par_chunks_mut(PANEL * row_bytes))
        .map(|((wanted, values), bytes)| {
            let coded = solve(wanted);
            let rows = coded.levels.iter().zip(coded.codes.chunks(cols));
            for (((levels, codes), row), values) in rows.zip(bytes.chunks_mut(row_bytes)).zip(values.chunks_mut(cols)) {
                matrix.grid.pack(levels, codes, row);
                matrix.grid.unpack(row, values);
            }
            (weigh_error(matrix, wanted, values), options.keep_codes.then_some(coded))
        })
        .collect();
    let (lost, all) = solved.iter().fold((0.0, 0.0), |(lost, all), (panel, _)| (lost + panel.0, all + panel.1));
    let coded = options.keep_codes.then(|| {
        let mut whole = Coded { levels: Vec::with_capacity(matrix.rows), codes: Vec::with_capacity(values.len()) };
        for panel in solved.into_iter().filter_map(|(_, panel)| panel) {
            whole.levels.extend(panel.levels);
            whole.codes.extend(panel.codes);
        }
        whole
    });
    Solved { bytes, values, error: if all > 0.0 { lost / all } else { 0.0 }, method, coded }
}

/// `tr(E M Eᵀ)` and `tr(W M Wᵀ)` of a panel, M being the identity where there are no moments.
fn weigh_error(matrix: &Matrix, wanted: &[f32], values: &[f32]) -> (f64, f64) {
    let off: Vec<f32> = wanted.iter().zip(values).map(|(w, v)| w - v).collect();
    let energy = |rows: &[f32]| energy(matrix.moments, matrix.cols, rows);
    (energy(&off).max(0.0), energy(wanted))
}

/// `tr(W M Wᵀ)` of rows `W` of `cols`: what they put out on the inputs of the moments, M being the identity where there
/// are none.
pub(in crate::compress) fn energy(moments: Option<&Moments>, cols: usize, rows: &[f32]) -> f64 {
    let Some(moments) = moments else { return dot(rows, rows) };
    let mut seen = vec![0f32; rows.len()];
    add_product((rows.len() / cols, cols, cols), (rows, cols), (&moments.sum, cols), (&mut seen, cols), false);
    dot(rows, &seen)
}
