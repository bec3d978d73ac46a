//! Files received from a network tier into a folder nobody looks into: each goes on where an earlier try ended, is bounded
//! by the size it was said to have, synced, and then read again from the disk and compared.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use ureq::http::{StatusCode, header};

use super::StorageError;
use super::archive::drop_all;
use super::copy::{self, Step, Steps};
use super::pins::sync;
use super::receipt::FileReceipt;
use super::remote::{Offer, OfferedFile, Remote, cut};
use crate::fault::{Fault, Outcome};
use crate::line::disk::{Disk, RealDisk};
use crate::line::record;

/// Hears bytes that are here, and bytes there are in all.
pub type Told<'a> = &'a (dyn Fn(u64, u64) + Sync);

/// The folder beside a model's place in which it arrives: its files in `content/`, and what was offered.
pub(super) struct Incoming {
    pub room: PathBuf,
    pub content: PathBuf,
}

impl Incoming {
    /// That of the model which will lie at `to`. It has one name, so that the next try finds it.
    pub fn of(to: &Path) -> Incoming {
        let name = to.file_name().unwrap_or_default().to_string_lossy();
        let room = to.with_file_name(format!(".{name}.partial"));
        Incoming { content: room.join("content"), room }
    }

    fn offer(&self) -> PathBuf {
        self.room.join("offer.json")
    }

    /// Bytes of this very offer that are here already.
    pub fn bytes(&self, offer: &Offer) -> u64 {
        if record::read_json::<Offer>(&self.offer()).ok().as_ref() != Some(offer) {
            return 0;
        }
        let size = |file: &OfferedFile| size_of(&self.content.join(&file.path)).unwrap_or(0).min(file.size);
        offer.files.iter().map(size).sum()
    }

    /// Receives whatever is missing and proves all of it.
    ///
    /// # Errors
    /// Infra for a transfer that broke: what has arrived stays for the next try. Source for a file that is not what was
    /// offered: it is removed.
    pub fn receive(
        &self,
        remote: &Remote<'_>,
        offer: &Offer,
        steps: &dyn Steps,
        told: Told<'_>,
    ) -> Outcome<Vec<FileReceipt>> {
        self.prepare(offer)?;
        let total = offer.bytes();
        let (mut before, mut receipts) = (0, Vec::new());
        for file in &offer.files {
            let path = self.content.join(&file.path);
            if let Some(folder) = path.parent() {
                fs::create_dir_all(folder).map_err(StorageError::io("create", folder))?;
            }
            let heard = Heard { steps, told, before, total };
            heard.receive(remote, file, &path)?;
            steps.at(Step::Written(&path)).map_err(StorageError::io("write", &path))?;
            let sha256 = Some(heard.prove(file, &path)?);
            receipts.push(FileReceipt { path: file.path.clone().into(), size: file.size, sha256, link: None });
            before += file.size;
            told(before, total);
        }
        for folder in folders(offer) {
            sync(&self.content.join(folder))?;
        }
        steps.at(Step::Checked).map_err(StorageError::io("write", &self.content))?;
        Ok(receipts)
    }

    /// An empty folder, or that of an earlier try for the same offer.
    fn prepare(&self, offer: &Offer) -> Outcome<()> {
        let known = record::read_json::<Offer>(&self.offer()).ok();
        if known.as_ref() != Some(offer) && fs::symlink_metadata(&self.room).is_ok() {
            drop_all(&self.room)?;
        }
        fs::create_dir_all(&self.content).map_err(StorageError::io("create", &self.content))?;
        if known.as_ref() != Some(offer) {
            let path = self.offer();
            RealDisk.write_new(&path, &record::to_json(offer)).map_err(StorageError::io("write", &path))?;
        }
        Ok(sync(&self.room)?)
    }
}

/// Every folder files lie in, the deepest first.
fn folders(offer: &Offer) -> Vec<PathBuf> {
    let parents = offer.files.iter().flat_map(|file| Path::new(&file.path).ancestors().skip(1).map(Path::to_owned));
    let mut all: Vec<PathBuf> = parents.collect();
    all.sort();
    all.dedup();
    all.reverse();
    all
}

fn size_of(path: &Path) -> Option<u64> {
    fs::symlink_metadata(path).ok().filter(|meta| meta.is_file()).map(|meta| meta.len())
}

/// One file on its way, and who hears of it.
struct Heard<'a> {
    steps: &'a dyn Steps,
    told: Told<'a>,
    /// Bytes of the files before it.
    before: u64,
    total: u64,
}

/// While a file is read again there is nothing new to tell but that work goes on.
impl Steps for Heard<'_> {
    fn at(&self, step: Step<'_>) -> io::Result<()> {
        (self.told)(self.before, self.total);
        self.steps.at(step)
    }
}

impl Heard<'_> {
    fn receive(&self, remote: &Remote<'_>, file: &OfferedFile, path: &Path) -> Outcome<()> {
        let failed = || StorageError::io("write", path);
        let opened = OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path);
        let mut writing = opened.map_err(failed())?;
        let mut here = writing.metadata().map_err(failed())?.len();
        if here > file.size {
            // Not of this file.
            writing.set_len(0).map_err(failed())?;
            here = 0;
        }
        if here < file.size {
            let mut answer = remote.get(&file.url, here)?;
            if here > 0 && answer.status() == StatusCode::RANGE_NOT_SATISFIABLE {
                answer = remote.get(&file.url, 0)?;
            }
            remote.granted(&file.url, &answer)?;
            let range = answer.headers().get(header::CONTENT_RANGE).and_then(|range| range.to_str().ok());
            let goes_on = answer.status() == StatusCode::PARTIAL_CONTENT
                && range.is_some_and(|range| range.starts_with(&format!("bytes {here}-")));
            if answer.status() == StatusCode::PARTIAL_CONTENT && !goes_on {
                return Err(Fault::source(format!("GET {}: it sends another range than was asked for", file.url)));
            }
            if !goes_on {
                writing.set_len(0).map_err(failed())?;
                here = 0;
            }
            writing.seek(SeekFrom::Start(here)).map_err(failed())?;
            let body = answer.body_mut().as_reader();
            let taken = self.take(body, &mut writing, here, file, path);
            // Also what a broken transfer brought: the next try builds on it.
            writing.sync_all().map_err(failed())?;
            return taken;
        }
        writing.sync_all().map_err(failed())?;
        Ok(())
    }

    fn take(
        &self,
        mut body: impl Read,
        writing: &mut File,
        mut here: u64,
        file: &OfferedFile,
        path: &Path,
    ) -> Outcome<()> {
        let mut buffer = vec![0u8; 1 << 18];
        loop {
            let read = match body.read(&mut buffer) {
                Ok(0) if here == file.size => return Ok(()),
                Ok(0) => {
                    let ended = format!("it ended after {here} of {} bytes", file.size);
                    return Err(cut(&file.url, io::Error::new(io::ErrorKind::UnexpectedEof, ended)));
                }
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(cut(&file.url, error)),
            };
            if read as u64 > file.size - here {
                let _ = fs::remove_file(path);
                let message =
                    format!("GET {}: it sends more than the {} bytes it was said to have", file.url, file.size);
                return Err(Fault::source(message).hint("what was received of it was removed"));
            }
            writing.write_all(&buffer[..read]).map_err(StorageError::io("write", path))?;
            here += read as u64;
            (self.told)(self.before + here, self.total);
            self.steps.at(Step::Chunk).map_err(StorageError::io("write", path))?;
        }
    }

    /// The SHA-256 of what lies on the disk, when that is what was offered.
    fn prove(&self, file: &OfferedFile, path: &Path) -> Outcome<crate::units::Sha> {
        let reading = File::open(path).map_err(StorageError::io("read", path))?;
        let size = reading.metadata().map_err(StorageError::io("read", path))?.len();
        let _ = rustix::fs::fadvise(&reading, 0, None, rustix::fs::Advice::DontNeed);
        let found = copy::hash(reading, None, self).map_err(StorageError::io("read", path))?;
        let expected = file.sha256.unwrap_or(found);
        if found == expected && size == file.size {
            return Ok(found);
        }
        fs::remove_file(path).map_err(StorageError::io("remove", path))?;
        let message = format!("{}: what arrived has SHA-256 {found}, it was said to be {expected}", file.url);
        Err(Fault::source(message).hint("it was removed; `foreman retry` fetches it again"))
    }
}
