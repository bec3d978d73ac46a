//! What keeps an artifact from being judged.

use std::io;
use std::path::{Path, PathBuf};

use crate::engine::EngineError;
use crate::family::FamilyError;
use crate::fault::{Fault, FaultClass};
use crate::model::ModelError;

#[derive(Debug, thiserror::Error)]
pub enum FrontierError {
    /// The contracts' file is wrong.
    #[error("{}: {cause}", path.display())]
    Contracts { path: PathBuf, cause: String },
    #[error("there is no contract {id:?}")]
    UnknownContract { id: String, known: String },
    #[error("there is no scorer {name:?}")]
    UnknownScorer { name: String, known: String },
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// The artifact cannot be judged: what the contracts call an error, in contrast to a rejection.
    #[error("{}: {cause}", path.display())]
    Artifact { path: PathBuf, cause: String, hint: &'static str },
    /// The texts to score on are not usable.
    #[error("{}: {cause}", path.display())]
    Documents { path: PathBuf, cause: String, hint: &'static str },
    /// What was asked for needs something else said too.
    #[error("{cause}")]
    Request { cause: String, hint: &'static str },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Family(#[from] FamilyError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl FrontierError {
    /// For `map_err`: an I/O error with what was tried and on which path.
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> FrontierError {
        let path = path.to_owned();
        move |source| FrontierError::Io { action, path, source }
    }

    pub(super) fn artifact(path: &Path, cause: impl Into<String>, hint: &'static str) -> FrontierError {
        FrontierError::Artifact { path: path.to_owned(), cause: cause.into(), hint }
    }

    pub(super) fn documents(path: &Path, cause: impl Into<String>, hint: &'static str) -> FrontierError {
        FrontierError::Documents { path: path.to_owned(), cause: cause.into(), hint }
    }
}

impl From<FrontierError> for Fault {
    fn from(error: FrontierError) -> Fault {
        let message = error.to_string();
        match error {
            FrontierError::Contracts { .. } => Fault::recipe(message).hint("compare it with the contracts built in"),
            FrontierError::UnknownContract { known, .. } => Fault::recipe(message).hint(format!("there are: {known}")),
            FrontierError::UnknownScorer { known, .. } => Fault::recipe(message).hint(format!("there are: {known}")),
            FrontierError::Io { source, .. } => {
                let class = match source.kind() {
                    io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied => FaultClass::Source,
                    _ => FaultClass::of_io(&source),
                };
                Fault::new(class, message).caused_by(source)
            }
            FrontierError::Artifact { hint, .. } | FrontierError::Documents { hint, .. } => {
                Fault::source(message).hint(hint)
            }
            FrontierError::Request { hint, .. } => Fault::recipe(message).hint(hint),
            FrontierError::Model(error) => error.into(),
            FrontierError::Family(error) => error.into(),
            FrontierError::Engine(error) => error.into(),
        }
    }
}
