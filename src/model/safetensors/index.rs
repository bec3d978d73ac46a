//! Which files make up a safetensors model: one file, or what an index lists.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{INDEX_FILE, SINGLE_FILE};
use crate::model::ModelError;
use crate::model::limits::read_index as read_limited;

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
        0 => Err(match pickle(directory)? {
            Some(name) => not_read(directory, &name),
            None => ModelError::broken(directory, format!("holds no {SINGLE_FILE} and no {INDEX_FILE}"))
                .with_hint("name a directory with a model in safetensors format"),
        }),
        n => Err(ModelError::broken(directory, format!("holds {n} safetensors files but no {INDEX_FILE}"))
            .with_hint("the index is missing: copy or download it, or name one file")),
    }
}

/// Endings of weights that are pickles, or may be.
const PICKLES: [&str; 7] = ["bin", "pt", "pth", "ckpt", "pkl", "pickle", "joblib"];

/// The first file of the directory whose name says that it is a pickle.
fn pickle(directory: &Path) -> Result<Option<String>, ModelError> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(ModelError::io("list", directory))? {
        let name = entry.map_err(ModelError::io("list", directory))?.file_name();
        let ending = Path::new(&name).extension().and_then(|ending| ending.to_str()).map(str::to_lowercase);
        if ending.is_some_and(|ending| PICKLES.contains(&ending.as_str())) {
            found.push(name.to_string_lossy().into_owned());
        }
    }
    Ok(found.into_iter().min())
}

/// Weights in another format than safetensors: a pickle runs code when it is opened, so none is ever opened.
fn not_read(path: &Path, name: &str) -> ModelError {
    let cause =
        format!("{name} is not safetensors: other weights may run code when they are opened and are never read");
    ModelError::unsupported(path, cause, "take the model's safetensors, or convert it to safetensors elsewhere")
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
    let text = read_limited(index)?;
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
        if matches!(name.as_str(), "" | "." | "..") || name.contains(['/', '\\', '\0']) {
            return Err(ModelError::broken(index, format!("the shard name {name:?} leaves the model's directory"))
                .with_hint("do not use an index that reaches outside its directory"));
        }
        if !name.ends_with(".safetensors") {
            return Err(not_read(index, name));
        }
        let file = directory.join(name.as_str());
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
