//! The model a command was given: a path, or a name the resolver knows.

use std::path::{Path, PathBuf};

use super::desk::Desk;
use super::exit::{ExitKind, Problem};
use crate::fault::FaultClass;
use crate::line::{Layout, PartName, shelf};
use crate::model::{FileHash, compose_model_hash, hash_files};
use crate::node::{Node, Resolver};
use crate::units::Sha;

/// A path as typed if it is there, else what the line's resolver finds under that name.
pub fn find_model(desk: &Desk, name: &str) -> Result<PathBuf, Problem> {
    let path = Path::new(name);
    if path.exists() {
        return Ok(path.to_owned());
    }
    let layout = desk.layout();
    let node = Node::read(layout.root())?;
    let found = Resolver::new(&node, layout.root()).model(name, None);
    let found = found.map_err(|fault| match fault.class {
        FaultClass::Source => Problem::from(fault).as_kind(ExitKind::NotFound),
        _ => Problem::not_found(format!("{name} is not here")),
    })?;
    Ok(found.path)
}

/// What a pin is called: a part's base name, the absolute path of what is there, or the name of a model.
pub fn pinned(layout: &Layout, subject: &str) -> Result<String, Problem> {
    let file_name = subject.rsplit('/').next().unwrap_or(subject);
    let parts = shelf::find(layout, file_name)?;
    if let Some(part) = parts.first().filter(|_| !subject.contains('/') || Path::new(subject).is_file()) {
        return Ok(part.name.base().to_owned());
    }
    if let Ok(path) = Path::new(subject).canonicalize() {
        return Ok(path.display().to_string());
    }
    let is_folder = PartName::new(subject).is_ok_and(|name| layout.work(&name).is_dir());
    let node = Node::read(layout.root())?;
    if is_folder || Resolver::new(&node, layout.root()).model(subject, None).is_ok() {
        return Ok(subject.to_owned());
    }
    Err(Problem::not_found(format!("{subject:?} is no part, path or model here"))
        .hinted("a pin keeps what is there: name a part, a path, or a model as recipes name it"))
}

/// Hashes a model's weight files and the model they make; names are relative to the model's folder.
pub fn hash_model(path: &Path, files: &[PathBuf]) -> Result<(Vec<FileHash>, Sha), Problem> {
    let base = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    let hashes = hash_files(base, files).map_err(crate::fault::Fault::from)?;
    let model = compose_model_hash(&hashes);
    let model = model.map_err(|error| Problem::new(ExitKind::Unexpected, format!("{}: {error}", path.display())))?;
    Ok((hashes, model))
}
