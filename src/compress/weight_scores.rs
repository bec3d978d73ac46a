//! Scores that need no calibration text: what the router's rows and the experts' matrices look like.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use rayon::prelude::*;

use super::CompressError;
use crate::codec::Dtype;
use crate::family::{ModelSpec, MoeSpec, OpenModel, Part};
use crate::model::{ModelError, TensorMeta, TensorSource, decode_f32};
use crate::units::Sha;

/// Elements summed by one task. Fixed, so that sums do not depend on the number of threads.
const PIECE: usize = 1 << 16;

/// Sums over the elements of a tensor.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Sums {
    elements: f64,
    absolute: f64,
    squares: f64,
}

impl Sums {
    fn join(self, other: Sums) -> Sums {
        Sums {
            elements: self.elements + other.elements,
            absolute: self.absolute + other.absolute,
            squares: self.squares + other.squares,
        }
    }

    fn of(values: &[f32]) -> Sums {
        let piece = |values: &[f32]| {
            let start = Sums { elements: values.len() as f64, ..Sums::default() };
            values.iter().map(|&v| f64::from(v)).fold(start, |s, v| Sums {
                absolute: s.absolute + v.abs(),
                squares: s.squares + v * v,
                ..s
            })
        };
        let pieces: Vec<Sums> = values.par_chunks(PIECE).map(piece).collect();
        pieces.into_iter().fold(Sums::default(), Sums::join)
    }

    fn of_bf16(bytes: &[u8]) -> Sums {
        let piece = |bytes: &[u8]| {
            let start = Sums { elements: (bytes.len() / 2) as f64, ..Sums::default() };
            let values =
                bytes.chunks_exact(2).map(|b| f32::from_bits(u32::from(u16::from_le_bytes([b[0], b[1]])) << 16));
            values.map(f64::from).fold(start, |s, v| Sums {
                absolute: s.absolute + v.abs(),
                squares: s.squares + v * v,
                ..s
            })
        };
        let pieces: Vec<Sums> = bytes.par_chunks(2 * PIECE).map(piece).collect();
        pieces.into_iter().fold(Sums::default(), Sums::join)
    }
}

/// The tensors of a model, with the sums of every expert's matrices taken as they are read: a pass that reads each
/// block once gives the score at no further reading.
pub struct Weighed {
    inner: Arc<dyn TensorSource>,
    wanted: HashSet<String>,
    sums: Mutex<BTreeMap<String, Sums>>,
}

impl Weighed {
    pub fn new(model: &OpenModel) -> Self {
        let moes = model.spec.mixtures().map(|(_, moe)| moe);
        let wanted = moes.flat_map(|moe| &moe.experts).flat_map(matrices).map(str::to_owned).collect();
        Weighed { inner: model.tensors.clone(), wanted, sums: Mutex::default() }
    }

    fn note(&self, name: &str, sums: impl FnOnce() -> Sums) {
        let known = |all: &BTreeMap<String, Sums>| all.contains_key(name);
        let lock = || self.sums.lock().unwrap_or_else(PoisonError::into_inner);
        if self.wanted.contains(name) && !known(&lock()) {
            let sums = sums();
            lock().insert(name.to_owned(), sums);
        }
    }

    /// mean |w| ÷ rms w of every expert of a mixture, over its three matrices. Matrices nobody has read are read now.
    ///
    /// # Errors
    /// A tensor that cannot be read, or holds a value that is not finite.
    pub fn aimer(&self, moe: &MoeSpec) -> Result<Vec<f64>, CompressError> {
        let score = |expert: &crate::family::ExpertSpec| {
            let mut all = Sums::default();
            for name in matrices(expert) {
                all = all.join(self.sums_of(name)?);
            }
            let rms = (all.squares / all.elements).sqrt();
            // An expert of zeros has no shape to judge; it is the first to go.
            Ok(if rms == 0.0 { f64::from(f32::MAX) } else { all.absolute / all.elements / rms })
        };
        moe.experts.iter().map(score).collect()
    }

    fn sums_of(&self, name: &str) -> Result<Sums, CompressError> {
        let known = self.sums.lock().unwrap_or_else(PoisonError::into_inner).get(name).copied();
        let sums = match known {
            Some(sums) => sums,
            None => {
                let mut values = Vec::new();
                self.inner.read_f32(name, &mut values)?;
                self.inner.release(name);
                Sums::of(&values)
            }
        };
        if sums.squares.is_finite() {
            return Ok(sums);
        }
        let reason = "holds a value that is not finite".to_owned();
        Err(CompressError::Tensor { tensor: name.to_owned(), reason })
    }
}

/// The Euclidean norm of every expert's row of a mixture's router `[experts, hidden]`.
pub fn router_norms(tensors: &dyn TensorSource, moe: &MoeSpec) -> Result<Vec<f64>, CompressError> {
    let mut weights = Vec::new();
    tensors.read_f32(&moe.router.weight, &mut weights)?;
    let norm = |row: &[f32]| row.iter().map(|&w| f64::from(w).powi(2)).sum::<f64>().sqrt();
    Ok(weights.chunks(moe.router.cols.max(1)).map(norm).collect())
}

/// Layer and mixture of every block that has one.
pub fn mixtures(spec: &ModelSpec) -> impl Iterator<Item = (usize, &MoeSpec)> {
    spec.blocks.iter().filter_map(|block| Some((block.index, block.moe()?)))
}

fn matrices(expert: &crate::family::ExpertSpec) -> impl Iterator<Item = &str> {
    Part::ALL.into_iter().map(|part| expert.part(part).weight.as_str())
}

impl TensorSource for Weighed {
    fn metas(&self) -> &[TensorMeta] {
        self.inner.metas()
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.inner.meta(name)
    }

    fn files(&self) -> &[PathBuf] {
        self.inner.files()
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, ModelError> {
        let bytes = self.inner.bytes(name)?;
        if self.wanted.contains(name)
            && let Some(meta) = self.meta(name)
        {
            match meta.dtype {
                Dtype::BF16 => self.note(name, || Sums::of_bf16(&bytes)),
                _ => {
                    let mut values = Vec::new();
                    decode_f32(&self.files()[meta.file], meta, &bytes, &mut values)?;
                    self.note(name, || Sums::of(&values));
                }
            }
        }
        Ok(bytes)
    }

    fn file_range(&self, name: &str) -> Option<(File, u64)> {
        self.inner.file_range(name)
    }

    fn prefetch(&self, name: &str) {
        self.inner.prefetch(name);
    }

    fn release(&self, name: &str) {
        self.inner.release(name);
    }

    fn read_f32(&self, name: &str, out: &mut Vec<f32>) -> Result<(), ModelError> {
        self.inner.read_f32(name, out)?;
        self.note(name, || Sums::of(out));
        Ok(())
    }

    fn read_rows_f32(&self, name: &str, rows: Range<usize>, out: &mut Vec<f32>) -> Result<(), ModelError> {
        let whole = self.meta(name).is_some_and(|meta| rows == (0..meta.rows()));
        self.inner.read_rows_f32(name, rows, out)?;
        if whole {
            self.note(name, || Sums::of(out));
        }
        Ok(())
    }

    fn tensor_sha(&self, name: &str) -> Result<Sha, ModelError> {
        self.inner.tensor_sha(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_of_bf16_bytes_are_those_of_the_values() {
        let values: Vec<f32> = (0..3 * PIECE + 17).map(|i| ((i % 251) as f32 - 125.0) * 0.25).collect();
        let bytes: Vec<u8> = values.iter().flat_map(|v| half::bf16::from_f32(*v).to_le_bytes()).collect();
        assert_eq!(Sums::of(&values), Sums::of_bf16(&bytes));
        let mean: f64 = values.iter().map(|v| f64::from(v.abs())).sum::<f64>();
        assert!((Sums::of(&values).absolute - mean).abs() < 1e-6);
    }
}
