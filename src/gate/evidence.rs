//! What a gate saw: one record per check, kept in the result so that a reader can judge for himself.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One check that was made on one artifact.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// The axis looked at: `pass-through`, `reload`, `score`, `acceptance`.
    pub gate: String,
    /// The artifact, as a path inside the work directory, or the criterion.
    pub subject: String,
    pub passed: bool,
    /// The numbers the verdict rests on, with their limits.
    pub figures: Map<String, Value>,
}

impl Evidence {
    pub fn passed(gate: &str, subject: impl Into<String>) -> Self {
        Evidence { gate: gate.into(), subject: subject.into(), passed: true, figures: Map::new() }
    }

    /// Adds a figure; a number that JSON cannot carry (NaN, infinite) becomes its text.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.figures.insert(key.into(), value.into());
        self
    }
}
