//! Why a recipe file cannot be read: file, line, column, key, cause, next step.

use std::fmt;
use std::path::{Path, PathBuf};

use super::file::MAX_BYTES;
use super::finding::nearest;
use super::json::{Node, NodeError, Position, SyntaxError};
use super::schema;
use crate::fault::{Fault, FaultClass};

/// A recipe file that cannot be read as a recipe.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    /// The file itself cannot be read.
    #[error("recipe {path}: cannot be read", path = path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("recipe {path}: the file is empty", path = path.display())]
    Empty { path: PathBuf },
    #[error("recipe {path}: the file has {bytes} bytes, more than the {MAX_BYTES} a recipe may have", path = path.display())]
    TooLarge { path: PathBuf, bytes: u64 },
    #[error("recipe {path}, {at}: the byte 0x{byte:02x} is not UTF-8 text", path = path.display(), at = Place(*at, ""))]
    NotUtf8 { path: PathBuf, at: Position, byte: u8 },
    /// Not JSON.
    #[error("recipe {path}, {at}: {cause}", path = path.display(), at = Place(*at, key))]
    Syntax { path: PathBuf, at: Position, key: String, cause: String, hint: Option<String> },
    /// JSON, but a key is missing or a value has the wrong type.
    #[error("recipe {path}, {at}: {cause}", path = path.display(), at = Place(*at, key))]
    Shape { path: PathBuf, at: Position, key: String, cause: String, hint: Option<String> },
}

/// `line 3, column 5, at stages[2].type`.
struct Place<'a>(Position, &'a str);

impl fmt::Display for Place<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.0.line, self.0.column)?;
        if self.1.is_empty() { Ok(()) } else { write!(f, ", at {}", self.1) }
    }
}

impl RecipeError {
    /// Where in the file, when the fault has a place.
    pub fn position(&self) -> Option<Position> {
        match self {
            RecipeError::NotUtf8 { at, .. } | RecipeError::Syntax { at, .. } | RecipeError::Shape { at, .. } => {
                Some(*at)
            }
            _ => None,
        }
    }

    /// The key path, when the fault has one.
    pub fn key(&self) -> Option<&str> {
        match self {
            RecipeError::Syntax { key, .. } | RecipeError::Shape { key, .. } => {
                Some(key).filter(|k| !k.is_empty()).map(|k| k.as_str())
            }
            _ => None,
        }
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            RecipeError::Read { .. } => None,
            RecipeError::Empty { .. } => {
                Some("write the recipe under a temporary name and rename it when it is complete".into())
            }
            RecipeError::TooLarge { .. } => Some("a recipe holds settings, not data: name data by path".into()),
            RecipeError::NotUtf8 { .. } => Some("save the file as UTF-8".into()),
            RecipeError::Syntax { hint, .. } | RecipeError::Shape { hint, .. } => hint.clone(),
        }
    }

    pub(super) fn syntax(path: &Path, bytes: &[u8], error: SyntaxError) -> Self {
        RecipeError::Syntax {
            path: path.to_owned(),
            at: Position::of(bytes, error.offset),
            key: error.key,
            cause: error.cause,
            hint: error.hint,
        }
    }

    pub(super) fn shape(path: &Path, bytes: &[u8], root: &Node, error: NodeError) -> Self {
        let key = root.path_of(&error.span).unwrap_or_default();
        let hint = match error.missing {
            Some(field) => root.at(&key).and_then(|object| missing_hint(object, field)),
            None => wrong_type_hint(&error.cause, &bytes[error.span.clone()]),
        };
        RecipeError::Shape {
            path: path.to_owned(),
            at: Position::of(bytes, error.span.start),
            key,
            cause: error.cause,
            hint,
        }
    }
}

/// A key that stands in the object and was probably meant to be the missing one.
fn missing_hint(object: &Node, field: &str) -> Option<String> {
    let present = object.members().iter().map(|m| m.key.as_str());
    if let Some(key) = nearest(field, present) {
        return Some(format!("`{key}` stands there: did you mean `{field}`?"));
    }
    Some(match object.get("type").and_then(Node::as_text) {
        _ if field == "type" => "a stage says what it is, e.g. \"type\": \"quant\"".to_owned(),
        Some(kind) => format!("keys of a {kind} stage: {}", schema::stage_keys(kind).join(", ")),
        None => "docs/RECIPES.md lists the keys".to_owned(),
    })
}

fn wrong_type_hint(cause: &str, written: &[u8]) -> Option<String> {
    let written = std::str::from_utf8(written).ok().filter(|text| text.len() <= 60 && !text.contains('\n'))?;
    let quoted = written.starts_with('"');
    if cause.starts_with("expected a list, found the") {
        Some(format!("write [{written}]"))
    } else if cause.starts_with("expected a whole number") || cause.starts_with("expected a number") {
        let bare = written.trim_matches('"');
        (quoted && bare.parse::<f64>().is_ok()).then(|| format!("write {bare} without quotes"))
    } else if cause.starts_with("expected true or false") {
        let bare = written.trim_matches('"').to_lowercase();
        (quoted && ["true", "false"].contains(&bare.as_str())).then(|| format!("write {bare} without quotes"))
    } else if cause.starts_with("expected a text") && !written.starts_with(['{', '[', 'n']) {
        Some(format!("write \"{written}\""))
    } else {
        None
    }
}

impl From<RecipeError> for Fault {
    fn from(error: RecipeError) -> Fault {
        let hint = error.hint();
        let class = match &error {
            RecipeError::Read { source, .. } if source.kind() != std::io::ErrorKind::NotFound => FaultClass::Infra,
            _ => FaultClass::Recipe,
        };
        let fault = Fault::new(class, error.to_string());
        let fault = match error {
            RecipeError::Read { source, .. } => fault.caused_by(source),
            _ => fault,
        };
        match hint {
            Some(hint) => fault.hint(hint),
            None => fault,
        }
    }
}
