//! A model directory as hubs hold it: configuration, safetensors, and the side files that belong to the model.

use std::fs;
use std::path::{Path, PathBuf};

use super::{Config, ModelError, SafetensorsModel};

/// Weights in any format: rewritten or left behind, never carried along.
const WEIGHT_ENDINGS: [&str; 15] = [
    "safetensors",
    "bin",
    "pt",
    "pth",
    "ckpt",
    "pkl",
    "pickle",
    "joblib",
    "h5",
    "msgpack",
    "gguf",
    "onnx",
    "onnx_data",
    "npz",
    "tflite",
];

/// An open model directory.
#[derive(Debug)]
pub struct HfDir {
    pub path: PathBuf,
    pub config: Config,
    pub tensors: SafetensorsModel,
}

impl HfDir {
    /// Reads `config.json` and every safetensors header below `path`.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        if !path.is_dir() {
            let missing = fs::metadata(path).map_err(ModelError::io("open", path));
            missing?;
            return Err(ModelError::broken(path, "not a directory")
                .with_hint("name the directory that holds config.json and the safetensors files"));
        }
        Ok(HfDir { path: path.to_owned(), config: Config::open(path)?, tensors: SafetensorsModel::open(path)? })
    }

    /// What must travel with the weights when they are rewritten, sorted by name and relative to the directory.
    ///
    /// Everything of the model counts (tokenizer, templates, generation settings, processor settings, remote code,
    /// licence), known or unknown, except: weights in any format and their indexes, `config.json` (rewritten by whoever
    /// changes the model), the model card (it describes another model) and hidden files.
    pub fn side_files(&self) -> Result<Vec<PathBuf>, ModelError> {
        let mut found = Vec::new();
        collect(&self.path, Path::new(""), &mut found)?;
        let templates = Path::new("additional_chat_templates");
        if self.path.join(templates).is_dir() {
            collect(&self.path, templates, &mut found)?;
        }
        found.sort();
        Ok(found)
    }

    /// Copies the side files into `target` (an existing directory), following links. Returns what was copied.
    pub fn copy_side_files(&self, target: &Path) -> Result<Vec<PathBuf>, ModelError> {
        let files = self.side_files()?;
        for file in &files {
            let to = target.join(file);
            if let Some(parent) = to.parent() {
                fs::create_dir_all(parent).map_err(ModelError::io("create", parent))?;
            }
            fs::copy(self.path.join(file), &to).map_err(ModelError::io("copy a side file to", &to))?;
        }
        Ok(files)
    }
}

fn collect(base: &Path, below: &Path, found: &mut Vec<PathBuf>) -> Result<(), ModelError> {
    let directory = base.join(below);
    for entry in fs::read_dir(&directory).map_err(ModelError::io("list", &directory))? {
        let entry = entry.map_err(ModelError::io("list", &directory))?;
        let name = entry.file_name();
        // Follows links: files of a hub cache are links into its blob folder.
        if entry.path().is_file() && is_side_file(&name.to_string_lossy()) {
            found.push(below.join(name));
        }
    }
    Ok(())
}

fn is_side_file(name: &str) -> bool {
    let lower = name.to_lowercase();
    let ending = lower.rsplit_once('.').map_or("", |(_, ending)| ending);
    !(lower.starts_with('.')
        || lower == "config.json"
        || lower.starts_with("readme")
        || lower.ends_with(".index.json")
        || lower.ends_with(".alloy.json")
        || WEIGHT_ENDINGS.contains(&ending))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn side_files_are_everything_but_weights_config_and_card() {
        for name in [
            "tokenizer.json",
            "tokenizer.model",
            "modeling_x.py",
            "preprocessor_config.json",
            "LICENSE",
            "chat_template.jinja",
            "merges.txt",
            "generation_config.json",
            "unknown.thing",
        ] {
            assert!(is_side_file(name), "{name}");
        }
        for name in [
            "model.safetensors",
            "model.safetensors.index.json",
            "config.json",
            "README.md",
            ".gitattributes",
            "pytorch_model.bin",
            "x.alloy.json",
            "model-Q4_0.gguf",
        ] {
            assert!(!is_side_file(name), "{name}");
        }
    }
}
