//! Tensors under other names: a source that presents parts of another source's tensors, rearranged where needed.
//!
//! Two kinds of file need it: GGUF (other names, experts stacked, rows in another order) and checkpoints that stack
//! all experts of a layer in one tensor, transposed or interleaved. Nothing is copied that lies in one piece.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use super::FamilyError;
use super::piece::{Change, Piece};
use crate::codec::{MXFP4_BLOCK, MXFP4_BYTES, mxfp4_to_bf16};
use crate::model::{Dtype, ModelError, TensorMeta, TensorSource};

/// One tensor to present.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub name: String,
    pub shape: Vec<usize>,
    /// The tensor of the inner source it is taken from.
    pub source: String,
    pub take: Take,
}

/// Which elements of the inner tensor.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Take {
    /// Those from `first` on, as they lie.
    Run { first: usize },
    /// Pieces of one or several tensors one after another, their values turned back. Blocks that stay whole stay encoded,
    /// everything else is presented in `F32`.
    Pieces { pieces: Vec<Piece>, change: Change },
    /// Row r, column c is element `first + r · row + c · col`.
    Strided { first: usize, row: usize, col: usize },
    /// MXFP4 blocks as bf16: row r is made of the blocks of row `first + r · step` of a stack `[…, blocks, 16]`, whose
    /// scales `[…, blocks]` lie in the tensor [`scales_of`] names.
    Mxfp4 { first: usize, step: usize },
}

/// The tensor that holds the scales of a stack of MXFP4 blocks.
pub(super) fn scales_of(blocks: &str) -> String {
    format!("{}_scales", blocks.strip_suffix("_blocks").unwrap_or(blocks))
}

impl Entry {
    /// A whole tensor under another (or the same) name.
    pub fn whole(name: String, meta: &TensorMeta) -> Self {
        Entry { name, shape: meta.shape.clone(), source: meta.name.clone(), take: Take::Run { first: 0 } }
    }

    /// Rows and elements per row.
    fn matrix(&self) -> (usize, usize) {
        (self.shape.first().copied().unwrap_or(1), self.shape.iter().skip(1).product())
    }

    /// The elements of the source between the first and the last that are taken.
    fn extent(&self) -> Range<usize> {
        let (rows, columns) = self.matrix();
        match &self.take {
            &Take::Run { first } => first..first + rows * columns,
            Take::Pieces { .. } => 0..0,
            &Take::Strided { first, .. } if rows * columns == 0 => first..first,
            &Take::Strided { first, row, col } => first..first + (rows - 1) * row + (columns - 1) * col + 1,
            Take::Mxfp4 { .. } => {
                let scales = self.scales_extent();
                scales.start * MXFP4_BYTES..scales.end * MXFP4_BYTES
            }
        }
    }

    /// The scales of MXFP4 blocks between the first and the last that are taken; empty for other entries.
    fn scales_extent(&self) -> Range<usize> {
        let Take::Mxfp4 { first, step } = self.take else { return 0..0 };
        let (rows, columns) = self.matrix();
        let blocks = columns / MXFP4_BLOCK;
        first * blocks..(first + rows.saturating_sub(1) * step + rows.min(1)) * blocks
    }

    /// The type the entry has, and whether it can be taken from a source of `source`'s type.
    fn dtype(&self, source: Dtype) -> (Dtype, bool) {
        let (_, columns) = self.matrix();
        let block = source.block_elems();
        match self.take {
            Take::Strided { .. } => (source, block == 1),
            Take::Run { .. } => {
                let whole = columns.is_multiple_of(block) || self.shape.len() < 2;
                (source, whole && self.extent().start.is_multiple_of(block))
            }
            Take::Mxfp4 { .. } => (Dtype::BF16, source == Dtype::U8 && columns.is_multiple_of(MXFP4_BLOCK)),
            Take::Pieces { .. } => (Dtype::F32, true),
        }
    }

    /// The one type of all pieces' sources, where no block of it is cut and no value changes.
    fn kept(&self, inner: &dyn TensorSource) -> Option<Dtype> {
        let Take::Pieces { pieces, change: Change::None } = &self.take else { return None };
        let dtype = inner.meta(&self.source)?.dtype;
        let block = dtype.block_elems();
        let whole = |piece: &Piece| {
            inner.meta(&piece.source).is_some_and(|meta| meta.dtype == dtype) && piece.is_runs_of(block)
        };
        (self.matrix().1.is_multiple_of(block) && pieces.iter().all(whole)).then_some(dtype)
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
    /// An entry does not lie inside its source, or cuts a quantised block that must stay whole.
    pub fn new(inner: Arc<dyn TensorSource>, entries: Vec<Entry>) -> Result<Self, FamilyError> {
        let mut metas = Vec::with_capacity(entries.len());
        for entry in &entries {
            let source = inner.require(&entry.source)?;
            let (rows, columns) = entry.matrix();
            let (dtype, possible) = entry.dtype(source.dtype);
            let dtype = entry.kept(&*inner).unwrap_or(dtype);
            if let Take::Pieces { pieces, .. } = &entry.take {
                check_pieces(entry, pieces, &*inner)?;
            }
            let scales = entry.scales_extent();
            let scaled = scales.is_empty() || {
                let tensor = inner.require(&scales_of(&entry.source))?;
                tensor.dtype.block_bytes() == 1 && scales.end <= tensor.elems()
            };
            if entry.extent().end > source.elems() || !possible || !scaled {
                return Err(FamilyError::WrongShape {
                    name: entry.source.clone(),
                    found: source.shape.clone(),
                    wanted: entry.shape.clone(),
                    more: 0,
                });
            }
            metas.push(TensorMeta {
                name: entry.name.clone(),
                dtype,
                shape: entry.shape.clone(),
                bytes: dtype.bytes_for(rows * columns) as u64,
                file: source.file,
            });
        }
        let by_name = entries.iter().enumerate().map(|(i, e)| (e.name.clone(), i)).collect();
        Ok(View { inner, entries, metas, by_name })
    }

    fn entry(&self, name: &str) -> Option<(&Entry, &TensorMeta)> {
        self.by_name.get(name).map(|&i| (&self.entries[i], &self.metas[i]))
    }

    /// The bytes of the source an entry spans; types of more than one element per block are taken in whole blocks.
    fn span(entry: &Entry, meta: &TensorMeta) -> Range<usize> {
        let extent = entry.extent();
        let stored = if let Take::Mxfp4 { .. } = entry.take { Dtype::U8 } else { meta.dtype };
        let start = stored.bytes_for(extent.start);
        start..start + stored.bytes_for(extent.len())
    }

    /// The bytes of an entry made of pieces.
    fn pieced(&self, entry: &Entry, pieces: &[Piece], change: Change) -> Result<Vec<u8>, ModelError> {
        if let Some(dtype) = entry.kept(&*self.inner) {
            let mut out = Vec::new();
            for piece in pieces {
                let bytes = self.inner.bytes(&piece.source)?;
                piece.in_blocks(dtype.block_elems()).gather(&bytes, dtype.block_bytes(), &mut out);
            }
            return Ok(out);
        }
        let (mut out, mut values, mut read) = (Vec::new(), Vec::new(), "");
        for piece in pieces {
            if read != piece.source {
                self.inner.read_f32(&piece.source, &mut values)?;
                read = &piece.source;
            }
            piece.gather(&values, 1, &mut out);
        }
        change.undo(&mut out);
        Ok(out.iter().flat_map(|value| value.to_le_bytes()).collect())
    }
}

/// Every piece must lie inside its tensor, and all of them must make up the entry.
fn check_pieces(entry: &Entry, pieces: &[Piece], inner: &dyn TensorSource) -> Result<(), FamilyError> {
    let complete = pieces.iter().map(Piece::elements).sum::<usize>() == entry.shape.iter().product::<usize>();
    for piece in pieces {
        let source = inner.require(&piece.source)?;
        if piece.extent().end > source.elems() || !complete {
            let (name, found) = (piece.source.clone(), source.shape.clone());
            return Err(FamilyError::WrongShape { name, found, wanted: entry.shape.clone(), more: 0 });
        }
    }
    Ok(())
}

/// The tensors of pieces, neighbours once.
fn sources(pieces: &[Piece]) -> impl Iterator<Item = &str> {
    pieces.chunk_by(|a, b| a.source == b.source).map(|same| same[0].source.as_str())
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
        if let Take::Pieces { pieces, change } = &entry.take {
            return self.pieced(entry, pieces, *change).map(Cow::Owned);
        }
        let span = Self::span(entry, meta);
        let part = match self.inner.bytes(&entry.source)? {
            Cow::Borrowed(bytes) => Cow::Borrowed(&bytes[span]),
            Cow::Owned(bytes) => Cow::Owned(bytes[span].to_vec()),
        };
        Ok(match &entry.take {
            Take::Run { .. } | Take::Pieces { .. } => part,
            &Take::Strided { row, col, .. } => Cow::Owned(gather(&part, entry.matrix(), (row, col), meta)),
            &Take::Mxfp4 { step, .. } => {
                let scales = self.inner.bytes(&scales_of(&entry.source))?;
                Cow::Owned(from_mxfp4(&part, &scales[entry.scales_extent()], entry.matrix(), step))
            }
        })
    }

    fn file_range(&self, name: &str) -> Option<(File, u64)> {
        let (entry, meta) = self.entry(name)?;
        let Take::Run { .. } = entry.take else { return None };
        let (file, start) = self.inner.file_range(&entry.source)?;
        Some((file, start + Self::span(entry, meta).start as u64))
    }

    fn prefetch(&self, name: &str) {
        if let Some((entry, meta)) = self.entry(name) {
            if let Take::Pieces { pieces, .. } = &entry.take {
                return sources(pieces).for_each(|source| self.inner.prefetch(source));
            }
            self.inner.prefetch_part(&entry.source, Self::span(entry, meta));
            if let Take::Mxfp4 { .. } = entry.take {
                self.inner.prefetch_part(&scales_of(&entry.source), entry.scales_extent());
            }
        }
    }

    fn release(&self, name: &str) {
        if let Some((entry, meta)) = self.entry(name) {
            if let Take::Pieces { pieces, .. } = &entry.take {
                return sources(pieces).for_each(|source| self.inner.release(source));
            }
            self.inner.release_part(&entry.source, Self::span(entry, meta));
            if let Take::Mxfp4 { .. } = entry.take {
                self.inner.release_part(&scales_of(&entry.source), entry.scales_extent());
            }
        }
    }
}

/// Every `step`th row of MXFP4 blocks as bf16.
fn from_mxfp4(blocks: &[u8], scales: &[u8], (rows, columns): (usize, usize), step: usize) -> Vec<u8> {
    let width = columns / MXFP4_BLOCK;
    let mut out = vec![0u8; rows * columns * 2];
    if out.is_empty() {
        return out;
    }
    out.par_chunks_exact_mut(columns * 2).enumerate().with_min_len(16).for_each(|(row, out)| {
        let at = row * step * width;
        mxfp4_to_bf16(&blocks[at * MXFP4_BYTES..][..width * MXFP4_BYTES], &scales[at..at + width], out);
    });
    out
}

/// A matrix whose element (r, c) is element r · row + c · col of the source.
fn gather(bytes: &[u8], shape: (usize, usize), strides: (usize, usize), meta: &TensorMeta) -> Vec<u8> {
    match meta.dtype.bytes_for(1) {
        2 => gather_elements::<2>(bytes, shape, strides),
        4 => gather_elements::<4>(bytes, shape, strides),
        8 => gather_elements::<8>(bytes, shape, strides),
        _ => gather_elements::<1>(bytes, shape, strides),
    }
}

/// Square tiles keep both sides of a transposition in the cache.
fn gather_elements<const N: usize>(
    bytes: &[u8],
    (rows, columns): (usize, usize),
    (row, col): (usize, usize),
) -> Vec<u8> {
    const TILE: usize = 64;
    let source = bytes.as_chunks::<N>().0;
    let mut out = vec![0u8; rows * columns * N];
    if out.is_empty() {
        return out;
    }
    let (cells, _) = out.as_chunks_mut::<N>();
    cells.par_chunks_mut(TILE * columns).enumerate().for_each(|(tile, cells)| {
        for left in (0..columns).step_by(TILE) {
            for (r, cells) in cells.chunks_exact_mut(columns).enumerate() {
                let start = (tile * TILE + r) * row;
                for (c, cell) in cells.iter_mut().enumerate().take((left + TILE).min(columns)).skip(left) {
                    *cell = source[start + c * col];
                }
            }
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strided_elements_are_gathered_over_tile_borders() {
        // A [90, 70] matrix of two-byte numbers, transposed; then every second row of a [140, 3] one.
        let bytes: Vec<u8> = (0..90 * 70u16).flat_map(u16::to_le_bytes).collect();
        let at = |bytes: &[u8], i: usize| u16::from_le_bytes([bytes[2 * i], bytes[2 * i + 1]]) as usize;
        let turned = gather_elements::<2>(&bytes, (70, 90), (1, 70));
        for (r, c) in [(0, 0), (69, 89), (1, 64), (64, 1), (63, 65), (69, 0)] {
            assert_eq!(at(&turned, r * 90 + c), c * 70 + r);
        }
        let second = gather_elements::<2>(&bytes[2 * 3..140 * 3 * 2], (70, 3), (6, 1));
        for (r, c) in [(0, 0), (69, 2), (64, 1)] {
            assert_eq!(at(&second, r * 3 + c), (2 * r + 1) * 3 + c);
        }
    }
}
