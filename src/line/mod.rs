//! The disk protocol: directories are the API.
//!
//! Enters: a root folder that anybody can watch and write recipes into. Leaves: parts that stand in exactly one
//! station, with sidecars that explain them, an event stream and an audit log. The contract for clients that share no
//! code with us is `docs/FACTORY-PROTOCOL.md`; this room is its only implementation. It knows no model and no tensor.
//!
//! - [`Layout`], [`Station`], [`PartName`]: where things lie and what they are called.
//! - [`shelf`]: what stands in a station, read without any lock and with the daemon down.
//! - [`disk`], [`moves`]: durable publishes and moves, with a seam for fault injection.
//! - [`verbs`]: what an operator may ask for (enqueue, retry, defer, cancel, recover).
//! - [`pause`], [`order`]: what an operator may say of the whole line, and of who comes first.
//! - [`recovery`]: the table of legal file combinations, as a function from row to action.
//! - [`attempts`]: how earlier attempts at a part ended.
//! - [`claim`]: attempt tokens and the lock a worker inherits. [`lock`]: one supervisor per line.
//! - [`events`], [`follow`], [`throughput`], [`heartbeat`]: what the line tells.
//! - [`wire`]: what a worker says on its standard output. [`record`]: the result and error sidecars.

pub mod attempts;
pub mod claim;
pub mod disk;
mod error;
pub mod events;
pub mod follow;
pub mod heartbeat;
pub mod identity;
mod jsonl;
mod layout;
pub mod lock;
pub mod moves;
mod name;
pub mod order;
pub mod outcome;
pub mod pause;
pub mod record;
pub mod recovery;
pub mod shelf;
pub mod stamp;
pub mod throughput;
pub mod verbs;
pub mod wire;

pub use claim::{Attempt, AttemptToken, ClaimLock};
pub use error::LineError;
pub use events::{Event, EventLog};
pub use heartbeat::{Heartbeat, HeartbeatWriter};
pub use identity::ProcessIdentity;
pub use layout::{Layout, Station};
pub use lock::LineLock;
pub use name::{Entry, NameError, PartName, Suffix};
pub use record::{ErrorRecord, Needs, ResultRecord};
pub use shelf::PartEntry;

/// The version of the protocol this build speaks.
pub const PROTOCOL_VERSION: &str = "1.1";
