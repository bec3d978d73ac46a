//! From an artifact to the one folder in it that holds a model.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

use super::{Container, Intake, Limits, tarball, zipped};
use crate::frontier::FrontierError;
use crate::model::MappedFile;

/// An artifact as a folder; an archive's scratch folder goes when this is dropped.
#[derive(Debug)]
pub struct Unpacked {
    pub container: Container,
    /// The folder with `config.json`.
    pub model: PathBuf,
    /// What is odd but allowed.
    pub warnings: Vec<String>,
    scratch: Option<TempDir>,
}

/// Bytes of an artifact as contracts count them: the file, or the sum of a folder's files.
pub fn artifact_bytes(path: &Path) -> Result<u64, FrontierError> {
    let meta = std::fs::metadata(path).map_err(FrontierError::io("look at", path))?;
    if !meta.is_dir() {
        return Ok(meta.len());
    }
    let mut bytes = 0;
    let entries = std::fs::read_dir(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    for entry in entries.map_err(FrontierError::io("list", path))? {
        bytes += artifact_bytes(&entry.path())?;
    }
    Ok(bytes)
}

/// Unpacks an artifact below `scratch` (a folder needs no unpacking) and finds its model.
///
/// # Errors
/// Neither a folder, a zip nor a tar file; damaged; an entry that would land outside; more than the limits allow; no
/// model in it, or several.
pub fn unpack(path: &Path, scratch: &Path, limits: Limits) -> Result<Unpacked, FrontierError> {
    let (container, folder) = if path.is_dir() {
        (Container::Directory, None)
    } else {
        let folder = tempfile::Builder::new().prefix("frontier-").tempdir_in(scratch);
        let folder = folder.map_err(FrontierError::io("make a scratch folder in", scratch))?;
        let mut intake = Intake { archive: path, root: folder.path(), limits, files: Vec::new(), bytes: 0 };
        let container = open_archive(&mut intake)?;
        (container, Some(folder))
    };
    let root = folder.as_ref().map_or(path, |folder| folder.path());
    let mut warnings = Vec::new();
    let model = find_model(path, root, &mut warnings)?;
    Ok(Unpacked { container, model, warnings, scratch: folder })
}

impl Unpacked {
    /// True when there are files of our own to remove.
    pub fn is_scratch(&self) -> bool {
        self.scratch.is_some()
    }
}

/// Zip is tried first, as the benchmark does.
fn open_archive(intake: &mut Intake<'_>) -> Result<Container, FrontierError> {
    let path = intake.archive;
    let map = MappedFile::open(path)?;
    if zipped::unpack(map.bytes(), intake)? {
        return Ok(Container::Zip);
    }
    let mut magic = [0u8; 6];
    let mut file = File::open(path).map_err(FrontierError::io("open", path))?;
    let read = file.read(&mut magic).map_err(FrontierError::io("read", path))?;
    let packing = match &magic[..read] {
        [0x1f, 0x8b, ..] => Container::TarGz,
        [b'B', b'Z', b'h', ..] => Container::TarBz2,
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Container::TarXz,
        _ => Container::Tar,
    };
    tarball::unpack(map.bytes(), packing, intake)?;
    Ok(packing)
}

/// The root if it holds a config.json, else the one folder in it that does.
fn find_model(artifact: &Path, root: &Path, warnings: &mut Vec<String>) -> Result<PathBuf, FrontierError> {
    let entries = std::fs::read_dir(root).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let entries = entries.map_err(FrontierError::io("list", root))?;
    let holds = |path: &PathBuf| path.is_dir() && path.join("config.json").is_file();
    let mut below: Vec<PathBuf> = entries.iter().map(|entry| entry.path()).filter(holds).collect();
    below.sort();
    let names = |paths: &[PathBuf]| {
        let name = |path: &PathBuf| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        paths.iter().map(name).collect::<Vec<_>>().join(", ")
    };
    if root.join("config.json").is_file() {
        if !below.is_empty() {
            warnings.push(format!("the model at the root counts; {} hold a config.json too", names(&below)));
        }
        return Ok(root.to_owned());
    }
    match below.as_slice() {
        [only] => {
            warnings.push(format!("the model lies in the folder {}: put it at the root", names(&below)));
            Ok(only.clone())
        }
        [] => {
            let cause = "has no config.json, neither at its root nor in a folder there";
            Err(FrontierError::artifact(artifact, cause, "pack a Hugging Face model directory"))
        }
        _ => {
            let cause = format!("{} hold a config.json each: which one counts is not defined", names(&below));
            Err(FrontierError::artifact(artifact, cause, "keep exactly one model, at the root"))
        }
    }
}
