//! A little room that is kept for the worst moment: when a disk is full, a part can still be sent back with its error.
//!
//! The file `line/.tmp/.reserve` holds nothing; it is given up when a sidecar finds no room, and made again when there is.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use crate::line::Layout;

/// Enough for an error with a long log tail, its record of attempts, and a line in each log.
const SIZE: usize = 512 * 1024;

/// The room, on the disk of the line.
pub struct Reserve {
    path: PathBuf,
}

impl Reserve {
    pub fn new(layout: &Layout) -> Self {
        Reserve { path: layout.scratch().join(".reserve") }
    }

    /// Makes sure that the room is kept, if there is any.
    pub fn keep(&self) {
        if fs::metadata(&self.path).is_ok_and(|meta| meta.len() == SIZE as u64) {
            return;
        }
        // Not sparse: room that is only promised is none. Half a reserve would take what somebody else needs.
        let written = File::create(&self.path).and_then(|mut file| file.write_all(&vec![0xff; SIZE]));
        if written.is_err() {
            self.give_up();
        }
    }

    /// Frees the room; false when there was none.
    pub fn give_up(&self) -> bool {
        fs::remove_file(&self.path).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_kept_once_and_given_up_once() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::init(root.path()).unwrap();
        let reserve = Reserve::new(&layout);
        assert!(!reserve.give_up());
        reserve.keep();
        reserve.keep();
        assert_eq!(fs::metadata(&reserve.path).unwrap().len(), SIZE as u64);
        fs::write(&reserve.path, "cut short").unwrap();
        reserve.keep();
        assert!(reserve.give_up() && !reserve.give_up());
    }
}
