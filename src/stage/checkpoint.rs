//! Checkpoints: which stages of this part are done, from which inputs, and what they left.
//!
//! A stage is a pure function of hashed inputs, so a finished one is skipped when its inputs hash as they did and
//! every file it wrote still hashes as it did. The file is replaced atomically after every stage.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Product;
use super::durable::replace_file;
use crate::fault::{Fault, Outcome};
use crate::model::hash_file;
use crate::units::Sha;

/// Name of the file in the work folder.
pub const CHECKPOINT_FILE: &str = ".stage-checkpoints.json";
const SCHEMA_VERSION: u32 = 1;

/// One finished stage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoint {
    pub stage: String,
    pub completed_at: String,
    pub elapsed_s: f64,
    /// What the result is a function of, by name.
    pub input_hashes: BTreeMap<String, String>,
    /// The first file or directory written, for readers that expect one path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_path: Option<PathBuf>,
    /// One hash over all files written.
    pub output_hash: String,
    pub outputs: Vec<OutputFile>,
    pub product: Product,
}

/// A file a stage wrote, relative to the work folder.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OutputFile {
    pub path: PathBuf,
    pub sha256: Sha,
    pub size: u64,
}

/// All checkpoints of a part, by stage key (`00-source-config`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Checkpoints {
    pub schema_version: u32,
    pub stages: BTreeMap<String, Checkpoint>,
}

impl Checkpoints {
    /// Reads the file of a work folder. A missing, unreadable or foreign file is no checkpoint: the work is done again.
    pub fn read(work: &Path) -> Self {
        let read = fs::read(work.join(CHECKPOINT_FILE)).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        read.filter(|found: &Checkpoints| found.schema_version == SCHEMA_VERSION)
            .unwrap_or(Checkpoints { schema_version: SCHEMA_VERSION, stages: BTreeMap::new() })
    }

    /// Replaces the file, durably.
    pub fn write(&self, work: &Path) -> Outcome<()> {
        let text = serde_json::to_vec_pretty(self)
            .map_err(|e| Fault::internal("checkpoints cannot be written as JSON").caused_by(e))?;
        replace_file(&work.join(CHECKPOINT_FILE), &text)
    }

    /// What is known of stage `key`: its product counts when it was made from these inputs and all its files are as it left
    /// them.
    pub fn verified(&self, work: &Path, key: &str, inputs: &BTreeMap<String, String>) -> Found<'_> {
        let Some(found) = self.stages.get(key) else { return Found::Nothing };
        let differ = |name: &&String| found.input_hashes.get(*name) != inputs.get(*name);
        let names: BTreeSet<&String> = found.input_hashes.keys().chain(inputs.keys()).filter(differ).collect();
        if !names.is_empty() {
            let words: Vec<&str> = names.into_iter().map(|name| in_words(name)).collect();
            return Found::Stale(format!("{} differ from those it was made with", words.join(", ")));
        }
        let changed = |file: &&OutputFile| {
            let path = work.join(&file.path);
            let is_intact = fs::metadata(&path).is_ok_and(|meta| meta.len() == file.size)
                && hash_file(&path).is_ok_and(|(sha, _)| sha == file.sha256);
            !is_intact
        };
        match found.outputs.par_iter().find_first(changed) {
            Some(file) => Found::Stale(format!("{} is not as it was written", file.path.display())),
            None => Found::Done(found),
        }
    }

    /// Forgets stage `key` and its parts.
    pub fn forget_parts(&mut self, key: &str) {
        self.stages.retain(|name, _| !name.strip_prefix(key).is_some_and(|rest| rest.starts_with('/')));
    }
}

/// What the checkpoints say about a stage.
#[derive(Debug)]
pub enum Found<'a> {
    /// It is done, and everything it wrote is there.
    Done(&'a Checkpoint),
    /// It was done, but that is of no use; the reason.
    Stale(String),
    Nothing,
}

/// An input of a stage as a person would call it.
fn in_words(input: &str) -> &str {
    match input {
        "settings" => "the stage's settings",
        "before" => "the source or an earlier stage",
        "device" => "the device",
        "tool" => "the builds of factoryline",
        other => other,
    }
}

/// Hashes the files a stage wrote, in order of their paths.
pub fn hash_outputs(work: &Path, product: &Product) -> Outcome<Vec<OutputFile>> {
    let mut outputs: Vec<OutputFile> = product
        .files
        .par_iter()
        .map(|path| {
            let full = work.join(path);
            let size =
                fs::metadata(&full).map_err(|e| Fault::infra(format!("read {}", full.display())).caused_by(e))?.len();
            let sha256 = match product.known_hashes.get(path) {
                Some(known) => *known,
                None => hash_file(&full)?.0,
            };
            Ok(OutputFile { path: path.clone(), sha256, size })
        })
        .collect::<Outcome<_>>()?;
    outputs.sort_by(|a, b| a.path.cmp(&b.path));
    Ok(outputs)
}

/// One hash over paths, sizes and hashes of `outputs`.
pub fn hash_of_outputs(outputs: &[OutputFile]) -> String {
    let mut text = String::new();
    for file in outputs {
        text.push_str(&format!("{}\0{}\0{}\n", file.path.display(), file.size, file.sha256));
    }
    Sha::of(text.as_bytes()).tagged()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn checkpoint(work: &Path) -> (Checkpoints, BTreeMap<String, String>) {
        fs::write(work.join("a.bin"), b"weights").unwrap();
        let inputs = BTreeMap::from([("before".to_owned(), "sha256:1".to_owned())]);
        let product = Product { files: vec!["a.bin".into()], ..Product::default() };
        let outputs = hash_outputs(work, &product).unwrap();
        let done = Checkpoint {
            stage: "quant".into(),
            completed_at: "2026-01-01T00:00:00.000Z".into(),
            elapsed_s: 1.0,
            input_hashes: inputs.clone(),
            output_path: Some("a.bin".into()),
            output_hash: hash_of_outputs(&outputs),
            outputs,
            product,
        };
        let mut all = Checkpoints::read(work);
        all.stages.insert("00-quant".into(), done);
        (all, inputs)
    }

    #[test]
    fn a_stage_is_skipped_only_when_inputs_and_files_are_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let work = dir.path();
        let (all, inputs) = checkpoint(work);
        all.write(work).unwrap();
        let read = Checkpoints::read(work);
        assert_eq!(read, all);
        let why = |key: &str, inputs: &BTreeMap<String, String>| match read.verified(work, key, inputs) {
            Found::Done(_) => "done".to_owned(),
            Found::Stale(why) => why,
            Found::Nothing => "nothing".to_owned(),
        };
        assert_eq!(why("00-quant", &inputs), "done");
        assert_eq!(why("01-quant", &inputs), "nothing");
        let other = BTreeMap::from([("before".to_owned(), "sha256:2".to_owned())]);
        assert_eq!(why("00-quant", &other), "the source or an earlier stage differ from those it was made with");
        let other = inputs.clone().into_iter().chain([("tool".to_owned(), "2".to_owned())]).collect();
        assert_eq!(why("00-quant", &other), "the builds of factoryline differ from those it was made with");
        fs::write(work.join("a.bin"), b"weightz").unwrap();
        assert_eq!(why("00-quant", &inputs), "a.bin is not as it was written");
        fs::remove_file(work.join("a.bin")).unwrap();
        assert_eq!(why("00-quant", &inputs), "a.bin is not as it was written");
    }

    #[test]
    fn a_torn_file_counts_as_none() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(CHECKPOINT_FILE), b"{\"schemaVersion\":1,\"stag").unwrap();
        assert!(Checkpoints::read(dir.path()).stages.is_empty());
    }
}
