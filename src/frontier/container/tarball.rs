//! Reading tar files, plain or packed by gzip, bzip2 or xz.

use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use tar::EntryType;

use super::{Container, Intake, UNSAFE};
use crate::frontier::FrontierError;

const NOT_ONE: &str = "name a model directory, a zip file, or a tar file (plain, gz, bz2, xz)";
const DAMAGED: &str = "the archive is damaged or cut off: pack or copy it again";

/// Most memory an xz stream may ask for, in KiB: 1 GiB, several times what `xz -9` needs.
const XZ_MEMORY_KIB: u32 = 1 << 20;

/// Unpacks `bytes`, packed as `packing` says.
pub(super) fn unpack(bytes: &[u8], packing: Container, intake: &mut Intake<'_>) -> Result<(), FrontierError> {
    let stream: Box<dyn Read + '_> = match packing {
        Container::TarGz => Box::new(flate2::bufread::MultiGzDecoder::new(bytes)),
        Container::TarBz2 => Box::new(bzip2::bufread::MultiBzDecoder::new(bytes)),
        Container::TarXz => Box::new(lzma_rust2::XzReader::new_mem_limit(bytes, true, XZ_MEMORY_KIB)),
        _ => Box::new(bytes),
    };
    // Headers and the ends of blocks come on top of the files; what is skipped counts as well.
    let headers = 1024 * (intake.limits.files as u64 + 2) + (1 << 20);
    let stream = Capped { inner: stream, left: intake.limits.bytes.0.saturating_add(headers), over: false };
    let mut archive = tar::Archive::new(stream);
    let mut links = Vec::new();
    let found = entries(&mut archive, packing, intake, &mut links);
    if archive.into_inner().over {
        return Err(intake.over("its stream goes on and on"));
    }
    found?;
    links.into_iter().try_for_each(|link| resolve(link, intake))
}

fn entries(
    archive: &mut tar::Archive<Capped<'_>>,
    packing: Container,
    intake: &mut Intake<'_>,
    links: &mut Vec<(PathBuf, PathBuf)>,
) -> Result<(), FrontierError> {
    let failed = |intake: &Intake<'_>, seen: usize, error: io::Error| match (seen, packing) {
        (0, Container::Tar) => intake.refuse("is neither a folder nor a zip or tar file", NOT_ONE),
        _ => intake.refuse(format!("cannot be read as {}: {error}", packing.as_str()), DAMAGED),
    };
    let mut seen = 0;
    for entry in archive.entries().map_err(|error| failed(intake, 0, error))? {
        let mut entry = entry.map_err(|error| failed(intake, seen, error))?;
        seen += 1;
        let kind = entry.header().entry_type();
        if matches!(kind, EntryType::XGlobalHeader) {
            continue;
        }
        let Some(place) = intake.place(&entry.path_bytes())? else { continue };
        match kind {
            EntryType::Directory => intake.make_folder(&place)?,
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                intake.check_declared(entry.size(), &format!("entry {place:?}"))?;
                let size = entry.size();
                if intake.file(&place, &mut entry)? != size {
                    return Err(intake.refuse(format!("is cut off inside {place:?}"), DAMAGED));
                }
            }
            EntryType::Symlink | EntryType::Link => {
                let raw = entry.link_name_bytes().unwrap_or_default();
                let target = target(intake, &place, &raw, kind == EntryType::Symlink)?;
                links.push((place, target));
            }
            other => {
                return Err(intake.refuse(format!("entry {place:?} is of type {other:?}, not a file"), UNSAFE));
            }
        }
    }
    if seen == 0 {
        return Err(intake.refuse("is neither a folder nor a zip or tar file that holds something", NOT_ONE));
    }
    Ok(())
}

/// Where a link leads, below the root: symbolic links count from their own folder, hard links from the root.
fn target(intake: &Intake<'_>, place: &Path, raw: &[u8], symbolic: bool) -> Result<PathBuf, FrontierError> {
    let escapes = || {
        let shown = String::from_utf8_lossy(raw);
        intake.refuse(format!("entry {place:?} is a link to {shown:?}, outside the archive"), UNSAFE)
    };
    let name = std::str::from_utf8(raw).map_err(|_| escapes())?;
    let mut at = place.parent().filter(|_| symbolic).unwrap_or(Path::new("")).to_owned();
    for part in Path::new(name).components() {
        match part {
            Component::Normal(part) => at.push(part),
            Component::CurDir => {}
            Component::ParentDir if at.pop() => {}
            _ => return Err(escapes()),
        }
    }
    Ok(at)
}

/// A link becomes a second name of the file it means, so that no link is ever followed.
fn resolve((place, target): (PathBuf, PathBuf), intake: &mut Intake<'_>) -> Result<(), FrontierError> {
    if !intake.files.contains(&target) {
        let cause = format!("entry {place:?} is a link to {target:?}, which is no file of the archive");
        return Err(intake.refuse(cause, UNSAFE));
    }
    intake.admit(&place)?;
    let path = intake.root.join(&place);
    std::fs::hard_link(intake.root.join(&target), &path).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => intake.refuse(format!("entry {place:?} comes twice"), UNSAFE),
        _ => FrontierError::io("link", &path)(error),
    })
}

/// A stream that ends in an error when more comes than may.
struct Capped<'a> {
    inner: Box<dyn Read + 'a>,
    left: u64,
    over: bool,
}

impl Read for Capped<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.over |= read as u64 > self.left;
        self.left = self.left.saturating_sub(read as u64);
        match self.over {
            true => Err(io::Error::other("more than may be unpacked")),
            false => Ok(read),
        }
    }
}
