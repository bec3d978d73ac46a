//! `awq`: columns that meet large inputs are scaled up before they are rounded, and what makes the inputs takes the scales
//! back (Lin et al., arXiv 2306.00978).
//!
//! The scales are chosen for all readers of an input together, before any of them is solved (`compress/scaling`): what a
//! solver is given is scaled already. This one then rounds, with the clip searched for in the same metric.

use rayon::prelude::*;

use super::panel::PANEL;
use super::product::{add_product, dot};
use super::rtn::{Rtn, rounded};
use super::{Matrix, SolveOptions, Solved, Solver};
use crate::compress::CompressError;

/// Scale, clip, round.
pub struct Awq;

impl Solver for Awq {
    fn name(&self) -> &'static str {
        "awq"
    }
    fn summary(&self) -> &'static str {
        "columns scaled by what their inputs are worth, the scales folded into what makes the inputs; then rtn"
    }
    fn needs_moments(&self) -> bool {
        true
    }
    fn scales_inputs(&self) -> bool {
        true
    }
    fn solve(&self, matrix: &Matrix, options: &SolveOptions) -> Result<Solved, CompressError> {
        let mut solved = Rtn.solve(matrix, options)?;
        solved.method.solver = self.name();
        Ok(solved)
    }
}

/// `tr(E M Eᵀ)`: what the output loses on the inputs of the moments when the matrix's columns are multiplied by `scale`,
/// rounded in its grid, and divided again. 0 without moments.
///
/// # Errors
/// As [`Solver::solve`].
pub fn loss_when_scaled(matrix: &Matrix, scale: &[f32]) -> Result<f64, CompressError> {
    matrix.checked()?;
    let Some(moments) = matrix.moments else { return Ok(0.0) };
    let cols = matrix.cols;
    let importance: Vec<f32> = moments.importance().iter().zip(scale).map(|(mean, s)| mean / (s * s)).collect();
    let lost: Vec<f64> = matrix
        .values
        .par_chunks(PANEL * cols)
        .map(|wanted| {
            let by_columns = |values: &[f32], f: &dyn Fn(f32, f32) -> f32| -> Vec<f32> {
                values.chunks_exact(cols).flat_map(|row| row.iter().zip(scale).map(|(v, s)| f(*v, *s))).collect()
            };
            let scaled = by_columns(wanted, &|v, s| v * s);
            let coded = rounded(matrix.grid, &scaled, cols, Some(&importance));
            let mut off = scaled;
            let group = matrix.grid.group().min(cols);
            let rows = off.chunks_exact_mut(cols).zip(coded.levels.iter().zip(coded.codes.chunks_exact(cols)));
            for (off, (levels, codes)) in rows {
                let groups = off.chunks_mut(group).zip(codes.chunks(group)).zip(levels);
                for ((off, codes), levels) in groups {
                    off.iter_mut().zip(codes).enumerate().for_each(|(c, (v, code))| *v -= levels.value(c, *code));
                }
            }
            let off = by_columns(&off, &|v, s| v / s);
            let mut seen = vec![0f32; off.len()];
            let size = (off.len() / cols, cols, cols);
            add_product(size, (&off, cols), (&moments.sum, cols), (&mut seen, cols), false);
            dot(&off, &seen).max(0.0)
        })
        .collect();
    Ok(lost.iter().sum())
}
