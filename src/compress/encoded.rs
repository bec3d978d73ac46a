//! Matrices whose codes have been chosen, in a file until a format's writer puts them together.
//!
//! Over a model ([`EncodedRows::over`]) they are a source of tensors whose type is the encoded one, so that a writer that
//! copies what has the wanted type already copies them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::ops::Range;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::CompressError;
use crate::model::{Dtype, MappedFile, ModelError, TensorMeta, TensorSource};
use crate::units::Sha;

/// A file of encoded matrices under construction.
pub struct EncodedWriter {
    path: PathBuf,
    file: BufWriter<File>,
    at: u64,
    /// Of what was written so far.
    hasher: Sha256,
    entries: HashMap<String, Entry>,
}

/// How far a file of encoded matrices is.
#[derive(Debug, Serialize, Deserialize)]
pub struct EncodedMark {
    at: u64,
    sha256: Sha,
    entries: HashMap<String, Entry>,
}

/// Encoded matrices, by the name of the weight. The file is removed with it.
pub struct EncodedRows {
    file: MappedFile,
    entries: HashMap<String, Entry>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Entry {
    /// The format, where it is one that models are stored in.
    dtype: Option<Dtype>,
    start: usize,
    len: usize,
}

impl EncodedWriter {
    /// Starts a file; what lies there is replaced.
    pub fn create(path: &Path) -> Result<Self, CompressError> {
        let file = File::create(path).map_err(CompressError::io("create", path))?;
        let (path, file) = (path.to_owned(), BufWriter::new(file));
        Ok(EncodedWriter { path, file, at: 0, hasher: Sha256::new(), entries: HashMap::new() })
    }

    /// Makes what was written durable, and says how far that is.
    pub fn mark(&mut self) -> Result<EncodedMark, CompressError> {
        let synced = self.file.flush().and_then(|()| self.file.get_ref().sync_data());
        synced.map_err(CompressError::io("write", &self.path))?;
        let sha256 = Sha(self.hasher.clone().finalize().into());
        Ok(EncodedMark { at: self.at, sha256, entries: self.entries.clone() })
    }

    /// Goes on with the file at `path` behind a mark; `None` when it is not what was marked.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn at(path: &Path, mark: EncodedMark) -> Result<Option<Self>, CompressError> {
        let failed = || CompressError::io("read", path);
        let Ok(mut file) = File::options().read(true).write(true).open(path) else { return Ok(None) };
        let mut hasher = Sha256::new();
        let (mut left, mut buffer) = (mark.at, vec![0u8; 1 << 20]);
        while left > 0 {
            let most = buffer.len().min(left as usize);
            let read = file.read(&mut buffer[..most]).map_err(failed())?;
            if read == 0 {
                return Ok(None);
            }
            hasher.update(&buffer[..read]);
            left -= read as u64;
        }
        if Sha(hasher.clone().finalize().into()) != mark.sha256 {
            return Ok(None);
        }
        file.set_len(mark.at).map_err(failed())?;
        let (path, file) = (path.to_owned(), BufWriter::new(file));
        Ok(Some(EncodedWriter { path, file, at: mark.at, hasher, entries: mark.entries }))
    }

    /// Adds the rows of a weight.
    pub fn put(&mut self, weight: &str, dtype: Option<Dtype>, rows: &[u8]) -> Result<(), CompressError> {
        self.file.write_all(rows).map_err(CompressError::io("write", &self.path))?;
        self.hasher.update(rows);
        self.entries.insert(weight.to_owned(), Entry { dtype, start: self.at as usize, len: rows.len() });
        self.at += rows.len() as u64;
        Ok(())
    }

    /// Closes the file and opens it for reading.
    pub fn finish(mut self) -> Result<EncodedRows, CompressError> {
        self.file.flush().map_err(CompressError::io("write", &self.path))?;
        Ok(EncodedRows { file: MappedFile::open(&self.path)?, entries: self.entries })
    }
}

impl EncodedRows {
    /// The rows of a weight, one after the other.
    pub fn rows(&self, weight: &str) -> Option<&[u8]> {
        let entry = self.entries.get(weight)?;
        self.file.bytes().get(entry.start..entry.start + entry.len)
    }

    /// The model with its encoded weights in place of its own; those in a form that no model is stored in stay as they
    /// are.
    pub fn over<'a>(&'a self, base: &'a dyn TensorSource) -> EncodedSource<'a> {
        let mut metas = base.metas().to_vec();
        let mut by_name = HashMap::new();
        // Names of a view may not be among those of its list.
        for name in self.entries.keys() {
            let Some(meta) = base.meta(name) else { continue };
            let Some(Entry { dtype: Some(dtype), len, .. }) = self.entries.get(name) else { continue };
            let replaced = TensorMeta { dtype: *dtype, bytes: *len as u64, ..meta.clone() };
            match metas.iter().position(|meta| &meta.name == name) {
                Some(at) => metas[at] = replaced.clone(),
                None => metas.push(replaced.clone()),
            }
            by_name.insert(name.clone(), replaced);
        }
        EncodedSource { rows: self, base, metas, by_name }
    }
}

impl Drop for EncodedRows {
    fn drop(&mut self) {
        // What an ended process leaves is replaced by the next attempt, and goes with the work folder.
        let _ = std::fs::remove_file(self.file.path());
    }
}

/// See [`EncodedRows::over`].
pub struct EncodedSource<'a> {
    rows: &'a EncodedRows,
    base: &'a dyn TensorSource,
    metas: Vec<TensorMeta>,
    by_name: HashMap<String, TensorMeta>,
}

impl TensorSource for EncodedSource<'_> {
    fn metas(&self) -> &[TensorMeta] {
        &self.metas
    }

    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.by_name.get(name).or_else(|| self.base.meta(name))
    }

    fn files(&self) -> &[PathBuf] {
        self.base.files()
    }

    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, ModelError> {
        match self.rows.rows(name).filter(|_| self.by_name.contains_key(name)) {
            Some(bytes) => Ok(bytes.into()),
            None => self.base.bytes(name),
        }
    }

    fn rows_bytes(&self, name: &str, rows: Range<usize>) -> Result<Cow<'_, [u8]>, ModelError> {
        let Some(meta) = self.by_name.get(name) else { return self.base.rows_bytes(name, rows) };
        let each = meta.dtype.bytes_for(meta.shape.last().copied().unwrap_or(1));
        let bytes = self.rows.rows(name).and_then(|bytes| bytes.get(rows.start * each..rows.end * each));
        bytes
            .map(Cow::Borrowed)
            .ok_or_else(|| ModelError::misuse(self.rows.file.path(), format!("rows {rows:?} of {name:?}")))
    }

    fn prefetch(&self, name: &str) {
        if !self.by_name.contains_key(name) {
            self.base.prefetch(name);
        }
    }

    fn release(&self, name: &str) {
        match self.rows.entries.get(name).filter(|_| self.by_name.contains_key(name)) {
            Some(entry) => self.rows.file.release(entry.start..entry.start + entry.len),
            None => self.base.release(name),
        }
    }
}
