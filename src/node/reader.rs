//! Reads a TOML table key by key, so that every key is either asked for by somebody or refused by [`Section::finish`],
//! and every complaint names file, line and column.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{NodeError, Place};
use crate::units::Bytes;

/// The text of a file, to turn byte offsets into lines and columns.
pub(super) struct Document<'a> {
    pub file: &'a Path,
    pub text: &'a str,
}

impl Document<'_> {
    pub fn place(&self, offset: usize) -> Place {
        let before = &self.text[..offset.min(self.text.len())];
        let line_start = before.rfind('\n').map_or(0, |at| at + 1);
        Place {
            file: self.file.to_owned(),
            line: before.matches('\n').count() + 1,
            column: before[line_start..].chars().count() + 1,
        }
    }
}

/// One table of the document. Keys become known by being asked for.
pub(super) struct Section<'a> {
    doc: &'a Document<'a>,
    name: String,
    table: Option<&'a DeTable<'a>>,
    known: Vec<&'static str>,
}

impl<'a> Section<'a> {
    pub fn root(doc: &'a Document<'a>, table: &'a DeTable<'a>) -> Self {
        Section { doc, name: String::new(), table: Some(table), known: Vec::new() }
    }

    fn full(&self, key: &str) -> String {
        if self.name.is_empty() { key.to_owned() } else { format!("{}.{key}", self.name) }
    }

    fn value(&mut self, key: &'static str) -> Option<&'a Spanned<DeValue<'a>>> {
        self.known.push(key);
        self.table?.iter().find(|(name, _)| name.get_ref() == key).map(|(_, value)| value)
    }

    pub fn place_of(&self, key: &str) -> Place {
        let entry = self.table.and_then(|table| table.iter().find(|(name, _)| name.get_ref() == key));
        self.doc.place(entry.map_or(0, |(_, value)| value.span().start))
    }

    fn wrong<T>(&self, key: &str, value: &Spanned<DeValue<'a>>, wanted: &'static str) -> Result<T, NodeError> {
        Err(NodeError::WrongType {
            at: self.doc.place(value.span().start),
            key: self.full(key),
            wanted,
            found: described(value.get_ref()),
        })
    }

    pub fn out_of_range<T>(&self, key: &str, value: impl ToString, wanted: impl Into<String>) -> Result<T, NodeError> {
        Err(NodeError::OutOfRange {
            at: self.place_of(key),
            key: self.full(key),
            value: value.to_string(),
            wanted: wanted.into(),
        })
    }

    /// A non-empty string.
    pub fn text(&mut self, key: &'static str) -> Result<Option<String>, NodeError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.get_ref().as_str() {
            Some(text) if text.trim().is_empty() => self.out_of_range(key, "empty", "a non-empty text"),
            Some(text) => Ok(Some(text.to_owned())),
            None => self.wrong(key, value, "a text in quotes"),
        }
    }

    /// A path; `~/` is the home directory, a relative path starts at the folder of the file.
    pub fn path(&mut self, key: &'static str) -> Result<Option<PathBuf>, NodeError> {
        Ok(self.text(key)?.map(|text| expand(&text, self.doc.file)))
    }

    pub fn whole(&mut self, key: &'static str, range: RangeInclusive<u64>) -> Result<Option<u64>, NodeError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let DeValue::Integer(digits) = value.get_ref() else { return self.wrong(key, value, "a whole number") };
        let wanted = || format!("between {} and {}", range.start(), range.end());
        match u64::from_str_radix(digits.as_str(), digits.radix()) {
            Ok(number) if range.contains(&number) => Ok(Some(number)),
            _ => self.out_of_range(key, digits.as_str(), wanted()),
        }
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &'static str) -> Result<Option<bool>, NodeError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.get_ref() {
            DeValue::Boolean(flag) => Ok(Some(*flag)),
            _ => self.wrong(key, value, "true or false"),
        }
    }

    /// A number with or without a fraction, at least `least` and at most `most`.
    pub fn number(&mut self, key: &'static str, least: f64, most: f64) -> Result<Option<f64>, NodeError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let number = match value.get_ref() {
            DeValue::Integer(digits) => i64::from_str_radix(digits.as_str(), digits.radix()).ok().map(|n| n as f64),
            DeValue::Float(digits) => digits.as_str().parse::<f64>().ok(),
            _ => return self.wrong(key, value, "a number"),
        };
        match number {
            Some(number) if (least..=most).contains(&number) => Ok(Some(number)),
            Some(number) => self.out_of_range(key, number, format!("between {least} and {most}")),
            None => self.out_of_range(key, described(value.get_ref()), format!("between {least} and {most}")),
        }
    }

    pub fn seconds(&mut self, key: &'static str, least: f64, most: f64) -> Result<Option<Duration>, NodeError> {
        Ok(self.number(key, least, most)?.map(Duration::from_secs_f64))
    }

    /// A size in GB (10^9 bytes).
    pub fn gigabytes(&mut self, key: &'static str, least: f64, most: f64) -> Result<Option<Bytes>, NodeError> {
        Ok(self.number(key, least, most)?.map(|gb| Bytes((gb * 1e9).round() as u64)))
    }

    pub fn texts(&mut self, key: &'static str) -> Result<Vec<String>, NodeError> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let Some(items) = value.get_ref().as_array() else { return self.wrong(key, value, "a list of texts") };
        let mut out = Vec::with_capacity(items.len());
        for item in items.iter() {
            match item.get_ref().as_str() {
                Some(text) => out.push(text.to_owned()),
                None => return self.wrong(key, item, "a list of texts"),
            }
        }
        Ok(out)
    }

    /// A list of paths; `None` when it is not written.
    pub fn path_list(&mut self, key: &'static str) -> Result<Option<Vec<PathBuf>>, NodeError> {
        let is_written = self.table.is_some_and(|table| table.iter().any(|(name, _)| name.get_ref() == key));
        let paths = self.texts(key)?.iter().map(|text| expand(text, self.doc.file)).collect();
        Ok(is_written.then_some(paths))
    }

    /// A sub-table; one that is not there reads as empty.
    pub fn section(&mut self, key: &'static str) -> Result<Section<'a>, NodeError> {
        let name = self.full(key);
        let table = match self.value(key) {
            None => None,
            Some(value) => match value.get_ref().as_table() {
                Some(table) => Some(table),
                None => return self.wrong(key, value, "a table"),
            },
        };
        Ok(Section { doc: self.doc, name, table, known: Vec::new() })
    }

    /// An array of tables, `[[storage.cold]]`.
    pub fn sections(&mut self, key: &'static str) -> Result<Vec<(Place, Section<'a>)>, NodeError> {
        let name = self.full(key);
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let Some(items) = value.get_ref().as_array() else { return self.wrong(key, value, "a list of tables") };
        let mut out = Vec::with_capacity(items.len());
        for item in items.iter() {
            let Some(table) = item.get_ref().as_table() else { return self.wrong(key, item, "a table") };
            let place = self.doc.place(item.span().start);
            out.push((place, Section { doc: self.doc, name: name.clone(), table: Some(table), known: Vec::new() }));
        }
        Ok(out)
    }

    /// Every entry of a free table (`[sources]`): names chosen by the operator, values paths.
    pub fn paths(self) -> Result<Vec<(String, PathBuf)>, NodeError> {
        let mut out = Vec::new();
        for (name, value) in self.table.into_iter().flat_map(|table| table.iter()) {
            match value.get_ref().as_str() {
                Some(text) if !text.is_empty() => {
                    out.push((name.get_ref().to_string(), expand(text, self.doc.file)));
                }
                _ => return self.wrong(name.get_ref(), value, "a path in quotes"),
            }
        }
        Ok(out)
    }

    /// Refuses every key nobody asked for, with the nearest one that somebody did.
    pub fn finish(self) -> Result<(), NodeError> {
        let Some(table) = self.table else { return Ok(()) };
        for (name, _) in table.iter() {
            let key: &str = name.get_ref();
            if self.known.contains(&key) {
                continue;
            }
            return Err(NodeError::UnknownKey {
                at: self.doc.place(name.span().start),
                key: self.full(key),
                nearest: nearest(key, &self.known).map(|near| self.full(near)),
                known: self.known.iter().map(|&known| known.to_owned()).collect(),
            });
        }
        Ok(())
    }
}

/// The known word a misspelt one most likely stands for.
pub fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let score = |candidate: &str| strsim::jaro_winkler(&word.to_lowercase(), &candidate.to_lowercase());
    known
        .iter()
        .copied()
        .map(|k| (score(k), k))
        .filter(|(s, _)| *s > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|p| p.1)
}

fn described(value: &DeValue<'_>) -> String {
    match value {
        DeValue::String(text) => format!("the text {text:?}"),
        DeValue::Integer(digits) => format!("the number {}", digits.as_str()),
        DeValue::Float(digits) => format!("the number {}", digits.as_str()),
        other => format!("a {}", other.type_str()),
    }
}

fn expand(text: &str, file: &Path) -> PathBuf {
    if let Some(path) = super::resolve::from_home(text) {
        return path;
    }
    // join() keeps an absolute path as it is.
    file.parent().unwrap_or(Path::new(".")).join(text)
}
