//! Opening a model: find its family, check that every tensor is there in the right shape, present them under one set
//! of names.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use super::fused;
use super::{Family, FamilyError, ModelSpec, of_config};
use crate::model::{Config, HfDir, TensorSource};

/// What lies on disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Format {
    HfDir,
    Gguf,
}

/// A model whose description and tensors agree.
pub struct OpenModel {
    /// The directory or file that was opened.
    pub path: PathBuf,
    pub format: Format,
    pub family: &'static dyn Family,
    pub spec: ModelSpec,
    pub config: Config,
    /// Tensors under the names of `spec`, whatever the files call them.
    pub tensors: Box<dyn TensorSource>,
    /// What is odd but harmless, one line each.
    pub warnings: Vec<String>,
}

/// Opens a Hugging Face directory or a GGUF file.
///
/// # Errors
/// Neither of the two; a file that cannot be read; a family or feature this build does not know; a tensor that is
/// missing or has another shape than its config asks for.
pub fn open(path: &Path) -> Result<OpenModel, FamilyError> {
    if path.is_dir() {
        open_directory(path).map_err(|e| e.at(path))
    } else {
        Err(FamilyError::NotAModel { path: path.to_owned() })
    }
}

fn open_directory(path: &Path) -> Result<OpenModel, FamilyError> {
    let directory = HfDir::open(path)?;
    let family = of_config(&directory.config)?;
    let spec = family.spec(&directory.config)?;
    let tensors = fused::split(Box::new(directory.tensors), &spec)?;
    let warnings = check_tensors(&spec, tensors.as_ref())?;
    Ok(OpenModel {
        path: path.to_owned(),
        format: Format::HfDir,
        family,
        spec,
        config: directory.config,
        tensors,
        warnings,
    })
}

/// Compares what the specification asks for with what is there.
fn check_tensors(spec: &ModelSpec, tensors: &dyn TensorSource) -> Result<Vec<String>, FamilyError> {
    let expected = spec.tensors();
    let missing: Vec<_> = expected.iter().filter(|t| tensors.meta(&t.name).is_none()).collect();
    if let Some(first) = missing.first() {
        return Err(FamilyError::MissingTensor {
            name: first.name.clone(),
            wanted: first.shape.clone(),
            more: missing.len() - 1,
        });
    }
    let wrong: Vec<_> =
        expected.iter().filter_map(|t| tensors.meta(&t.name).filter(|m| m.shape != t.shape).map(|m| (t, m))).collect();
    if let Some((wanted, found)) = wrong.first() {
        return Err(FamilyError::WrongShape {
            name: wanted.name.clone(),
            found: found.shape.clone(),
            wanted: wanted.shape.clone(),
            more: wrong.len() - 1,
        });
    }
    let known: HashSet<&str> = expected.iter().map(|t| t.name.as_str()).collect();
    let strange: Vec<&str> =
        tensors.metas().iter().map(|m| m.name.as_str()).filter(|n| !known.contains(n) && !is_derived(n)).collect();
    Ok(match strange[..] {
        [] => Vec::new(),
        [one] => vec![format!("tensor {one} is not part of the model and is ignored")],
        [first, ..] => {
            vec![format!("{} tensors are not part of the model and are ignored, {first} first", strange.len())]
        }
    })
}

/// Tensors that older checkpoints carry although they follow from the config.
fn is_derived(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}
