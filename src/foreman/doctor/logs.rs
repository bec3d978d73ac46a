//! The logs of the line: torn ends, lines that cannot be read.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};

use super::{Check, Finding, Patient, counted};
use crate::line::{LineLock, follow};

pub struct LogsCheck;

/// What stands in a log of JSON lines.
#[derive(Debug, Default, PartialEq, Eq)]
struct Tally {
    whole: usize,
    broken: usize,
    /// Bytes after the last line's end.
    torn: usize,
}

impl Check for LogsCheck {
    fn name(&self) -> &'static str {
        "logs"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let layout = &patient.layout;
        let mut files: Vec<PathBuf> = follow::chain(&layout.events());
        files.extend(Some(layout.throughput()).filter(|path| path.exists()));
        let mut found = Vec::new();
        let mut lines = 0;
        for path in files {
            let short = patient.short(&path);
            let tally = match tally(&path) {
                Ok(tally) => tally,
                Err(error) => {
                    found.push(Finding::error(format!("{short} cannot be read: {error}")));
                    continue;
                }
            };
            lines += tally.whole;
            if tally.broken > 0 {
                let what = format!("{short}: {} cannot be read", counted(tally.broken, "line"));
                found.push(Finding::note(what).why("a crash tore them; readers skip them"));
            }
            // Somebody may be writing it this very moment.
            if tally.torn > 0 && !LineLock::is_held(layout) {
                let what = format!("{short}: its last line is torn ({})", counted(tally.torn, "byte"));
                found.push(Finding::note(what).why("a crash cut it short; the next writer mends it"));
            }
        }
        if found.is_empty() {
            found.push(Finding::ok(format!("{}, all whole", counted(lines, "line"))));
        }
        found
    }
}

/// Line by line: a log may be large, and so may a line of it.
fn tally(path: &Path) -> std::io::Result<Tally> {
    let mut reader = BufReader::new(File::open(path)?);
    let (mut tally, mut line) = (Tally::default(), Vec::new());
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line)? == 0 {
            return Ok(tally);
        }
        let Some(whole) = line.strip_suffix(b"\n") else {
            tally.torn = line.len();
            return Ok(tally);
        };
        match serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(whole) {
            Ok(_) => tally.whole += 1,
            Err(_) => tally.broken += 1,
        }
    }
}
