//! The child process that builds one part: plan, stages, gate, result.
//!
//! Enters: a part in assembly, a work folder and an attempt token. Leaves: `plan.json`, `result.json` (or
//! `fault.json`) in the work folder, the artifact folder, messages on standard output, and an exit status that names
//! the fault class. It never talks to other parts and never moves its own.

mod args;

pub use args::WorkerArgs;

/// Builds the part; the exit status is 0 or that of a fault class.
pub fn main(_args: &WorkerArgs) -> std::process::ExitCode {
    std::process::ExitCode::from(crate::fault::FaultClass::Internal.exit_status())
}
