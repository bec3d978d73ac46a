//! What can go wrong at the doors of the line.

use std::io;
use std::path::{Path, PathBuf};

use super::name::NameError;
use crate::fault::{Fault, FaultClass};

/// An operation on the line failed; every variant names the file or the part.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{} already exists", path.display())]
    Exists { path: PathBuf },
    #[error("no part {name:?} {place}")]
    NotFound { name: String, place: String },
    #[error("{name:?} is on the line already, in {station}")]
    Taken { name: String, station: super::Station },
    #[error(transparent)]
    Name(#[from] NameError),
    #[error("{} is held by {holder}", path.display())]
    Locked { path: PathBuf, holder: String },
    #[error("{} is not what it should be: {problem}", path.display())]
    Malformed { path: PathBuf, problem: String },
    #[error("{what}: {reason}")]
    Refused { what: String, reason: String },
}

impl LineError {
    pub(crate) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> LineError {
        let path = path.to_owned();
        move |source| match source.kind() {
            io::ErrorKind::AlreadyExists => LineError::Exists { path },
            _ => LineError::Io { action, path, source },
        }
    }

    /// True when the file simply was not there (somebody else took it).
    pub fn is_missing(&self) -> bool {
        matches!(self, LineError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound)
    }
}

impl From<LineError> for Fault {
    fn from(error: LineError) -> Fault {
        let (class, hint) = match &error {
            LineError::Io { source, .. } if FaultClass::of_io(source) == FaultClass::Resource => {
                (FaultClass::Resource, Some("free space on this filesystem; parts and events are never dropped"))
            }
            LineError::Io { .. } => (FaultClass::Infra, None),
            LineError::Exists { .. } => (FaultClass::Recipe, Some("nothing was overwritten; choose another name")),
            LineError::NotFound { .. } => (FaultClass::Source, Some("`foreman list STATION` shows what stands where")),
            LineError::Taken { .. } => (FaultClass::Recipe, Some("choose another name, or let the line choose one")),
            LineError::Name(_) => (FaultClass::Recipe, Some("name it <name>.alloy.json")),
            LineError::Locked { .. } => (FaultClass::Infra, Some("one supervisor works a line; stop the other first")),
            LineError::Malformed { .. } => (FaultClass::Source, None),
            LineError::Refused { .. } => (FaultClass::Recipe, None),
        };
        let fault = Fault::new(class, error.to_string());
        let fault = match hint {
            Some(hint) => fault.hint(hint),
            None => fault,
        };
        match error {
            LineError::Io { source, .. } => fault.caused_by(source),
            _ => fault,
        }
    }
}
