//! What can be wrong with a model's description or its set of tensors.

use std::path::PathBuf;

use crate::fault::Fault;
use crate::model::ModelError;

#[derive(Debug, thiserror::Error)]
pub enum FamilyError {
    #[error("{path}: {problem}", path = path.display())]
    At { path: PathBuf, problem: Box<FamilyError> },
    #[error("model type {found:?} is not one this build knows")]
    UnknownModelType { found: String, known: String },
    #[error("GGUF architecture {found:?} is not one this build knows")]
    UnknownArchitecture { found: String, known: String },
    #[error("config key {key} is missing")]
    MissingKey { key: String },
    #[error("config key {key} is {found}, wanted {wanted}")]
    BadKey { key: String, found: String, wanted: String },
    #[error("{what} is not supported")]
    Unsupported { what: String, supported: String },
    #[error("tensor {name} {wanted:?} is missing{}", others(*more, "also missing"))]
    MissingTensor { name: String, wanted: Vec<usize>, more: usize },
    #[error("tensor {name} has shape {found:?}, its config asks for {wanted:?}{}", others(*more, "also wrong"))]
    WrongShape { name: String, found: Vec<usize>, wanted: Vec<usize>, more: usize },
    #[error("config key {key} says {wanted} experts, tensor {tensor} is for {found}")]
    ExpertCount { key: String, wanted: usize, tensor: String, found: usize },
    #[error("stacks of experts {0} lie in no layout this build knows for the family")]
    Stacks(Box<Misfit>),
    #[error("tensors {first} and {second} both mean {meaning}")]
    Twice { first: String, second: String, meaning: String },
    #[error("the config declares the {name}, but no tensor of the files belongs to it")]
    MissingPart { name: &'static str, prefixes: String },
    #[error("{path} is neither a model directory with config.json nor a .gguf file", path = path.display())]
    NotAModel { path: PathBuf },
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// Two stacks of experts that no layout explains.
#[derive(Debug)]
pub struct Misfit {
    pub(super) names: [String; 2],
    pub(super) found: [Vec<usize>; 2],
    /// Shapes that would do.
    pub(super) wanted: String,
}

impl std::fmt::Display for Misfit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let ([gate_up, down], [first, second]) = (&self.names, &self.found);
        write!(f, "{gate_up} {first:?} and {down} {second:?}")
    }
}

fn others(more: usize, what: &str) -> String {
    if more == 0 { String::new() } else { format!(" ({more} others {what})") }
}

impl FamilyError {
    pub(super) fn at(self, path: &std::path::Path) -> Self {
        match self {
            FamilyError::At { .. } | FamilyError::NotAModel { .. } | FamilyError::Model(_) => self,
            problem => FamilyError::At { path: path.to_owned(), problem: Box::new(problem) },
        }
    }

    fn hint(&self) -> Option<String> {
        match self {
            FamilyError::At { problem, .. } => problem.hint(),
            FamilyError::UnknownModelType { known, .. } => Some(format!("model types known: {known}")),
            FamilyError::UnknownArchitecture { known, .. } => Some(format!("architectures known: {known}")),
            FamilyError::Unsupported { supported, .. } => Some(format!("supported: {supported}")),
            FamilyError::MissingKey { .. } | FamilyError::BadKey { .. } => {
                Some("compare config.json with the one published for this model".to_owned())
            }
            FamilyError::ExpertCount { .. } => {
                Some("correct config.json, or take it from where the weights came from".to_owned())
            }
            FamilyError::Stacks(misfit) => Some(format!("its config asks for {}", misfit.wanted)),
            FamilyError::Twice { .. } => Some("two copies of a model share the files: remove one".to_owned()),
            FamilyError::MissingPart { prefixes, .. } => {
                Some(format!("its tensors begin with {prefixes}: a shard is missing, or the config is another model's"))
            }
            FamilyError::MissingTensor { .. } | FamilyError::WrongShape { .. } => {
                Some("the weights and the config do not belong together, or a shard is missing".to_owned())
            }
            FamilyError::NotAModel { .. } => {
                Some("name a Hugging Face directory (config.json beside *.safetensors) or a GGUF file".to_owned())
            }
            FamilyError::Model(_) => None,
        }
    }
}

impl From<FamilyError> for Fault {
    fn from(error: FamilyError) -> Self {
        if let FamilyError::Model(inner) = error {
            return inner.into();
        }
        let fault = Fault::source(error.to_string());
        match error.hint() {
            Some(hint) => fault.hint(hint),
            None => fault,
        }
    }
}
