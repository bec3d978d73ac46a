//! The audit log: `throughput.jsonl`, appended and synced, never rewritten.

use std::fs::OpenOptions;
use std::io::{Read, Seek, SeekFrom, Write};

use chrono::Utc;
use fs2::FileExt;
use serde_json::{Map, Value};

use super::{Layout, LineError, jsonl, stamp};

/// Appends one line: `at`, `outcome`, then the fields of `payload` (a JSON object). Durable on return.
pub fn append(layout: &Layout, outcome: &str, payload: Value) -> Result<(), LineError> {
    let path = layout.throughput();
    let mut record = Map::new();
    record.insert("at".into(), stamp::seconds(Utc::now()).into());
    record.insert("outcome".into(), outcome.into());
    if let Value::Object(fields) = payload {
        record.extend(fields);
    }
    let mut line = Value::Object(record).to_string();
    line.push('\n');
    let mut write = || {
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(&path)?;
        file.lock_exclusive()?;
        // The log is never rewritten: a torn last line is ended, and readers skip it.
        let len = file.metadata()?.len();
        if len > 0 {
            let mut last = [0u8];
            file.seek(SeekFrom::Start(len - 1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                line.insert(0, '\n');
            }
        }
        file.write_all(line.as_bytes())?;
        file.sync_all()
    };
    write().map_err(LineError::io("append to", &path))
}

/// The last `n` lines, oldest first. Malformed lines are skipped; bytes that are no text show as such.
pub fn tail(layout: &Layout, n: usize) -> Result<Vec<Map<String, Value>>, LineError> {
    let path = layout.throughput();
    let bytes = match std::fs::read(&path) {
        Ok(bytes) => bytes,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(LineError::io("read", &path)(e)),
    };
    let read = |line: &[u8]| serde_json::from_str(&String::from_utf8_lossy(jsonl::trimmed(line))).ok();
    let mut lines: Vec<_> = bytes.split(|byte| *byte == b'\n').rev().filter_map(read).take(n).collect();
    lines.reverse();
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_torn_line_costs_only_itself() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::init(root.path()).unwrap();
        append(&layout, "finished", json!({"alloy": "a.alloy.json"})).unwrap();
        let mut file = OpenOptions::new().append(true).open(layout.throughput()).unwrap();
        file.write_all(b"{\"at\":\"20").unwrap();
        append(&layout, "rework", json!({"alloy": "b.alloy.json"})).unwrap();
        let outcomes: Vec<_> = tail(&layout, 9).unwrap().iter().map(|l| l["outcome"].clone()).collect();
        assert_eq!(outcomes, ["finished", "rework"]);
        assert_eq!(tail(&layout, 1).unwrap().len(), 1);
    }

    #[test]
    fn zeros_foreign_bytes_and_long_lines_cost_only_themselves() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::init(root.path()).unwrap();
        let damage = |bytes: &[u8]| {
            let mut file = OpenOptions::new().append(true).create(true).open(layout.throughput()).unwrap();
            file.write_all(bytes).unwrap();
        };
        append(&layout, "finished", json!({"alloy": "a", "note": "x".repeat(2_000_000)})).unwrap();
        damage(&vec![0; 300_000]);
        append(&layout, "rework", json!({"alloy": "b"})).unwrap();
        damage(b"{\"outcome\": \"o\xffd\"}\n\0\0\0{\"outcome\":\"late\"}\n{\"outcome\"");
        let outcomes: Vec<String> =
            tail(&layout, 9).unwrap().iter().map(|l| l["outcome"].as_str().unwrap().to_owned()).collect();
        assert_eq!(outcomes, ["finished", "rework", "o\u{fffd}d", "late"]);
    }
}
