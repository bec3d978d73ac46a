//! `awq-gptq`: columns scaled as `awq` scales them, then solved as `gptq` solves them.

use super::gptq::Gptq;
use super::{Matrix, SolveOptions, Solved, Solver};
use crate::compress::CompressError;

/// Scales, then error feedback.
pub struct AwqGptq;

impl Solver for AwqGptq {
    fn name(&self) -> &'static str {
        "awq-gptq"
    }
    fn summary(&self) -> &'static str {
        "columns scaled as awq does, then error feedback and descent as gptq does"
    }
    fn needs_moments(&self) -> bool {
        true
    }
    fn scales_inputs(&self) -> bool {
        true
    }
    fn solve(&self, matrix: &Matrix, options: &SolveOptions) -> Result<Solved, CompressError> {
        Gptq.solve(matrix, options)
    }
}
