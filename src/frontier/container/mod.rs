//! Containers of artifacts: a folder, a zip file, a tar file (plain, gz, bz2 or xz).
//!
//! Enters: a path. Leaves: a folder with the files, unpacked below a scratch folder by readers that trust nothing the
//! archive says; or, the other way, an archive that is the same bytes whenever the same files are packed.

mod pack;
mod tarball;
mod unpack;
mod zipped;

use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};

use serde::Serialize;

pub use pack::{Packing, pack};
pub use unpack::{Unpacked, artifact_bytes, unpack};

use super::FrontierError;
use crate::units::Bytes;

/// What an artifact lies in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Container {
    #[serde(rename = "directory")]
    Directory,
    #[serde(rename = "zip")]
    Zip,
    #[serde(rename = "tar")]
    Tar,
    #[serde(rename = "tar.gz")]
    TarGz,
    #[serde(rename = "tar.bz2")]
    TarBz2,
    #[serde(rename = "tar.xz")]
    TarXz,
    #[serde(rename = "json")]
    Json,
}

impl Container {
    /// As file endings and reports have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Container::Directory => "directory",
            Container::Zip => "zip",
            Container::Tar => "tar",
            Container::TarGz => "tar.gz",
            Container::TarBz2 => "tar.bz2",
            Container::TarXz => "tar.xz",
            Container::Json => "json",
        }
    }

    /// As contracts list it: every tar is a `tar`.
    pub fn class(self) -> &'static str {
        match self {
            Container::Directory => "dir",
            Container::Zip => "zip",
            Container::Json => "json",
            _ => "tar",
        }
    }
}

/// What unpacking may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of all files together.
    pub bytes: Bytes,
    pub files: usize,
}

impl Default for Limits {
    /// The workspace that validators are documented to have: 16 GiB.
    fn default() -> Self {
        Limits { bytes: Bytes(16 << 30), files: 10_000 }
    }
}

const UNSAFE: &str = "the archive is not to be trusted: do not unpack it with other tools";
const TOO_LARGE: &str = "if that is what it should hold, raise the limit for unpacking";

/// What has come out of an archive so far, and where it goes.
struct Intake<'a> {
    archive: &'a Path,
    root: &'a Path,
    limits: Limits,
    files: Vec<PathBuf>,
    bytes: u64,
}

impl Intake<'_> {
    fn refuse(&self, cause: impl Into<String>, hint: &'static str) -> FrontierError {
        FrontierError::artifact(self.archive, cause, hint)
    }

    /// The place of an entry below the root, from the name the archive gives it; `None` for the root itself.
    fn place(&self, raw: &[u8]) -> Result<Option<PathBuf>, FrontierError> {
        let shown = String::from_utf8_lossy(raw).into_owned();
        let bad = |why: &str| self.refuse(format!("entry {shown:?} {why}"), UNSAFE);
        let name = std::str::from_utf8(raw).map_err(|_| bad("has a name that is not UTF-8"))?;
        if name.contains(['\0', '\\']) || name.contains(':') && name.chars().nth(1) == Some(':') {
            return Err(bad("has a name that other systems read as another path"));
        }
        let mut place = PathBuf::new();
        for part in Path::new(name).components() {
            match part {
                Component::Normal(part) => place.push(part),
                Component::CurDir => {}
                Component::RootDir | Component::Prefix(_) => return Err(bad("has an absolute path")),
                Component::ParentDir => return Err(bad("leaves the folder it is unpacked to")),
            }
        }
        Ok(Some(place).filter(|place| !place.as_os_str().is_empty()))
    }

    fn make_folder(&self, place: &Path) -> Result<(), FrontierError> {
        let path = self.root.join(place);
        std::fs::create_dir_all(&path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory => {
                self.refuse(format!("entry {place:?} is a file and a folder"), UNSAFE)
            }
            _ => FrontierError::io("create", &path)(error),
        })
    }

    /// Refuses what an archive says it holds before it is unpacked.
    fn check_declared(&self, bytes: u64, what: &str) -> Result<(), FrontierError> {
        match self.bytes.saturating_add(bytes) > self.limits.bytes.0 {
            true => Err(self.over(&format!("{what} claims {}", Bytes(bytes)))),
            false => Ok(()),
        }
    }

    fn over(&self, what: &str) -> FrontierError {
        self.refuse(format!("{what}; more than {} are not unpacked", self.limits.bytes), TOO_LARGE)
    }

    /// Writes one file, counting what really comes.
    fn file(&mut self, place: &Path, mut data: impl Read) -> Result<u64, FrontierError> {
        self.admit(place)?;
        let path = self.root.join(place);
        let mut file = std::fs::File::create_new(&path).map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => self.refuse(format!("entry {place:?} comes twice"), UNSAFE),
            _ => FrontierError::io("create", &path)(error),
        })?;
        let mut buffer = vec![0u8; 1 << 18];
        let before = self.bytes;
        loop {
            let read = match data.read(&mut buffer) {
                Ok(0) => return Ok(self.bytes - before),
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    let cause = format!("entry {place:?} cannot be unpacked: {error}");
                    return Err(self.refuse(cause, "the archive is damaged or cut off: pack or copy it again"));
                }
            };
            self.bytes += read as u64;
            if self.bytes > self.limits.bytes.0 {
                return Err(self.over(&format!("entry {place:?} holds more than it may")));
            }
            file.write_all(&buffer[..read]).map_err(FrontierError::io("write", &path))?;
        }
    }

    /// Notes one more file and makes the folder it goes to.
    fn admit(&mut self, place: &Path) -> Result<(), FrontierError> {
        if self.files.len() >= self.limits.files {
            return Err(self.refuse(format!("holds more than {} files", self.limits.files), TOO_LARGE));
        }
        self.files.push(place.to_owned());
        match place.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => self.make_folder(parent),
            _ => Ok(()),
        }
    }
}
