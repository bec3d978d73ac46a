//! A model's tensors with some of them replaced by values at hand.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;

use crate::model::{Dtype, ModelError, TensorMeta, TensorSource};

/// Another source, with replacements. The list of all tensors is the other source's.
pub struct Overlay<'a> {
    base: &'a dyn TensorSource,
    replaced: HashMap<String, (TensorMeta, Vec<f32>)>,
}

impl<'a> Overlay<'a> {
    pub fn new(base: &'a dyn TensorSource) -> Self {
        Overlay { base, replaced: HashMap::new() }
    }

    /// From here on the tensor is these values, in its own shape.
    ///
    /// # Errors
    /// There is no such tensor, or it has another number of elements.
    pub fn replace(&mut self, name: &str, values: Vec<f32>) -> Result<(), ModelError> {
        let meta = self.base.require(name)?;
        if meta.elems() != values.len() {
            let path = &self.base.files()[meta.file];
            let message = format!("{} values for {name:?} of {} elements", values.len(), meta.elems());
            return Err(ModelError::misuse(path, message));
        }
        let meta = TensorMeta { dtype: Dtype::F32, bytes: 4 * values.len() as u64, ..meta.clone() };
        self.replaced.insert(name.to_owned(), (meta, values));
        Ok(())
    }

    /// Forgets every replacement.
    pub fn clear(&mut self) {
        self.replaced.clear();
    }

    pub fn is_empty(&self) -> bool {
        self.replaced.is_empty()
    }
}

impl TensorSource for Overlay<'_> {
    fn metas(&self) -> &[TensorMeta] {
        self.base.metas()
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.replaced.get(name).map(|(meta, _)| meta).or_else(|| self.base.meta(name))
    }

    fn files(&self) -> &[PathBuf] {
        self.base.files()
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, ModelError> {
        match self.replaced.get(name) {
            Some((_, values)) => Ok(values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>().into()),
            None => self.base.bytes(name),
        }
    }

    fn file_range(&self, name: &str) -> Option<(File, u64)> {
        if self.replaced.contains_key(name) { None } else { self.base.file_range(name) }
    }

    fn prefetch(&self, name: &str) {
        if !self.replaced.contains_key(name) {
            self.base.prefetch(name);
        }
    }

    fn release(&self, name: &str) {
        if !self.replaced.contains_key(name) {
            self.base.release(name);
        }
    }

    fn read_f32(&self, name: &str, out: &mut Vec<f32>) -> Result<(), ModelError> {
        match self.replaced.get(name) {
            Some((_, values)) => {
                out.clear();
                out.extend_from_slice(values);
                Ok(())
            }
            None => self.base.read_f32(name, out),
        }
    }

    fn read_rows_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), ModelError> {
        match self.replaced.get(name) {
            Some((meta, values)) if rows.start <= rows.end && rows.end <= meta.rows() => {
                let width = meta.row_elems();
                out.clear();
                out.extend_from_slice(&values[rows.start * width..rows.end * width]);
                Ok(())
            }
            // Rows outside it are refused as they would be of the tensor itself.
            _ => self.base.read_rows_f32(name, rows, out),
        }
    }
}
