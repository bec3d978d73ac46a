//! The daemon's report in a file, for machines without a service manager: rotated by size, reopened when somebody else
//! moved it away.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Size at which the file becomes `FILE.1`, `FILE.1` becomes `FILE.2`, …
const ROTATE_AT: u64 = 16_000_000;
/// Older files kept.
const KEEP: u32 = 4;

pub struct LogFile {
    path: PathBuf,
    file: File,
    rotate_at: u64,
}

impl LogFile {
    pub fn open(path: &Path) -> io::Result<LogFile> {
        Ok(LogFile { path: path.to_owned(), file: opened(path)?, rotate_at: ROTATE_AT })
    }

    fn numbered(&self, n: u32) -> PathBuf {
        let mut name = self.path.as_os_str().to_owned();
        name.push(format!(".{n}"));
        PathBuf::from(name)
    }

    /// The file that carries the name now, shorter than the limit.
    fn settle(&mut self) -> io::Result<()> {
        let ours = self.file.metadata()?;
        let is_current = fs::metadata(&self.path).is_ok_and(|m| (m.dev(), m.ino()) == (ours.dev(), ours.ino()));
        if is_current && ours.len() < self.rotate_at {
            return Ok(());
        }
        if is_current {
            for n in (1..KEEP).rev() {
                match fs::rename(self.numbered(n), self.numbered(n + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            fs::rename(&self.path, self.numbered(1))?;
        }
        self.file = opened(&self.path)?;
        Ok(())
    }
}

fn opened(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(path)
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A file that cannot be rotated is written on: a long log is better than none.
        let _ = self.settle();
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_rotates_by_size_and_follows_a_file_that_was_moved_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("factoryd.log");
        let mut log = LogFile { rotate_at: 20, ..LogFile::open(&path).unwrap() };
        for line in 0..14 {
            log.write_all(format!("line {line:02}\n").as_bytes()).unwrap();
        }
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(read("factoryd.log"), "line 12\nline 13\n");
        assert_eq!(read("factoryd.log.1"), "line 09\nline 10\nline 11\n");
        assert_eq!(read("factoryd.log.4"), "line 00\nline 01\nline 02\n");
        fs::rename(&path, dir.path().join("away")).unwrap();
        log.write_all(b"line 14\n").unwrap();
        assert_eq!((read("away"), read("factoryd.log")), ("line 12\nline 13\n".into(), "line 14\n".into()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 6);
    }
}
