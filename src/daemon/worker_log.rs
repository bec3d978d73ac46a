//! A worker's log that cannot fill the disk.
//!
//! The worker holds the file as its standard error, opened for appending: cutting it in place is safe, because every
//! later write goes to the new end. What is lost is what the worker writes between two system calls of ours.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use crate::units::Bytes;

/// The end of the log that is kept when it is cut: what a person looks for first.
const KEPT: u64 = 64 * 1024;

pub struct WorkerLog {
    file: File,
    most: Bytes,
}

impl WorkerLog {
    /// Opens the log for appending. It is cut by [`WorkerLog::keep_within`] when it holds more than `most`.
    pub fn open(path: &Path, most: Bytes) -> io::Result<WorkerLog> {
        let file = OpenOptions::new().create(true).append(true).read(true).open(path)?;
        Ok(WorkerLog { file, most })
    }

    /// Another handle of the open file: for the worker, or for what it says on its standard output.
    pub fn handle(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// Cuts a log that has grown too long down to its end, and says so in it. A log that cannot be cut is no reason to
    /// disturb the work: the next look tries again.
    pub fn keep_within(&self) {
        let _ = self.cut();
    }

    fn cut(&self) -> io::Result<()> {
        let len = self.file.metadata()?.len();
        if len <= self.most.0 {
            return Ok(());
        }
        let mut file = &self.file;
        let from = len.saturating_sub(KEPT.min(self.most.0 / 2));
        file.seek(SeekFrom::Start(from))?;
        let mut end = Vec::new();
        file.take(KEPT).read_to_end(&mut end)?;
        // From the first whole line on.
        let whole = end.iter().position(|byte| *byte == b'\n').map_or(0, |at| at + 1);
        let gone = from + whole as u64;
        self.file.set_len(0)?;
        let note = format!("--- the supervisor removed {} here: forge.worker_log_mb ---\n", Bytes(gone));
        file.write_all(&[note.as_bytes(), &end[whole..]].concat())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_that_grows_is_cut_to_its_end_and_its_writer_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("worker.log");
        let log = WorkerLog::open(&path, Bytes(1000)).unwrap();
        let mut worker = log.handle().unwrap();
        for line in 0..20 {
            writeln!(worker, "line {line}").unwrap();
        }
        log.keep_within();
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 20);
        for line in 20..200 {
            writeln!(worker, "line {line}").unwrap();
        }
        log.keep_within();
        writeln!(worker, "line 200").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "--- the supervisor removed 1.2 kB here: forge.worker_log_mb ---");
        assert_eq!(lines.last(), Some(&"line 200"));
        let first: u32 = lines[1].strip_prefix("line ").unwrap().parse().unwrap();
        let kept: Vec<String> = (first..=200).map(|line| format!("line {line}")).collect();
        assert_eq!(lines[1..], kept);
        assert!(text.len() < 700, "{}", text.len());
    }

    #[test]
    fn one_endless_line_is_cut_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("worker.log");
        let log = WorkerLog::open(&path, Bytes(1000)).unwrap();
        log.handle().unwrap().write_all(&[b'x'; 5000]).unwrap();
        log.keep_within();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().nth(1).map(str::len), Some(500));
    }
}
