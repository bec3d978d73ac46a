//! Rows of matrices that no calibration has solved.

use std::path::Path;

use crate::codec::IntGrid;
use crate::compress::encoded::{EncodedRows, EncodedWriter};
use crate::compress::solve::{Matrix, SolveOptions, Solver};
use crate::compress::{ByteProgress, CompressError};
use crate::model::TensorSource;

/// A matrix to solve on its weights alone.
#[derive(Clone, Copy, Debug)]
pub struct Unseen<'a> {
    pub weight: &'a str,
    pub rows: usize,
    pub cols: usize,
    pub grid: &'a IntGrid,
}

/// Solves these matrices of `source`. The rows lie in a file at `path` until they are dropped; `done` hears the bytes
/// solved.
///
/// # Errors
/// As the solver; a tensor that cannot be read; a full disk.
pub fn solve_unseen(
    source: &dyn TensorSource,
    matrices: &[Unseen<'_>],
    solver: &dyn Solver,
    path: &Path,
    done: ByteProgress<'_>,
) -> Result<EncodedRows, CompressError> {
    let mut writer = EncodedWriter::create(path)?;
    let (mut values, mut bytes) = (Vec::new(), 0u64);
    for &Unseen { weight: name, rows, cols, grid } in matrices {
        source.read_f32(name, &mut values)?;
        source.release(name);
        let solvable = Matrix { name, values: &values, rows, cols, grid, moments: None };
        let solved = solver.solve(&solvable, &SolveOptions::default())?;
        writer.put(name, None, &solved.bytes)?;
        bytes += solved.bytes.len() as u64;
        done(bytes);
    }
    writer.finish()
}
