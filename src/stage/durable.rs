//! Small files of a work folder, replaced so that a crash leaves the old or the new one, never a torn one.

use std::ffi::OsString;
use std::path::Path;

use crate::fault::{Fault, Outcome};
use crate::line::disk::{Disk, RealDisk};

/// Writes `bytes` to a temporary file beside `path`, syncs it, renames it over `path` and syncs the directory.
pub fn replace_file(path: &Path, bytes: &[u8]) -> Outcome<()> {
    let failed = |e: std::io::Error| Fault::io(format!("write {}", path.display()), e);
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(name);
    let _ = std::fs::remove_file(&temporary);
    RealDisk.write_new(&temporary, bytes).map_err(failed)?;
    RealDisk.rename_over(&temporary, path).map_err(failed)?;
    path.parent().map_or(Ok(()), |dir| RealDisk.sync_dir(dir).map_err(failed))
}
