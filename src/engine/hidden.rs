//! The hidden states of all micro-batches between blocks: in memory, or in a file without a name past the budget.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::EngineError;
use super::backend::Backend;

type Result<T> = std::result::Result<T, EngineError>;

/// Hidden states `[rows, columns]` of each micro-batch. Taking a batch leaves its place empty until it is put back.
pub enum HiddenStore<B: Backend> {
    Resident(Vec<Option<B::Rows>>),
    Spilled(Spill),
}

/// A temporary file with one region per micro-batch; it has no name, so nothing is left behind however the process
/// ends.
pub struct Spill {
    file: File,
    directory: PathBuf,
    columns: usize,
    /// First value of each batch, and one past the last.
    starts: Vec<u64>,
    /// Rows now kept of each batch.
    rows: Vec<usize>,
}

impl<B: Backend> HiddenStore<B> {
    /// An empty store for batches of `rows[i]` rows; in a file in `spill` if given.
    ///
    /// # Errors
    /// The directory does not take a file.
    pub fn new(rows: &[usize], columns: usize, spill: Option<&Path>) -> Result<Self> {
        let Some(directory) = spill else {
            return Ok(HiddenStore::Resident(rows.iter().map(|_| None).collect()));
        };
        let file = unnamed_file(directory).map_err(|source| EngineError::Spill {
            what: "create a temporary file for hidden states",
            path: directory.to_owned(),
            source,
        })?;
        let mut starts = vec![0u64];
        for &count in rows {
            starts.push(starts.last().copied().unwrap_or(0) + (count * columns) as u64);
        }
        Ok(HiddenStore::Spilled(Spill { file, directory: directory.to_owned(), columns, starts, rows: rows.to_vec() }))
    }

    /// Takes the hidden states of a batch out.
    ///
    /// # Errors
    /// The file cannot be read, or the batch is out already.
    pub fn take(&mut self, backend: &B, batch: usize) -> Result<B::Rows> {
        match self {
            HiddenStore::Resident(batches) => batches[batch].take().ok_or(EngineError::Taken { batch }),
            HiddenStore::Spilled(spill) => backend.upload(&spill.read(batch)?, spill.columns),
        }
    }

    /// A copy of the hidden states of a batch, which stay where they are.
    ///
    /// # Errors
    /// As [`HiddenStore::take`].
    pub fn copy(&self, backend: &B, batch: usize) -> Result<B::Rows> {
        match self {
            HiddenStore::Resident(batches) => {
                let rows = batches[batch].as_ref().ok_or(EngineError::Taken { batch })?;
                backend.copy(rows)
            }
            HiddenStore::Spilled(spill) => backend.upload(&spill.read(batch)?, spill.columns),
        }
    }

    /// Puts the hidden states of a batch back; never more rows than it had first.
    ///
    /// # Errors
    /// The file cannot be written.
    pub fn put(&mut self, backend: &B, batch: usize, rows: B::Rows) -> Result<()> {
        match self {
            HiddenStore::Resident(batches) => batches[batch] = Some(rows),
            HiddenStore::Spilled(spill) => spill.write(batch, &backend.download(&rows)?)?,
        }
        Ok(())
    }
}

impl Spill {
    fn read(&self, batch: usize) -> Result<Vec<f32>> {
        let mut values = vec![0f32; self.rows[batch] * self.columns];
        let result = self.file.read_exact_at(as_bytes_mut(&mut values), self.starts[batch] * 4);
        result.map_err(|e| self.failed("read hidden states back", e))?;
        Ok(values)
    }

    fn write(&mut self, batch: usize, values: &[f32]) -> Result<()> {
        debug_assert!(values.len() as u64 <= self.starts[batch + 1] - self.starts[batch]);
        self.rows[batch] = values.len() / self.columns;
        let result = self.file.write_all_at(as_bytes(values), self.starts[batch] * 4);
        result.map_err(|e| self.failed("write hidden states", e))
    }

    fn failed(&self, what: &'static str, source: io::Error) -> EngineError {
        EngineError::Spill { what, path: self.directory.clone(), source }
    }
}

/// The values as they lie in memory: the file is read by the process that wrote it.
fn as_bytes(values: &[f32]) -> &[u8] {
    // SAFETY: every f32 is four readable bytes, and u8 has no alignment.
    unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
}

fn as_bytes_mut(values: &mut [f32]) -> &mut [u8] {
    // SAFETY: as above, and every bit pattern is an f32.
    unsafe { std::slice::from_raw_parts_mut(values.as_mut_ptr().cast(), size_of_val(values)) }
}

/// A file that exists only as long as it is open: made with a name nobody else has, and unlinked at once.
fn unnamed_file(directory: &Path) -> io::Result<File> {
    let nanos = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_nanos());
    let path = directory.join(format!(".hidden-{}-{nanos:x}.tmp", std::process::id()));
    let file = File::options().read(true).write(true).create_new(true).open(&path)?;
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(test)]
mod tests {
    use super::super::host;
    use super::super::matmul::Kernel;
    use super::*;

    #[test]
    fn a_spilled_batch_comes_back_and_may_shrink() {
        let host = host::Host { kernel: Kernel::Portable };
        let dir = tempfile::tempdir().unwrap();
        let mut store = HiddenStore::<host::Host>::new(&[2, 1], 3, Some(dir.path())).unwrap();
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        store.put(&host, 1, host.upload(&[7.0, 8.0, 9.0], 3).unwrap()).unwrap();
        store.put(&host, 0, host.upload(&values, 3).unwrap()).unwrap();
        let back = store.take(&host, 0).unwrap();
        assert_eq!(host.download(&back).unwrap(), values);
        store.put(&host, 0, host.upload(&values[3..], 3).unwrap()).unwrap();
        assert_eq!(host.download(&store.take(&host, 0).unwrap()).unwrap(), &values[3..]);
        assert_eq!(host.download(&store.take(&host, 1).unwrap()).unwrap(), [7.0, 8.0, 9.0]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0, "the file has no name");
    }
}
