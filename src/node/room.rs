//! What this machine has free at this moment, against what a part takes.

use std::path::Path;

use super::detect;
use super::filesystem::free_bytes;
use crate::units::Bytes;

/// What is free. What could not be asked counts as enough: an unanswered question is no reason to stand still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    pub ram: Bytes,
    /// Of the GPU with the most.
    pub vram: Bytes,
    /// Above the reserve.
    pub disk: Bytes,
}

impl Room {
    /// Looks now. `path` is where parts are built, `reserve` what must stay free there.
    pub fn now(path: &Path, reserve: Bytes) -> Room {
        const PLENTY: Bytes = Bytes(u64::MAX);
        Room {
            ram: detect::free_memory().unwrap_or(PLENTY),
            vram: detect::free_gpu_memory().unwrap_or(PLENTY),
            disk: free_bytes(path).map_or(PLENTY, |free| free.saturating_sub(reserve)),
        }
    }

    /// What is lacking for something that takes this much, in words; `None` when it fits.
    pub fn lacks(&self, ram: Bytes, vram: Bytes, disk: Bytes) -> Option<String> {
        let kinds = [("memory", ram, self.ram), ("GPU memory", vram, self.vram), ("disk", disk, self.disk)];
        let lacking = kinds.into_iter().filter(|(_, need, free)| need > free);
        let words: Vec<String> =
            lacking.map(|(kind, need, free)| format!("{need} of {kind}, {free} are free")).collect();
        (!words.is_empty()).then(|| format!("needs {}", words.join(", and ")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lacking_is_named() {
        let room = Room { ram: Bytes::from_gb(4), vram: Bytes::from_gb(8), disk: Bytes::from_gb(2) };
        assert_eq!(room.lacks(Bytes::from_gb(4), Bytes(0), Bytes::from_gb(2)), None);
        let words = room.lacks(Bytes::from_gb(5), Bytes(0), Bytes::from_gb(3)).unwrap();
        assert_eq!(words, "needs 5.00 GB of memory, 4.00 GB are free, and 3.00 GB of disk, 2.00 GB are free");
        let words = room.lacks(Bytes(0), Bytes::from_gb(9), Bytes(0)).unwrap();
        assert_eq!(words, "needs 9.00 GB of GPU memory, 8.00 GB are free");
    }

    #[test]
    fn this_machine_has_some_of_everything() {
        let room = Room::now(Path::new("."), Bytes(0));
        assert!(room.ram > Bytes(0) && room.disk > Bytes(0), "{room:?}");
        assert_eq!(Room::now(Path::new("."), Bytes(u64::MAX)).disk, Bytes(0));
    }
}
