//! The child process that builds one part: plan, stages, gate, result.
//!
//! Enters: a part in assembly, a work folder and an attempt token. Leaves: `plan.json`, `result.json` (or
//! `fault.json`) in the work folder, the artifact folder, messages on standard output, and an exit status that names
//! the fault class. It never talks to other parts and never moves its own.

mod args;

pub use args::WorkerArgs;
