//! What can be wrong with the description of a machine, each with the place in the file and the next step.

use std::path::PathBuf;

use crate::fault::Fault;

/// Where in a TOML file something stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pub file: PathBuf,
    pub line: usize,
    pub column: usize,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file.display(), self.line, self.column)
    }
}

#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    #[error("read {}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{at}: not valid TOML: {message}")]
    Syntax { at: Place, message: String },
    #[error("{at}: unknown key `{key}`")]
    UnknownKey { at: Place, key: String, nearest: Option<String>, known: Vec<String> },
    #[error("{at}: `{key}` must be {wanted}, found {found}")]
    WrongType { at: Place, key: String, wanted: &'static str, found: String },
    #[error("{at}: `{key}` is {value}; it must be {wanted}")]
    OutOfRange { at: Place, key: String, value: String, wanted: String },
    #[error("{at}: [[{table}]] needs the key `{key}`")]
    MissingKey { at: Place, table: String, key: String },
    #[error("{at}: `{key}` names {}, which is not a directory", path.display())]
    NoDirectory { at: Place, key: String, path: PathBuf },
    #[error("cannot tell how much memory this machine has: {message}")]
    Detection { message: String },
}

impl NodeError {
    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            NodeError::UnknownKey { nearest: Some(nearest), .. } => Some(format!("did you mean `{nearest}`?")),
            NodeError::UnknownKey { known, .. } => Some(format!("known keys here: {}", known.join(", "))),
            NodeError::NoDirectory { .. } => Some("is the disk mounted? Create the directory, or mend the path".into()),
            NodeError::Read { .. } => Some("remove the file to use what is detected, or make it readable".into()),
            NodeError::Detection { .. } => Some("set forge.memory_budget_gb in factory_node.toml".into()),
            NodeError::Syntax { .. } | NodeError::WrongType { .. } | NodeError::OutOfRange { .. } => {
                Some("factory_node.toml.example explains every key".into())
            }
            NodeError::MissingKey { .. } => None,
        }
    }
}

impl From<NodeError> for Fault {
    /// A wrong description of the machine is a resource fault: no other recipe and no other try mends it.
    fn from(error: NodeError) -> Fault {
        let hint = error.hint();
        let mut fault = Fault::resource(error.to_string());
        if let Some(hint) = hint {
            fault = fault.hint(hint);
        }
        match error {
            NodeError::Read { source, .. } => fault.caused_by(source),
            _ => fault,
        }
    }
}
