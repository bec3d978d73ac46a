//! What most likely happened to a tensor that is not what it must be: found by trying the usual accidents on its bytes.

use rayon::prelude::*;

use super::pass_through::{Lineage, Part};
use crate::model::{TensorMeta, TensorSource};

/// A tensor whose bytes differ from those its source says.
pub(super) struct Change<'a> {
    pub source: &'a dyn TensorSource,
    /// The source's tensor.
    pub from: &'a TensorMeta,
    pub line: &'a Lineage,
    /// Everything the output should hold.
    pub lineage: &'a [Lineage],
    /// The bytes that should be there.
    pub original: &'a [u8],
    pub written: &'a [u8],
}

impl Change<'_> {
    /// A phrase that follows the tensor's name.
    pub fn describe(&self) -> String {
        if self.written.iter().all(|&byte| byte == 0) {
            return "is all zeros".to_owned();
        }
        if let Part::Rows(rows) = &self.line.part
            && let Some(found) = self.other_rows(rows)
        {
            return found;
        }
        if self.is_transposed() {
            return "is transposed".to_owned();
        }
        if let Some(other) = self.other_tensor() {
            return format!("holds {other}, {} expected", self.line.source);
        }
        let first = self.original.iter().zip(self.written).position(|(a, b)| a != b);
        match (self.original.len() == self.written.len(), first) {
            (true, Some(at)) => {
                let differ = self.original.iter().zip(self.written).filter(|(a, b)| a != b).count();
                format!("differs in {differ} of {} bytes, first at byte {at}", self.original.len())
            }
            _ => format!("has {} bytes, {} expected", self.written.len(), self.original.len()),
        }
    }

    /// Rows of the same tensor, but not those that were to be kept.
    fn other_rows(&self, rows: &[usize]) -> Option<String> {
        let whole = self.source.bytes(&self.line.source).ok()?;
        let size = whole.len() / self.from.rows().max(1);
        let of = |row: &[u8]| whole.chunks_exact(size.max(1)).position(|candidate| candidate == row);
        let found: Vec<usize> = self.written.chunks_exact(size.max(1)).map(of).collect::<Option<_>>()?;
        let at = found.iter().zip(rows).position(|(found, row)| found != row)?;
        Some(format!("holds row {} of the source at place {at}, row {} expected", found[at], rows[at]))
    }

    /// The elements of a matrix (or of every slice of a stack) in the other order.
    fn is_transposed(&self) -> bool {
        let shape = &self.from.shape;
        let (Some(&cols), Some(&rows)) = (shape.last(), shape.len().checked_sub(2).and_then(|i| shape.get(i))) else {
            return false;
        };
        let elements = self.from.elems().max(1);
        let size = self.from.bytes as usize / elements;
        let slice = rows * cols * size;
        if size == 0 || slice == 0 || self.written.len() != self.original.len() || rows.min(cols) < 2 {
            return false;
        }
        let transposed = |(a, b): (&[u8], &[u8])| {
            (0..rows * cols).all(|i| {
                let (row, col) = (i / cols, i % cols);
                a[i * size..(i + 1) * size] == b[(col * rows + row) * size..][..size]
            })
        };
        self.original.par_chunks_exact(slice).zip(self.written.par_chunks_exact(slice)).all(transposed)
    }

    /// The name of another source tensor of the same size with these bytes.
    fn other_tensor(&self) -> Option<&str> {
        let same_size = |name: &str| self.source.meta(name).is_some_and(|meta| meta.bytes == self.from.bytes);
        let names = self.lineage.par_iter().map(|line| line.source.as_str());
        names
            .filter(|name| *name != self.line.source && same_size(name))
            .find_any(|name| self.source.bytes(name).is_ok_and(|bytes| *bytes == *self.written))
    }
}
