//! Taking turns at a device: several workers may share a GPU, but one pass at a time fills its memory. What they do between
//! passes (encoding, writing, packing) goes on meanwhile.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use fs2::FileExt;

use super::EngineError;
use super::pass::PassProgress;

/// How often somebody who waits looks again.
const LOOK: Duration = Duration::from_millis(50);

/// The device, until dropped: a held lock, so that it is free again however the holder ends.
#[derive(Debug)]
pub(super) struct Turn {
    _file: File,
}

impl Turn {
    /// Waits for the lock at `path`; `waiting` is told now and then, so that nobody takes it for hung.
    ///
    /// # Errors
    /// There can be no such lock.
    pub fn take(path: &Path, waiting: &dyn Fn(PassProgress)) -> Result<Turn, EngineError> {
        let failed = |source| EngineError::Spill { what: "take a turn at the device", path: path.to_owned(), source };
        let file = File::options().read(true).write(true).create(true).truncate(false).open(path).map_err(failed)?;
        loop {
            match file.try_lock_exclusive() {
                Ok(()) => return Ok(Turn { _file: file }),
                Err(e) if e.raw_os_error() == fs2::lock_contended_error().raw_os_error() => {
                    waiting(PassProgress { blocks: 0, of_blocks: 0, fraction: 0.0, tokens_per_s: 0.0 });
                    std::thread::sleep(LOOK);
                }
                Err(e) => return Err(failed(e)),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn the_second_waits_and_tells_so_until_the_first_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(".cuda0.lock");
        let first = Turn::take(&path, &|_| panic!("nobody holds it")).unwrap();
        let told = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            let second = scope.spawn(|| {
                let count = |_| {
                    told.fetch_add(1, Ordering::SeqCst);
                };
                Turn::take(&path, &count).map(drop)
            });
            while told.load(Ordering::SeqCst) < 2 {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(!second.is_finished());
            drop(first);
            second.join().unwrap().unwrap();
        });
        assert!(Turn::take(Path::new("/no/such/folder/lock"), &|_| ()).is_err());
    }
}
