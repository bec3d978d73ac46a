//! The names of parts and of the files that travel with them.
//!
//! A part is `<base>[.retry<N>]<suffix>` with suffix `.alloy.json`; in `intake/` also `.recipe.json` and plain `.json`.
//! Everything else that starts with `<base>.` is a sidecar of the part. A plain `.json` name is a sidecar, never a
//! part, when the last word before `.json` is one of [`SIDECAR_WORDS`], such a word and a number (`x.error.2.json`), or
//! starts with `x-`.

use std::ffi::OsStr;
use std::fmt;

use super::Station;

/// Last words before a plain `.json` that make a file a sidecar. A closed list in protocol version 1.1.
pub const SIDECAR_WORDS: &[&str] = &[
    "cancel", "card", "claim", "config", "delivery", "error", "eval", "fault", "frontier", "index", "log", "manifest",
    "metadata", "metrics", "order", "plan", "profile", "proof", "reason", "report", "result", "results", "retry",
    "samples",
];

/// Longest base name in bytes, so that every sidecar and temp name stays below 255.
pub const MAX_BASE: usize = 180;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Suffix {
    Alloy,
    Recipe,
    Json,
}

impl Suffix {
    pub fn as_str(self) -> &'static str {
        match self {
            Suffix::Alloy => ".alloy.json",
            Suffix::Recipe => ".recipe.json",
            Suffix::Json => ".json",
        }
    }
}

/// The name of a part: base name, how often it was retried, and the suffix it came with.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PartName {
    base: String,
    retries: u32,
    suffix: Suffix,
}

/// Why a name cannot be a part's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} is not a part name: {reason}")]
pub struct NameError {
    pub name: String,
    pub reason: &'static str,
}

/// What a file name in a station stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Entry {
    Part(PartName),
    /// Ends like a sidecar; whose it is depends on the parts that stand beside it.
    Sidecar(String),
    /// Starts with a dot or ends like a temporary file: somebody is still writing it.
    Temporary(String),
    /// Will never be looked at, and why.
    Ignored(NameError),
}

impl Entry {
    /// Reads a file name. Outside `intake` only `.alloy.json` names parts.
    pub fn classify(file_name: &OsStr, station: Station) -> Entry {
        let Some(name) = file_name.to_str() else {
            let name = file_name.to_string_lossy().into_owned();
            return Entry::Ignored(NameError { name, reason: "the name is not UTF-8" });
        };
        if name.starts_with('.') || name.ends_with(".tmp") || name.ends_with(".part") || name.ends_with('~') {
            return Entry::Temporary(name.to_owned());
        }
        match PartName::parse(name) {
            Ok(part) if station == Station::Intake || part.suffix == Suffix::Alloy => Entry::Part(part),
            Ok(_) => Entry::Sidecar(name.to_owned()),
            Err(error) if error.reason == NOT_A_PART => Entry::Sidecar(name.to_owned()),
            Err(error) => Entry::Ignored(error),
        }
    }
}

const NOT_A_PART: &str = "it does not end in .alloy.json, .recipe.json or .json, or ends like a sidecar";

impl PartName {
    /// A fresh part of this base name, spelled `<base>.alloy.json`.
    pub fn new(base: &str) -> Result<Self, NameError> {
        check_base(base).map_err(|reason| NameError { name: base.to_owned(), reason })?;
        Ok(PartName { base: base.to_owned(), retries: 0, suffix: Suffix::Alloy })
    }

    /// Reads a file name (no folder). Refuses sidecars and names that would not be safe on a line.
    pub fn parse(file_name: &str) -> Result<Self, NameError> {
        let refuse = |reason| NameError { name: file_name.to_owned(), reason };
        let (stem, suffix) = [Suffix::Alloy, Suffix::Recipe, Suffix::Json]
            .into_iter()
            .find_map(|suffix| Some((file_name.strip_suffix(suffix.as_str())?, suffix)))
            .ok_or_else(|| refuse(NOT_A_PART))?;
        if suffix == Suffix::Json && is_sidecar_stem(stem) {
            return Err(refuse(NOT_A_PART));
        }
        let (base, retries) = split_retries(stem).map_err(refuse)?;
        check_base(base).map_err(refuse)?;
        Ok(PartName { base: base.to_owned(), retries, suffix })
    }

    /// Name without retry counter and suffix: unique on a line, and the name of the work folder.
    pub fn base(&self) -> &str {
        &self.base
    }
    pub fn retries(&self) -> u32 {
        self.retries
    }
    pub fn suffix(&self) -> Suffix {
        self.suffix
    }
    /// `<base>[.retry<N>]`: what the result and error sidecars are named after.
    pub fn stem(&self) -> String {
        match self.retries {
            0 => self.base.clone(),
            n => format!("{}.retry{n}", self.base),
        }
    }
    pub fn file_name(&self) -> String {
        self.stem() + self.suffix.as_str()
    }
    /// `<base>[.retry<N>].<kind>.json`.
    pub fn sidecar(&self, kind: &str) -> String {
        format!("{}.{kind}.json", self.stem())
    }
    /// The same part spelled as in every station but intake.
    pub fn as_alloy(&self) -> Self {
        PartName { suffix: Suffix::Alloy, ..self.clone() }
    }
    pub fn with_retries(&self, retries: u32) -> Self {
        PartName { retries, ..self.clone() }
    }
    /// The n-th free name beside this one: `<base>~<n>`.
    pub fn numbered(&self, n: u32) -> Self {
        let root = match self.base.rsplit_once('~') {
            Some((root, digits)) if !root.is_empty() && digits.parse::<u32>().is_ok() => root,
            _ => self.base.as_str(),
        };
        PartName { base: format!("{root}~{n}"), ..self.clone() }
    }
}

impl fmt::Display for PartName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.file_name())
    }
}

/// `x.retry3` is `("x", 3)`; a stem without a counter counts zero.
fn split_retries(stem: &str) -> Result<(&str, u32), &'static str> {
    let Some((base, digits)) = stem.rsplit_once(".retry") else { return Ok((stem, 0)) };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Ok((stem, 0));
    }
    let retries = digits.parse::<u16>().map_err(|_| "the retry counter is too large")?;
    Ok((base, u32::from(retries)))
}

fn is_sidecar_stem(stem: &str) -> bool {
    let is_word = |word: &str| SIDECAR_WORDS.contains(&word);
    let Some((front, last)) = stem.rsplit_once('.') else { return false };
    let numbered =
        last.bytes().all(|b| b.is_ascii_digit()) && front.rsplit_once('.').is_some_and(|(_, word)| is_word(word));
    is_word(last) || last.starts_with("x-") || numbered
}

fn check_base(base: &str) -> Result<(), &'static str> {
    match base {
        "" => Err("the name before the suffix is empty"),
        b if b.len() > MAX_BASE => Err("the name is longer than 180 bytes"),
        b if b.starts_with('.') => Err("the name starts with a dot"),
        b if b.ends_with('.') || b.ends_with(' ') => Err("the name ends with a dot or a space"),
        b if b.contains(['/', '\\']) => Err("the name holds a path separator"),
        b if b.chars().any(char::is_control) => Err("the name holds a control character"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn intake(name: &str) -> Entry {
        Entry::classify(OsStr::new(name), Station::Intake)
    }

    #[test]
    fn the_three_suffixes_and_the_counter() {
        for (file, base, retries) in [
            ("x.alloy.json", "x", 0),
            ("x.retry2.alloy.json", "x", 2),
            ("qwen2.5-7b.json", "qwen2.5-7b", 0),
            ("x.recipe.json", "x", 0),
            ("x.retry1.json", "x", 1),
            ("x.result.alloy.json", "x.result", 0),
            ("x.retry.alloy.json", "x.retry", 0),
        ] {
            let part = PartName::parse(file).unwrap();
            assert_eq!((part.base(), part.retries()), (base, retries), "{file}");
        }
    }

    #[test]
    fn sidecars_are_never_parts() {
        for name in [
            "x.result.json",
            "x.error.json",
            "x.error.2.json",
            "x.alloy.result.json",
            "x.x-notes.json",
            "x.order.json",
            "x.log",
        ] {
            assert_eq!(intake(name), Entry::Sidecar(name.into()));
        }
        assert_eq!(Entry::classify(OsStr::new("x.json"), Station::Finished), Entry::Sidecar("x.json".into()));
    }

    #[test]
    fn unsafe_and_unfinished_names_are_not_parts() {
        for name in [".x.alloy.json", "x.alloy.json.tmp", ".x.tmp", "x.json~"] {
            assert!(matches!(intake(name), Entry::Temporary(_)), "{name}");
        }
        for name in ["x\n.alloy.json", "a\\b.json", "x..json", "x.retry99999.alloy.json", &("y".repeat(181) + ".json")]
        {
            assert!(matches!(intake(name), Entry::Ignored(_)), "{name}");
        }
        use std::os::unix::ffi::OsStrExt;
        assert!(matches!(Entry::classify(OsStr::from_bytes(b"x\xff.json"), Station::Intake), Entry::Ignored(_)));
    }

    #[test]
    fn numbering_does_not_pile_up() {
        let part = PartName::new("x").unwrap();
        assert_eq!(part.numbered(2).numbered(3).file_name(), "x~3.alloy.json");
        assert_eq!(part.with_retries(4).sidecar("error"), "x.retry4.error.json");
    }

    proptest! {
        #[test]
        fn a_part_name_reads_back(base in "[A-Za-z0-9_][A-Za-z0-9._~-]{0,40}[A-Za-z0-9]", retries in 0u32..2000) {
            let part = PartName::new(&base).unwrap().with_retries(retries);
            let read = PartName::parse(&part.file_name()).unwrap();
            prop_assert_eq!(read.file_name(), part.file_name());
            prop_assert!(read.retries() == retries || retries == 0);
        }

        #[test]
        fn any_bytes_classify_without_panic(name in ".*") {
            let _ = intake(&name);
        }
    }
}
