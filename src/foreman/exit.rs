//! How a command ends: the exit codes scripts may rely on, and the one error shape operators see.

use std::io;
use std::process::ExitCode;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::fault::{Fault, FaultClass};
use crate::line::LineError;
use crate::node::NodeError;
use crate::storage::StorageError;

/// How a command ended. The numbers are a contract; see `docs/OPERATOR.md`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitKind {
    Ok,
    /// A failure nobody planned for: I/O, a bug.
    Unexpected,
    /// The command line or `factory_node.toml` is wrong.
    Usage,
    /// A named part, file or line is not there.
    NotFound,
    /// A choice of several parts chose none.
    NothingMatched,
    /// The part asked about failed: it is in rework, or does not hold what its result says.
    PartFailed,
    TimedOut,
    /// No supervisor works this line.
    NotRunning,
    /// Another supervisor holds the line.
    LockHeld,
    /// It would lose data, or admission would refuse it.
    Refused,
    /// `foreman doctor` found something that will become trouble.
    DoctorWarnings,
    /// `foreman doctor` found something that is trouble.
    DoctorErrors,
}

impl ExitKind {
    pub fn code(self) -> u8 {
        match self {
            ExitKind::Ok => 0,
            ExitKind::Unexpected => 1,
            ExitKind::Usage => 2,
            ExitKind::NotFound => 3,
            ExitKind::NothingMatched => 4,
            ExitKind::PartFailed => 5,
            ExitKind::TimedOut => 6,
            ExitKind::NotRunning => 7,
            ExitKind::LockHeld => 8,
            ExitKind::Refused => 9,
            ExitKind::DoctorWarnings => 10,
            ExitKind::DoctorErrors => 11,
        }
    }
}

impl From<ExitKind> for ExitCode {
    fn from(kind: ExitKind) -> ExitCode {
        ExitCode::from(kind.code())
    }
}

/// A command that could not do what it was asked.
#[derive(Debug)]
pub enum Problem {
    /// The reader of our output went away: not an error, nothing more to say.
    OutputClosed,
    Error {
        kind: ExitKind,
        message: String,
        hint: Option<String>,
        class: Option<FaultClass>,
    },
}

/// What every command returns.
pub type Answer = Result<ExitKind, Problem>;

impl Problem {
    pub fn new(kind: ExitKind, message: impl Into<String>) -> Self {
        Problem::Error { kind, message: message.into(), hint: None, class: None }
    }
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(ExitKind::Usage, message)
    }
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ExitKind::NotFound, message)
    }
    pub fn refused(message: impl Into<String>) -> Self {
        Self::new(ExitKind::Refused, message)
    }

    /// The next step for the person who reads this.
    pub fn hinted(mut self, text: impl Into<String>) -> Self {
        if let Problem::Error { hint, .. } = &mut self {
            *hint = Some(text.into());
        }
        self
    }

    /// The same problem under another exit code.
    pub fn as_kind(mut self, wanted: ExitKind) -> Self {
        if let Problem::Error { kind, .. } = &mut self {
            *kind = wanted;
        }
        self
    }

    /// An I/O error on `what` ("read /x"); a missing file is "not found".
    pub fn io(what: impl std::fmt::Display, error: &io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::BrokenPipe => Problem::OutputClosed,
            io::ErrorKind::NotFound => Self::not_found(format!("{what}: {error}")),
            _ => Self::new(ExitKind::Unexpected, format!("{what}: {error}")),
        }
    }

    pub fn kind(&self) -> ExitKind {
        match self {
            Problem::OutputClosed => ExitKind::Ok,
            Problem::Error { kind, .. } => *kind,
        }
    }

    /// The error document of `--json`, without `schema_version`.
    pub fn document(&self) -> Map<String, Value> {
        let Problem::Error { kind, message, hint, class } = self else { return Map::new() };
        let mut error = Map::new();
        error.insert("kind".into(), json!(kind));
        error.insert("exit_code".into(), kind.code().into());
        error.insert("message".into(), message.as_str().into());
        error.insert("hint".into(), json!(hint));
        if let Some(class) = class {
            error.insert("class".into(), class.as_str().into());
        }
        Map::from_iter([("error".to_owned(), Value::Object(error))])
    }
}

impl From<Fault> for Problem {
    fn from(fault: Fault) -> Self {
        let kind = match fault.class {
            FaultClass::Recipe | FaultClass::Resource => ExitKind::Refused,
            FaultClass::Quality => ExitKind::PartFailed,
            FaultClass::Source | FaultClass::Infra | FaultClass::Internal => ExitKind::Unexpected,
        };
        Problem::Error { kind, message: fault.one_line(), hint: fault.hint.clone(), class: Some(fault.class) }
    }
}

impl From<NodeError> for Problem {
    fn from(error: NodeError) -> Self {
        let fault = Fault::from(error);
        let problem = Self::usage(format!("config error: {}", fault.one_line()));
        match fault.hint {
            Some(hint) => problem.hinted(hint),
            None => problem,
        }
    }
}

impl From<LineError> for Problem {
    fn from(error: LineError) -> Self {
        let kind = match &error {
            LineError::NotFound { .. } => ExitKind::NotFound,
            LineError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => ExitKind::NotFound,
            LineError::Exists { .. } | LineError::Taken { .. } | LineError::Refused { .. } => ExitKind::Refused,
            LineError::Name(_) => ExitKind::Usage,
            LineError::Locked { .. } => ExitKind::LockHeld,
            LineError::Io { .. } | LineError::Malformed { .. } => ExitKind::Unexpected,
        };
        let fault = Fault::from(error);
        let problem = Self::new(kind, fault.one_line());
        match fault.hint {
            Some(hint) => problem.hinted(hint),
            None => problem,
        }
    }
}

impl From<StorageError> for Problem {
    fn from(error: StorageError) -> Self {
        match error {
            StorageError::Line(error) => error.into(),
            error => Fault::from(error).into(),
        }
    }
}
