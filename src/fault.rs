//! Faults: what went wrong, whose job it is to mend it, and what to do next.
//!
//! Every error that reaches an operator ends up as a [`Fault`]. The class (the owner) decides between retry and
//! rework and is also the exit status of a worker process, so a supervisor that only sees a status still knows it.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Who has to act on a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultClass {
    /// The recipe is wrong: mend the recipe.
    Recipe,
    /// The model, corpus or another input is broken or missing.
    Source,
    /// The result missed a floor (a gate, an acceptance criterion).
    Quality,
    /// It does not fit here: memory, disk, device.
    Resource,
    /// The machine failed us: killed, I/O error, stall. Worth another try.
    Infra,
    /// A bug of ours.
    Internal,
}

impl FaultClass {
    pub const ALL: [FaultClass; 6] = [
        FaultClass::Recipe,
        FaultClass::Source,
        FaultClass::Quality,
        FaultClass::Resource,
        FaultClass::Infra,
        FaultClass::Internal,
    ];

    /// True when the same part may succeed on another attempt without anybody changing anything.
    pub fn is_retryable(self) -> bool {
        matches!(self, FaultClass::Infra)
    }

    /// A full disk is a matter of resources; every other I/O error may pass.
    pub fn of_io(error: &std::io::Error) -> Self {
        use std::io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
        match error.kind() {
            StorageFull | QuotaExceeded | FileTooLarge => FaultClass::Resource,
            _ => FaultClass::Infra,
        }
    }

    /// Exit status of a worker that ended with this fault (after sysexits.h where one fits).
    pub fn exit_status(self) -> u8 {
        match self {
            FaultClass::Recipe => 65,
            FaultClass::Source => 66,
            FaultClass::Quality => 67,
            FaultClass::Resource => 69,
            FaultClass::Internal => 70,
            FaultClass::Infra => 75,
        }
    }

    /// The class a worker's exit status stands for; `None` for a status no fault class uses.
    pub fn from_exit_status(status: i32) -> Option<Self> {
        Self::ALL.into_iter().find(|class| i32::from(class.exit_status()) == status)
    }

    pub fn as_str(self) -> &'static str {
        match self {
            FaultClass::Recipe => "recipe",
            FaultClass::Source => "source",
            FaultClass::Quality => "quality",
            FaultClass::Resource => "resource",
            FaultClass::Infra => "infra",
            FaultClass::Internal => "internal",
        }
    }
}

impl fmt::Display for FaultClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

type Cause = Box<dyn std::error::Error + Send + Sync + 'static>;

/// One clear error: the class, a message that names the file, key or tensor and the cause, and the next step.
#[derive(Debug)]
pub struct Fault {
    pub class: FaultClass,
    pub message: String,
    pub hint: Option<String>,
    cause: Option<Cause>,
}

pub type Outcome<T> = Result<T, Fault>;

impl Fault {
    pub fn new(class: FaultClass, message: impl Into<String>) -> Self {
        Fault { class, message: message.into(), hint: None, cause: None }
    }
    /// A failed input or output; its class says whether the disk is full.
    pub fn io(message: impl Into<String>, error: std::io::Error) -> Self {
        Self::new(FaultClass::of_io(&error), message).caused_by(error)
    }
    pub fn recipe(message: impl Into<String>) -> Self {
        Self::new(FaultClass::Recipe, message)
    }
    pub fn source(message: impl Into<String>) -> Self {
        Self::new(FaultClass::Source, message)
    }
    pub fn quality(message: impl Into<String>) -> Self {
        Self::new(FaultClass::Quality, message)
    }
    pub fn resource(message: impl Into<String>) -> Self {
        Self::new(FaultClass::Resource, message)
    }
    pub fn infra(message: impl Into<String>) -> Self {
        Self::new(FaultClass::Infra, message)
    }
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(FaultClass::Internal, message)
    }

    /// The next step for the person who reads this.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// The error underneath; shown after the message.
    pub fn caused_by(mut self, cause: impl Into<Cause>) -> Self {
        self.cause = Some(cause.into());
        self
    }

    /// The chain of causes, outermost first, without the message itself.
    pub fn causes(&self) -> Vec<String> {
        let mut out = Vec::new();
        let mut next: Option<&(dyn std::error::Error + 'static)> = self.cause.as_deref().map(|c| c as _);
        while let Some(error) = next {
            out.push(error.to_string());
            next = error.source();
        }
        out
    }

    /// Message and causes on one line, as written to `error.json` and shown by `foreman`.
    pub fn one_line(&self) -> String {
        let mut line = self.message.clone();
        for cause in self.causes() {
            if !line.contains(&cause) {
                line.push_str(": ");
                line.push_str(&cause);
            }
        }
        line
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.one_line())
    }
}

impl std::error::Error for Fault {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_status_round_trips_and_is_unique() {
        for class in FaultClass::ALL {
            assert_eq!(FaultClass::from_exit_status(i32::from(class.exit_status())), Some(class));
        }
        assert_eq!(FaultClass::from_exit_status(0), None);
        assert_eq!(FaultClass::from_exit_status(101), None);
    }

    #[test]
    fn one_line_names_the_causes_once() {
        let io = std::io::Error::other("disk on fire");
        let fault = Fault::infra("write /x/y").caused_by(io).hint("use another disk");
        assert_eq!(fault.one_line(), "write /x/y: disk on fire");
        assert_eq!(fault.hint.as_deref(), Some("use another disk"));
    }
}
