//! Tuning of a block's matrices once they are solved: see [`super::solve::BlockTune`].

use std::collections::HashMap;

use super::CompressError;
use super::calibrated::GridRef;
use super::solve::{Coded, Latents, Rates};
use crate::engine::Tune;

/// A solved matrix that may still be moved.
pub(super) struct Tunable {
    pub weight: String,
    pub grid: GridRef,
    /// What its codes are to stand for, `[rows, cols]`.
    pub wanted: Vec<f32>,
    pub cols: usize,
    pub coded: Coded,
}

/// What came of it.
pub(super) struct Tuned {
    /// Errors on the sequences kept for judging, before and after.
    pub before: f64,
    pub after: f64,
    /// Rows as stored and what they read back as, by weight; empty when tuning did not help.
    pub matrices: HashMap<String, (Vec<u8>, Vec<f32>)>,
}

/// How a block is tuned.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TuneOptions {
    /// Steps in all.
    pub steps: usize,
    /// How far a weight may go in all, in levels.
    pub travel: f32,
    /// How far a scale may go in all, as a share of it.
    pub step_travel: f32,
}

impl Default for TuneOptions {
    fn default() -> Self {
        TuneOptions { steps: 64, travel: 0.15, step_travel: 0.05 }
    }
}

/// Moves the matrices of a block down the gradient of its error. What does not lower the error on the sequences kept for
/// judging is not taken.
pub(super) fn tune(
    matrices: Vec<Tunable>,
    options: TuneOptions,
    tuning: &mut dyn Tune,
) -> Result<Tuned, CompressError> {
    let before = tuning.judge()?;
    let mut learning: Vec<(String, GridRef, usize, Latents)> = Vec::new();
    for matrix in matrices {
        let latents = Latents::new(matrix.grid.get(), &matrix.wanted, matrix.cols, matrix.coded);
        learning.push((matrix.weight, matrix.grid, matrix.cols, latents));
    }
    for at in 0..options.steps {
        let (_, gradients) = tuning.gradients(at)?;
        // The rate falls evenly to nothing: its mean is half of the first.
        let share = 2.0 * (options.steps - at) as f32 / (options.steps * (options.steps + 1)) as f32;
        let rates = Rates { place: options.travel * share, step: options.step_travel * share, at: at as i32 };
        for (weight, _, _, latents) in &mut learning {
            if let Some(gradient) = gradients.get(weight) {
                latents.descend(gradient, rates);
                tuning.set(weight, &latents.values())?;
            }
        }
    }
    let after = tuning.judge()?;
    let mut out = Tuned { before, after, matrices: HashMap::new() };
    if after >= before || !after.is_finite() {
        return Ok(out);
    }
    for (weight, grid, cols, latents) in learning {
        let (grid, coded) = (grid.get(), latents.coded());
        let row_bytes = grid.row_bytes(cols).unwrap_or(0);
        let mut bytes = vec![0u8; row_bytes * coded.levels.len()];
        let mut values = vec![0f32; coded.codes.len()];
        let rows = coded.levels.iter().zip(coded.codes.chunks(cols));
        for (((levels, codes), row), values) in rows.zip(bytes.chunks_mut(row_bytes)).zip(values.chunks_mut(cols)) {
            grid.pack(levels, codes, row);
            grid.unpack(row, values);
        }
        out.matrices.insert(weight, (bytes, values));
    }
    Ok(out)
}
