//! Files of JSON lines as crashes leave them: a torn last line, blocks of zeros where a power cut took the data, lines
//! of any length.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};

/// What is read from the end at first; more when that holds no answer.
const WINDOW: u64 = 262_144;

/// A line without the zeros that a power cut left before it.
pub(crate) fn trimmed(line: &[u8]) -> &[u8] {
    let start = line.iter().position(|byte| *byte != 0).unwrap_or(line.len());
    &line[start..]
}

/// Length of the file up to its last whole line.
pub(crate) fn whole_length(file: &mut File) -> io::Result<u64> {
    let found = from_end(file, |end, start| {
        let at = end.iter().rposition(|byte| *byte == b'\n')?;
        Some(start + at as u64 + 1)
    })?;
    Ok(found.unwrap_or(0))
}

/// The last line that `read` can make something of.
pub(crate) fn last<T>(file: &mut File, read: impl Fn(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
    from_end(file, |end, start| {
        // The first line is cut off by the window, unless it is the first of the file.
        let skipped = match start {
            0 => 0,
            _ => end.iter().position(|byte| *byte == b'\n').map_or(end.len(), |at| at + 1),
        };
        end[skipped..].split(|byte| *byte == b'\n').rev().find_map(|line| read(trimmed(line)))
    })
}

/// Asks `answer` about longer and longer ends of the file, each with the place where it starts.
fn from_end<T>(file: &mut File, answer: impl Fn(&[u8], u64) -> Option<T>) -> io::Result<Option<T>> {
    let len = file.metadata()?.len();
    let mut window = WINDOW;
    loop {
        let start = len.saturating_sub(window);
        file.seek(SeekFrom::Start(start))?;
        let mut end = Vec::new();
        file.by_ref().take(len - start).read_to_end(&mut end)?;
        match answer(&end, start) {
            None if start > 0 => window = window.saturating_mul(4),
            answered => return Ok(answered),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(parts: &[&[u8]]) -> File {
        let mut file = tempfile::tempfile().unwrap();
        parts.iter().for_each(|part| file.write_all(part).unwrap());
        file
    }

    fn word(line: &[u8]) -> Option<String> {
        line.starts_with(b"w").then(|| String::from_utf8_lossy(line).into_owned())
    }

    #[test]
    fn the_end_is_found_behind_zeros_long_lines_and_torn_ones() {
        let long = vec![b'x'; 3_000_000];
        let mut damaged = file(&[b"w1\n", b"w2\n", &long, b"\n", &vec![0; 700_000]]);
        assert_eq!(whole_length(&mut damaged).unwrap(), 3_000_007);
        assert_eq!(last(&mut damaged, word).unwrap().as_deref(), Some("w2"));
        let mut mended = file(&[b"w1\n", &vec![0; 700_000], b"w2\n"]);
        assert_eq!(last(&mut mended, word).unwrap().as_deref(), Some("w2"));
        let mut torn = file(&[b"no line's end"]);
        assert_eq!((whole_length(&mut torn).unwrap(), last(&mut torn, word).unwrap()), (0, None));
        let mut long_word = file(&[b"a\n", &[b"w".as_slice(), &long].concat(), b"\n"]);
        assert_eq!(last(&mut long_word, word).unwrap().unwrap().len(), 3_000_001);
        assert_eq!(whole_length(&mut file(&[])).unwrap(), 0);
    }
}
