//! Savepoints: what a pass needs to go on where it was interrupted, put on disk between two blocks.
//!
//! Enters: a folder and a key that stands for everything the pass is a function of. Leaves, in that folder: the hidden
//! states as they go into the next block, what observers or a rewriter have gathered, and `savepoint.json` with the hashes
//! of both, replaced last and in one step. A savepoint with another key, other micro-batches or a wrong hash is not used:
//! the pass starts anew, and says why. What goes on from a savepoint computes the same bits as what was never interrupted.

use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::EngineError;
use super::backend::Backend;
use super::hidden::HiddenStore;
use crate::crash::crash_point;
use crate::model::write_file;
use crate::units::Sha;

type Result<T> = std::result::Result<T, EngineError>;

const HEADER: &str = "savepoint.json";
/// Of the header's form.
const VERSION: u32 = 1;

/// Where a pass keeps savepoints, and what it says about them.
#[derive(Clone, Debug)]
pub struct Savepoints {
    directory: PathBuf,
    key: String,
    least_work: Duration,
    notes: Arc<Mutex<Vec<String>>>,
}

impl Savepoints {
    /// In `directory`, which is made when needed. Two passes with equal keys must compute the same.
    pub fn new(directory: PathBuf, key: String) -> Self {
        Savepoints { directory, key, least_work: Duration::ZERO, notes: Arc::default() }
    }

    /// After every block that ends this much later than the last savepoint; after every block if not said. At the end of the
    /// last block in any case.
    pub fn after(self, least_work: Duration) -> Self {
        Savepoints { least_work, ..self }
    }

    /// What was made of savepoints so far: where the pass went on, or why one was not used.
    pub fn notes(&self) -> Vec<String> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn note(&self, note: String) {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner).push(note);
    }

    fn failed(&self, source: io::Error) -> EngineError {
        EngineError::Spill { what: "keep a savepoint", path: self.directory.clone(), source }
    }
}

/// The hidden states of a pass as they are cut up, equal when a pass is taken up again.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Shape {
    /// Blocks of the model.
    pub blocks: usize,
    pub columns: usize,
    /// Rows of every micro-batch.
    pub rows: Vec<usize>,
    /// How many sets of hidden states there are.
    pub streams: usize,
}

/// Where a pass goes on.
#[derive(Debug)]
pub(super) struct Point {
    /// The first block that is still to be run.
    pub block: usize,
    pub expert_work: u64,
    /// What [`Keeper::save`] was given.
    pub state: Vec<u8>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    version: u32,
    key: String,
    next_block: usize,
    shape: Shape,
    expert_work: u64,
    /// Absent where nothing reads the last block's output.
    hidden: Option<Kept>,
    state: Kept,
}

#[derive(Serialize, Deserialize)]
struct Kept {
    file: String,
    sha256: Sha,
}

/// Keeps the savepoints of one pass.
pub(super) struct Keeper<'a> {
    how: Option<&'a Savepoints>,
    shape: Shape,
    /// What the last block puts out is read by a head.
    has_head: bool,
    last: Instant,
    /// Files are written in turns, so that those of the last savepoint stay whole.
    turn: usize,
}

impl<'a> Keeper<'a> {
    /// Without savepoints it does nothing.
    pub fn new(how: Option<&'a Savepoints>, shape: Shape, has_head: bool) -> Self {
        Keeper { how, shape, has_head, last: Instant::now(), turn: 0 }
    }

    /// The savepoint to go on from, its hidden states filled into `stores`; `None` when there is none that can be used.
    ///
    /// # Errors
    /// The stores do not take what was read.
    pub fn resume<B: Backend>(&mut self, backend: &B, stores: &mut [&mut HiddenStore<B>]) -> Result<Option<Point>> {
        let Some(how) = self.how else { return Ok(None) };
        let header = match self.header(how) {
            Ok(Some(header)) => header,
            Ok(None) => return Ok(None),
            Err(why) => {
                how.note(format!("a savepoint is not used: {why}"));
                return Ok(None);
            }
        };
        let read = |kept: &Kept| -> std::result::Result<PathBuf, String> {
            let path = how.directory.join(&kept.file);
            match crate::model::hash_file(&path) {
                Ok((sha, _)) if sha == kept.sha256 => Ok(path),
                Ok(_) => Err(format!("{} is not as it was written", path.display())),
                Err(error) => Err(error.to_string()),
            }
        };
        let state = read(&header.state).and_then(|path| fs::read(path).map_err(|e| e.to_string()));
        let hidden = header.hidden.as_ref().map(read).transpose();
        let (state, hidden) = match (state, hidden) {
            (Ok(state), Ok(hidden)) => (state, hidden),
            (Err(why), _) | (_, Err(why)) => {
                how.note(format!("a savepoint is not used: {why}"));
                return Ok(None);
            }
        };
        if let Some(path) = hidden {
            let mut file = File::open(&path).map_err(|e| how.failed(e))?;
            for store in stores.iter_mut() {
                for (batch, rows) in self.shape.rows.iter().enumerate() {
                    let mut bytes = vec![0u8; rows * self.shape.columns * 4];
                    file.read_exact(&mut bytes).map_err(|e| how.failed(e))?;
                    let values: Vec<f32> =
                        bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
                    store.put(backend, batch, backend.upload(&values, self.shape.columns)?)?;
                }
            }
        }
        self.turn = usize::from(header.state.file.ends_with(".0"));
        Ok(Some(Point { block: header.next_block, expert_work: header.expert_work, state }))
    }

    /// Says that the pass goes on from a savepoint.
    pub fn resumed(&self, point: &Point) {
        if let Some(how) = self.how {
            how.note(format!("went on from a savepoint: {} of {} blocks were done", point.block, self.shape.blocks));
        }
    }

    /// Says that what was gathered could not be taken back.
    pub fn refused(&self) {
        if let Some(how) = self.how {
            how.note("a savepoint is not used: what had been gathered cannot be read".to_owned());
        }
    }

    /// True when a savepoint is due before block `next`.
    pub fn is_due(&self, next: usize) -> bool {
        self.how.is_some_and(|how| next == self.shape.blocks || self.last.elapsed() >= how.least_work)
    }

    /// Puts down that everything before block `next` is done.
    ///
    /// # Errors
    /// The folder does not take it: a full disk.
    pub fn save<B: Backend>(
        &mut self,
        backend: &B,
        stores: &[&HiddenStore<B>],
        (next, expert_work, state): (usize, u64, &[u8]),
    ) -> Result<()> {
        let Some(how) = self.how else { return Ok(()) };
        fs::create_dir_all(&how.directory).map_err(|e| how.failed(e))?;
        let needs_hidden = self.has_head || next < self.shape.blocks;
        let hidden = match needs_hidden {
            true => Some(self.keep_hidden(how, backend, stores)?),
            false => None,
        };
        let name = format!("state.{}", self.turn);
        let sha256 = write(&how.directory.join(&name), |out| out.write_all(state)).map_err(|e| how.failed(e))?;
        let header = Header {
            version: VERSION,
            key: how.key.clone(),
            next_block: next,
            shape: self.shape.clone(),
            expert_work,
            hidden,
            state: Kept { file: name, sha256 },
        };
        let text = serde_json::to_vec(&header).map_err(|e| how.failed(e.into()))?;
        write_file(&how.directory.join(HEADER), &text)?;
        self.turn = 1 - self.turn;
        self.last = Instant::now();
        crash_point(&format!("savepoint:{next}"));
        Ok(())
    }

    fn keep_hidden<B: Backend>(&self, how: &Savepoints, backend: &B, stores: &[&HiddenStore<B>]) -> Result<Kept> {
        let name = format!("hidden.{}", self.turn);
        let path = how.directory.join(&name);
        let mut failed = None;
        let sha256 = write(&path, |out| {
            for store in stores {
                for batch in 0..self.shape.rows.len() {
                    match store.copy(backend, batch).and_then(|rows| backend.download(&rows)) {
                        Ok(values) => values.iter().try_for_each(|value| out.write_all(&value.to_le_bytes()))?,
                        Err(error) => {
                            failed = Some(error);
                            return Ok(());
                        }
                    }
                }
            }
            Ok(())
        })
        .map_err(|e| how.failed(e))?;
        failed.map_or(Ok(Kept { file: name, sha256 }), Err)
    }

    /// The header on disk when it is of this pass; the reason when it is of another.
    fn header(&self, how: &Savepoints) -> std::result::Result<Option<Header>, String> {
        let path = how.directory.join(HEADER);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(format!("{}: {e}", path.display())),
        };
        let header: Header = serde_json::from_slice(&bytes).map_err(|e| format!("{}: {e}", path.display()))?;
        if header.version != VERSION || header.key != how.key {
            return Err("it is of other weights, settings, texts or of another build".to_owned());
        }
        if header.shape != self.shape {
            return Err("the memory budget has changed, and the micro-batches with it".to_owned());
        }
        if header.next_block > self.shape.blocks {
            return Err(format!("it names block {} of {}", header.next_block, self.shape.blocks));
        }
        Ok(Some(header))
    }
}

/// Writes a file whole and syncs it; returns its hash.
fn write(path: &Path, fill: impl FnOnce(&mut Hashing) -> io::Result<()>) -> io::Result<Sha> {
    let mut out = Hashing { file: BufWriter::with_capacity(1 << 20, File::create(path)?), hasher: Sha256::new() };
    fill(&mut out)?;
    out.file.flush()?;
    out.file.get_ref().sync_all()?;
    Ok(Sha(out.hasher.finalize().into()))
}

/// A file that is hashed as it is written.
struct Hashing {
    file: BufWriter<File>,
    hasher: Sha256,
}

impl Write for Hashing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::super::host::Host;
    use super::super::matmul::Kernel;
    use super::*;

    const HOST: Host = Host { kernel: Kernel::Portable };

    fn shape() -> Shape {
        Shape { blocks: 3, columns: 2, rows: vec![2, 1], streams: 1 }
    }

    fn empty() -> HiddenStore<Host> {
        HiddenStore::new(&shape().rows, 2, None).unwrap()
    }

    fn filled() -> HiddenStore<Host> {
        let mut store = empty();
        store.put(&HOST, 0, HOST.upload(&[1.0, -0.0, f32::MIN_POSITIVE, 4.0], 2).unwrap()).unwrap();
        store.put(&HOST, 1, HOST.upload(&[0.1, f32::MAX], 2).unwrap()).unwrap();
        store
    }

    fn bits(store: &HiddenStore<Host>) -> Vec<u32> {
        let all = (0..2).flat_map(|batch| HOST.download(&store.copy(&HOST, batch).unwrap()).unwrap());
        all.map(f32::to_bits).collect()
    }

    #[test]
    fn what_was_put_down_comes_back_bit_for_bit() {
        let dir = tempfile::tempdir().unwrap();
        let how = Savepoints::new(dir.path().join("pass"), "k".into());
        let mut keeper = Keeper::new(Some(&how), shape(), false);
        assert!(keeper.resume(&HOST, &mut [&mut empty()]).unwrap().is_none());
        keeper.save(&HOST, &[&empty_but_for(0.5)], (1, 3, b"one")).unwrap();
        keeper.save(&HOST, &[&filled()], (2, 7, b"two")).unwrap();
        let mut store = empty();
        let mut again = Keeper::new(Some(&how), shape(), false);
        let point = again.resume(&HOST, &mut [&mut store]).unwrap().unwrap();
        assert_eq!((point.block, point.expert_work, &point.state[..]), (2, 7, &b"two"[..]));
        assert_eq!(bits(&store), bits(&filled()));
        // The next one does not write over the files it came from.
        let kept = fs::read(dir.path().join("pass/state.1")).unwrap();
        again.save(&HOST, &[&filled()], (3, 9, b"three")).unwrap();
        assert_eq!(fs::read(dir.path().join("pass/state.1")).unwrap(), kept);
        let point = Keeper::new(Some(&how), shape(), false).resume(&HOST, &mut [&mut empty()]).unwrap().unwrap();
        assert_eq!((point.block, &point.state[..]), (3, &b"three"[..]));
        assert!(how.notes().is_empty());
    }

    fn empty_but_for(value: f32) -> HiddenStore<Host> {
        let mut store = empty();
        store.put(&HOST, 0, HOST.upload(&[value; 4], 2).unwrap()).unwrap();
        store.put(&HOST, 1, HOST.upload(&[value; 2], 2).unwrap()).unwrap();
        store
    }

    #[test]
    fn a_savepoint_of_something_else_is_not_used_and_it_says_why() {
        let dir = tempfile::tempdir().unwrap();
        let why = |how: &Savepoints, shape: Shape| {
            let mut store = HiddenStore::<Host>::new(&shape.rows, shape.columns, None).unwrap();
            assert!(Keeper::new(Some(how), shape, false).resume(&HOST, &mut [&mut store]).unwrap().is_none());
            how.notes().join("; ").replace(&format!("{}/", dir.path().display()), "")
        };
        let how = || Savepoints::new(dir.path().to_owned(), "k".into());
        Keeper::new(Some(&how()), shape(), false).save(&HOST, &[&filled()], (1, 0, b"s")).unwrap();
        let other = Savepoints::new(dir.path().to_owned(), "other".into());
        insta::assert_snapshot!(why(&other, shape()), @"a savepoint is not used: it is of other weights, settings, texts or of another build");
        insta::assert_snapshot!(why(&how(), Shape { rows: vec![3], ..shape() }), @"a savepoint is not used: the memory budget has changed, and the micro-batches with it");
        fs::write(dir.path().join("hidden.0"), b"torn").unwrap();
        insta::assert_snapshot!(why(&how(), shape()), @"a savepoint is not used: hidden.0 is not as it was written");
        fs::write(dir.path().join(HEADER), b"{\"version\":1,").unwrap();
        insta::assert_snapshot!(why(&how(), shape()), @"a savepoint is not used: savepoint.json: EOF while parsing a value at line 1 column 13");
    }

    #[test]
    fn one_is_due_after_enough_work_and_at_the_end() {
        let how = Savepoints::new(PathBuf::from("nowhere"), "k".into()).after(Duration::from_secs(60));
        let keeper = Keeper::new(Some(&how), shape(), false);
        assert!(!keeper.is_due(1) && keeper.is_due(3));
        assert!(!Keeper::new(None, shape(), false).is_due(3));
        let how = how.after(Duration::ZERO);
        assert!(Keeper::new(Some(&how), shape(), false).is_due(1));
    }
}
