//! The engine: runs a model over token sequences, block by block, whatever its size.
//!
//! Enters: an [`OpenModel`](crate::family::OpenModel), sequences of token ids, observers. Leaves: the negative
//! log-likelihood of every scored position, what observers saw, and what the pass took. The pass is layer-major: one
//! block is loaded, all sequences go through it, it is dropped; the next one is read meanwhile. The engine knows blocks,
//! not families.

mod attention;
mod backend;
mod batch;
mod block;
mod choice;
mod delta_net;
mod delta_rule;
mod device;
mod error;
mod head;
mod hidden;
mod host;
mod imitation;
mod latent;
pub mod matmul;
mod memory;
mod mixer;
mod moe;
mod norm;
mod observer;
mod pass;
mod pool;
mod prefetch;
mod routing;
mod variant;
mod vector;

pub use batch::Batch;
pub use choice::{device_name, open_device};
pub use error::EngineError;
pub use memory::{MemoryPlan, peak_resident, resident};
pub use observer::{ExpertOutputs, HeadViews, Imitation, LogitChunk, Observer, Routing};
pub use pass::{PassOptions, PassProgress, PassReport, Scoring, Subject, predict, run_pass, run_subject};
pub use variant::{Survivors, Variant};
