//! How a supervisor calls a worker.

use std::path::PathBuf;

use clap::Args;

use crate::line::AttemptToken;
use crate::node::DeviceChoice;

/// Arguments of the hidden `worker` subcommand. The claim lock is inherited as standard input (it reads as empty).
#[derive(Clone, Debug, Args)]
pub struct WorkerArgs {
    /// Root of the line.
    #[arg(long, value_name = "DIR")]
    pub root: PathBuf,
    /// The part file, in assembly.
    #[arg(long, value_name = "FILE")]
    pub part: PathBuf,
    /// The part's work folder.
    #[arg(long, value_name = "DIR")]
    pub work: PathBuf,
    /// Token of this attempt; checked before every write that cannot be taken back.
    #[arg(long, value_name = "TOKEN")]
    pub attempt: AttemptToken,
    /// The device of this worker's slot, where the node has several.
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
}
