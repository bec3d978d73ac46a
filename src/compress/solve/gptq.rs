//! `gptq`: error feedback column by column, then descent on the exact error over codes, steps and offsets.
//!
//! The feedback is GPTQ's (Frantar et al. 2022) in any grid; what a greedy pass leaves is taken up by sweeps of coordinate
//! descent on `e H eᵀ`, alternated with a refit of steps and offsets in the same metric.

use super::descent::Descent;
use super::factor::Metric;
use super::feedback::{in_given_order, in_natural_order};
use super::panel::by_panels;
use super::rtn::Rtn;
use super::{Matrix, Method, Moments, Order, SolveOptions, Solved, Solver};
use crate::codec::error_weights;
use crate::compress::CompressError;

/// GPTQ with descent.
pub struct Gptq;

/// Fewer inputs than this tell too little to feed errors back: the matrix is rounded instead.
const FEWEST_TOKENS: u64 = 32;
/// The most that is added to the damping for moments of few inputs; correlations are shrunk without limit.
const MOST_ADDED: f64 = 0.3;

impl Solver for Gptq {
    fn name(&self) -> &'static str {
        "gptq"
    }
    fn summary(&self) -> &'static str {
        "error feedback column by column (GPTQ), then coordinate descent over codes and a refit of scales"
    }
    fn needs_moments(&self) -> bool {
        true
    }
    fn solve(&self, matrix: &Matrix, options: &SolveOptions) -> Result<Solved, CompressError> {
        let row_bytes = matrix.checked()?;
        let Some(moments) = matrix.moments else {
            return Err(CompressError::Refused {
                what: "gptq",
                reason: format!("{}: no moments of its inputs were summed", matrix.name),
                hint: "calibrate, or choose a solver that needs none (rtn, hqq)",
            });
        };
        let mut notes = Vec::new();
        if moments.tokens < FEWEST_TOKENS {
            return rounded_instead(matrix, options, format!("{} inputs seen: rounded to nearest", moments.tokens));
        }
        // The moments of few inputs are noisy in proportion to columns over inputs: so much is taken from correlations and
        // added to the diagonal. Errors on other text fall (measured on SmolLM2), those on the calibration rise a little.
        let noise = matrix.cols as f64 / moments.tokens as f64;
        let (keep, damping) = (1.0 / (1.0 + noise), options.damping + noise.min(MOST_ADDED));
        if noise > 1.0 {
            notes.push(format!("{} inputs for {} columns: correlations at {keep:.2}", moments.tokens, matrix.cols));
        }
        let natural: Vec<usize> = (0..matrix.cols).collect();
        let Some(metric) = Metric::new(moments, &natural, keep, damping) else {
            return rounded_instead(matrix, options, "inputs all zero: rounded to nearest".to_owned());
        };
        notes.extend(metric.notes.iter().cloned());
        let ordered = match options.order {
            Order::Natural => None,
            Order::Activation => {
                let order = by_activation(moments);
                Metric::new(moments, &order, keep, damping).map(|metric| (metric, order))
            }
        };
        let importance = moments.importance();
        let solve = |wanted: &[f32]| {
            let coded = match &ordered {
                None => in_natural_order(matrix.grid, wanted, &metric),
                Some((metric, order)) => {
                    let weights = wanted.chunks(matrix.cols).map(|row| error_weights(row, Some(&importance)));
                    let weights: Vec<f32> = weights.flatten().collect();
                    in_given_order(matrix.grid, wanted, metric, order, &weights)
                }
            };
            if options.sweeps == 0 {
                return coded;
            }
            let mut descent = Descent::new(matrix.grid, wanted, &metric.full, matrix.cols, coded);
            for sweep in 0..options.sweeps {
                if sweep > 0 {
                    descent.refit();
                }
                if descent.sweep_codes() == 0 {
                    break;
                }
            }
            descent.finish()
        };
        Ok(by_panels(matrix, row_bytes, (Method { solver: "gptq", notes }, options), solve))
    }
}

fn rounded_instead(matrix: &Matrix, options: &SolveOptions, note: String) -> Result<Solved, CompressError> {
    let mut solved = Rtn.solve(matrix, options)?;
    solved.method.notes.push(note);
    Ok(solved)
}

/// Columns by the mean square of their inputs, largest first; equal ones as they lie.
fn by_activation(moments: &Moments) -> Vec<usize> {
    let importance = moments.importance();
    let mut order: Vec<usize> = (0..moments.size).collect();
    order.sort_by(|a, b| importance[*b].total_cmp(&importance[*a]).then(a.cmp(b)));
    order
}
