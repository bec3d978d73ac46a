//! Hashes of files and of a whole model.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::ModelError;
use crate::recipe::hashes::{self, NoFiles};
use crate::units::Sha;

/// One file of a model: its name relative to the model's directory, its digest and its size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileHash {
    pub filename: String,
    pub sha256: Sha,
    /// Bytes.
    pub size: u64,
}

/// SHA-256 and size of a file, streamed in pieces that stay in the cache.
pub fn hash_file(path: &Path) -> Result<(Sha, u64), ModelError> {
    const PIECE: usize = 1 << 18;
    let mut file = File::open(path).map_err(ModelError::io("open", path))?;
    let mut hasher = Sha256::new();
    let mut piece = vec![0u8; PIECE];
    let mut size = 0;
    loop {
        let n = file.read(&mut piece).map_err(ModelError::io("read", path))?;
        if n == 0 {
            return Ok((Sha(hasher.finalize().into()), size));
        }
        hasher.update(&piece[..n]);
        size += n as u64;
    }
}

/// Hashes several files at once; named by their path relative to `base` (by their file name when they lie elsewhere).
pub fn hash_files(base: &Path, files: &[PathBuf]) -> Result<Vec<FileHash>, ModelError> {
    files
        .par_iter()
        .map(|file| {
            let (sha256, size) = hash_file(file)?;
            let name = file.strip_prefix(base).ok().or_else(|| file.file_name().map(Path::new)).unwrap_or(file);
            Ok(FileHash { filename: name.to_string_lossy().into_owned(), sha256, size })
        })
        .collect()
}

/// The hash of a model from the hashes of its weight files (the rule stands in [`crate::recipe::hashes`]).
pub fn compose_model_hash(files: &[FileHash]) -> Result<Sha, NoFiles> {
    hashes::compose_model_hash(files.iter().map(|file| (file.filename.as_str(), file.sha256)))
}
