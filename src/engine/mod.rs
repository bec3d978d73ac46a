//! The engine: runs a model over token sequences, block by block, whatever its size.
//!
//! Enters: an [`OpenModel`](crate::family::OpenModel), sequences of token ids, observers. Leaves: the negative
//! log-likelihood of every scored position, what observers saw, and what the pass took. The pass is layer-major: one
//! block is loaded, all sequences go through it, it is dropped; the next one is read meanwhile. The engine knows blocks,
//! not families.

mod attention;
mod backend;
mod batch;
mod beside;
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
mod overlay;
mod pass;
mod pool;
mod prefetch;
mod rewrite;
mod routing;
mod savepoint;
mod tune;
mod turn;
mod variant;
pub(crate) mod vector;
mod watch;

pub use batch::Batch;
pub use beside::run_beside;
pub use choice::{device_name, open_device};
pub use error::EngineError;
pub use memory::{MemoryPlan, peak_resident, resident};
pub use observer::{ExpertOutputs, HeadViews, Imitation, LogitChunk, Observer, Routing};
pub use overlay::Overlay;
pub use pass::{PassOptions, PassProgress, PassReport, Scoring, Subject, predict, run_pass, run_subject};
pub use rewrite::{RewritePlan, RewriteReport, Rewriter, predict_rewriting, run_rewriting};
pub use savepoint::Savepoints;
pub use tune::{STEP_TOKENS, Tune};
pub use variant::{Survivors, Variant};
pub use vector::{exponential_sum, exponentials, largest, weighted_difference};
pub use watch::InputSum;
