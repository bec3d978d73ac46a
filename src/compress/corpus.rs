//! A calibration corpus on disk: one text per JSON line (`text` or `content`), or a plain text file.

use std::path::Path;

use serde_json::Value;

use super::CompressError;
use crate::node::MOST_TEXT;
use crate::units::read_at_most;

/// The texts of a corpus, in file order.
#[derive(Clone, Debug, PartialEq)]
pub struct Corpus {
    pub texts: Vec<String>,
    /// Texts without examples: they may be cut anywhere.
    pub is_plain_text: bool,
}

/// Reads a corpus. `.jsonl` and `.ndjson`: every non-empty line is an object with a string `text` or `content`. Any
/// other file is one text of UTF-8. A line without a text is an error that names the line; so is an empty corpus.
pub fn read_corpus(path: &Path) -> Result<Corpus, CompressError> {
    let bytes = read_at_most(path, MOST_TEXT).map_err(CompressError::io("read", path))?;
    let bad = |reason: String| CompressError::Corpus {
        path: path.to_owned(),
        reason,
        hint: "a .jsonl corpus has one JSON object per line with a string \"text\" or \"content\"; .txt is plain UTF-8",
    };
    let text =
        String::from_utf8(bytes).map_err(|e| bad(format!("not UTF-8 at byte {}", e.utf8_error().valid_up_to())))?;
    let is_plain_text = !matches!(path.extension().and_then(|e| e.to_str()), Some("jsonl" | "ndjson"));
    let texts = if is_plain_text { vec![text] } else { json_lines(&text).map_err(bad)? };
    if texts.iter().all(|t| t.trim().is_empty()) {
        return Err(bad("holds no text".into()));
    }
    Ok(Corpus { texts, is_plain_text })
}

fn json_lines(text: &str) -> Result<Vec<String>, String> {
    let mut texts = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let value: Value = serde_json::from_str(line).map_err(|e| format!("line {}: {e}", i + 1))?;
        let found = ["text", "content"].iter().find_map(|key| value.get(key).and_then(Value::as_str));
        texts.push(found.ok_or_else(|| format!("line {} has neither \"text\" nor \"content\"", i + 1))?.to_owned());
    }
    Ok(texts)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(name: &str, bytes: &[u8]) -> Result<Corpus, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        read_corpus(&path).map_err(|e| e.to_string().replace(&format!("{}/", dir.path().display()), ""))
    }

    #[test]
    fn json_lines_and_plain_text() {
        let corpus = read("c.jsonl", b"{\"text\":\"a\"}\n\n{\"content\":\"b\",\"text\":null}\n").unwrap();
        assert_eq!(corpus.texts, ["a", "b"]);
        assert_eq!(read("c.txt", b"x\ny").unwrap().texts, ["x\ny"]);
    }

    #[test]
    fn damage_is_named() {
        insta::assert_snapshot!(read("c.jsonl", b"{\"text\":\"a\"}\n{\"t\":1}").unwrap_err(), @r#"calibration corpus c.jsonl: line 2 has neither "text" nor "content""#);
        insta::assert_snapshot!(read("c.jsonl", b"{\"text\":").unwrap_err(), @"calibration corpus c.jsonl: line 1: EOF while parsing a value at line 1 column 8");
        insta::assert_snapshot!(read("c.txt", b"ab\xff").unwrap_err(), @"calibration corpus c.txt: not UTF-8 at byte 2");
        insta::assert_snapshot!(read("c.txt", b" \n").unwrap_err(), @"calibration corpus c.txt: holds no text");
    }
}
