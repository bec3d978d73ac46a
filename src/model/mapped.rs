//! A read-only file in memory, with advice to the kernel so that the resident set stays small.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use memmap2::{Advice, Mmap, UncheckedAdvice};

use super::ModelError;

/// A memory-mapped file. The file must not be shortened while it is open (as with every memory map, the process would
/// be killed); models are written under a temporary name and renamed, which never shortens the old file.
#[derive(Debug)]
pub struct MappedFile {
    path: PathBuf,
    file: File,
    map: Option<Mmap>,
}

impl MappedFile {
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let file = File::open(path).map_err(ModelError::io("open", path))?;
        let metadata = file.metadata().map_err(ModelError::io("read", path))?;
        if !metadata.is_file() {
            return Err(ModelError::broken(path, "not a regular file").with_hint("name the model file itself"));
        }
        let map = if metadata.len() == 0 {
            None
        } else {
            // SAFETY: the map is read-only; the contract about shortening is stated on the type.
            Some(unsafe { Mmap::map(&file) }.map_err(ModelError::io("map", path))?)
        };
        Ok(MappedFile { path: path.to_owned(), file, map })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file once more.
    pub fn handle(&self) -> std::io::Result<File> {
        self.file.try_clone()
    }

    pub fn bytes(&self) -> &[u8] {
        self.map.as_deref().unwrap_or(&[])
    }

    /// Reads a range with `pread` instead of through the map: the bytes end in `out` and nowhere else in this process.
    pub fn read_range(&self, range: Range<usize>, out: &mut Vec<u8>) -> Result<(), ModelError> {
        out.resize(range.len(), 0);
        self.file.read_exact_at(out, range.start as u64).map_err(ModelError::io("read", &self.path))
    }

    /// Asks the kernel to read a range soon. Advice only: failure is no error.
    pub fn prefetch(&self, range: Range<usize>) {
        if let Some(map) = &self.map
            && range.end <= map.len()
            && !range.is_empty()
        {
            let _ = map.advise_range(Advice::WillNeed, range.start, range.len());
        }
    }

    /// Gives the pages of a range back: they leave the resident set and are read again when touched.
    pub fn release(&self, range: Range<usize>) {
        if let Some(map) = &self.map
            && range.end <= map.len()
            && !range.is_empty()
        {
            // SAFETY: the mapping is a clean, read-only view of a file, so dropped pages come back with the same bytes.
            let _ = unsafe { map.unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len()) };
        }
    }
}
