//! What a supervisor shows to whoever runs it in the foreground.

use std::path::Path;

use crate::fault::Fault;
use crate::line::recovery::Recovered;
use crate::line::wire::WorkerMessage;
use crate::line::{Attempt, ErrorRecord, PartName, ResultRecord};

/// A thing that happened, in the order it happened per part.
#[derive(Debug)]
pub enum DaemonEvent<'a> {
    /// The line is ours and in order; so many parts wait.
    Ready {
        waiting: usize,
    },
    /// Something was brought to order.
    Recovered(&'a Recovered),
    /// A file in intake that is not a recipe.
    Ignored {
        file: &'a str,
        reason: &'a str,
    },
    Claimed {
        part: &'a PartName,
        attempt: &'a Attempt,
        work: &'a Path,
    },
    /// A line of the worker.
    Message {
        part: &'a PartName,
        message: &'a WorkerMessage,
    },
    Finished {
        part: &'a PartName,
        result: &'a ResultRecord,
    },
    Rework {
        part: &'a PartName,
        error: &'a ErrorRecord,
    },
    /// Back to intake after a failed attempt.
    Retried {
        part: &'a PartName,
        reason: &'a str,
        delay_s: f64,
    },
    /// Back to intake because it does not fit at this moment.
    Waits {
        part: &'a PartName,
        reason: &'a str,
    },
    /// Back to intake because the supervisor stops.
    Returned {
        part: &'a PartName,
    },
    /// The supervisor itself met an obstacle and goes on.
    Trouble(&'a Fault),
    /// An operator's pause began, for this reason, or ended.
    Paused {
        reason: Option<&'a str>,
    },
    /// Nothing to do but wait.
    Idle,
}

/// Sees events from several threads. Must not block for long: a worker's messages wait meanwhile.
pub trait DaemonObserver: Sync {
    fn see(&self, event: &DaemonEvent);
}

/// Looks away.
pub struct NoObserver;

impl DaemonObserver for NoObserver {
    fn see(&self, _: &DaemonEvent) {}
}
