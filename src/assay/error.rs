//! What can keep a runner from measuring.

use std::path::PathBuf;

use crate::engine::EngineError;
use crate::fault::Fault;
use crate::model::ModelError;

#[derive(Debug, thiserror::Error)]
pub enum AssayError {
    #[error("there is no runner {name:?}")]
    UnknownRunner { name: String, known: String },
    #[error("cannot read {path}", path = path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{path} is not UTF-8 text (byte {at})", path = path.display())]
    NotText { path: PathBuf, at: usize },
    #[error("{path} is not a JSON list of lists of token ids: {cause}", path = path.display())]
    NotTokenIds { path: PathBuf, cause: String },
    #[error("{path}: sequence {sequence} has {tokens} tokens, scoring needs at least 2", path = path.display())]
    ShortSequence { path: PathBuf, sequence: usize, tokens: usize },
    #[error("{path} has no tokenizer", path = path.display())]
    NoTokenizer { path: PathBuf },
    #[error("the text has {tokens} tokens, less than one window of {context}")]
    TooFewTokens { tokens: usize, context: usize },
    #[error("a context of {context} tokens is too {what} for this measurement")]
    Context { context: usize, what: &'static str, hint: String },
    #[error("{first} and {other} make different tokens of the text, from sequence {sequence}, token {token} on", first = first.display(), other = other.display())]
    Tokenizers { first: PathBuf, other: PathBuf, sequence: usize, token: usize },
    #[error("{runner} compares with another model, and none is named")]
    NoBase { runner: &'static str },
    #[error("no position of the text can be scored: every sequence has one token")]
    NothingScored,
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl From<AssayError> for Fault {
    fn from(error: AssayError) -> Self {
        let text = error.to_string();
        match error {
            AssayError::UnknownRunner { known, .. } => Fault::recipe(text).hint(format!("runners: {known}")),
            AssayError::Read { source, .. } => Fault::source(text).caused_by(source),
            AssayError::NotText { .. } => Fault::source(text).hint("convert the file to UTF-8"),
            AssayError::NotTokenIds { .. } | AssayError::ShortSequence { .. } => {
                Fault::source(text).hint("wanted: [[1, 2, 3], [4, 5]]")
            }
            AssayError::NoTokenizer { .. } => {
                Fault::source(text).hint("add its tokenizer.json, or give token ids instead of a text")
            }
            AssayError::TooFewTokens { .. } | AssayError::NothingScored => {
                Fault::source(text).hint("use a longer text or a shorter context")
            }
            AssayError::Tokenizers { .. } => Fault::source(text)
                .hint("compare models of one tokenizer; if they should have the same, one's tokenizer files are wrong"),
            AssayError::NoBase { .. } => Fault::recipe(text).hint("name it: --against MODEL"),
            AssayError::Context { hint, .. } => Fault::recipe(text).hint(hint),
            AssayError::Model(source) => source.into(),
            AssayError::Engine(source) => source.into(),
        }
    }
}
