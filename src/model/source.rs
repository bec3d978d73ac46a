//! Where tensors come from: one interface over safetensors and GGUF.

use std::borrow::Cow;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use sha2::{Digest, Sha256};

use super::ModelError;
use crate::codec::{Dtype, codec_for, widen_plain};
use crate::units::Sha;

/// What a header says about one tensor.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct TensorMeta {
    pub name: String,
    pub dtype: Dtype,
    /// Row-major: the last dimension is contiguous.
    pub shape: Vec<usize>,
    /// Bytes on disk.
    pub bytes: u64,
    /// Which of [`TensorSource::files`] holds it.
    pub file: usize,
}

impl TensorMeta {
    pub fn elems(&self) -> usize {
        self.shape.iter().product()
    }
    /// Rows of dimension 0; 1 for a scalar.
    pub fn rows(&self) -> usize {
        self.shape.first().copied().unwrap_or(1)
    }
    /// Elements of one row of dimension 0.
    pub fn row_elems(&self) -> usize {
        self.shape.iter().skip(1).product()
    }
}

/// An open model's tensors, by name.
///
/// Every method that takes a name fails with [`ModelError::NoTensor`] when there is none.
pub trait TensorSource: Send + Sync {
    /// All tensors, in shard order and then in the order of their data in the file.
    fn metas(&self) -> &[TensorMeta];

    fn meta(&self, name: &str) -> Option<&TensorMeta>;

    /// The files the tensors lie in.
    fn files(&self) -> &[PathBuf];

    /// The tensor's bytes as they lie on disk; borrowed from the memory map where there is one.
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, ModelError>;

    /// The bytes of some rows along the last dimension (a vector is one row).
    fn rows_bytes(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>, ModelError> {
        let meta = self.require(name)?;
        let each = meta.dtype.bytes_for(meta.shape.last().copied().unwrap_or(1));
        let part = rows.start * each..rows.end * each;
        let cut = match self.bytes(name)? {
            Cow::Borrowed(bytes) => bytes.get(part).map(Cow::Borrowed),
            Cow::Owned(bytes) => bytes.get(part).map(|bytes| Cow::Owned(bytes.to_vec())),
        };
        cut.ok_or_else(|| ModelError::misuse(&self.files()[meta.file], format!("rows {rows:?} of {name:?}")))
    }

    /// The open file that holds the tensor's bytes in one piece, and where they begin; `None` where there is none (a
    /// part of a tensor, a rearranged one). Lets a writer have the kernel copy them.
    fn file_range(&self, _name: &str) -> Option<(File, u64)> {
        None
    }

    /// Asks the kernel to read the tensor soon.
    fn prefetch(&self, name: &str);

    /// Takes the tensor's pages out of the resident set.
    fn release(&self, name: &str);

    /// [`TensorSource::prefetch`] for these bytes of the tensor only.
    fn prefetch_part(&self, name: &str, _bytes: Range<usize>) {
        self.prefetch(name);
    }

    /// [`TensorSource::release`] for these bytes of the tensor only.
    fn release_part(&self, name: &str, _bytes: Range<usize>) {
        self.release(name);
    }

    /// Reads the raw bytes into a buffer without touching the memory map where that is possible.
    fn read_bytes(&self, name: &str, out: &mut Vec<u8>) -> Result<(), ModelError> {
        let bytes = self.bytes(name)?;
        out.clear();
        out.extend_from_slice(&bytes);
        Ok(())
    }

    /// The meta of a tensor that must exist.
    fn require(&self, name: &str) -> Result<&TensorMeta, ModelError> {
        self.meta(name).ok_or_else(|| {
            let path = self.files().first().cloned().unwrap_or_default();
            ModelError::NoTensor { path, tensor: name.to_owned() }
        })
    }

    /// The whole tensor as `f32`, row-major in its shape; any type this build can decode.
    fn read_f32(&self, name: &str, out: &mut Vec<f32>) -> Result<(), ModelError> {
        let meta = self.require(name)?;
        let path = &self.files()[meta.file];
        decode_f32(path, meta, &self.bytes(name)?, out)
    }

    /// Rows `rows` of dimension 0 as `f32` (embedding rows, chunks of an output head).
    fn read_rows_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), ModelError> {
        let meta = self.require(name)?;
        let path = &self.files()[meta.file];
        if rows.start > rows.end || rows.end > meta.rows() {
            return Err(ModelError::misuse(path, format!("rows {rows:?} of {name:?} with {} rows", meta.rows())));
        }
        let row_elems = meta.row_elems();
        if !row_elems.is_multiple_of(meta.dtype.block_elems()) {
            return Err(ModelError::broken_tensor(path, name, format!("rows of {row_elems} are not whole blocks")));
        }
        let row_bytes = meta.dtype.bytes_for(row_elems);
        let part = TensorMeta { shape: vec![rows.len(), row_elems], ..meta.clone() };
        decode_f32(path, &part, &self.bytes(name)?[rows.start * row_bytes..rows.end * row_bytes], out)
    }

    /// SHA-256 of the tensor's bytes: two tensors pass through unchanged when name, type, shape and this agree.
    fn tensor_sha(&self, name: &str) -> Result<Sha, ModelError> {
        Ok(Sha(Sha256::digest(self.bytes(name)?).into()))
    }
}

/// Decodes the raw bytes of (a part of) a tensor. `path` is only for the error.
pub fn decode_f32(path: &Path, meta: &TensorMeta, raw: &[u8], out: &mut Vec<f32>) -> Result<(), ModelError> {
    // Big tensors are decoded by all cores; small ones are not worth the hand-over.
    const PARALLEL_ELEMS: usize = 1 << 18;
    let elems = meta.elems();
    if meta.dtype.checked_bytes(&meta.shape) != Some(raw.len() as u64) {
        return Err(ModelError::broken_tensor(path, &meta.name, format!("{} bytes do not fit its shape", raw.len())));
    }
    let codec = codec_for(meta.dtype);
    if codec.is_none() && !widen_plain(meta.dtype, &[], &mut []) {
        return Err(ModelError::BrokenTensor {
            path: path.to_owned(),
            tensor: meta.name.clone(),
            cause: format!("its type {} cannot be decoded by this build", meta.dtype),
            hint: "IQ1, IQ2, IQ3, Q1_0, NVFP4 and Q8_K blocks are known by their size only: use another file of this model",
        });
    }
    let decode = |raw: &[u8], values: &mut [f32]| match codec {
        Some(codec) => codec.decode(raw, values),
        None => {
            widen_plain(meta.dtype, raw, values);
        }
    };
    out.resize(elems, 0.0);
    if elems < 2 * PARALLEL_ELEMS {
        decode(raw, out);
    } else {
        let step = meta.dtype.bytes_for(PARALLEL_ELEMS);
        out.par_chunks_mut(PARALLEL_ELEMS).zip(raw.par_chunks(step)).for_each(|(values, raw)| decode(raw, values));
    }
    Ok(())
}
