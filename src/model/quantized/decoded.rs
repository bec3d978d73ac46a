//! Packed matrices as plain tensors.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;

use half::{bf16, f16};
use rayon::prelude::*;

use crate::codec::{Dtype, packed_bytes, unpack_ints, widen_plain};
use crate::model::{ModelError, SafetensorsModel, TensorMeta, TensorSource, decode_f32};

/// What a code of zero stands for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Origin {
    /// `scale · (code − 2^(bits−1))`
    Middle,
    /// `scale · (code − zero)`: the zero points of all rows of a group, packed like codes, are a column of this tensor of
    /// 32-bit words `[ceil(rows · bits / 32), groups]`.
    ZeroPoints(String),
    /// `scale · code + bias`: this tensor `[rows, groups]`.
    Biases(String),
}

/// One matrix and the stored tensors it is made of. All of them have its rows, except zero points.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Packed {
    /// As the matrix is called when it is not packed.
    pub name: String,
    /// Of the matrix.
    pub rows: usize,
    pub cols: usize,
    /// The first of its rows in tensors that hold several matrices, one below the other.
    pub first_row: usize,
    pub bits: usize,
    /// Columns that share a scale; the last group may be shorter.
    pub group: usize,
    /// 32-bit words, [`packed_bytes`] a row.
    pub codes: String,
    /// `[rows, groups]`, in a plain type.
    pub scales: String,
    pub origin: Origin,
    /// What it is presented as.
    pub dtype: Dtype,
}

impl Packed {
    pub fn groups(&self) -> usize {
        self.cols.div_ceil(self.group)
    }

    fn parts(&self) -> impl Iterator<Item = &String> {
        let third = match &self.origin {
            Origin::Middle => None,
            Origin::ZeroPoints(name) | Origin::Biases(name) => Some(name),
        };
        [&self.codes, &self.scales].into_iter().chain(third)
    }
}

/// A model whose packed matrices are decoded as they are read.
pub struct Decoded {
    inner: SafetensorsModel,
    metas: Vec<TensorMeta>,
    by_name: HashMap<String, (usize, Option<Packed>)>,
    summary: String,
}

/// The numbers beside the codes, for some rows.
struct Beside {
    /// `[rows, groups]`
    scales: Vec<f32>,
    /// Zero points or biases.
    origins: Vec<f32>,
}

impl Decoded {
    /// Presents `found` in the place of their parts.
    pub(super) fn new(inner: SafetensorsModel, found: Vec<Packed>, summary: String) -> Self {
        let mut of_codes: HashMap<String, Vec<Packed>> = HashMap::new();
        let hidden: std::collections::HashSet<String> =
            found.iter().flat_map(|packed| packed.parts().cloned().chain([shape_of(&packed.codes)])).collect();
        found.into_iter().for_each(|packed| of_codes.entry(packed.codes.clone()).or_default().push(packed));
        let (mut metas, mut by_name) = (Vec::new(), HashMap::new());
        for meta in inner.metas() {
            if let Some(all) = of_codes.remove(&meta.name) {
                for packed in all {
                    let shape = vec![packed.rows, packed.cols];
                    let bytes = packed.dtype.bytes_for(packed.rows * packed.cols) as u64;
                    let (name, dtype) = (packed.name.clone(), packed.dtype);
                    by_name.insert(name.clone(), (metas.len(), Some(packed)));
                    metas.push(TensorMeta { name, dtype, shape, bytes, file: meta.file });
                }
            } else if !hidden.contains(&meta.name) {
                by_name.insert(meta.name.clone(), (metas.len(), None));
                metas.push(meta.clone());
            }
        }
        Decoded { inner, metas, by_name, summary }
    }

    /// How the weights are packed, in a line: `compressed-tensors W4 group 128 symmetric`.
    pub fn summary(&self) -> &str {
        &self.summary
    }

    /// The tensors of the files as they lie there.
    pub fn files_tensors(&self) -> &[TensorMeta] {
        self.inner.metas()
    }

    fn packed(&self, name: &str) -> Option<&Packed> {
        self.by_name.get(name)?.1.as_ref()
    }

    fn beside(&self, packed: &Packed, rows: &Range<usize>) -> Result<Beside, ModelError> {
        let groups = packed.groups();
        let all = (packed.first_row + rows.start) * groups..(packed.first_row + rows.end) * groups;
        let of = |name: &String| -> Result<Vec<f32>, ModelError> {
            let meta = self.inner.require(name)?;
            let path = &self.inner.files()[meta.file];
            let bytes = self.inner.bytes(name)?;
            let width = meta.dtype.block_bytes();
            let part = TensorMeta { shape: vec![all.len()], ..meta.clone() };
            let mut values = Vec::new();
            decode_f32(path, &part, &bytes[all.start * width..all.end * width], &mut values)?;
            Ok(values)
        };
        let origins = match &packed.origin {
            Origin::Middle => vec![(1u32 << (packed.bits - 1)) as f32; all.len()],
            Origin::Biases(name) => of(name)?,
            Origin::ZeroPoints(name) => {
                let words = self.inner.bytes(name)?;
                let mut zeros = vec![0f32; all.len()];
                let (mut column, mut numbers) = (Vec::new(), vec![0u8; packed.rows]);
                for group in 0..groups {
                    column.clear();
                    column.extend(words.chunks_exact(4 * groups).flat_map(|row| &row[4 * group..4 * group + 4]));
                    unpack_ints(&column, packed.bits, &mut numbers);
                    for (row, zero) in numbers[rows.clone()].iter().enumerate() {
                        zeros[row * groups + group] = f32::from(*zero);
                    }
                }
                zeros
            }
        };
        Ok(Beside { scales: of(&packed.scales)?, origins })
    }

    /// Appends rows of a matrix, in its type, to `out`.
    fn decode(&self, packed: &Packed, rows: Range<usize>, out: &mut Vec<u8>) -> Result<(), ModelError> {
        let beside = self.beside(packed, &rows)?;
        let codes = self.inner.bytes(&packed.codes)?;
        let stride = packed_bytes(packed.cols, packed.bits);
        let codes = &codes[(packed.first_row + rows.start) * stride..(packed.first_row + rows.end) * stride];
        let (start, row_bytes, groups) = (out.len(), packed.dtype.bytes_for(packed.cols), packed.groups());
        out.resize(start + rows.len() * row_bytes, 0);
        let batch = (1usize << 15).div_ceil(packed.cols.max(1));
        out[start..].par_chunks_mut(batch * row_bytes).enumerate().for_each(|(task, out)| {
            let mut numbers = vec![0u8; packed.cols];
            for (i, out) in out.chunks_exact_mut(row_bytes).enumerate() {
                let row = task * batch + i;
                unpack_ints(&codes[row * stride..][..stride], packed.bits, &mut numbers);
                let at = row * groups..(row + 1) * groups;
                let beside = beside.scales[at.clone()].iter().zip(&beside.origins[at]);
                let width = packed.dtype.block_bytes();
                let parts = numbers.chunks(packed.group).zip(out.chunks_mut(packed.group * width));
                for ((codes, out), (&scale, &origin)) in parts.zip(beside) {
                    let affine = matches!(packed.origin, Origin::Biases(_));
                    for (&code, out) in codes.iter().zip(out.chunks_exact_mut(width)) {
                        let code = f32::from(code);
                        put(packed.dtype, if affine { scale * code + origin } else { scale * (code - origin) }, out);
                    }
                }
            }
        });
        Ok(())
    }
}

/// The tensor in which compressed-tensors notes the shape of a packed matrix; for other codes a name nothing has.
pub(super) fn shape_of(codes: &str) -> String {
    format!("{}_shape", codes.strip_suffix("_packed").unwrap_or(codes))
}

/// Rounds once: the product of a stored scale and a whole number of at most nine bits is exact in f32.
fn put(dtype: Dtype, value: f32, out: &mut [u8]) {
    match dtype {
        Dtype::BF16 => out.copy_from_slice(&bf16::from_f32(value).to_le_bytes()),
        Dtype::F16 => out.copy_from_slice(&f16::from_f32(value).to_le_bytes()),
        _ => out.copy_from_slice(&value.to_le_bytes()),
    }
}

impl TensorSource for Decoded {
    fn metas(&self) -> &[TensorMeta] {
        &self.metas
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.by_name.get(name).map(|(at, _)| &self.metas[*at])
    }

    fn files(&self) -> &[PathBuf] {
        self.inner.files()
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, ModelError> {
        self.require(name)?;
        let Some(packed) = self.packed(name) else { return self.inner.bytes(name) };
        let mut out = Vec::new();
        self.decode(packed, 0..packed.rows, &mut out)?;
        Ok(Cow::Owned(out))
    }

    fn file_range(&self, name: &str) -> Option<(File, u64)> {
        self.meta(name).filter(|_| self.packed(name).is_none()).and_then(|_| self.inner.file_range(name))
    }

    fn prefetch(&self, name: &str) {
        match self.packed(name) {
            Some(packed) => packed.parts().for_each(|part| self.inner.prefetch(part)),
            None => self.inner.prefetch(name),
        }
    }

    fn release(&self, name: &str) {
        match self.packed(name) {
            Some(packed) => packed.parts().for_each(|part| self.inner.release(part)),
            None => self.inner.release(name),
        }
    }

    fn read_bytes(&self, name: &str, out: &mut Vec<u8>) -> Result<(), ModelError> {
        self.require(name)?;
        let Some(packed) = self.packed(name) else { return self.inner.read_bytes(name, out) };
        out.clear();
        self.decode(packed, 0..packed.rows, out)
    }

    fn read_rows_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), ModelError> {
        let meta = self.require(name)?;
        let Some(packed) = self.packed(name) else { return self.inner.read_rows_f32(name, rows, out) };
        if rows.start > rows.end || rows.end > packed.rows {
            let path = &self.files()[meta.file];
            return Err(ModelError::misuse(path, format!("rows {rows:?} of {name:?} with {} rows", packed.rows)));
        }
        let (mut raw, count) = (Vec::new(), rows.len() * packed.cols);
        self.decode(packed, rows, &mut raw)?;
        out.resize(count, 0.0);
        widen_plain(packed.dtype, &raw, out);
        Ok(())
    }
}
