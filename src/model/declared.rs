//! Tensors announced before they are written, and the check that they then come as announced.

use std::collections::HashSet;
use std::path::Path;

use super::{ModelError, TensorMeta};
use crate::codec::Dtype;

/// A tensor that will be written: the header is made of these before the first byte of data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeclaredTensor {
    pub name: String,
    pub dtype: Dtype,
    /// Row-major.
    pub shape: Vec<usize>,
}

impl DeclaredTensor {
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: impl Into<Vec<usize>>) -> Self {
        DeclaredTensor { name: name.into(), dtype, shape: shape.into() }
    }
}

impl From<&TensorMeta> for DeclaredTensor {
    fn from(meta: &TensorMeta) -> Self {
        DeclaredTensor { name: meta.name.clone(), dtype: meta.dtype, shape: meta.shape.clone() }
    }
}

/// The declared tensors with their sizes, and how far the data has come.
#[derive(Debug)]
pub(super) struct Sequence {
    pub tensors: Vec<(DeclaredTensor, u64)>,
    /// The tensor being written or to be written next.
    at: usize,
    /// Bytes of it that have come; `None` between tensors.
    filled: Option<u64>,
}

impl Sequence {
    /// Checks names and sizes.
    pub fn new(path: &Path, tensors: Vec<DeclaredTensor>) -> Result<Self, ModelError> {
        let mut names = HashSet::with_capacity(tensors.len());
        let mut sized = Vec::with_capacity(tensors.len());
        for tensor in tensors {
            if !names.insert(tensor.name.clone()) {
                return Err(ModelError::misuse(path, format!("tensor {:?} is declared twice", tensor.name)));
            }
            let bytes = tensor.dtype.checked_bytes(&tensor.shape).ok_or_else(|| {
                let DeclaredTensor { name, dtype, shape } = &tensor;
                ModelError::misuse(path, format!("tensor {name:?} of shape {shape:?} cannot be stored as {dtype}"))
            })?;
            sized.push((tensor, bytes));
        }
        Ok(Sequence { tensors: sized, at: 0, filled: None })
    }

    /// The position and size of the tensor that begins.
    pub fn begin(&mut self, path: &Path, name: &str) -> Result<(usize, u64), ModelError> {
        match (self.tensors.get(self.at), self.filled) {
            (_, Some(_)) => Err(ModelError::misuse(path, format!("{name:?} begins before the last tensor has ended"))),
            (Some((next, bytes)), None) if next.name == name => {
                self.filled = Some(0);
                Ok((self.at, *bytes))
            }
            (Some((next, _)), None) => {
                Err(ModelError::misuse(path, format!("{name:?} comes, {:?} was declared next", next.name)))
            }
            (None, None) => Err(ModelError::misuse(path, format!("{name:?} comes after the last declared tensor"))),
        }
    }

    pub fn add(&mut self, path: &Path, bytes: usize) -> Result<(), ModelError> {
        match (&mut self.filled, self.tensors.get(self.at)) {
            (Some(filled), Some((tensor, size))) => {
                *filled += bytes as u64;
                if *filled > *size {
                    return Err(ModelError::misuse(path, format!("{:?} gets more than its {size} bytes", tensor.name)));
                }
                Ok(())
            }
            _ => Err(ModelError::misuse(path, "data comes outside any tensor")),
        }
    }

    pub fn end(&mut self, path: &Path) -> Result<u64, ModelError> {
        match (self.filled, self.tensors.get(self.at)) {
            (Some(filled), Some((_, size))) if filled == *size => {
                self.filled = None;
                self.at += 1;
                Ok(filled)
            }
            (Some(filled), Some((tensor, size))) => {
                Err(ModelError::misuse(path, format!("{:?} ends after {filled} of {size} bytes", tensor.name)))
            }
            _ => Err(ModelError::misuse(path, "a tensor ends that never began")),
        }
    }

    pub fn check_done(&self, path: &Path) -> Result<(), ModelError> {
        match self.tensors.get(self.at) {
            None => Ok(()),
            Some((tensor, _)) => {
                Err(ModelError::misuse(path, format!("{:?} was declared but never came", tensor.name)))
            }
        }
    }
}
