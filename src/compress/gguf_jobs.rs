//! The work of a quantization cut into jobs of a few rows. Jobs are independent; their outputs, joined in order, are
//! the data of the file.

use std::ops::Range;

use super::quant_gguf::PlannedTensor;
use super::{CompressError, ImportanceMatrix};
use crate::codec::{codec_for, first_beyond};
use crate::family::{GgufContent, permuted_row};
use crate::model::{Dtype, Encoding, TensorSource, transcode_rows};

/// Elements one job encodes, about: large enough to amortise a task, small enough to balance two cores.
const JOB_ELEMENTS: usize = 1 << 19;

/// A part of one tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Job<'a> {
    /// Rows (along the last dimension) of a tensor of the model, in another order within heads of `head_rows` rows.
    /// `importance`: of every column.
    Rows { source: &'a str, rows: Range<usize>, head_rows: Option<usize>, dtype: Dtype, importance: Option<&'a [f32]> },
    /// A whole vector, stored as `F32`, in another order within heads of `head_rows` elements.
    Vector { source: &'a str, head_rows: Option<usize> },
    /// Values that come from no tensor, stored as `F32`.
    Values(&'a [f32]),
}

/// The jobs of one tensor, in the order of its data.
pub(super) fn jobs_of<'a>(planned: &'a PlannedTensor, importance: Option<&'a ImportanceMatrix>) -> Vec<Job<'a>> {
    let tensor = &planned.tensor;
    let sources: Vec<&str> = match &tensor.content {
        GgufContent::Values(values) => return vec![Job::Values(values)],
        GgufContent::Copy(source) | GgufContent::Permute { source, .. } => vec![source],
        GgufContent::Stack(sources) => sources.iter().map(String::as_str).collect(),
    };
    let (&cols, outer) = tensor.shape.split_last().unwrap_or((&1, &[]));
    let head = |all: usize| match tensor.content {
        GgufContent::Permute { heads, .. } => Some(all / heads.max(1)),
        _ => None,
    };
    if outer.is_empty() {
        return sources.into_iter().map(|source| Job::Vector { source, head_rows: head(cols) }).collect();
    }
    let rows = outer.iter().product::<usize>() / sources.len().max(1);
    let step = (JOB_ELEMENTS / cols.max(1)).max(1);
    let (head_rows, dtype) = (head(rows), planned.dtype);
    let stacked = sources.len();
    let cut = |(nth, source)| {
        let importance = importance.and_then(|matrix| matrix.columns(&tensor.name, nth, stacked));
        (0..rows).step_by(step).map(move |start| Job::Rows {
            source,
            rows: start..(start + step).min(rows),
            head_rows,
            dtype,
            importance,
        })
    };
    sources.into_iter().enumerate().flat_map(cut).collect()
}

impl Job<'_> {
    /// The encoded bytes.
    pub(super) fn run(&self, model: &dyn TensorSource) -> Result<Vec<u8>, CompressError> {
        match self {
            Job::Values(values) => Ok(little_endian(values)),
            Job::Vector { source, head_rows } => vector(model, source, *head_rows),
            Job::Rows { source, rows, head_rows, dtype, importance } => {
                let codec = codec_for(*dtype).ok_or_else(|| CompressError::Tensor {
                    tensor: (*source).to_owned(),
                    reason: format!("this build cannot write {dtype}"),
                })?;
                let mut out = Vec::new();
                let order = head_rows.map(|head| move |row| permuted(row, head));
                let order = order.as_ref().map(|order| order as &(dyn Fn(usize) -> usize + Sync));
                let encoding = Encoding { codec, importance: *importance };
                transcode_rows(model, source, rows.clone(), order, encoding, &mut out)?;
                Ok(out)
            }
        }
    }
}

fn vector(model: &dyn TensorSource, source: &str, head_rows: Option<usize>) -> Result<Vec<u8>, CompressError> {
    let mut values = Vec::new();
    model.read_f32(source, &mut values)?;
    if let Some(at) = first_beyond(&values, f32::MAX) {
        let reason = format!("element {at} is {}", values[at]);
        return Err(CompressError::Tensor { tensor: source.to_owned(), reason });
    }
    Ok(match head_rows {
        None => little_endian(&values),
        Some(head) => {
            let ordered: Vec<f32> = (0..values.len()).map(|row| values[permuted(row, head)]).collect();
            little_endian(&ordered)
        }
    })
}

fn little_endian(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The row of the model that becomes row `row`, when heads of `head` rows are reordered.
fn permuted(row: usize, head: usize) -> usize {
    row / head * head + permuted_row(row % head, head)
}
