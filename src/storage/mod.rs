//! Storage that loses nothing: what is in use, what may go, and where it goes.
//!
//! Enters: a line, a node, the time. Leaves: the set of everything in use ([`Uses`]), a plan of what leaves the hot
//! disk, and copies on cold tiers that were read again and compared before anything was removed. It moves and copies
//! files; it opens no model and touches no tensor.
//!
//! - [`uses`]: the one function that says what is referenced, and by whom. [`pins`]: what a person wants kept.
//! - [`tier`]: a cold tier is looked at before a byte is written to it.
//! - [`copy`], [`receipt`]: a folder copied, synced, read again, with a receipt. [`archive`]: such a copy put in place,
//!   then the original removed.
//! - [`gc`]: which folders leave, in which order, and why the others stay. [`sources`]: caches of source models.
//! - [`fetch`]: a model of a peer or the hub brought here; `remote` asks what they have, `download` receives it. [`demote`]: the artifact of a finished part moved to cold.
//! - [`survey`]: what an operator is shown. [`caretaker`]: the daemon's hand on all this.

pub mod archive;
pub mod caretaker;
pub mod copy;
pub mod demote;
mod download;
mod error;
pub mod fetch;
pub mod gc;
mod lock;
pub mod pins;
pub mod receipt;
mod remote;
mod rest;
pub mod sources;
pub mod survey;
pub mod tier;
pub mod uses;

pub use caretaker::Caretaker;
pub use copy::{NoSteps, Step, Steps};
pub use error::StorageError;
pub use gc::{GcOptions, GcReport};
pub use pins::Pin;
pub use receipt::Receipt;
pub use sources::touch_source;
pub use uses::Uses;
