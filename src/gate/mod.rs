//! The room that decides: is the artifact what the plan said, can it be read back, is it good enough?
//!
//! Enters: artifacts on disk, re-opened by fresh readers, and figures that other rooms measured. Leaves: evidence, or
//! an error that names the artifact, the figure and its limit. Nothing here measures or writes a model.

mod acceptance;
mod damage;
mod diagnosis;
mod evidence;
mod finite;
mod modality;
mod pass_through;
mod reload;

use std::path::PathBuf;

use crate::fault::Fault;

pub use acceptance::{ArtifactFigures, Figures, admissible, judge};
pub use damage::{DamageFigures, DamageLimit, judge_damage};
pub use evidence::Evidence;
pub use finite::first_non_finite;
pub use modality::{
    Fingerprint, Sense, check_senses, declared, fingerprints, has_towers, protected_tokens, senses_unchanged,
};
pub use pass_through::{HeadCut, Lineage, Part, pass_through};
pub use reload::{
    GATE_TOKENS, ScoreLimit, compare_score, judge_score, reopen, same_positions, same_tokens, short_score,
};

/// Why an artifact does not pass.
#[derive(Debug, thiserror::Error)]
pub enum GateError {
    /// A tensor is not what the plan says it must be.
    #[error("{subject}: tensor {tensor} {why}")]
    Changed { subject: String, tensor: String, why: String },
    /// A tower, a token id or a key that the model's config declares is not what it must be.
    #[error("{model}: {why}")]
    Senses { model: PathBuf, why: String },
    /// A stage changed what the senses of the model besides text rest on.
    #[error("{subject}: {why}")]
    Touched { subject: String, why: String },
    /// A weight is NaN or infinite; it came so from the source.
    #[error("{subject}: tensor {tensor}, element {element} is not finite")]
    NonFinite { subject: String, tensor: String, element: usize },
    /// The re-opened artifact does not score like its parent.
    #[error("{subject}: {why}")]
    Score { subject: String, why: String },
    /// What is about to be done would cost more than the recipe allows.
    #[error("{subject}: {why}")]
    Damage { subject: String, why: String },
    /// One or more acceptance criteria were missed.
    #[error("acceptance criteria missed: {}", .0.join("; "))]
    Missed(Vec<String>),
    #[error("{subject} cannot be read back")]
    Unreadable { subject: PathBuf, source: crate::family::FamilyError },
    #[error(transparent)]
    Model(#[from] crate::model::ModelError),
    #[error(transparent)]
    Engine(#[from] crate::engine::EngineError),
}

impl GateError {
    fn changed(subject: &str, tensor: &str, why: &str) -> Self {
        GateError::Changed { subject: subject.into(), tensor: tensor.into(), why: why.into() }
    }
}

impl From<GateError> for Fault {
    fn from(error: GateError) -> Fault {
        let message = error.to_string();
        match error {
            GateError::Changed { .. } | GateError::Touched { .. } => Fault::internal(message)
                .hint("the artifact is not shipped; report this with the recipe and the source's config.json"),
            GateError::Senses { .. } => Fault::source(message)
                .hint("the model is incomplete or its config.json is another model's: fetch it again"),
            GateError::NonFinite { .. } => {
                Fault::source(message).hint("the source model is damaged: fetch it again and compare its file hashes")
            }
            GateError::Score { .. } => {
                Fault::quality(message).hint("compress less (keep more experts, use more bits), or mend the source")
            }
            GateError::Damage { .. } => Fault::quality(message)
                .hint("nothing was written: keep more experts, try strategy best-of-family, or raise the limit"),
            GateError::Missed(_) => {
                Fault::quality(message).hint("compress less, or change acceptanceCriteria in the recipe")
            }
            GateError::Unreadable { source, .. } => Fault::internal(message).caused_by(source),
            GateError::Model(e) => e.into(),
            GateError::Engine(e) => e.into(),
        }
    }
}
