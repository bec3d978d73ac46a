//! Tensors under other names: a source that presents slices of another source's tensors, rows reordered where needed.
//!
//! Two kinds of file need it: GGUF (other names, experts stacked, q and k rows interleaved) and checkpoints that fuse
//! all experts of a layer into one tensor.

use std::borrow::Cow;
use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use super::FamilyError;
use super::gguf_names::permuted_row;
use crate::model::{ModelError, TensorMeta, TensorSource};

/// One tensor to present.
pub(super) struct Entry {
    pub name: String,
    pub shape: Vec<usize>,
    /// The tensor of the inner source it is cut from.
    pub source: String,
    /// Elements of `source` before the first of this one.
    pub first: usize,
    /// The rows of this many heads lie interleaved in `source` and are put back into half-split order.
    pub unpermute: Option<usize>,
}

impl Entry {
    /// A whole tensor under another (or the same) name.
    pub fn whole(name: String, meta: &TensorMeta) -> Self {
        Entry { name, shape: meta.shape.clone(), source: meta.name.clone(), first: 0, unpermute: None }
    }
}

/// A source that presents [`Entry`]s of another source.
pub(super) struct View {
    inner: Arc<dyn TensorSource>,
    entries: Vec<Entry>,
    metas: Vec<TensorMeta>,
    by_name: HashMap<String, usize>,
}

impl View {
    /// # Errors
    /// An entry does not lie inside its source, cuts a quantised block, or has rows its heads cannot share.
    pub fn new(inner: Arc<dyn TensorSource>, entries: Vec<Entry>) -> Result<Self, FamilyError> {
        let mut metas = Vec::with_capacity(entries.len());
        for entry in &entries {
            let source = inner.require(&entry.source)?;
            let elements: usize = entry.shape.iter().product();
            let row = entry.shape.iter().skip(1).product::<usize>();
            let block = source.dtype.block_elems();
            let fits = entry.first + elements <= source.elems()
                && entry.first.is_multiple_of(block)
                && (row.is_multiple_of(block) || entry.shape.len() < 2);
            if !fits {
                return Err(FamilyError::WrongShape {
                    name: entry.source.clone(),
                    found: source.shape.clone(),
                    wanted: entry.shape.clone(),
                    more: 0,
                });
            }
            let rows = entry.shape.first().copied().unwrap_or(1);
            if let Some(heads) = entry.unpermute.filter(|&heads| heads == 0 || !rows.is_multiple_of(2 * heads)) {
                return Err(FamilyError::UnevenHeads { name: entry.source.clone(), rows, heads });
            }
            metas.push(TensorMeta {
                name: entry.name.clone(),
                dtype: source.dtype,
                shape: entry.shape.clone(),
                bytes: source.dtype.bytes_for(elements) as u64,
                file: source.file,
            });
        }
        let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        Ok(View { inner, entries, metas, by_name })
    }

    fn entry(&self, name: &str) -> Option<(&Entry, &TensorMeta)> {
        self.by_name.get(name).map(|&i| (&self.entries[i], &self.metas[i]))
    }
}

impl TensorSource for View {
    fn metas(&self) -> &[TensorMeta] {
        &self.metas
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.entry(name).map(|(_, meta)| meta)
    }

    fn files(&self) -> &[PathBuf] {
        self.inner.files()
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, ModelError> {
        let Some((entry, meta)) = self.entry(name) else {
            self.require(name)?;
            return Ok(Cow::Borrowed(&[]));
        };
        let start = meta.dtype.bytes_for(entry.first);
        let range = start..start + meta.bytes as usize;
        let part = match self.inner.bytes(&entry.source)? {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[range]),
            Cow::Owned(bytes) => Cow::Owned(bytes[range].to_vec()),
        };
        Ok(match entry.unpermute {
            None => part,
            Some(heads) => Cow::Owned(unpermute(&part, meta.rows(), heads)),
        })
    }

    fn prefetch(&self, name: &str) {
        if let Some((entry, _)) = self.entry(name) {
            self.inner.prefetch(&entry.source);
        }
    }

    fn release(&self, name: &str) {
        if let Some((entry, _)) = self.entry(name) {
            self.inner.release(&entry.source);
        }
    }
}

/// Puts `rows` rows of equal size, interleaved head by head, back into half-split order.
fn unpermute(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    let (row_bytes, head_dim) = (bytes.len() / rows, rows / heads);
    let mut out = vec![0u8; bytes.len()];
    for (row, data) in bytes.chunks_exact(row_bytes).enumerate() {
        let target = row / head_dim * head_dim + permuted_row(row % head_dim, head_dim);
        out[target * row_bytes..][..row_bytes].copy_from_slice(data);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn interleaved_rows_return_to_halves() {
        // Two heads of four rows; half-split order within a head is pairs (0, 2), (1, 3).
        let interleaved = [0u8, 2, 1, 3, 10, 12, 11, 13];
        assert_eq!(unpermute(&interleaved, 8, 2), [0, 1, 2, 3, 10, 11, 12, 13]);
    }
}
