//! The weights of a packed directory, streamed: every part of a matrix is a tensor of its own, the widest types first, so
//! that each tensor begins at a multiple of its type's width.

use std::path::Path;

use super::{PackedMatrix, PackedPlan};
use crate::codec::{Dtype, Grid, codec_for, pack_ints, packed_bytes};
use crate::compress::encoded::EncodedRows;
use crate::compress::{ByteProgress, CompressError};
use crate::family::OpenModel;
use crate::model::{
    DeclaredTensor, ModelError, SafetensorsWriter, TensorSource, WrittenModel, rows_of, transcode_rows,
};

/// Bytes handed to the writer at once, about.
const PIECE: usize = 4 << 20;

/// What a tensor of the directory is made of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part {
    Shape,
    Codes,
    ZeroPoints,
    Scales,
}

/// What a tensor to write is of.
enum Piece<'a> {
    Packed(&'a PackedMatrix, Part),
    /// Not packed; under the name the specification has for it, where it has one.
    Dense(Option<&'a str>),
}

/// The tensors a matrix becomes.
pub(super) fn parts(matrix: &PackedMatrix, half: Dtype) -> Vec<(Part, DeclaredTensor)> {
    let PackedMatrix { layer, rows, cols, grid, .. } = matrix;
    let (bits, groups) = (grid.bits(), grid.groups(*cols));
    let name = |part: &str| format!("{layer}.weight_{part}");
    let words = |count: usize| packed_bytes(count, bits) / 4;
    let mut parts = vec![
        (Part::Shape, DeclaredTensor::new(name("shape"), Dtype::I64, [2])),
        (Part::Codes, DeclaredTensor::new(name("packed"), Dtype::I32, [*rows, words(*cols)])),
        (Part::Scales, DeclaredTensor::new(name("scale"), half, [*rows, groups])),
    ];
    if grid.has_offsets() {
        let zeros = DeclaredTensor::new(name("zero_point"), Dtype::I32, [words(*rows), groups]);
        parts.insert(2, (Part::ZeroPoints, zeros));
    }
    parts
}

impl PackedPlan {
    fn pieces(&self) -> Vec<(Piece<'_>, DeclaredTensor)> {
        let of_matrix = |matrix| {
            parts(matrix, self.half).into_iter().map(move |(part, tensor)| (Piece::Packed(matrix, part), tensor))
        };
        let dense = self.dense.iter().map(|dense| (Piece::Dense(dense.known_as.as_deref()), dense.tensor.clone()));
        let mut pieces: Vec<_> = self.matrices.iter().flat_map(of_matrix).chain(dense).collect();
        pieces.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.dtype.block_bytes()));
        pieces
    }

    /// Every tensor of the directory, in order.
    pub(super) fn declared(&self) -> Vec<DeclaredTensor> {
        self.pieces().into_iter().map(|(_, tensor)| tensor).collect()
    }
}

/// Writes the weights of `plan` into `out`, an existing directory; `rows` are the solved matrices. `done` hears the bytes
/// written.
///
/// # Errors
/// A matrix that `rows` lacks, values that do not fit the type of what stays, a full disk.
pub fn write_packed(
    model: &OpenModel,
    plan: &PackedPlan,
    rows: Option<&EncodedRows>,
    (out, max_shard_bytes): (&Path, u64),
    done: ByteProgress<'_>,
) -> Result<WrittenModel, CompressError> {
    let mut writer = SafetensorsWriter::create(out, plan.declared(), max_shard_bytes)?;
    let mut written = 0u64;
    for (piece, tensor) in plan.pieces() {
        match piece {
            Piece::Dense(Some(name)) => copy_dense((model.tensors.as_ref(), name), &tensor, &mut writer)?,
            Piece::Dense(None) => copy_dense((model.stored.as_ref(), &tensor.name), &tensor, &mut writer)?,
            Piece::Packed(matrix, part) => {
                let solved = rows.and_then(|rows| rows.rows(&matrix.weight)).ok_or_else(|| ModelError::Misuse {
                    path: out.to_owned(),
                    cause: format!("{} was not solved", matrix.weight),
                })?;
                packed(matrix, part, solved, &tensor.name, &mut writer)?;
            }
        }
        written += tensor.dtype.checked_bytes(&tensor.shape).unwrap_or(0);
        done(written);
    }
    Ok(writer.finish()?)
}

/// One part of a solved matrix.
fn packed(
    matrix: &PackedMatrix,
    part: Part,
    solved: &[u8],
    name: &str,
    writer: &mut SafetensorsWriter,
) -> Result<(), ModelError> {
    let PackedMatrix { rows, cols, grid, .. } = matrix;
    let row_bytes = grid.row_bytes(*cols).unwrap_or(1);
    writer.begin(name)?;
    match part {
        Part::Shape => writer.write(&[*rows, *cols].map(|size| (size as i64).to_le_bytes()).concat())?,
        Part::ZeroPoints => {
            let zeros: Vec<&[u8]> =
                solved.chunks_exact(row_bytes).map(|row| grid.split_row(*cols, row).zero_points).collect();
            writer.write_owned(zero_points(&zeros, grid.bits()))?;
        }
        Part::Codes | Part::Scales => {
            for solved in solved.chunks((PIECE / row_bytes).max(1) * row_bytes) {
                let mut piece = writer.buffer();
                for row in solved.chunks_exact(row_bytes) {
                    let row = grid.split_row(*cols, row);
                    piece.extend_from_slice(if part == Part::Codes { row.codes } else { row.scales });
                }
                writer.write_owned(piece)?;
            }
        }
    }
    writer.end()
}

/// Zero points `[rows][groups]`, packed along the rows: a column of words per group.
pub(super) fn zero_points(rows: &[&[u8]], bits: usize) -> Vec<u8> {
    let groups = rows.first().map_or(0, |row| row.len());
    let words = packed_bytes(rows.len(), bits) / 4;
    let mut out = vec![0u8; 4 * words * groups];
    let mut column = vec![0u8; 4 * words];
    for group in 0..groups {
        let numbers: Vec<u8> = rows.iter().map(|row| row[group]).collect();
        pack_ints(&numbers, bits, &mut column);
        for (word, bytes) in column.chunks_exact(4).enumerate() {
            out[4 * (word * groups + group)..][..4].copy_from_slice(bytes);
        }
    }
    out
}

/// A tensor that stays, in the type it is declared in; `source` has it under `name`.
pub fn copy_dense(
    (source, name): (&dyn TensorSource, &str),
    tensor: &DeclaredTensor,
    writer: &mut SafetensorsWriter,
) -> Result<(), ModelError> {
    let meta = source.require(name)?;
    let codec = codec_for(tensor.dtype).filter(|_| meta.dtype != tensor.dtype);
    let Some(codec) = codec else { return writer.copy(&tensor.name, source, name) };
    let (rows, cols) = (rows_of(meta), meta.shape.last().copied().unwrap_or(1));
    let step = (PIECE / tensor.dtype.bytes_for(cols).max(1)).max(1);
    writer.begin(&tensor.name)?;
    for first in (0..rows).step_by(step) {
        let mut piece = writer.buffer();
        let rows = first..(first + step).min(rows);
        transcode_rows(source, name, rows, None, codec.into(), &mut piece)?;
        writer.write_owned(piece)?;
    }
    source.release(name);
    writer.end()
}
