//! A model some of whose weights read as they would come back from other types: nothing is stored, a weight is rounded
//! when it is read.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use crate::codec::{Codec, codec_for, first_beyond};
use crate::compress::CompressError;
use crate::model::{Dtype, ModelError, TensorMeta, TensorSource};

/// Elements one task rounds, about.
const TASK: usize = 1 << 15;

/// See [`ErrorTable::rounded`](super::ErrorTable::rounded).
pub struct Rounded<'a> {
    base: &'a dyn TensorSource,
    /// The type of a weight, and its tensor as values.
    types: HashMap<String, (&'static dyn Codec, TensorMeta)>,
    importance: &'a HashMap<String, Arc<[f32]>>,
}

impl<'a> Rounded<'a> {
    /// Weights whose rows a type's block does not divide stay as they are (a file may hold them turned).
    pub(super) fn new(
        base: &'a dyn TensorSource,
        types: &HashMap<String, Dtype>,
        importance: &'a HashMap<String, Arc<[f32]>>,
    ) -> Self {
        let mut known = HashMap::new();
        for (name, dtype) in types {
            let (Some(meta), Some(codec)) = (base.meta(name), codec_for(*dtype)) else { continue };
            if columns(meta).is_multiple_of(dtype.block_elems()) {
                let meta = TensorMeta { dtype: Dtype::F32, bytes: 4 * meta.elems() as u64, ..meta.clone() };
                known.insert(name.clone(), (codec, meta));
            }
        }
        Rounded { base, types: known, importance }
    }

    fn round(&self, name: &str, values: &mut [f32]) -> Result<(), ModelError> {
        let Some((codec, meta)) = self.types.get(name) else { return Ok(()) };
        let importance = self.importance.get(name).map(|known| known.as_ref());
        round_rows(name, *codec, values, columns(meta), importance)
            .map_err(|error| ModelError::broken_tensor(&self.base.files()[meta.file], name, error.to_string()))
    }
}

fn columns(meta: &TensorMeta) -> usize {
    meta.shape.last().copied().unwrap_or(1)
}

/// Rows of `cols` values as they read back once a codec has rounded each to the nearest.
pub(super) fn round_rows(
    name: &str,
    codec: &dyn Codec,
    values: &mut [f32],
    cols: usize,
    importance: Option<&[f32]>,
) -> Result<(), CompressError> {
    if let Some(at) = first_beyond(values, codec.max_magnitude()) {
        let reason = format!("element {at} is {}, which {} cannot hold", values[at], codec.name());
        return Err(CompressError::Tensor { tensor: name.to_owned(), reason });
    }
    let (cols, importance) = (cols.max(1), importance.filter(|known| known.len() == cols));
    values.par_chunks_mut(TASK.div_ceil(cols) * cols).for_each(|rows| {
        let mut bytes = vec![0u8; codec.dtype().bytes_for(cols)];
        for row in rows.chunks_exact_mut(cols) {
            match importance {
                Some(importance) => codec.encode_weighted(row, importance, &mut bytes),
                None => codec.encode(row, &mut bytes),
            }
            codec.decode(&bytes, row);
        }
    });
    Ok(())
}

impl TensorSource for Rounded<'_> {
    fn metas(&self) -> &[TensorMeta] {
        self.base.metas()
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.types.get(name).map(|(_, meta)| meta).or_else(|| self.base.meta(name))
    }

    fn files(&self) -> &[PathBuf] {
        self.base.files()
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, ModelError> {
        if !self.types.contains_key(name) {
            return self.base.bytes(name);
        }
        let mut values = Vec::new();
        self.read_f32(name, &mut values)?;
        Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into())
    }

    fn prefetch(&self, name: &str) {
        self.base.prefetch(name);
    }

    fn release(&self, name: &str) {
        self.base.release(name);
    }

    fn read_f32(&self, name: &str, out: &mut Vec<f32>) -> Result<(), ModelError> {
        self.base.read_f32(name, out)?;
        self.round(name, out)
    }

    fn read_rows_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), ModelError> {
        self.base.read_rows_f32(name, rows, out)?;
        self.round(name, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family;

    #[test]
    fn weights_read_as_their_type_gives_them_back_whole_or_by_rows() {
        let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models/llama");
        let model = family::open(&fixture).unwrap();
        let base = model.tensors.as_ref();
        let block = &model.spec.blocks[0];
        let (gate, q) = (&block.inputs()[2].layers[0].weight.clone(), &block.attention().unwrap().q.weight);
        let cols = columns(base.meta(gate).unwrap());
        let types = HashMap::from([(gate.clone(), Dtype::Q4_1), (model.spec.embed.clone(), Dtype::Q2K)]);
        let known: Arc<[f32]> = (0..cols).map(|at| 1.0 + at as f32).collect::<Vec<_>>().into();
        let importance = HashMap::from([(gate.clone(), known.clone())]);
        let rounded = Rounded::new(base, &types, &importance);
        let read = |source: &dyn TensorSource, name: &str| {
            let mut values = Vec::new();
            source.read_f32(name, &mut values).unwrap();
            values
        };
        let (was, is) = (read(base, gate), read(&rounded, gate));
        let codec = codec_for(Dtype::Q4_1).unwrap();
        let mut bytes = vec![0; Dtype::Q4_1.bytes_for(cols)];
        for (was, is) in was.chunks(cols).zip(is.chunks(cols)) {
            let mut wanted = vec![0.0; cols];
            codec.encode_weighted(was, &known, &mut bytes);
            codec.decode(&bytes, &mut wanted);
            assert_eq!(is, wanted);
            assert_ne!(is, was);
        }
        let mut rows = Vec::new();
        rounded.read_rows_f32(gate, 3..5, &mut rows).unwrap();
        assert_eq!(rows, is[3 * cols..5 * cols]);
        assert_eq!(rounded.meta(gate).unwrap().dtype, Dtype::F32);
        // Others, and rows that 256 does not divide, are as they were.
        assert_eq!(read(&rounded, q), read(base, q));
        assert_eq!(read(&rounded, &model.spec.embed), read(base, &model.spec.embed));
    }
}
