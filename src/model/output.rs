//! A file being written: under a temporary name until it is complete, hashed on the way or afterwards.
//!
//! Threads of its own write (and hash) each piece, so that the caller only fills buffers (and may fill them in
//! parallel). Nothing with the final name exists before [`CompleteFile::publish`] or [`OutputFile::settle`].

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use sha2::{Digest, Sha256};

use super::{FileHash, ModelError};
use crate::units::Sha;

/// Pieces that may wait between the caller and each thread: enough to overlap, few enough to bound memory.
const WAITING: usize = 3;
/// Borrowed bytes are handed over in pieces of this size.
const PIECE: usize = 4 << 20;

/// What goes through both threads: bytes in memory, or a range of another file.
#[derive(Clone, Debug)]
enum Piece {
    Bytes(Arc<Vec<u8>>),
    Range(Arc<FileRange>),
}

/// Bytes of an open file.
#[derive(Debug)]
struct FileRange {
    file: File,
    offset: u64,
    len: u64,
}

/// An output file; see the module.
#[derive(Debug)]
pub struct OutputFile {
    target: PathBuf,
    temp: TempPath,
    pipes: Option<Pipes>,
    spare: Arc<Mutex<Vec<Vec<u8>>>>,
    size: u64,
}

#[derive(Debug)]
struct Pipes {
    to_writer: SyncSender<Piece>,
    writer: JoinHandle<std::io::Result<File>>,
    /// `None` when the file is hashed after it is written.
    hasher: Option<Hasher>,
}

#[derive(Debug)]
struct Hasher {
    pieces: SyncSender<Piece>,
    thread: JoinHandle<std::io::Result<Sha>>,
}

/// Removes the temporary file unless it was renamed.
#[derive(Debug)]
struct TempPath(Option<PathBuf>);

impl Drop for TempPath {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            let _ = fs::remove_file(path);
        }
    }
}

impl OutputFile {
    /// Starts `.<name>.tmp` beside `target` (mode 0644 less the umask), hashed on the way. A left-over of an earlier
    /// attempt is replaced.
    pub fn create(target: &Path) -> Result<Self, ModelError> {
        let mut output = OutputFile::create_unhashed(target)?;
        let (pieces, hasher_in) = sync_channel(WAITING);
        let spare = Arc::clone(&output.spare);
        let thread = std::thread::Builder::new()
            .name("model-hash".to_owned())
            .spawn(move || hash_all(&hasher_in, &spare))
            .map_err(ModelError::io("start a thread to hash", target))?;
        if let Some(pipes) = &mut output.pipes {
            pipes.hasher = Some(Hasher { pieces, thread });
        }
        Ok(output)
    }

    /// As [`OutputFile::create`], to be ended with [`OutputFile::settle`].
    pub fn create_unhashed(target: &Path) -> Result<Self, ModelError> {
        let Some(name) = target.file_name() else {
            return Err(ModelError::misuse(target, "the target has no file name"));
        };
        let temp = target.with_file_name(format!(".{}.tmp", name.to_string_lossy()));
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o644)
            .open(&temp)
            .map_err(ModelError::io("create", &temp))?;
        let spare: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
        let (to_writer, writer_in) = sync_channel(WAITING);
        let back = Arc::clone(&spare);
        let writer = std::thread::Builder::new()
            .name("model-write".to_owned())
            .spawn(move || write_all(file, &writer_in, &back))
            .map_err(ModelError::io("start a thread to write", target))?;
        Ok(OutputFile {
            target: target.to_owned(),
            temp: TempPath(Some(temp)),
            pipes: Some(Pipes { to_writer, writer, hasher: None }),
            spare,
            size: 0,
        })
    }

    pub fn target(&self) -> &Path {
        &self.target
    }

    /// Bytes handed over so far.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// An empty buffer, one that has been written already where possible (its capacity is kept).
    pub fn buffer(&self) -> Vec<u8> {
        let spare = self.spare.lock().ok().and_then(|mut spare| spare.pop());
        let mut buffer = spare.unwrap_or_default();
        buffer.clear();
        buffer
    }

    /// Hands over a filled buffer; waits while too many are under way.
    pub fn write_owned(&mut self, piece: Vec<u8>) -> Result<(), ModelError> {
        self.size += piece.len() as u64;
        self.hand_over(Piece::Bytes(Arc::new(piece)))
    }

    /// Has the kernel copy `len` bytes of another file from `offset` on; they never enter this process, except for
    /// hashing. That file must not change meanwhile.
    pub fn copy_range(&mut self, file: File, offset: u64, len: u64) -> Result<(), ModelError> {
        self.size += len;
        self.hand_over(Piece::Range(Arc::new(FileRange { file, offset, len })))
    }

    fn hand_over(&mut self, piece: Piece) -> Result<(), ModelError> {
        let Some(pipes) = &self.pipes else { return Err(ModelError::misuse(&self.target, "written after the end")) };
        let hashed = |piece| pipes.hasher.as_ref().is_none_or(|hasher| hasher.pieces.send(piece).is_ok());
        let gone = pipes.to_writer.send(piece.clone()).is_err() || !hashed(piece);
        if gone { Err(self.join_failed()) } else { Ok(()) }
    }

    /// Copies `bytes` into buffers and hands those over.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        for piece in bytes.chunks(PIECE) {
            let mut buffer = self.buffer();
            buffer.extend_from_slice(piece);
            self.write_owned(buffer)?;
        }
        Ok(())
    }

    /// Everything is handed over: waits for the threads and makes the bytes durable. The name is still temporary.
    pub fn complete(mut self) -> Result<CompleteFile, ModelError> {
        let (file, hasher) = self.written()?;
        file.sync_all().map_err(ModelError::io("sync", &self.target))?;
        let Some(Hasher { pieces, thread }) = hasher else {
            return Err(ModelError::misuse(&self.target, "started without a hash, to be settled"));
        };
        drop(pieces);
        let sha256 = join(thread, &self.target)?.map_err(ModelError::io("hash what goes to", &self.target))?;
        let hash = FileHash { filename: file_name(&self.target), sha256, size: self.size };
        Ok(CompleteFile { target: self.target, temp: self.temp, hash })
    }

    /// Everything is handed over: waits until it is written and gives the file its final name. A thread then makes it
    /// durable and hashes it as it lies on disk; the file can be read meanwhile, and must not change.
    pub fn settle(mut self) -> Result<Settling, ModelError> {
        let (file, _) = self.written()?;
        let (target, size) = (self.target.clone(), self.size);
        CompleteFile::rename(&mut self.temp, &target)?;
        let thread = std::thread::Builder::new()
            .name("model-settle".to_owned())
            .spawn(move || {
                file.sync_all().map_err(ModelError::io("sync", &target))?;
                let (sha256, found) = super::hash_file(&target)?;
                if found != size {
                    return Err(ModelError::misuse(&target, format!("{found} bytes on disk, {size} were written")));
                }
                Ok(FileHash { filename: file_name(&target), sha256, size })
            })
            .map_err(ModelError::io("start a thread to settle", &self.target))?;
        Ok(Settling { target: self.target, thread })
    }

    /// The file with everything in it.
    fn written(&mut self) -> Result<(File, Option<Hasher>), ModelError> {
        let Some(Pipes { to_writer, writer, hasher }) = self.pipes.take() else {
            return Err(ModelError::misuse(&self.target, "completed twice"));
        };
        drop(to_writer);
        let file = join(writer, &self.target)?.map_err(ModelError::io("write", &self.target))?;
        Ok((file, hasher))
    }

    /// A thread ended early: its error is the reason.
    fn join_failed(&mut self) -> ModelError {
        let Some(Pipes { to_writer, writer, .. }) = self.pipes.take() else {
            return ModelError::misuse(&self.target, "written after the end");
        };
        drop(to_writer);
        match join(writer, &self.target) {
            Ok(Err(error)) => ModelError::io("write", &self.target)(error),
            Ok(Ok(_)) => ModelError::misuse(&self.target, "the hashing thread ended early"),
            Err(error) => error,
        }
    }
}

/// A complete, durable file that still has its temporary name. Dropped without [`CompleteFile::publish`], it is removed.
#[derive(Debug)]
pub struct CompleteFile {
    target: PathBuf,
    temp: TempPath,
    hash: FileHash,
}

impl CompleteFile {
    pub fn hash(&self) -> &FileHash {
        &self.hash
    }

    /// Gives the file its final name. The directory is synced by the caller ([`sync_directory`]), once for all files.
    pub fn publish(mut self) -> Result<FileHash, ModelError> {
        Self::rename(&mut self.temp, &self.target)?;
        Ok(self.hash)
    }

    fn rename(temp: &mut TempPath, target: &Path) -> Result<(), ModelError> {
        if let Some(path) = temp.0.take()
            && let Err(error) = fs::rename(&path, target)
        {
            temp.0 = Some(path);
            return Err(ModelError::io("rename to", target)(error));
        }
        Ok(())
    }
}

/// A file that has its name and all its bytes, and is being made durable and hashed.
#[derive(Debug)]
pub struct Settling {
    target: PathBuf,
    thread: JoinHandle<Result<FileHash, ModelError>>,
}

impl Settling {
    /// The file's hash, once it is durable.
    pub fn wait(self) -> Result<FileHash, ModelError> {
        join(self.thread, &self.target)?
    }
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Makes the names in the directory of `file` durable.
pub fn sync_directory(file: &Path) -> Result<(), ModelError> {
    let directory = match file.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory).and_then(|d| d.sync_all()).map_err(ModelError::io("sync", directory))
}

/// Writes a small file in one go with the same care, and syncs its directory.
pub fn write_file(target: &Path, bytes: &[u8]) -> Result<FileHash, ModelError> {
    let mut file = OutputFile::create(target)?;
    file.write(bytes)?;
    let hash = file.complete()?.publish()?;
    sync_directory(target)?;
    Ok(hash)
}

fn join<T>(thread: JoinHandle<T>, target: &Path) -> Result<T, ModelError> {
    thread.join().map_err(|_| ModelError::misuse(target, "a writing thread panicked"))
}

fn write_all(mut file: File, pieces: &Receiver<Piece>, spare: &Mutex<Vec<Vec<u8>>>) -> std::io::Result<File> {
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => {
                file.write_all(&bytes)?;
                give_back(bytes, spare);
            }
            Piece::Range(range) => copy_in_kernel(&mut file, &range)?,
        }
    }
    Ok(file)
}

/// Appends a range to `file`; by reading and writing where the filesystem cannot copy between these files.
fn copy_in_kernel(file: &mut File, range: &FileRange) -> std::io::Result<()> {
    let (mut from, end) = (range.offset, range.offset + range.len);
    while from < end {
        // At most 1 GiB a call, so that a call never lasts for minutes.
        let ask = (end - from).min(1 << 30) as usize;
        match rustix::fs::copy_file_range(&range.file, Some(&mut from), &*file, None, ask) {
            Ok(n) if n > 0 => {}
            Err(rustix::io::Errno::INTR) => {}
            _ => return range.pieces(from, |bytes| file.write_all(bytes)),
        }
    }
    Ok(())
}

impl FileRange {
    /// Reads the range from `from` on, piece by piece.
    fn pieces(&self, mut from: u64, mut take: impl FnMut(&[u8]) -> std::io::Result<()>) -> std::io::Result<()> {
        const STEP: usize = 1 << 18;
        let mut buffer = vec![0; STEP];
        let end = self.offset + self.len;
        while from < end {
            let step = (end - from).min(STEP as u64) as usize;
            self.file.read_exact_at(&mut buffer[..step], from)?;
            take(&buffer[..step])?;
            from += step as u64;
        }
        Ok(())
    }
}

fn hash_all(pieces: &Receiver<Piece>, spare: &Mutex<Vec<Vec<u8>>>) -> std::io::Result<Sha> {
    let mut hasher = Sha256::new();
    for piece in pieces {
        match piece {
            Piece::Bytes(bytes) => {
                hasher.update(bytes.as_slice());
                give_back(bytes, spare);
            }
            Piece::Range(range) => range.pieces(range.offset, |bytes| {
                hasher.update(bytes);
                Ok(())
            })?,
        }
    }
    Ok(Sha(hasher.finalize().into()))
}

/// Whoever is last with a piece keeps its buffer for the next one.
fn give_back(piece: Arc<Vec<u8>>, spare: &Mutex<Vec<Vec<u8>>>) {
    if let Some(buffer) = Arc::into_inner(piece)
        && let Ok(mut spare) = spare.lock()
        && spare.len() < WAITING
    {
        spare.push(buffer);
    }
}
