//! Rows of matrices that no calibration has solved.

use std::path::Path;

use super::PackedPlan;
use crate::compress::encoded::{EncodedRows, EncodedWriter};
use crate::compress::solve::{Matrix, SolveOptions, Solver};
use crate::compress::{ByteProgress, CompressError};
use crate::model::TensorSource;

/// Solves every matrix of `plan` on its weights alone. The rows lie in a file at `path` until they are dropped; `done`
/// hears the bytes solved.
///
/// # Errors
/// As the solver; a tensor that cannot be read; a full disk.
pub fn solve_unseen(
    source: &dyn TensorSource,
    plan: &PackedPlan,
    solver: &dyn Solver,
    path: &Path,
    done: ByteProgress<'_>,
) -> Result<EncodedRows, CompressError> {
    let mut writer = EncodedWriter::create(path)?;
    let (mut values, mut bytes) = (Vec::new(), 0u64);
    for matrix in &plan.matrices {
        source.read_f32(&matrix.weight, &mut values)?;
        source.release(&matrix.weight);
        let (rows, cols) = (matrix.rows, matrix.cols);
        let solvable = Matrix { name: &matrix.weight, values: &values, rows, cols, grid: &matrix.grid, moments: None };
        let solved = solver.solve(&solvable, &SolveOptions::default())?;
        writer.put(&matrix.weight, None, &solved.bytes)?;
        bytes += solved.bytes.len() as u64;
        done(bytes);
    }
    writer.finish()
}
