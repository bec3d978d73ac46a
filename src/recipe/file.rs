//! A recipe file: its bytes, kept exactly, and the typed view over them.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::emit;
use super::error::RecipeError;
use super::hashes;
use super::json::{self, Node, NodeError, Position, Style};
use super::root::Recipe;
use super::stages::StageSpec;
use crate::units::Sha;

/// Largest recipe file that is read.
pub const MAX_BYTES: u64 = 16 * 1024 * 1024;

/// What a person (or program) wrote, and what it says.
#[derive(Clone, Debug)]
pub struct RecipeFile {
    path: PathBuf,
    bytes: Vec<u8>,
    tree: Node,
    recipe: Recipe,
}

impl RecipeFile {
    /// Reads a file of at most [`MAX_BYTES`].
    pub fn read(path: &Path) -> Result<Self, RecipeError> {
        let fail = |source| RecipeError::Read { path: path.to_owned(), source };
        let file = std::fs::File::open(path).map_err(fail)?;
        let stated = file.metadata().map_err(fail)?.len();
        if stated > MAX_BYTES {
            return Err(RecipeError::TooLarge { path: path.to_owned(), bytes: stated });
        }
        let mut bytes = Vec::with_capacity(stated as usize);
        // The file may grow while it is read.
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(fail)?;
        Self::parse(bytes, path)
    }

    /// Reads the bytes of a recipe; `path` only names the file in errors.
    pub fn parse(bytes: impl Into<Vec<u8>>, path: &Path) -> Result<Self, RecipeError> {
        let bytes: Vec<u8> = bytes.into();
        if bytes.len() as u64 > MAX_BYTES {
            return Err(RecipeError::TooLarge { path: path.to_owned(), bytes: bytes.len() as u64 });
        }
        if bytes.iter().all(u8::is_ascii_whitespace) {
            return Err(RecipeError::Empty { path: path.to_owned() });
        }
        let text = std::str::from_utf8(&bytes).map_err(|e| RecipeError::NotUtf8 {
            path: path.to_owned(),
            at: Position::of(&bytes, e.valid_up_to()),
            byte: bytes[e.valid_up_to()],
        })?;
        let tree = json::parse(text).map_err(|e| RecipeError::syntax(path, &bytes, e))?;
        let recipe = typed(&tree).map_err(|e| RecipeError::shape(path, &bytes, &tree, e))?;
        Ok(RecipeFile { path: path.to_owned(), bytes, tree, recipe })
    }

    /// Where it was read from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The file's bytes, exactly.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What it says.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// What it says, with positions and unknown keys.
    pub fn tree(&self) -> &Node {
        &self.tree
    }

    /// Its identity: SHA-256 of the bytes.
    pub fn alloy_hash(&self) -> Sha {
        hashes::alloy_hash(&self.bytes)
    }

    /// Line and column of a key path such as `stages[2].quantTypes`; of the nearest enclosing value when the key
    /// itself is not written. `None` when only the root encloses it, or for the empty path.
    pub fn locate(&self, key: &str) -> Option<Position> {
        let mut key = key;
        while !key.is_empty() {
            if let Some(node) = self.tree.at(key) {
                return Some(Position::of(&self.bytes, node.span.start));
            }
            key = &key[..key.rfind(['.', '['])?];
        }
        None
    }

    /// The same recipe with its `results` replaced or added; every other byte stays (see [`emit::with_results`]).
    pub fn with_results(&self, results: &impl Serialize) -> Result<Vec<u8>, serde_json::Error> {
        Ok(emit::with_results(&self.bytes, &self.tree, &serde_json::to_value(results)?))
    }

    /// The recipe in the form of Python's `json.dumps(indent=2)`, without a final newline.
    pub fn python_form(&self) -> String {
        json::render(&self.tree, Style::PYTHON)
    }
}

fn typed(tree: &Node) -> Result<Recipe, NodeError> {
    if !matches!(tree.kind, json::Kind::Object(_)) {
        let cause = "expected an object (`{ … }`): a recipe".to_owned();
        return Err(NodeError { span: tree.span.clone(), cause, missing: None });
    }
    json::from_node(tree).map_err(|error| {
        // A stage is read through a copy that has no positions; reading it once more in place finds them.
        let stages = tree.get("stages").map(Node::items).unwrap_or_default();
        let precise = stages.iter().find(|s| s.span == error.span).and_then(|stage| StageSpec::from_node(stage).err());
        precise.unwrap_or(error)
    })
}
