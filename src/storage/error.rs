//! What can go wrong when things are kept or moved; each names the path and what is left where.

use std::io;
use std::path::{Path, PathBuf};

use crate::fault::{Fault, FaultClass};
use crate::line::LineError;

#[derive(Debug, thiserror::Error)]
pub enum StorageError {
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    /// A cold tier that nothing is written to now.
    #[error("cold tier {tier:?}: {reason}")]
    Tier { tier: String, reason: String },
    #[error("{}: the copy reads as sha256 {copy}, the source as {source_sha}; the source was kept", path.display())]
    Mismatch { path: PathBuf, source_sha: String, copy: String },
    #[error("{} changed while it was copied; nothing was removed", path.display())]
    Changed { path: PathBuf },
    #[error("{} is neither a file, a folder nor a link: it cannot be copied", path.display())]
    Special { path: PathBuf },
    #[error("{what}: {reason}")]
    Refused { what: String, reason: String },
    #[error(transparent)]
    Line(#[from] LineError),
}

impl StorageError {
    pub(super) fn io(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
        let path = path.to_owned();
        move |source| StorageError::Io { action, path, source }
    }

    /// The error and its causes on one line.
    pub fn one_line(self) -> String {
        Fault::from(self).one_line()
    }
}

impl From<StorageError> for Fault {
    fn from(error: StorageError) -> Fault {
        let class = match &error {
            StorageError::Io { source, .. } => match source.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => FaultClass::Resource,
                _ => FaultClass::Infra,
            },
            StorageError::Tier { .. } | StorageError::Refused { .. } => FaultClass::Resource,
            StorageError::Mismatch { .. } | StorageError::Changed { .. } | StorageError::Special { .. } => {
                FaultClass::Infra
            }
            StorageError::Line(_) => FaultClass::Infra,
        };
        match error {
            StorageError::Line(error) => error.into(),
            StorageError::Io { action, path, source } => {
                Fault::new(class, format!("cannot {action} {}", path.display())).caused_by(source)
            }
            StorageError::Mismatch { .. } => {
                Fault::new(class, error.to_string()).hint("the cold disk or its cable is not to be trusted")
            }
            StorageError::Tier { .. } => {
                Fault::new(class, error.to_string()).hint("`foreman storage` shows what is wrong with each tier")
            }
            _ => Fault::new(class, error.to_string()),
        }
    }
}
