//! Which files make up a safetensors model: one file, or what an index lists.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::{INDEX_FILE, SINGLE_FILE};
use crate::model::ModelError;

/// The shards of a model in reading order, and which tensor each must hold (for an index).
pub(super) struct Shards {
    pub files: Vec<PathBuf>,
    /// Tensor name → position in `files`. `None` when a single file needs no index.
    pub weight_map: Option<BTreeMap<String, usize>>,
    /// The index, for messages.
    pub index: PathBuf,
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Finds the files behind a path: a `.safetensors` file, an `.index.json`, or a directory.
pub(super) fn locate(path: &Path) -> Result<Shards, ModelError> {
    let metadata = std::fs::metadata(path).map_err(ModelError::io("open", path))?;
    if metadata.is_file() {
        return if path.to_string_lossy().ends_with(".index.json") { read_index(path) } else { Ok(single(path)) };
    }
    let (index, file) = (path.join(INDEX_FILE), path.join(SINGLE_FILE));
    match (index.is_file(), file.is_file()) {
        (true, false) => read_index(&index),
        (false, true) => Ok(single(&file)),
        (true, true) => {
            let shards = read_index(&index)?;
            if shards.files == [file] {
                return Ok(shards);
            }
            Err(ModelError::broken(path, format!("holds both {SINGLE_FILE} and an index of other files"))
                .with_hint("two models share the directory: remove the one that is not meant"))
        }
        (false, false) => only_file(path),
    }
}

fn single(path: &Path) -> Shards {
    Shards { files: vec![path.to_owned()], weight_map: None, index: path.to_owned() }
}

/// A directory whose only safetensors file has another name.
fn only_file(directory: &Path) -> Result<Shards, ModelError> {
    let mut found = safetensors_files(directory)?;
    match found.len() {
        1 => Ok(single(&found.remove(0))),
        0 => Err(ModelError::broken(directory, format!("holds no {SINGLE_FILE} and no {INDEX_FILE}"))
            .with_hint("name a directory with a model in safetensors format")),
        n => Err(ModelError::broken(directory, format!("holds {n} safetensors files but no {INDEX_FILE}"))
            .with_hint("the index is missing: copy or download it, or name one file")),
    }
}

fn safetensors_files(directory: &Path) -> Result<Vec<PathBuf>, ModelError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(ModelError::io("list", directory))? {
        let path = entry.map_err(ModelError::io("list", directory))?.path();
        if path.extension().is_some_and(|e| e == "safetensors") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn read_index(index: &Path) -> Result<Shards, ModelError> {
    let text = std::fs::read(index).map_err(ModelError::io("read", index))?;
    let parsed: Index = serde_json::from_slice(&text)
        .map_err(|e| ModelError::broken(index, format!("not a safetensors index: {e}")))?;
    let directory = index.parent().unwrap_or(Path::new("."));
    let mut names: Vec<&String> = parsed.weight_map.values().collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        return Err(ModelError::broken(index, "lists no tensor"));
    }
    let mut files = Vec::with_capacity(names.len());
    for name in &names {
        let relative = Path::new(name.as_str());
        if name.is_empty() || !relative.components().all(|part| matches!(part, Component::Normal(_))) {
            return Err(ModelError::broken(index, format!("the shard name {name:?} leaves the model's directory"))
                .with_hint("do not use an index that reaches outside its directory"));
        }
        let file = directory.join(relative);
        if !file.is_file() {
            return Err(ModelError::broken(index, format!("the shard {name} is missing"))
                .with_hint("copy or download the missing shard"));
        }
        files.push(file);
    }
    refuse_stray_shards(index, directory, &files)?;
    let weight_map = parsed
        .weight_map
        .iter()
        .filter_map(|(tensor, file)| Some((tensor.clone(), names.binary_search(&file).ok()?)))
        .collect();
    Ok(Shards { files, weight_map: Some(weight_map), index: index.to_owned() })
}

/// A file named like a shard of this model that the index does not list is a sign of two models mixed up.
fn refuse_stray_shards(index: &Path, directory: &Path, listed: &[PathBuf]) -> Result<(), ModelError> {
    let stems: Vec<&str> = listed.iter().filter_map(|path| shard_stem(path)).collect();
    for file in safetensors_files(directory)? {
        if shard_stem(&file).is_some_and(|stem| stems.contains(&stem)) && !listed.contains(&file) {
            let name = file.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(ModelError::broken(index, format!("{name} lies beside the shards but is not in the index"))
                .with_hint("remove the stray file, or restore the index that belongs to it"));
        }
    }
    Ok(())
}

/// `model` for `model-00001-of-00002.safetensors`.
fn shard_stem(path: &Path) -> Option<&str> {
    let name = path.file_name()?.to_str()?.strip_suffix(".safetensors")?;
    let (front, count) = name.rsplit_once("-of-")?;
    let (stem, number) = front.rsplit_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    (digits(count) && digits(number)).then_some(stem)
}
