//! `foreman frontier patch`: whether a patch touches only what a contract allows.

use std::path::PathBuf;

use serde::Serialize;

use super::{contracts, problem};
use crate::foreman::desk::{Desk, Verb};
use crate::foreman::exit::{Answer, ExitKind, Problem};
use crate::foreman::printer::Tone;
use crate::frontier::{PatchFlaw, check_patch};

/// Check a patch: its size and the paths it touches
///
/// Ends with 5 when the patch would be rejected.
#[derive(clap::Args)]
#[command(after_help = "Example:\n  foreman frontier patch my.diff --contract ID")]
pub struct Args {
    /// What `git diff --binary` wrote
    patch: PathBuf,

    /// Which contract
    #[arg(long, value_name = "ID")]
    contract: String,

    /// A contracts file to use instead of the one built in
    #[arg(long, value_name = "FILE")]
    contracts: Option<PathBuf>,
}

#[derive(Serialize)]
struct Found {
    contract: String,
    ok: bool,
    flaw: Option<PatchFlaw>,
}

impl Verb for Args {
    fn run(&self, desk: &mut Desk) -> Answer {
        let contracts = contracts(&self.contracts)?;
        let terms = contracts.terms(&self.contract).map_err(problem)?;
        let bytes = std::fs::read(&self.patch)
            .map_err(|error| Problem::io(format!("read {}", self.patch.display()), &error))?;
        let flaw = check_patch(&String::from_utf8_lossy(&bytes), terms.contract).err();
        let found = Found { contract: self.contract.clone(), ok: flaw.is_none(), flaw };
        desk.answer(&found, |found, printer| {
            let line = match &found.flaw {
                None => printer.paint(Tone::Good, "the patch touches only what it may"),
                Some(flaw) => {
                    let (code, about) = words(flaw);
                    format!("{}: {about}", printer.paint(Tone::Bad, &format!("rejected ({code})")))
                }
            };
            printer.line(line)
        })?;
        Ok(if found.ok { ExitKind::Ok } else { ExitKind::PartFailed })
    }
}

/// The runner's code, and what it is about.
fn words(flaw: &PatchFlaw) -> (&'static str, String) {
    match flaw {
        PatchFlaw::PatchTooLarge { bytes, most } => ("patch_too_large", format!("{bytes} bytes, at most {most}")),
        PatchFlaw::UnparseablePatchSurface => ("unparseable_patch_surface", "it names no path".to_owned()),
        PatchFlaw::GeneratedPythonCachePaths { paths } => ("generated_python_cache_paths", paths.join(", ")),
        PatchFlaw::DisallowedPatchPaths { paths } => ("disallowed_patch_paths", paths.join(", ")),
    }
}
