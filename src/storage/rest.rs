//! What can be made again: weight files that the stages of a finished part left on their way to its artifact.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use crate::line::record;
use crate::units::Bytes;

/// Files that a stage lists as its outputs, by `.stage-checkpoints.json`.
#[derive(Debug, Deserialize)]
struct Checkpoints {
    stages: BTreeMap<String, Checkpoint>,
}

#[derive(Debug, Deserialize)]
struct Checkpoint {
    #[serde(default)]
    outputs: Vec<Output>,
}

#[derive(Debug, Deserialize)]
struct Output {
    path: PathBuf,
    size: u64,
}

/// Files that may be deleted, and what that frees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rest {
    pub files: Vec<PathBuf>,
    pub bytes: Bytes,
}

/// The rest of a work folder whose artifact is `artifact`. Without checkpoints that can be read there is none.
///
/// A file counts when a stage lists it with the size it has, it holds weights (reports and samples are evidence), it
/// is a file and no link, lies in the folder and not in the artifact, and has no second name (the artifact is made of
/// such names: nothing would be freed).
pub fn of(work: &Path, artifact: &Path) -> Rest {
    let mut rest = Rest::default();
    let Ok(read) = record::read_json::<Checkpoints>(&work.join(".stage-checkpoints.json")) else { return rest };
    for output in read.stages.values().flat_map(|stage| &stage.outputs) {
        let plain = output.path.components().all(|part| matches!(part, Component::Normal(_)));
        let weights = output.path.extension().is_some_and(|e| e == "safetensors" || e == "gguf");
        let path = work.join(&output.path);
        let inside = path.canonicalize().is_ok_and(|real| real == path);
        if !plain || !weights || !inside || path.starts_with(artifact) || rest.files.contains(&path) {
            continue;
        }
        let Ok(meta) = fs::symlink_metadata(&path) else { continue };
        if meta.is_file() && meta.nlink() == 1 && meta.len() == output.size {
            rest.bytes = rest.bytes + Bytes(meta.len());
            rest.files.push(path);
        }
    }
    rest
}
