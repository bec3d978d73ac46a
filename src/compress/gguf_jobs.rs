//! The work of a quantization cut into jobs of a few rows. Jobs are independent; their outputs, joined in order, are
//! the data of the file.

use std::ops::Range;

use super::quant_gguf::PlannedTensor;
use super::{CompressError, ImportanceMatrix};
use crate::codec::{codec_for, first_beyond};
use crate::family::{Change, GgufContent, GgufTensor, Piece};
use crate::model::{Dtype, Encoding, TensorSource, transcode_rows};

/// Elements one job encodes, about: large enough to amortise a task, small enough to balance two cores.
const JOB_ELEMENTS: usize = 1 << 19;

/// A part of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Job<'a> {
    /// Rows (along the last dimension) of a tensor of the model; `order`: those of this piece of it, which is made of whole
    /// rows. `importance`: of every column.
    Rows { source: &'a str, rows: Range<usize>, order: Option<Piece>, dtype: Dtype, importance: Option<&'a [f32]> },
    /// Elements of tensors of the model one by one, changed, as rows of `cols`.
    Elements { pieces: Vec<Piece>, change: Change, cols: usize, dtype: Dtype, importance: Option<&'a [f32]> },
    /// Values that come from no tensor, stored as `F32`.
    Values(&'a [f32]),
}

/// The jobs of one tensor, in the order of its data.
pub(super) fn jobs_of<'a>(planned: &'a PlannedTensor, importance: Option<&'a ImportanceMatrix>) -> Vec<Job<'a>> {
    let (tensor, dtype) = (&planned.tensor, planned.dtype);
    if let GgufContent::Values(values) = &tensor.content {
        return vec![Job::Values(values)];
    }
    let cols = tensor.shape.last().copied().unwrap_or(1);
    let pieces = tensor.pieces();
    let (is_matrix, by_rows) = (tensor.shape.len() > 1, planned.is_made_of_rows());
    let stacked = if let GgufContent::Stack(sources) = &tensor.content { sources.len() } else { 1 };
    let columns = |nth: usize| importance.filter(|_| is_matrix)?.columns(&tensor.name, nth, stacked);
    if !by_rows {
        let each =
            |(nth, pieces)| Job::Elements { pieces, change: tensor.change, cols, dtype, importance: columns(nth) };
        let parts = if stacked > 1 { pieces.into_iter().map(|piece| vec![piece]).collect() } else { vec![pieces] };
        return parts.into_iter().enumerate().map(each).collect();
    }
    let step = (JOB_ELEMENTS / cols.max(1)).max(1);
    let mut jobs = Vec::new();
    let sources = tensor.sources();
    for (nth, piece) in pieces.into_iter().enumerate() {
        let Some(source) = sources.iter().copied().find(|source| *source == piece.source) else { continue };
        let rows = piece.elements() / cols.max(1);
        let (importance, in_order) =
            (columns(if stacked > 1 { nth } else { 0 }), piece.loops.len() == 1 && piece.start == 0);
        jobs.extend((0..rows).step_by(step).map(|start| Job::Rows {
            source,
            rows: start..(start + step).min(rows),
            order: (!in_order).then(|| piece.clone()),
            dtype,
            importance,
        }));
    }
    jobs
}

impl PlannedTensor {
    /// Whether every row of the tensor is a row of a tensor of the model, as it is there.
    pub(super) fn is_made_of_rows(&self) -> bool {
        made_of_rows(&self.tensor)
    }
}

/// See [`PlannedTensor::is_made_of_rows`].
pub(super) fn made_of_rows(tensor: &GgufTensor) -> bool {
    let cols = tensor.shape.last().copied().unwrap_or(1);
    let pieces = tensor.pieces();
    let whole = !pieces.is_empty() && pieces.iter().all(|piece| piece.is_runs_of(cols));
    tensor.shape.len() > 1 && tensor.change == Change::None && whole
}

impl Job<'_> {
    /// The encoded bytes.
    pub(super) fn run(&self, model: &dyn TensorSource) -> Result<Vec<u8>, CompressError> {
        match self {
            Job::Values(values) => Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect()),
            Job::Elements { pieces, change, cols, dtype, importance } => {
                elements(model, pieces, *change, *cols, encoding(&pieces[0].source, *dtype, *importance)?)
            }
            Job::Rows { source, rows, order, dtype, importance } => {
                let encoding = encoding(source, *dtype, *importance)?;
                let mut out = Vec::new();
                let cols = model.require(source)?.shape.last().copied().unwrap_or(1).max(1);
                let order = order.as_ref().map(|piece| move |row: usize| piece.position(row * cols) / cols);
                let order = order.as_ref().map(|order| order as &(dyn Fn(usize) -> usize + Sync));
                transcode_rows(model, source, rows.clone(), order, encoding, &mut out)?;
                Ok(out)
            }
        }
    }
}

fn encoding<'a>(source: &str, dtype: Dtype, importance: Option<&'a [f32]>) -> Result<Encoding<'a>, CompressError> {
    let codec = codec_for(dtype).ok_or_else(|| CompressError::Tensor {
        tensor: source.to_owned(),
        reason: format!("this build cannot write {dtype}"),
    })?;
    Ok(Encoding { codec, importance })
}

/// Gathers, changes and encodes.
fn elements(
    model: &dyn TensorSource,
    pieces: &[Piece],
    change: Change,
    cols: usize,
    Encoding { codec, importance }: Encoding<'_>,
) -> Result<Vec<u8>, CompressError> {
    let (mut values, mut whole) = (Vec::new(), Vec::new());
    for same in pieces.chunk_by(|a, b| a.source == b.source) {
        let source = &same[0].source;
        model.read_f32(source, &mut whole)?;
        if let Some(at) = first_beyond(&whole, codec.max_magnitude()) {
            let reason = format!("element {at} is {}", whole[at]);
            return Err(CompressError::Tensor { tensor: source.clone(), reason });
        }
        same.iter().for_each(|piece| piece.gather(&whole, 1, &mut values));
    }
    change.apply(&mut values, cols);
    if let Some(at) = first_beyond(&values, codec.max_magnitude()) {
        let reason = format!("element {at} becomes {}, which {} cannot hold", values[at], codec.name());
        return Err(CompressError::Tensor { tensor: pieces[0].source.clone(), reason });
    }
    let each = codec.dtype().bytes_for(cols);
    let mut out = vec![0; values.len() / cols.max(1) * each];
    for (row, encoded) in values.chunks_exact(cols.max(1)).zip(out.chunks_exact_mut(each.max(1))) {
        match importance {
            Some(importance) => codec.encode_weighted(row, importance, encoded),
            None => codec.encode(row, encoded),
        }
    }
    Ok(out)
}
