//! `rtn`: every value to its nearest level, the levels searched for least weighted error.
//!
//! With moments the weights follow from their diagonal (the mean square of each column's inputs, the importance matrix of
//! llama.cpp); without, from the values alone. A grid that prescribes its scales ignores them.

use super::panel::{Coded, by_panels};
use super::{Matrix, Method, SolveOptions, Solved, Solver};
use crate::codec::{Grid, Levels, error_weights};
use crate::compress::CompressError;

/// Round to nearest.
pub struct Rtn;

impl Solver for Rtn {
    fn name(&self) -> &'static str {
        "rtn"
    }
    fn summary(&self) -> &'static str {
        "every weight to its nearest level, scales searched for least error weighted by the inputs' mean squares"
    }
    fn needs_moments(&self) -> bool {
        false
    }
    fn solve(&self, matrix: &Matrix, options: &SolveOptions) -> Result<Solved, CompressError> {
        let method = Method { solver: "rtn", notes: Vec::new() };
        let row_bytes = matrix.checked()?;
        let importance = matrix.moments.map(|moments| moments.importance());
        Ok(by_panels(matrix, row_bytes, (method, options), |values| {
            rounded(matrix.grid, values, matrix.cols, importance.as_deref())
        }))
    }
}

/// Rows of `cols` values, each value at its nearest level.
pub(super) fn rounded(grid: &dyn Grid, values: &[f32], cols: usize, importance: Option<&[f32]>) -> Coded {
    let mut coded = Coded { levels: Vec::new(), codes: Vec::with_capacity(values.len()) };
    for row in values.chunks(cols) {
        let levels = fit_row(grid, row, &error_weights(row, importance));
        let groups = row.chunks(grid.group().min(cols)).zip(&levels);
        for (values, levels) in groups {
            for (part, values) in values.chunks(levels.width).enumerate() {
                let rungs = levels.rungs(part);
                coded.codes.extend(values.iter().map(|v| rungs.nearest(*v).0));
            }
        }
        coded.levels.push(levels);
    }
    coded
}

/// The levels of all groups of a row, the last of which may be shorter.
pub(super) fn fit_row(grid: &dyn Grid, row: &[f32], weights: &[f32]) -> Vec<Levels> {
    let group = grid.group().min(row.len());
    let whole = row.len() / group * group;
    let mut levels = grid.fit(&row[..whole], &weights[..whole], group);
    if whole < row.len() {
        levels.extend(grid.fit(&row[whole..], &weights[whole..], row.len() - whole));
    }
    levels
}
