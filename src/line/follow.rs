//! Reading the event stream: all at once, since a point, or as it grows.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::events::{Event, KEEP, parse, rotated};
use super::{Layout, LineError};

/// Which events to read. Ends are chosen so that no event is lost: a repeated one is told by its `seq`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Since {
    Start,
    /// At or after this RFC 3339 time: inclusive, because events may share an instant.
    Time(chrono::DateTime<chrono::Utc>),
    /// Greater than this sequence number: exact.
    Seq(u64),
}

impl Since {
    fn admits(&self, event: &Event) -> bool {
        match self {
            Since::Start => true,
            // A line with an unreadable time is shown rather than hidden.
            Since::Time(from) => super::stamp::parse(&event.timestamp).is_none_or(|at| at >= *from),
            Since::Seq(seq) => event.seq > *seq,
        }
    }
}

/// Every event since a point, oldest first, rotated files included. Malformed lines are skipped.
pub fn read(layout: &Layout, since: &Since) -> Result<Vec<Event>, LineError> {
    let mut events = Vec::new();
    for path in chain(&layout.events()) {
        let bytes = fs::read(&path).map_err(LineError::io("read", &path))?;
        events.extend(bytes.split(|b| *b == b'\n').filter_map(parse).filter(|event| since.admits(event)));
    }
    Ok(events)
}

/// Follows the stream like `tail -F`: survives rotation, however many times it happened since the last look.
pub struct Follower {
    path: PathBuf,
    since: Since,
    open: Option<(File, u64)>,
}

impl Follower {
    /// Starts with the oldest event that `since` admits.
    pub fn from(layout: &Layout, since: Since) -> Self {
        Follower { path: layout.events(), since, open: None }
    }

    /// Starts with what is written from now on.
    pub fn from_now(layout: &Layout) -> Self {
        let mut follower = Self::from(layout, Since::Start);
        if let Ok(mut file) = File::open(&follower.path)
            && let (Ok(meta), Ok(_)) = (file.metadata(), file.seek(SeekFrom::End(0)))
        {
            follower.open = Some((file, meta.ino()));
        }
        follower
    }

    /// Everything written since the last call; empty when nothing was. Does not wait.
    pub fn poll(&mut self) -> Result<Vec<Event>, LineError> {
        self.advance().map_err(LineError::io("read", &self.path.clone()))
    }

    fn advance(&mut self) -> io::Result<Vec<Event>> {
        let mut events = Vec::new();
        self.drain(&mut events)?;
        for path in self.newer() {
            // The file that was open may have grown between the read and the rotation.
            self.drain(&mut events)?;
            match File::open(&path) {
                Ok(file) => {
                    let inode = file.metadata()?.ino();
                    self.open = Some((file, inode));
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
                Err(e) => return Err(e),
            }
            self.drain(&mut events)?;
        }
        Ok(events)
    }

    /// Files of the chain that come after the one that is open.
    fn newer(&self) -> Vec<PathBuf> {
        let files = chain(&self.path);
        let Some((_, inode)) = &self.open else { return files };
        let at = files.iter().position(|f| fs::metadata(f).is_ok_and(|m| m.ino() == *inode));
        match at {
            Some(at) => files[at + 1..].to_vec(),
            None => files,
        }
    }

    fn drain(&mut self, events: &mut Vec<Event>) -> io::Result<()> {
        let Some((file, _)) = self.open.as_mut() else { return Ok(()) };
        let mut start = file.stream_position()?;
        // Somebody emptied the file: what is in it now is new.
        if file.metadata()?.len() < start {
            start = file.seek(SeekFrom::Start(0))?;
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        // Only whole lines count as read: a torn one may be cut off and replaced by the next writer.
        let whole = bytes.iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
        file.seek(SeekFrom::Start(start + whole as u64))?;
        let lines = bytes[..whole].split(|b| *b == b'\n').filter_map(parse);
        events.extend(lines.filter(|event| self.since.admits(event)));
        Ok(())
    }
}

/// The files of the stream that exist, oldest first.
pub(crate) fn chain(path: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = (1..=KEEP).rev().map(|n| rotated(path, n)).collect();
    files.push(path.to_owned());
    files.retain(|file| file.exists());
    files
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::json;

    use super::*;
    use crate::line::EventLog;

    fn seqs(events: &[Event]) -> Vec<u64> {
        events.iter().map(|e| e.seq).collect()
    }

    #[test]
    fn a_follower_sees_every_event_once_through_rotations_and_torn_lines() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::init(root.path()).unwrap();
        let log = EventLog::new(&layout, "here").rotating_at(400);
        let mut follower = Follower::from(&layout, Since::Start);
        let mut seen = Vec::new();
        for i in 0..12 {
            log.append("line/test", Some("x.alloy.json"), json!({"i": i})).unwrap();
            if i == 1 || i == 8 {
                seen.extend(follower.poll().unwrap());
            }
        }
        // A second writer died in mid-line; the next one mends the stream.
        let mut torn = fs::OpenOptions::new().append(true).open(layout.events()).unwrap();
        torn.write_all(b"{\"kind\":\"line/te").unwrap();
        seen.extend(follower.poll().unwrap());
        EventLog::new(&layout, "there").append("line/test", None, json!({"i": 12})).unwrap();
        seen.extend(follower.poll().unwrap());
        assert_eq!(seqs(&seen), (1..=13).collect::<Vec<_>>());
        assert!(rotated(&layout.events(), 1).exists());
    }

    #[test]
    fn damage_costs_the_damaged_lines_and_nothing_else() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::init(root.path()).unwrap();
        let log = EventLog::new(&layout, "here");
        let mut follower = Follower::from(&layout, Since::Start);
        let big = "x".repeat(3_000_000);
        log.append("line/test", None, json!({"big": big})).unwrap();
        let append = |bytes: &[u8]| {
            let mut file = fs::OpenOptions::new().append(true).open(layout.events()).unwrap();
            file.write_all(bytes).unwrap();
        };
        // A torn line in the middle, bytes that are no text, and zeros where a power cut took the data.
        append(b"{\"kind\":\"line/te\n\xff\xfe{\"kind\":\"x\"}\n{\"kind\":\"\xff\"}\n");
        append(&vec![0; 600_000]);
        assert_eq!(seqs(&follower.poll().unwrap()), [1]);
        let another = EventLog::new(&layout, "there");
        assert_eq!(another.append("line/test", None, json!({})).unwrap().seq, 2);
        assert_eq!(seqs(&follower.poll().unwrap()), [2]);
        // Zeros that another writer did not cut off stand before the next event.
        append(&[0; 5000]);
        append(b"{\"kind\":\"line/test\",\"seq\":3}\n");
        assert_eq!(seqs(&follower.poll().unwrap()), [3]);
        assert_eq!(seqs(&read(&layout, &Since::Start).unwrap()), [1, 2, 3]);
        assert_eq!(crate::line::events::last(&layout).unwrap().seq, 3);
        // An operator emptied the stream: it starts again, and the follower with it.
        fs::write(layout.events(), "").unwrap();
        another.append("line/test", None, json!({})).unwrap();
        assert_eq!(follower.poll().unwrap().len(), 1);
    }

    #[test]
    fn since_is_inclusive_in_time_and_exact_in_sequence() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::init(root.path()).unwrap();
        let log = EventLog::new(&layout, "here");
        let events: Vec<Event> = (0..3).map(|_| log.append("line/test", None, json!({})).unwrap()).collect();
        let from = crate::line::stamp::parse(&events[0].timestamp).unwrap();
        assert_eq!(seqs(&read(&layout, &Since::Time(from)).unwrap()), [1, 2, 3]);
        assert_eq!(seqs(&read(&layout, &Since::Seq(2)).unwrap()), [3]);
        fs::write(layout.events(), "not json\n{\"half\":").unwrap();
        assert_eq!(read(&layout, &Since::Start).unwrap(), []);
    }
}
