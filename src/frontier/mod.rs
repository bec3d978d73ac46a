//! Frontier contracts: what a tiny model of a contest must be, checked offline.
//!
//! Enters: an artifact (a model directory, an archive of one, or a plan in JSON), a contract as data, and texts to score
//! on. Leaves: a [`Report`] with a verdict and its reason by the benchmark's own code, sizes, budget and score. The
//! other way: archives packed the same bytes each time. Nothing here sends anything, and no code inside an artifact is
//! ever run.

mod budget;
mod container;
mod contract;
mod decision;
mod direct;
mod documents;
mod error;
mod numpy;
mod patch;
mod plan;
mod q4;
mod report;
mod scoring;

pub use budget::{Budget, artifact_bits};
pub use container::{Container, Limits, Packing, Unpacked, artifact_bytes, pack, unpack};
pub use contract::{
    ArtifactKind, Contract, Contracts, DocumentChoice, Evidence, ProxyLayer, Ranking, Rescue, Scorer, SizeRule, Terms,
    Tokens, contract_ids,
};
pub use decision::{Decision, Standing, decide};
pub use direct::{CheckOptions, check};
pub use documents::{Choice, Document, Handle, Pool, parse_mix, seed_of, shares};
pub use error::FrontierError;
pub use patch::{PatchFlaw, check_patch};
pub use plan::PlanFigures;
pub use q4::{Q4, decode as decode_q4, encode as encode_q4};
pub use report::{Reason, Report, Sizes, Verdict};
pub use scoring::{Exam, Score};
