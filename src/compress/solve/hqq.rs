//! `hqq`: half-quadratic quantization, which needs no inputs.
//!
//! It minimises `Σ |w − ŵ|^0.7` (Badri and Shaji 2023): weights far out may err so that the many others fit. Errors are
//! split off by a shrinkage that keeps large ones, step and offset are fitted to what remains by least squares, and the
//! codes follow; the shrinkage grows weaker from round to round and the best round stays.

use super::panel::{Coded, by_panels};
use super::rtn::fit_row;
use super::{Matrix, Method, SolveOptions, Solved, Solver};
use crate::codec::{Grid, Levels};
use crate::compress::CompressError;

/// Half-quadratic quantization.
pub struct Hqq;

/// The power of the error that is summed.
const POWER: f32 = 0.7;
const ROUNDS: usize = 20;
/// The first inverse weight of the shrinkage, in steps, and its growth per round.
const FIRST_BETA: f32 = 2.0;
const GROWTH: f32 = 1.2;

impl Solver for Hqq {
    fn name(&self) -> &'static str {
        "hqq"
    }
    fn summary(&self) -> &'static str {
        "half-quadratic: scales that let outliers err so that the many other weights fit; needs no calibration"
    }
    fn needs_moments(&self) -> bool {
        false
    }
    fn solve(&self, matrix: &Matrix, options: &SolveOptions) -> Result<Solved, CompressError> {
        let row_bytes = matrix.checked()?;
        let method = Method { solver: "hqq", notes: Vec::new() };
        Ok(by_panels(matrix, row_bytes, (method, options), |wanted| coded(matrix.grid, wanted, matrix.cols)))
    }
}

fn coded(grid: &dyn Grid, wanted: &[f32], cols: usize) -> Coded {
    let mut out = Coded { levels: Vec::new(), codes: Vec::with_capacity(wanted.len()) };
    let even = vec![1f32; cols];
    for row in wanted.chunks(cols) {
        let mut levels = fit_row(grid, row, &even);
        for (levels, group) in levels.iter_mut().zip(row.chunks(grid.group().min(cols))) {
            for part in 0..levels.parts.min(group.len().div_ceil(levels.width)) {
                let values = &group[part * levels.width..group.len().min((part + 1) * levels.width)];
                *levels = refined(levels, part, values, grid.has_offsets());
                let rungs = levels.rungs(part);
                out.codes.extend(values.iter().map(|v| rungs.nearest(*v).0));
            }
        }
        out.levels.push(levels);
    }
    out
}

/// The levels with one part's step and offset refined; the other parts stay as they are.
fn refined(levels: &Levels, part: usize, values: &[f32], has_offsets: bool) -> Levels {
    let mut best = levels.clone();
    let mut least = loss(&best, part, values);
    let mut current = best.clone();
    let mut beta = FIRST_BETA;
    for _ in 0..ROUNDS {
        let rungs = current.rungs(part);
        let unit = rungs.step.abs();
        if unit == 0.0 {
            break;
        }
        // Σ 1, l, l², t and l·t over levels l and targets t.
        let mut sums = [0f64; 5];
        for w in values {
            let (code, value) = rungs.nearest(*w);
            let error = (w - value) / unit;
            let kept = (error.abs() - error.abs().powf(POWER - 1.0) / beta).max(0.0).copysign(error) * unit;
            let (level, target) = (f64::from(rungs.level(code)), f64::from(w - kept));
            for (sum, term) in sums.iter_mut().zip([1.0, level, level * level, target, level * target]) {
                *sum += term;
            }
        }
        let [n, l, ll, t, lt] = sums;
        let determinant = n * ll - l * l;
        let (step, offset) = if has_offsets && determinant > 1e-9 * n * ll {
            ((n * lt - l * t) / determinant, (ll * t - l * lt) / determinant)
        } else if ll > 0.0 {
            (lt / ll, 0.0)
        } else {
            break;
        };
        let next = current.with_part(part, step as f32, offset as f32);
        current = next;
        let loss = loss(&current, part, values);
        if loss < least {
            (best, least) = (current.clone(), loss);
        }
        beta *= GROWTH;
    }
    best
}

fn loss(levels: &Levels, part: usize, values: &[f32]) -> f64 {
    let rungs = levels.rungs(part);
    values.iter().map(|w| f64::from((rungs.nearest(*w).1 - w).abs().powf(POWER))).sum()
}
