//! The model a command was given: a path, or a name the resolver knows.

use std::path::{Path, PathBuf};

use super::desk::Desk;
use super::exit::{ExitKind, Problem};
use crate::fault::FaultClass;
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

/// Hashes a model's weight files and the model they make; names are relative to the model's folder.
pub fn hash_model(path: &Path, files: &[PathBuf]) -> Result<(Vec<FileHash>, Sha), Problem> {
    let base = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
    let hashes = hash_files(base, files).map_err(crate::fault::Fault::from)?;
    let model = compose_model_hash(&hashes);
    let model = model.map_err(|error| Problem::new(ExitKind::Unexpected, format!("{}: {error}", path.display())))?;
    Ok((hashes, model))
}
