//! What can go wrong in a pass.

use std::path::PathBuf;

use crate::fault::Fault;
use crate::model::ModelError;
use crate::units::Bytes;

#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error("token {token} at position {position} of sequence {sequence} is outside the vocabulary of {vocab}")]
    TokenOutOfRange { token: u32, sequence: usize, position: usize, vocab: usize },
    #[error("sequence {sequence} is empty")]
    EmptySequence { sequence: usize },
    #[error("there is nothing to score: no sequence has a position with a prediction")]
    NothingToScore,
    #[error("two models cannot be compared token by token: one has a vocabulary of {first}, the other of {other}")]
    Vocabularies { first: usize, other: usize },
    #[error("{place} gave a value that is not finite; first bad tensor: {tensor}")]
    NotFinite { place: String, tensor: String },
    #[error("{what}: {path}", path = path.display())]
    Spill { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("a pass needs at least {needed} of memory, the budget is {budget}")]
    Budget { needed: Bytes, budget: Bytes },
    #[error("block {layer} could not be loaded")]
    Load { layer: usize, source: ModelError },
    #[error("the hidden states of micro-batch {batch} are in use")]
    Taken { batch: usize },
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error("the device {wanted} cannot be used")]
    NoDevice { wanted: String, source: candle_core::Error },
    #[error("this build does not compute {what}")]
    Unsupported { what: String },
    #[error("computing on {device} failed")]
    Compute { device: &'static str, source: candle_core::Error },
}

impl From<EngineError> for Fault {
    fn from(error: EngineError) -> Self {
        let text = error.to_string();
        match error {
            EngineError::TokenOutOfRange { .. } | EngineError::EmptySequence { .. } | EngineError::NothingToScore => {
                Fault::source(text).hint("check the data: ids must belong to this model, texts must fill one window")
            }
            EngineError::Vocabularies { .. } => Fault::source(text)
                .hint("compare a model with one it was made from, or with another of the same tokenizer"),
            EngineError::NotFinite { .. } => {
                Fault::source(text).hint("the weights are damaged or overflow; verify the model's files")
            }
            EngineError::Spill { source, .. } => Fault::io(text, source).hint("free space in the work directory"),
            EngineError::Budget { .. } => Fault::resource(text).hint("raise the memory budget or shorten the context"),
            EngineError::Load { source, .. } => {
                let mut fault = Fault::from(source);
                fault.message = format!("{text}: {}", fault.message);
                fault
            }
            EngineError::Taken { .. } => Fault::internal(text),
            EngineError::Model(source) => source.into(),
            EngineError::NoDevice { source, .. } => Fault::resource(text)
                .hint("use the device \"auto\" or \"cpu\"; GPUs need a build with the feature cuda")
                .caused_by(source),
            EngineError::Unsupported { .. } => Fault::source(text).hint("see foreman families for what is computed"),
            EngineError::Compute { source, .. } => {
                Fault::infra(text).hint("if it happens again with this model, report it").caused_by(source)
            }
        }
    }
}
