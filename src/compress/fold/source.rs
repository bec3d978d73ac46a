//! A model's tensors with [`Folds`] applied as they are read.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Folds, Step};
use crate::model::{Dtype, ModelError, TensorMeta, TensorSource};

/// Rows whose blocks are this many times as many are cut out of the whole tensor, which is kept for the next.
const WORTH_KEEPING: usize = 4;

/// Another source, some of its tensors changed; these are `F32`.
pub struct Folded {
    base: Arc<dyn TensorSource>,
    folds: Folds,
    metas: Vec<TensorMeta>,
    changed: HashMap<String, TensorMeta>,
    /// The last tensor that was made as a whole for the sake of a few rows.
    last: Mutex<Option<(String, Arc<Vec<f32>>)>>,
}

impl Folded {
    /// # Errors
    /// A tensor that is not there, or whose shape is not that of what is done to it.
    pub fn new(base: Arc<dyn TensorSource>, folds: Folds) -> Result<Self, ModelError> {
        let mut changed = HashMap::new();
        for name in folds.tensors() {
            let meta = base.require(name)?;
            let (rows, cols) = (meta.rows(), meta.row_elems());
            let fits = |step: &Step| match step {
                Step::Rows(factors) => factors.len() == rows,
                Step::Columns(factors) => factors.len() == cols,
                Step::TurnRows(turn) => turn.whole_blocks(0..rows) == (0..rows),
                Step::TurnColumns(turn) => turn.whole_blocks(0..cols) == (0..cols),
                Step::Become(values) => values.len() == rows * cols,
            };
            if meta.shape.len() > 2 || !folds.of(name).iter().all(fits) {
                let path = &base.files()[meta.file];
                return Err(ModelError::misuse(
                    path,
                    format!("{name:?} of shape {:?} cannot be folded so", meta.shape),
                ));
            }
            let meta = TensorMeta { dtype: Dtype::F32, bytes: 4 * meta.elems() as u64, ..meta.clone() };
            changed.insert(name.to_owned(), meta);
        }
        let metas = base.metas().iter().map(|meta| changed.get(&meta.name).unwrap_or(meta).clone()).collect();
        Ok(Folded { base, folds, metas, changed, last: Mutex::default() })
    }

    /// Rows of dimension 0 of a changed tensor.
    fn rows(&self, name: &str, meta: &TensorMeta, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), ModelError> {
        let (all, cols) = (meta.rows(), meta.row_elems());
        if rows.start > rows.end || rows.end > all {
            // Refused in the same words.
            return self.base.read_rows_f32(name, rows, out);
        }
        let wide = self.folds.of(name).iter().fold(rows.clone(), |rows, step| match step {
            Step::TurnRows(turn) => turn.whole_blocks(rows),
            _ => rows,
        });
        if wide.len() < WORTH_KEEPING * rows.len() || wide.len() <= 1 {
            self.make(name, wide.clone(), cols, out)?;
            out.truncate((rows.end - wide.start) * cols);
            out.drain(..(rows.start - wide.start) * cols);
            return Ok(());
        }
        let kept = |name: &str| {
            let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
            last.as_ref().filter(|(known, _)| known == name).map(|(_, values)| values.clone())
        };
        // Made without the lock: whoever makes it may work on others' tasks meanwhile, who must not wait for it.
        let whole = match kept(name) {
            Some(values) => values,
            None => {
                let mut values = Vec::new();
                self.make(name, 0..all, cols, &mut values)?;
                let values = Arc::new(values);
                let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
                *last = Some((name.to_owned(), values.clone()));
                values
            }
        };
        out.clear();
        out.extend_from_slice(&whole[rows.start * cols..rows.end * cols]);
        Ok(())
    }

    fn make(&self, name: &str, rows: Range<usize>, cols: usize, out: &mut Vec<f32>) -> Result<(), ModelError> {
        let first = rows.start;
        if rows.len() == self.base.require(name)?.rows() {
            self.base.read_f32(name, out)?;
        } else {
            self.base.read_rows_f32(name, rows, out)?;
        }
        self.folds.apply(name, out, cols, first);
        Ok(())
    }
}

fn as_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

impl TensorSource for Folded {
    fn metas(&self) -> &[TensorMeta] {
        &self.metas
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.changed.get(name).or_else(|| self.base.meta(name))
    }

    fn files(&self) -> &[PathBuf] {
        self.base.files()
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, ModelError> {
        if !self.changed.contains_key(name) {
            return self.base.bytes(name);
        }
        let mut values = Vec::new();
        self.read_f32(name, &mut values)?;
        Ok(as_bytes(&values).into())
    }

    fn rows_bytes(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>, ModelError> {
        match self.changed.get(name) {
            Some(meta) if meta.shape.len() == 2 => {
                let mut values = Vec::new();
                self.rows(name, meta, rows, &mut values)?;
                Ok(as_bytes(&values).into())
            }
            Some(_) => self.bytes(name),
            None => self.base.rows_bytes(name, rows),
        }
    }

    fn file_range(&self, name: &str) -> Option<(File, u64)> {
        if self.changed.contains_key(name) { None } else { self.base.file_range(name) }
    }

    fn prefetch(&self, name: &str) {
        self.base.prefetch(name);
    }

    fn release(&self, name: &str) {
        self.base.release(name);
    }

    fn read_f32(&self, name: &str, out: &mut Vec<f32>) -> Result<(), ModelError> {
        match self.changed.get(name) {
            Some(meta) => self.make(name, 0..meta.rows(), meta.row_elems(), out),
            None => self.base.read_f32(name, out),
        }
    }

    fn read_rows_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), ModelError> {
        match self.changed.get(name) {
            Some(meta) => self.rows(name, meta, rows, out),
            None => self.base.read_rows_f32(name, rows, out),
        }
    }
}
