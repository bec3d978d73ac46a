//! How much of what every tensor puts out each type would lose, measured in one layer-major pass over a text.
//!
//! The measure of a type is `tr(E H Eᵀ) / tr(W H Wᵀ)`: `E = W − Ŵ` with every weight rounded to its nearest level
//! (scales searched under the inputs' mean squares) and `H = Σ x xᵀ` of what the layer is given in the model as it is.
//! A solver that lets errors make up for each other loses less, in much the same proportion for every type. Of large
//! matrices some rows stand for all; a stack of experts adds up over experts, each with the tokens routed to it. What has
//! no inputs of its own (embedding, head, matrices a file holds turned or changed) is measured by its weights alone.

use std::collections::HashMap;
use std::sync::Arc;

use rayon::prelude::*;

use super::Candidates;
use super::rounded::round_rows;
use crate::codec::{Codec, codec_for};
use crate::compress::calibrated::{Rounds, rounds};
use crate::compress::gguf_jobs::{jobs_of, made_of_rows};
use crate::compress::solve::{Moments, PANEL, energy};
use crate::compress::{CompressError, PlannedTensor};
use crate::engine::{InputSum, PassOptions, PassProgress, Rewriter, run_rewriting};
use crate::family::{BlockSpec, OpenModel};
use crate::model::{Dtype, TensorSource};
use crate::units::Bytes;

/// Rows looked at of a file's tensor, about: those of a stack are shared out among its experts, a panel each at least.
const MOST_ROWS: usize = 512;
/// Pieces looked at of a tensor without inputs, each of about half a million weights.
const MOST_PIECES: usize = 4;

/// What was measured of a model's tensors.
pub struct ErrorTable {
    /// By tensor and type of the [`Candidates`]: the share of the output's energy that is lost, 0 to about 1.
    pub shares: Vec<Vec<f64>>,
    /// Mean square of the inputs of every column, by weight.
    pub(super) importance: HashMap<String, Arc<[f32]>>,
}

impl ErrorTable {
    /// Runs `sequences` through the model and measures every type of every tensor. `sums`: memory for the sums of
    /// inputs.
    ///
    /// # Errors
    /// As the pass; a weight beyond what a type can hold.
    pub fn measure(
        model: &OpenModel,
        candidates: &Candidates,
        sequences: &[Vec<u32>],
        sums: Bytes,
        options: &PassOptions,
        progress: &dyn Fn(PassProgress),
    ) -> Result<Self, CompressError> {
        let source = model.tensors.as_ref();
        let sides = candidates.tensors.iter().map(|c| Sides { lost: vec![0.0; c.types.len()], all: 0.0 }).collect();
        let mut measuring =
            Measuring { candidates, places: candidates.places(), source, sums, sides, importance: HashMap::new() };
        run_rewriting(model, sequences, options, &mut measuring, progress)?;
        let Measuring { mut sides, importance, .. } = measuring;
        for (candidate, sides) in candidates.tensors.iter().zip(&mut sides) {
            if candidate.group.is_some() && sides.all == 0.0 {
                let as_values = PlannedTensor { tensor: candidate.tensor.clone(), dtype: Dtype::F32 };
                by_weights(source, &as_values, &candidate.types, sides)?;
            }
        }
        let shares = |sides: &Sides| sides.lost.iter().map(|lost| lost / sides.all.max(f64::MIN_POSITIVE)).collect();
        Ok(ErrorTable { shares: sides.iter().map(shares).collect(), importance })
    }
}

/// Energies of a tensor's output: lost by each type, and all there is.
struct Sides {
    lost: Vec<f64>,
    all: f64,
}

/// The rewriter that changes nothing and looks at everything.
struct Measuring<'a> {
    candidates: &'a Candidates,
    places: HashMap<&'a str, usize>,
    source: &'a dyn TensorSource,
    sums: Bytes,
    sides: Vec<Sides>,
    importance: HashMap<String, Arc<[f32]>>,
}

impl Measuring<'_> {
    /// The tensor of the file whose rows are rows of this weight.
    fn place(&self, weight: &str) -> Option<usize> {
        let place = self.places.get(weight).copied()?;
        let candidate = &self.candidates.tensors[place];
        (candidate.group.is_some() && made_of_rows(&candidate.tensor)).then_some(place)
    }

    fn look(&mut self, weight: &str, moments: &Moments, importance: &[f32]) -> Result<(), CompressError> {
        let Some(place) = self.place(weight) else { return Ok(()) };
        let candidate = &self.candidates.tensors[place];
        let sources = candidate.tensor.sources().len().max(1);
        let values = some_rows(self.source, weight, moments.size, MOST_ROWS / sources)?;
        let inputs = (Some(moments), Some(importance));
        weigh(weight, &values, moments.size, &candidate.types, inputs, &mut self.sides[place])
    }
}

impl Rewriter for Measuring<'_> {
    type Error = CompressError;

    fn rounds(&self, block: &BlockSpec) -> Vec<Vec<String>> {
        rounds(block, &|weight| self.place(weight).is_some(), self.sums, Rounds::Forward)
    }

    fn rewrite(
        &mut self,
        _block: &BlockSpec,
        _round: &[String],
        inputs: Vec<InputSum>,
    ) -> Result<Vec<(String, Vec<f32>)>, CompressError> {
        for input in inputs {
            let moments = Moments { size: input.columns, sum: input.sum, tokens: input.rows };
            let importance: Arc<[f32]> = moments.importance().into();
            for weight in &input.tensors {
                self.look(weight, &moments, &importance)?;
                self.importance.insert(weight.clone(), importance.clone());
            }
        }
        Ok(Vec::new())
    }
}

/// Up to about `most` rows of a matrix, in panels that lie evenly over it.
fn some_rows(source: &dyn TensorSource, weight: &str, cols: usize, most: usize) -> Result<Vec<f32>, CompressError> {
    let rows = source.require(weight)?.elems() / cols.max(1);
    let (mut values, mut panel) = (Vec::new(), Vec::new());
    let panels = (most / PANEL).max(1);
    if rows <= panels * PANEL {
        source.read_f32(weight, &mut values)?;
    } else {
        for nth in 0..panels {
            let start = nth * (rows - PANEL) / (panels - 1).max(1);
            source.read_rows_f32(weight, start..start + PANEL, &mut panel)?;
            values.extend_from_slice(&panel);
        }
    }
    source.release(weight);
    Ok(values)
}

/// Adds what each type loses of rows of `cols` values.
fn weigh(
    name: &str,
    values: &[f32],
    cols: usize,
    types: &[Dtype],
    (moments, importance): (Option<&Moments>, Option<&[f32]>),
    sides: &mut Sides,
) -> Result<(), CompressError> {
    let panels: Vec<&[f32]> = values.chunks(PANEL * cols.max(1)).collect();
    // Panels are added up in their order, whatever the number of threads.
    let of_panel = |panel: &&[f32]| -> Result<(Vec<f64>, f64), CompressError> {
        let lost = |dtype: &Dtype| {
            let mut off = panel.to_vec();
            round_rows(name, codec(name, *dtype)?, &mut off, cols, importance)?;
            off.iter_mut().zip(panel.iter()).for_each(|(rounded, value)| *rounded = value - *rounded);
            Ok(energy(moments, cols, &off).max(0.0))
        };
        Ok((types.iter().map(lost).collect::<Result<_, CompressError>>()?, energy(moments, cols, panel).max(0.0)))
    };
    let found = panels.par_iter().map(of_panel).collect::<Result<Vec<_>, CompressError>>()?;
    for (lost, all) in found {
        sides.lost.iter_mut().zip(lost).for_each(|(sum, lost)| *sum += lost);
        sides.all += all;
    }
    Ok(())
}

/// Measures a tensor by its values alone, as the file has them: some pieces of it.
fn by_weights(
    source: &dyn TensorSource,
    planned: &PlannedTensor,
    types: &[Dtype],
    sides: &mut Sides,
) -> Result<(), CompressError> {
    let jobs = jobs_of(planned, None);
    let count = jobs.len().min(MOST_PIECES);
    let cols = planned.tensor.shape.last().copied().unwrap_or(1);
    for nth in 0..count {
        let bytes = jobs[nth * (jobs.len() - 1) / (count - 1).max(1)].run(source)?;
        let values: Vec<f32> = bytes.as_chunks::<4>().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect();
        weigh(&planned.tensor.name, &values, cols, types, (None, None), sides)?;
    }
    planned.tensor.sources().into_iter().for_each(|name| source.release(name));
    Ok(())
}

pub(super) fn codec(tensor: &str, dtype: Dtype) -> Result<&'static dyn Codec, CompressError> {
    let reason = || format!("this build cannot write {dtype}");
    codec_for(dtype).ok_or_else(|| CompressError::Tensor { tensor: tensor.to_owned(), reason: reason() })
}
