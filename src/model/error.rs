//! What can be wrong with a model on disk.

use std::io;
use std::path::{Path, PathBuf};

use crate::fault::{Fault, FaultClass};

/// An error of the `model` room. Each names the file, and the tensor or key where there is one.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// The operating system refused.
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
    /// A file breaks the rules of its format, or the files of a model contradict each other.
    #[error("{}: {cause}", path.display())]
    Broken { path: PathBuf, cause: String, hint: &'static str },
    /// A tensor breaks the rules of its format.
    #[error("{}: tensor {tensor:?}: {cause}", path.display())]
    BrokenTensor { path: PathBuf, tensor: String, cause: String, hint: &'static str },
    /// The model has no tensor of this name.
    #[error("{}: there is no tensor {tensor:?}", path.display())]
    NoTensor { path: PathBuf, tensor: String },
    /// A configuration key is missing or has the wrong type or value.
    #[error("{}: key {key:?}: {cause}", path.display())]
    Key { path: PathBuf, key: String, cause: String },
    /// Correct, but not something this build can handle.
    #[error("{}: {cause}", path.display())]
    Unsupported { path: PathBuf, cause: String, hint: String },
    /// Files differ from what a manifest says about them.
    #[error("{}: {}", path.display(), findings.join("; "))]
    Differs { path: PathBuf, findings: Vec<String> },
    /// A writer was used against its contract: a bug of the caller.
    #[error("writing {}: {cause}", path.display())]
    Misuse { path: PathBuf, cause: String },
}

pub(crate) const DOWNLOAD_AGAIN: &str = "the file is damaged or incomplete: copy or download it again";

impl ModelError {
    /// For `map_err`: an I/O error with what was tried and on which path.
    pub fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ModelError {
        let path = path.to_owned();
        move |source| ModelError::Io { action, path, source }
    }

    pub(crate) fn broken(path: &Path, cause: impl Into<String>) -> ModelError {
        ModelError::Broken { path: path.to_owned(), cause: cause.into(), hint: DOWNLOAD_AGAIN }
    }

    pub(crate) fn broken_tensor(path: &Path, tensor: &str, cause: impl Into<String>) -> ModelError {
        let (path, tensor, cause) = (path.to_owned(), tensor.to_owned(), cause.into());
        ModelError::BrokenTensor { path, tensor, cause, hint: DOWNLOAD_AGAIN }
    }

    pub fn unsupported(path: &Path, cause: impl Into<String>, hint: impl Into<String>) -> ModelError {
        ModelError::Unsupported { path: path.to_owned(), cause: cause.into(), hint: hint.into() }
    }

    pub(crate) fn misuse(path: &Path, cause: impl Into<String>) -> ModelError {
        ModelError::Misuse { path: path.to_owned(), cause: cause.into() }
    }

    /// The same error, with another next step.
    pub(crate) fn with_hint(self, new: &'static str) -> ModelError {
        match self {
            ModelError::Broken { path, cause, .. } => ModelError::Broken { path, cause, hint: new },
            ModelError::BrokenTensor { path, tensor, cause, .. } => {
                ModelError::BrokenTensor { path, tensor, cause, hint: new }
            }
            other => other,
        }
    }

    fn class(&self) -> FaultClass {
        match self {
            ModelError::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::PermissionDenied
                | io::ErrorKind::IsADirectory
                | io::ErrorKind::NotADirectory
                // Larger than any such file, or a pipe in its place.
                | io::ErrorKind::InvalidData => FaultClass::Source,
                _ => FaultClass::of_io(source),
            },
            ModelError::Misuse { .. } => FaultClass::Internal,
            _ => FaultClass::Source,
        }
    }

    fn hint(&self) -> Option<String> {
        Some(match self {
            ModelError::Io { source, .. } => match source.kind() {
                io::ErrorKind::NotFound => "check the path; nothing is downloaded".to_owned(),
                io::ErrorKind::PermissionDenied => "give the user that runs the line access to it".to_owned(),
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free space on that disk".to_owned(),
                io::ErrorKind::InvalidData => "take this file from where the model was published".to_owned(),
                _ => return None,
            },
            ModelError::Broken { hint, .. } | ModelError::BrokenTensor { hint, .. } => (*hint).to_owned(),
            ModelError::Unsupported { hint, .. } => hint.clone(),
            ModelError::Key { .. } => "correct the model's config.json".to_owned(),
            ModelError::NoTensor { .. } => "`foreman inspect` lists what the model holds".to_owned(),
            ModelError::Differs { .. } => "the files changed after they were hashed: do not trust them".to_owned(),
            ModelError::Misuse { .. } => return None,
        })
    }
}

impl From<ModelError> for Fault {
    fn from(error: ModelError) -> Fault {
        let mut fault = Fault::new(error.class(), error.to_string());
        fault.hint = error.hint();
        match error {
            ModelError::Io { source, .. } => fault.caused_by(source),
            _ => fault,
        }
    }
}
