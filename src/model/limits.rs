//! How much of each file of a model is read: far above anything published, far below this machine's memory.

use std::path::Path;

use super::ModelError;
use crate::units::{Bytes, read_at_most};

/// `config.json` and the small files beside it.
const CONFIG: Bytes = Bytes::from_mb(16);
/// The index of a model's shards: a line for each tensor.
const INDEX: Bytes = Bytes::from_mb(128);
/// `tokenizer.json`; that of a quarter of a million tokens has 35 MB.
const TOKENIZER: Bytes = Bytes::from_mb(256);
/// Of a safetensors header or a manifest: more tensors or files than any model has.
pub(super) const MOST_TENSORS: usize = 1 << 20;
/// Of a GGUF file, everything before its data: the vocabulary is most of it.
pub(super) const GGUF_HEADER: usize = 256 << 20;

pub(super) fn read_config(path: &Path) -> Result<Vec<u8>, ModelError> {
    read_at_most(path, CONFIG).map_err(ModelError::io("read", path))
}

pub(super) fn read_index(path: &Path) -> Result<Vec<u8>, ModelError> {
    read_at_most(path, INDEX).map_err(ModelError::io("read", path))
}

pub(super) fn read_tokenizer(path: &Path) -> Result<Vec<u8>, ModelError> {
    read_at_most(path, TOKENIZER).map_err(ModelError::io("read", path))
}
