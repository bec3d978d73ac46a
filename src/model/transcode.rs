//! From the bytes of one format to the bytes of another, row by row, on all cores.

use std::ops::Range;

use rayon::prelude::*;

use super::{ModelError, TensorMeta, TensorSource};
use crate::codec::{Codec, codec_for, first_beyond, widen_plain};

/// How rows are written: the format, and the importance of every column where one is known.
#[derive(Clone, Copy)]
pub struct Encoding<'a> {
    pub codec: &'a dyn Codec,
    pub importance: Option<&'a [f32]>,
}

impl<'a> From<&'a dyn Codec> for Encoding<'a> {
    fn from(codec: &'a dyn Codec) -> Self {
        Encoding { codec, importance: None }
    }
}

/// Appends rows `rows` of a tensor to `out`, encoded.
///
/// Rows run along the last dimension: a tensor `[a, b, c]` has `a * b` rows of `c` elements. `order`, where given, maps
/// a row of the output to the row of the source it comes from (GGUF's permuted q and k). Rows that already have the
/// wanted type are copied, except that nothing is checked less: every value must be finite and fit the format, else
/// the error names tensor and element. Rows are independent, so the bytes do not depend on the number of threads.
pub fn transcode_rows(
    source: &dyn TensorSource,
    name: &str,
    rows: Range<usize>,
    order: Option<&(dyn Fn(usize) -> usize + Sync)>,
    encoding: Encoding<'_>,
    out: &mut Vec<u8>,
) -> Result<(), ModelError> {
    let Encoding { codec, importance } = encoding;
    let meta = source.require(name)?;
    let path = &source.files()[meta.file];
    let cols = meta.shape.last().copied().unwrap_or(1);
    let all = rows_of(meta);
    if rows.start > rows.end || rows.end > all {
        return Err(ModelError::misuse(path, format!("rows {rows:?} of {name:?}, which has {all}")));
    }
    if let Some(known) = importance.filter(|known| known.len() != cols) {
        return Err(ModelError::misuse(path, format!("{} importances for {name:?} of {cols} columns", known.len())));
    }
    for dtype in [meta.dtype, codec.dtype()] {
        if !cols.is_multiple_of(dtype.block_elems()) {
            let cause = format!("rows of {cols} elements are not whole {dtype} blocks of {}", dtype.block_elems());
            return Err(ModelError::BrokenTensor {
                path: path.clone(),
                tensor: name.to_owned(),
                cause,
                hint: "choose another type for this tensor",
            });
        }
    }
    if codec_for(meta.dtype).is_none() && !widen_plain(meta.dtype, &[], &mut []) {
        return Err(ModelError::broken_tensor(path, name, format!("type {} cannot be decoded", meta.dtype)).with_hint(
            "IQ1, IQ2, IQ3, Q1_0, NVFP4 and Q8_K blocks are known by their size only: use another file of this model",
        ));
    }
    // The rows of the source that are needed; all of them where the order asks for one that is not there.
    let from = |row: usize| order.map_or(row, |order| order(row));
    let first = rows.clone().map(from).min().unwrap_or(0);
    let last = rows.clone().map(from).max().unwrap_or(0);
    let needed = if rows.is_empty() || last >= all { 0..all } else { first..last + 1 };
    let raw = source.rows_bytes(name, needed.clone())?;
    let (from_bytes, to_bytes) = (meta.dtype.bytes_for(cols), codec.dtype().bytes_for(cols));
    let start = out.len();
    out.resize(start + rows.len() * to_bytes, 0);
    if to_bytes == 0 {
        return Ok(());
    }
    let first = rows.start;
    // Enough rows per task that handing over costs nothing.
    let batch = (1usize << 15).div_ceil(cols.max(1));
    out[start..].par_chunks_mut(batch * to_bytes).enumerate().try_for_each(|(task, chunk)| {
        let mut values = vec![0f32; cols];
        for (i, encoded) in chunk.chunks_mut(to_bytes).enumerate() {
            let row = first + task * batch + i;
            let from = from(row);
            let at = from.wrapping_sub(needed.start);
            let bytes =
                raw.get(at.wrapping_mul(from_bytes)..at.wrapping_add(1).wrapping_mul(from_bytes)).ok_or_else(|| {
                    ModelError::misuse(path, format!("{name:?}: row {from} was asked for, there are {all}"))
                })?;
            decode_row(meta, bytes, &mut values);
            if let Some(at) = first_beyond(&values, codec.max_magnitude()) {
                return Err(unfit(path, name, from * cols + at, values[at], codec));
            }
            if meta.dtype == codec.dtype() {
                encoded.copy_from_slice(bytes);
            } else if let Some(importance) = importance {
                codec.encode_weighted(&values, importance, encoded);
            } else {
                codec.encode(&values, encoded);
            }
        }
        Ok(())
    })
}

/// Rows along the last dimension.
pub fn rows_of(meta: &TensorMeta) -> usize {
    let (_, outer) = meta.shape.split_last().unwrap_or((&1, &[]));
    outer.iter().product()
}

fn decode_row(meta: &TensorMeta, bytes: &[u8], values: &mut [f32]) {
    match codec_for(meta.dtype) {
        Some(codec) => codec.decode(bytes, values),
        None => {
            widen_plain(meta.dtype, bytes, values);
        }
    }
}

fn unfit(path: &std::path::Path, tensor: &str, element: usize, value: f32, codec: &dyn Codec) -> ModelError {
    let (cause, hint) = if value.is_finite() {
        let limit = codec.max_magnitude();
        let cause = format!("element {element} is {value}, beyond what {} holds ({limit})", codec.name());
        (cause, "choose a type with more range, such as BF16, for this tensor")
    } else {
        (format!("element {element} is {value}"), "the weights are damaged: repeat the training step or download again")
    };
    ModelError::BrokenTensor { path: path.to_owned(), tensor: tensor.to_owned(), cause, hint }
}
