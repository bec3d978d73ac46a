//! What the kernel says of a process's memory, in `/proc`.

use std::fs;
use std::path::Path;

use rustix::process::Pid;

use crate::units::Bytes;

/// A field of the process's status (`VmRSS`, `VmHWM`, `RssAnon`), this process where none is named; `None` when it is gone or
/// the kernel does not say.
pub fn memory_of(process: Option<Pid>, field: &str) -> Option<Bytes> {
    let name = process.map_or_else(|| "self".to_owned(), |pid| pid.as_raw_nonzero().to_string());
    memory_field(&Path::new("/proc").join(name).join("status"), field)
}

/// A line `Name:   123 kB` of a file of the kernel's.
pub fn memory_field(file: &Path, field: &str) -> Option<Bytes> {
    let text = fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    value.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| Bytes(kib * 1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_lives_holds_memory_and_one_that_does_not_says_nothing() {
        assert!(memory_of(None, "VmRSS").unwrap() > Bytes(0));
        assert!(memory_of(None, "VmHWM") >= memory_of(Some(rustix::process::getpid()), "RssAnon"));
        assert_eq!(memory_of(None, "Vm"), None, "a field is named whole");
        assert_eq!(memory_of(Pid::from_raw(i32::MAX), "VmRSS"), None);
    }
}
