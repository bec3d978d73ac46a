//! What a check has to say about a recipe.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::fault::Fault;

/// How much a finding weighs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Severity {
    /// The part cannot be built: it is refused.
    Error,
    /// It can be built, but probably not what was meant.
    Warning,
    /// Worth knowing.
    Note,
}

impl Severity {
    pub fn as_str(self) -> &'static str {
        match self {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        }
    }
}

/// One line about a recipe: where, what, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    /// Key path, such as `stages[2].quantTypes`; empty for the recipe as a whole.
    pub key: String,
    pub message: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Finding {
    pub fn new(severity: Severity, key: impl Into<String>, message: impl Into<String>) -> Self {
        Finding { severity, key: key.into(), message: message.into(), hint: None }
    }
    pub fn error(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Severity::Error, key, message)
    }
    pub fn warning(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Severity::Warning, key, message)
    }
    pub fn note(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::new(Severity::Note, key, message)
    }

    /// What to do about it.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The fault that refuses a recipe with these findings: all errors in one message, the first hint. `None` when no
    /// finding is an error.
    pub fn refusal(findings: &[Finding]) -> Option<Fault> {
        let errors: Vec<&Finding> = findings.iter().filter(|f| f.is_error()).collect();
        let hint = errors.iter().find_map(|f| f.hint.clone());
        let message = match errors.as_slice() {
            [] => return None,
            [one] => one.located(),
            many => {
                let lines: Vec<String> = many.iter().map(|f| f.located()).collect();
                format!("{} errors: {}", many.len(), lines.join("; "))
            }
        };
        let fault = Fault::recipe(message);
        Some(match hint {
            Some(hint) => fault.hint(hint),
            None => fault,
        })
    }

    /// Where and what, without how bad: `stages[2].quantTypes: …`.
    pub fn located(&self) -> String {
        if self.key.is_empty() { self.message.clone() } else { format!("{}: {}", self.key, self.message) }
    }
}

impl fmt::Display for Finding {
    /// `error stages[2].quantTypes: … (hint)`, on one line.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.severity.as_str(), self.located())?;
        match &self.hint {
            Some(hint) => write!(f, " ({hint})"),
            None => Ok(()),
        }
    }
}

/// The name in `known` that `word` was probably meant to be, if one is near enough to say so.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let fold = |text: &str| text.to_lowercase().replace(['_', '-', '.', ' '], "");
    let wanted = fold(word);
    known
        .into_iter()
        .map(|name| (strsim::normalized_damerau_levenshtein(&wanted, &fold(name)), name))
        .filter(|(likeness, _)| *likeness >= 0.6)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, name)| name)
}

/// `did you mean X? known: a, b, c` for a word that is in no list.
pub fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str> + Clone) -> String {
    let list = known.clone().into_iter().collect::<Vec<_>>().join(", ");
    match nearest(word, known) {
        Some(name) => format!("did you mean `{name}`? known: {list}"),
        None => format!("known: {list}"),
    }
}
