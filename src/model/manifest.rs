//! The manifest of a model directory: every file with its hash, and one hash for the model.

use std::path::{Component, Path, PathBuf};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::{FileHash, ModelError, compose_model_hash, hash_file, hash_files, output};
use crate::recipe::json::{Node, Style, render};

/// Name of the manifest inside the directory it describes.
pub const MANIFEST_FILE: &str = "manifest.json";

const SCHEMA: &str = "factoryline.manifest.v1";

/// Which files belong to a model, and what they hash to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema: String,
    /// `sha256:<hex>` over the weight files (safetensors and GGUF); absent when there are none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model_hash: Option<String>,
    /// Sorted by name; names are relative to the directory.
    pub file_hashes: Vec<FileHash>,
}

impl Manifest {
    /// A manifest from hashes that are already known.
    pub fn of(mut files: Vec<FileHash>) -> Manifest {
        files.sort_by(|a, b| a.filename.cmp(&b.filename));
        let is_weight = |name: &str| name.ends_with(".safetensors") || name.ends_with(".gguf");
        let weights: Vec<FileHash> = files.iter().filter(|file| is_weight(&file.filename)).cloned().collect();
        let model_hash = compose_model_hash(&weights).ok().map(|sha| sha.tagged());
        Manifest { schema: SCHEMA.to_owned(), model_hash, file_hashes: files }
    }

    /// Hashes files below `directory`.
    pub fn hash(directory: &Path, files: &[PathBuf]) -> Result<Manifest, ModelError> {
        Ok(Manifest::of(hash_files(directory, files)?))
    }

    /// Writes `manifest.json` durably.
    pub fn write(&self, directory: &Path) -> Result<FileHash, ModelError> {
        let path = directory.join(MANIFEST_FILE);
        let value = serde_json::to_value(self).map_err(|error| ModelError::misuse(&path, error.to_string()))?;
        output::write_file(&path, (render(&Node::from_value(&value), Style::PYTHON) + "\n").as_bytes())
    }

    /// Reads `manifest.json`.
    pub fn read(directory: &Path) -> Result<Manifest, ModelError> {
        let path = directory.join(MANIFEST_FILE);
        let text = super::limits::read_index(&path)?;
        let manifest: Manifest = serde_json::from_slice(&text)
            .map_err(|error| ModelError::broken(&path, format!("not a manifest: {error}")))?;
        if manifest.schema != SCHEMA {
            let cause = format!("its schema is {:?}", manifest.schema);
            return Err(ModelError::unsupported(&path, cause, format!("this build reads {SCHEMA}")));
        }
        Ok(manifest)
    }

    /// Hashes every file again. [`ModelError::Differs`] lists each difference with both hashes.
    pub fn verify(&self, directory: &Path) -> Result<(), ModelError> {
        let mut findings: Vec<String> =
            self.file_hashes.par_iter().filter_map(|file| difference(directory, file)).collect();
        let again = Manifest::of(self.file_hashes.clone()).model_hash;
        if again != self.model_hash {
            let text = |hash: &Option<String>| hash.clone().unwrap_or_else(|| "none".to_owned());
            let (ours, theirs) = (text(&again), text(&self.model_hash));
            findings.push(format!("the model hash is {theirs}, but its files give {ours}"));
        }
        if findings.is_empty() {
            return Ok(());
        }
        Err(ModelError::Differs { path: directory.join(MANIFEST_FILE), findings })
    }
}

fn difference(directory: &Path, file: &FileHash) -> Option<String> {
    let name = &file.filename;
    if !Path::new(name).components().all(|part| matches!(part, Component::Normal(_))) {
        return Some(format!("{name} leaves the directory"));
    }
    match hash_file(&directory.join(name)) {
        Ok((sha256, _)) if sha256 == file.sha256 => None,
        Ok((sha256, size)) => Some(format!(
            "{name} has {size} bytes and SHA-256 {sha256}, the manifest says {} and {}",
            file.size, file.sha256
        )),
        Err(ModelError::Io { source, .. }) => Some(format!("{name} cannot be read ({source})")),
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_file_is_named_with_both_hashes() {
        let dir = tempfile::TempDir::new().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), "abc").unwrap();
        std::fs::write(dir.path().join("config.json"), "{}").unwrap();
        let files = ["model.safetensors", "config.json"].map(|name| dir.path().join(name));
        let manifest = Manifest::hash(dir.path(), &files).unwrap();
        manifest.write(dir.path()).unwrap();
        let read = Manifest::read(dir.path()).unwrap();
        assert_eq!(read, manifest);
        read.verify(dir.path()).unwrap();
        std::fs::write(dir.path().join("model.safetensors"), "abd").unwrap();
        std::fs::remove_file(dir.path().join("config.json")).unwrap();
        let text = read.verify(dir.path()).unwrap_err().to_string().replace(&dir.path().display().to_string(), "DIR");
        insta::assert_snapshot!(text, @"DIR/manifest.json: config.json cannot be read (No such file or directory (os error 2)); model.safetensors has 3 bytes and SHA-256 a52d159f262b2c6ddb724a61840befc36eb30c88877a4030b65cbe86298449c9, the manifest says 3 and ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }

    #[test]
    fn only_weights_make_the_model_hash() {
        let file = |name: &str, hex: &str| FileHash { filename: name.into(), sha256: hex.parse().unwrap(), size: 1 };
        let weights = "b0103eceb715ea1bd27bea2cafbd1b201f8a24b5c81d3228c9555220abd4d756";
        let manifest = Manifest::of(vec![file("model.safetensors", weights), file("config.json", &"0".repeat(64))]);
        let expected = "sha256:3f1fd0b9b5b70d7869fd9a48162641f7652c693cd01d5bc2b1781321e5786c64";
        assert_eq!(manifest.model_hash.as_deref(), Some(expected));
    }
}
