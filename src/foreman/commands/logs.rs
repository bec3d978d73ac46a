//! `foreman logs`: what a worker wrote.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use serde_json::json;

use crate::foreman::board::{logs_of, one_part};
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::line::{Layout, PartEntry, Station, shelf};

/// Show what the worker of a part wrote to its log
///
/// With -f it goes on through new attempts and ends when the part leaves intake and assembly.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman logs my-part -n 40\n  foreman logs -f")]
pub struct Args {
    /// Name of the part [default: the one being built, else the one that ended last]
    name: Option<String>,

    /// Go on as lines are added
    #[arg(short, long)]
    follow: bool,

    /// How many lines from the end
    #[arg(short = 'n', long, default_value_t = 100)]
    lines: usize,

    /// The log of an earlier attempt
    #[arg(long, value_name = "N", conflicts_with = "follow")]
    attempt: Option<u32>,
}

#[derive(Serialize)]
struct Log {
    part: String,
    path: PathBuf,
    lines: Vec<String>,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let layout = desk.line()?;
        let part = match &self.name {
            Some(name) => one_part(&layout, name)?,
            None => latest(&layout)?,
        };
        let path = self.path(&layout, &part)?;
        let mut reader = LogReader::new(path.clone());
        let lines = reader.poll()?;
        let lines = lines[lines.len().saturating_sub(self.lines)..].to_vec();
        if !self.follow {
            let part = part.name.file_name();
            return desk.answer(&Log { part, path, lines }, |log, printer| {
                if log.lines.is_empty() {
                    printer.note(format!("{} is empty: its worker had nothing to say", log.path.display()));
                }
                log.lines.iter().try_for_each(|line| printer.line(line))
            });
        }
        for line in &lines {
            show(line, desk)?;
        }
        self.follow(&layout, &part, reader, desk)
    }
}

impl Args {
    fn path(&self, layout: &Layout, part: &PartEntry) -> Result<PathBuf, Problem> {
        let work = layout.work(&part.name);
        let logs = logs_of(&work);
        let found = match self.attempt {
            Some(wanted) => {
                let current = crate::line::Attempt::read(&work)?.map(|attempt| attempt.attempt);
                logs.iter().find(|log| log.attempt == Some(wanted) || log.attempt.is_none() && current == Some(wanted))
            }
            None => logs.last(),
        };
        match found {
            Some(log) => Ok(log.path.clone()),
            // It may be about to start: the log is followed from its first line.
            None if self.follow => Ok(work.join("worker.log")),
            None => Err(Problem::not_found(format!("no worker wrote a log for {} yet", part.name))
                .hinted("foreman logs -f waits for one")),
        }
    }

    fn follow(&self, layout: &Layout, part: &PartEntry, mut reader: LogReader, desk: &mut Desk) -> Answer {
        let base = part.name.base();
        loop {
            desk.printer.flush()?;
            // The order matters: what is written before the part leaves is read after it left.
            let open = shelf::find(layout, base)?
                .iter()
                .any(|part| part.name.base() == base && matches!(part.station, Station::Intake | Station::Assembly));
            for line in reader.poll()? {
                show(&line, desk)?;
            }
            if !open {
                return Ok(ExitKind::Ok);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

fn show(line: &str, desk: &mut Desk) -> Result<(), Problem> {
    match desk.printer.is_json() {
        true => desk.printer.object(&json!({ "line": line })),
        false => desk.printer.line(line),
    }
}

/// The part being built, else the one that left assembly last.
fn latest(layout: &Layout) -> Result<PartEntry, Problem> {
    if let Some(part) = shelf::list(layout, Station::Assembly)?.into_iter().next() {
        return Ok(part);
    }
    let mut ended = shelf::list(layout, Station::Finished)?;
    ended.extend(shelf::list(layout, Station::Rework)?);
    let last = ended.into_iter().max_by_key(|part| part.arrived);
    last.ok_or_else(|| Problem::new(ExitKind::NothingMatched, "no part was built on this line yet"))
}

/// Reads a log as it grows, like `tail -F`: a new attempt's file is read from its start.
struct LogReader {
    path: PathBuf,
    open: Option<(File, u64)>,
    pending: Vec<u8>,
}

impl LogReader {
    fn new(path: PathBuf) -> Self {
        LogReader { path, open: None, pending: Vec::new() }
    }

    /// Whole lines written since the last call.
    fn poll(&mut self) -> Result<Vec<String>, Problem> {
        let path = self.path.clone();
        self.read().map_err(|error| Problem::io(format!("read {}", path.display()), &error))
    }

    fn read(&mut self) -> std::io::Result<Vec<String>> {
        let mut lines = Vec::new();
        self.drain(&mut lines)?;
        let current = inode(&self.path);
        if current.is_some() && current != self.open.as_ref().map(|(_, inode)| *inode) {
            // What an ended attempt wrote without a line's end is a line all the same.
            if !self.pending.is_empty() {
                lines.push(String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned());
            }
            let file = File::open(&self.path)?;
            let inode = file.metadata()?.ino();
            self.open = Some((file, inode));
            self.drain(&mut lines)?;
        }
        Ok(lines)
    }

    fn drain(&mut self, lines: &mut Vec<String>) -> std::io::Result<()> {
        let Some((file, _)) = self.open.as_mut() else { return Ok(()) };
        // The supervisor cut it down to its end, and says so in its first line.
        if file.metadata()?.len() < file.stream_position()? {
            file.seek(SeekFrom::Start(0))?;
        }
        file.read_to_end(&mut self.pending)?;
        let Some(end) = self.pending.iter().rposition(|byte| *byte == b'\n') else { return Ok(()) };
        let rest = self.pending.split_off(end + 1);
        let whole = std::mem::replace(&mut self.pending, rest);
        let text = |line: &[u8]| String::from_utf8_lossy(line).into_owned();
        lines.extend(whole[..end].split(|byte| *byte == b'\n').map(text));
        Ok(())
    }
}

fn inode(path: &Path) -> Option<u64> {
    std::fs::metadata(path).ok().map(|meta| meta.ino())
}

#[cfg(test)]
mod tests {
    use std::fs::OpenOptions;
    use std::io::Write;

    use super::*;

    #[test]
    fn a_reader_goes_on_over_damage_cuts_and_new_attempts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("worker.log");
        let append = |bytes: &[u8]| {
            let mut file = OpenOptions::new().append(true).create(true).open(&path).unwrap();
            file.write_all(bytes).unwrap();
        };
        let mut reader = LogReader::new(path.clone());
        append(b"one\ntw");
        assert_eq!(reader.poll().unwrap(), ["one"]);
        append(b"o\n\xff\0\n");
        assert_eq!(reader.poll().unwrap(), ["two", "\u{fffd}\0"]);
        let long = "x".repeat(3_000_000);
        append(format!("{long}\n\nafter\n").as_bytes());
        assert_eq!(reader.poll().unwrap(), [long.as_str(), "", "after"]);
        // The supervisor cut the log down.
        std::fs::write(&path, "").unwrap();
        append(b"--- cut ---\nlast\n");
        assert_eq!(reader.poll().unwrap(), ["--- cut ---", "last"]);
        append(b"no end");
        std::fs::rename(&path, dir.path().join("worker.1.log")).unwrap();
        append(b"anew\n");
        assert_eq!(reader.poll().unwrap(), ["no end", "anew"]);
        assert!(reader.poll().unwrap().is_empty());
    }
}
