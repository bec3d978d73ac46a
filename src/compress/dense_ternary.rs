//! A model made ternary and stored dense: every matrix −1, 0, +1 times a scale per row, some rows in 4 bits instead, all
//! in f16, so that a loader that knows nothing of codes reads it and an entropy coder packs it.
//!
//! What such an archive weighs depends on how few different numbers there are: scales may be rounded to fewer bits of
//! mantissa (with two, the low byte of every weight is zero), and a zero is always +0.0.

use std::collections::HashSet;
use std::path::Path;

use half::f16;
use rayon::prelude::*;

use super::encoded::{EncodedRows, EncodedWriter};
use super::solve::{Matrix, SolveOptions, solver_named};
use super::{CompressError, GridRef, Target, Targets};
use crate::codec::{Dtype, Grid, IntGrid};
use crate::family::{BlockSpec, OpenModel, Role};
use crate::model::{DeclaredTensor, SafetensorsWriter, WrittenModel};

/// Bits of an f16's mantissa.
pub const F16_MANTISSA: u32 = 10;
/// How often a token that a calibration does not hold counts as seen.
const UNSEEN: f32 = 0.1;
/// Largest code of a rescued weight.
const MOST: f32 = 7.0;

/// A model whose ternary codes are chosen.
pub struct DenseTernary<'a> {
    /// What is written where nothing else is chosen.
    pub model: &'a OpenModel,
    /// Matrices solved on their inputs.
    pub solved: Option<EncodedRows>,
    /// The others, rounded.
    rounded: EncodedRows,
    /// Every row of every ternary matrix, the one that gains most by a rescue first.
    rows: Vec<Row>,
    weights: u64,
}

struct Row {
    tensor: String,
    row: usize,
    cols: usize,
    /// Squared error that 4 bits save, per weight.
    gain: f32,
}

/// Rows that are kept in 4 bits.
#[derive(Debug, Default)]
pub struct RescuedRows {
    rows: HashSet<(String, usize)>,
    /// Of the weights of ternary matrices.
    pub share: f64,
}

/// The linear layers of the blocks as ternary rows: what a calibrated solver chooses codes for.
pub fn ternary_targets(model: &OpenModel) -> Targets {
    let layers = model.spec.blocks.iter().flat_map(BlockSpec::inputs).flat_map(|input| input.layers);
    let target = || Target { grid: GridRef::Shared(std::sync::Arc::new(IntGrid::ternary(usize::MAX))), dtype: None };
    let kept = kept_dense(model);
    layers.filter(|layer| !kept.contains(&layer.weight)).map(|layer| (layer.weight.clone(), target())).collect()
}

/// Tensors that stay as they are: norms, biases, and the routers, whose choices a rounding would change.
fn kept_dense(model: &OpenModel) -> HashSet<String> {
    let stays = |role: Role, shape: &[usize]| {
        shape.len() != 2 || shape[0] < 2 || matches!(role, Role::Router(_) | Role::SharedGate(_))
    };
    let tensors = model.spec.tensors();
    tensors.into_iter().filter(|tensor| stays(tensor.role, &tensor.shape)).map(|tensor| tensor.name).collect()
}

impl<'a> DenseTernary<'a> {
    /// Rounds every matrix, or with `counts` (how often each token occurs in a calibration) those of the vocabulary only:
    /// the layers of the blocks are then to be solved ([`DenseTernary::solved`]) and stay ternary, for what is solved on
    /// its inputs loses when some of its rows are exchanged afterwards. Codes lie in a file at `path` until the result is
    /// dropped.
    ///
    /// # Errors
    /// A matrix that cannot be read or holds a value that is not finite; a full disk.
    pub fn new(model: &'a OpenModel, counts: Option<Vec<u64>>, path: &Path) -> Result<Self, CompressError> {
        let (kept, grid) = (kept_dense(model), IntGrid::ternary(usize::MAX));
        let solver = solver_named("rtn").ok_or_else(|| CompressError::Refused {
            what: "ternary",
            reason: "this build has no solver rtn".to_owned(),
            hint: "report this",
        })?;
        let mut writer = EncodedWriter::create(path)?;
        let solved = if counts.is_some() { ternary_targets(model) } else { Targets::new() };
        let (mut rows, mut weights, mut values) = (Vec::new(), 0, Vec::new());
        for tensor in model.spec.tensors().into_iter().filter(|tensor| !kept.contains(&tensor.name)) {
            let (name, cols) = (tensor.name, tensor.shape[1]);
            weights += tensor.shape.iter().product::<usize>() as u64;
            if solved.contains_key(&name) {
                continue;
            }
            model.tensors.read_f32(&name, &mut values)?;
            model.tensors.release(&name);
            let matrix =
                Matrix { name: &name, values: &values, rows: tensor.shape[0], cols, grid: &grid, moments: None };
            let codes = solver.solve(&matrix, &SolveOptions::default())?.bytes;
            writer.put(&name, None, &codes)?;
            let mut gains = gains(&name, &values, &codes, cols);
            // What a row of the vocabulary loses is lost as often as its token occurs.
            if let Some(counts) = counts.as_ref().filter(|_| matches!(tensor.role, Role::Embed | Role::Head)) {
                gains.iter_mut().zip(counts).for_each(|(row, count)| row.gain *= *count as f32 + UNSEEN);
            }
            rows.extend(gains);
        }
        // Of equal gains the earlier row goes first: the sort is stable.
        rows.sort_by(|a, b| b.gain.total_cmp(&a.gain));
        Ok(DenseTernary { model, solved: None, rounded: writer.finish()?, rows, weights })
    }

    /// The embedding with so many bits of mantissa in its scales, and up to this share of the model's weights rescued.
    ///
    /// # Errors
    /// The embedding cannot be read.
    pub fn embedding(&self, mantissa: u32, rescued: f64) -> Result<Vec<f32>, CompressError> {
        let name = &self.model.spec.embed;
        let mut values = Vec::new();
        self.model.tensors.read_f32(name, &mut values)?;
        self.model.tensors.release(name);
        self.make_ternary(name, self.model.spec.hidden, &mut values, mantissa, &self.rescued(rescued));
        Ok(values)
    }

    /// The rows whose rescue saves most squared error per weight, up to a share of the weights.
    pub fn rescued(&self, most: f64) -> RescuedRows {
        let (mut out, mut taken, limit) = (RescuedRows::default(), 0u64, (most * self.weights as f64) as u64);
        for row in self.rows.iter().filter(|row| row.gain > 0.0) {
            if taken + row.cols as u64 > limit {
                break;
            }
            taken += row.cols as u64;
            out.rows.insert((row.tensor.clone(), row.row));
        }
        out.share = taken as f64 / self.weights.max(1) as f64;
        out
    }

    /// Writes the weights into `folder`, in f16: scales with so many bits of mantissa, these rows in 4 bits.
    ///
    /// # Errors
    /// A value that f16 cannot hold; a full disk.
    pub fn write(&self, folder: &Path, mantissa: u32, rescued: &RescuedRows) -> Result<WrittenModel, CompressError> {
        let kept = kept_dense(self.model);
        let tensors = self.model.spec.tensors();
        let declared = tensors.iter().map(|t| DeclaredTensor::new(&t.name, Dtype::F16, t.shape.clone())).collect();
        let mut writer = SafetensorsWriter::create(folder, declared, u64::MAX)?;
        let mut values = Vec::new();
        for tensor in &tensors {
            let name = &tensor.name;
            self.model.tensors.read_f32(name, &mut values)?;
            self.model.tensors.release(name);
            if !kept.contains(name) {
                self.make_ternary(name, tensor.shape[1], &mut values, mantissa, rescued);
            }
            let bytes: Vec<u8> = values.iter().flat_map(|&value| stored(value).to_le_bytes()).collect();
            if let Some(value) = values.iter().find(|value| !stored(**value).is_finite()) {
                let reason = format!("holds {value}, which f16 cannot");
                return Err(CompressError::Tensor { tensor: name.clone(), reason });
            }
            writer.tensor(name, &bytes)?;
        }
        Ok(writer.finish()?)
    }

    /// Turns the values of a matrix into those it is stored with.
    fn make_ternary(&self, name: &str, cols: usize, values: &mut [f32], mantissa: u32, rescued: &RescuedRows) {
        let grid = IntGrid::ternary(usize::MAX);
        let codes = self.codes(name).unwrap_or_default();
        let row_bytes = grid.row_bytes(cols).unwrap_or(1);
        let rows = values.par_chunks_mut(cols).zip(codes.par_chunks(row_bytes)).enumerate();
        rows.for_each(|(row, (values, codes))| match rescued.rows.contains(&(name.to_owned(), row)) {
            true => rescue(values, mantissa),
            false => {
                grid.unpack(codes, values);
                round_scale(values, mantissa);
            }
        });
    }

    fn codes(&self, name: &str) -> Option<&[u8]> {
        self.solved.as_ref().and_then(|solved| solved.rows(name)).or_else(|| self.rounded.rows(name))
    }
}

/// What a rescue of each row would save.
fn gains(name: &str, values: &[f32], codes: &[u8], cols: usize) -> Vec<Row> {
    let grid = IntGrid::ternary(usize::MAX);
    let row_bytes = grid.row_bytes(cols).unwrap_or(1);
    let rows = values.par_chunks(cols).zip(codes.par_chunks(row_bytes)).enumerate();
    rows.map(|(row, (values, codes))| {
        let mut ternary = vec![0.0; cols];
        grid.unpack(codes, &mut ternary);
        let mut four_bits = values.to_vec();
        rescue(&mut four_bits, F16_MANTISSA);
        let error = |other: &[f32]| values.iter().zip(other).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
        Row { tensor: name.to_owned(), row, cols, gain: (error(&ternary) - error(&four_bits)) / cols as f32 }
    })
    .collect()
}

/// A row in 4 bits: −7 to 7 times its largest magnitude over 7.
fn rescue(values: &mut [f32], mantissa: u32) {
    let largest = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let scale = coarse(largest / MOST, mantissa);
    if scale > 0.0 {
        values.iter_mut().for_each(|value| *value = (*value / scale).round_ties_even().clamp(-MOST, MOST) * scale);
    }
}

/// A ternary row with the scale that has so many bits of mantissa.
fn round_scale(values: &mut [f32], mantissa: u32) {
    let scale = coarse(values.iter().fold(0.0f32, |most, value| most.max(value.abs())), mantissa);
    values.iter_mut().filter(|value| **value != 0.0).for_each(|value| *value = scale.copysign(*value));
}

/// The nearest f16 with so many bits of mantissa, of a number that is not negative.
fn coarse(value: f32, mantissa: u32) -> f32 {
    let cut = F16_MANTISSA.saturating_sub(mantissa);
    let bits = f16::from_f32(value).to_bits();
    let rounded = if cut == 0 { bits } else { (bits + (1 << (cut - 1))) >> cut << cut };
    let rounded = f16::from_bits(rounded);
    if rounded.is_finite() { rounded.to_f32() } else { f16::from_bits(bits).to_f32() }
}

/// As f16, zeros positive.
fn stored(value: f32) -> f16 {
    let value = f16::from_f32(value);
    if value == f16::ZERO { f16::ZERO } else { value }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_lose_bits_and_zeros_their_sign() {
        assert_eq!(coarse(1.3, 2), 1.25);
        assert_eq!(coarse(1.9, 2), 2.0);
        assert_eq!(coarse(1.3, F16_MANTISSA), f16::from_f32(1.3).to_f32());
        assert_eq!(coarse(65504.0, 2), 65504.0);
        assert_eq!(stored(-0.0).to_bits(), 0);
        assert_eq!(stored(-1e-9).to_bits(), 0);
        let mut row = [0.3f32, -0.3, 0.0];
        round_scale(&mut row, 2);
        assert_eq!(row, [0.3125, -0.3125, 0.0]);
    }

    #[test]
    fn a_rescued_row_keeps_fifteen_levels() {
        let mut row: Vec<f32> = (-7..=7).map(|code| code as f32 * 0.5).collect();
        let before = row.clone();
        rescue(&mut row, F16_MANTISSA);
        assert_eq!(row, before);
        let mut zero = [0.0f32; 3];
        rescue(&mut zero, 2);
        assert_eq!(zero, [0.0; 3]);
    }
}
