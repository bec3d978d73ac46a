//! Opening a model: find its family, check that every tensor is there in the right shape, present them under one set
//! of names.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use super::gguf_layout::{self, ROPE_FACTORS, ROPE_FREQS};
use super::locate::{self, Conventions, Located};
use super::storage::{Holding, Storage};
use super::view::View;
use super::{Family, FamilyError, ModelSpec, gguf_config, of_config, spec_of};
use crate::model::quantized::{self, Opened};
use crate::model::{Config, GgufFile, HfDir, ModelError, TensorMeta, TensorSource, Tokenizer};

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
    /// Tensors under the names of `spec`, whatever the files call them, experts one by one; what the specification
    /// does not name follows under its stored name (a family's other names undone).
    pub tensors: Arc<dyn TensorSource>,
    /// Every tensor of the files as it lies there, under its own name; [`OpenModel::storage`] says what each is.
    pub stored: Arc<dyn TensorSource>,
    /// What is odd but harmless, one line each.
    pub warnings: Vec<String>,
    storage: Storage,
    gguf: Option<Arc<GgufFile>>,
    /// Of a directory of packed matrices: how they are packed, and the files' own tensors.
    packing: Option<(String, Vec<TensorMeta>)>,
    tokenizer: OnceLock<Option<Tokenizer>>,
}

impl OpenModel {
    /// The model's tokenizer, opened on first use and kept; `None` when the model has none.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn tokenizer(&self) -> Result<Option<&Tokenizer>, ModelError> {
        if self.tokenizer.get().is_none() {
            let opened = self.open_tokenizer()?;
            return Ok(self.tokenizer.get_or_init(|| opened).as_ref());
        }
        Ok(self.tokenizer.get().and_then(Option::as_ref))
    }

    /// The model's tokenizer, opened anew: for a caller that wants to drop it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open_tokenizer(&self) -> Result<Option<Tokenizer>, ModelError> {
        match &self.gguf {
            Some(file) => match file.opt_str("tokenizer.ggml.model")? {
                None | Some("no_vocab" | "none") => Ok(None),
                Some(_) => Tokenizer::of_gguf(file).map(Some),
            },
            None if ["tokenizer.json", "tokenizer.model"].iter().all(|f| !self.path.join(f).exists()) => Ok(None),
            None => Tokenizer::open(&self.path).map(Some),
        }
    }

    /// The same model with other tensors in place of [`OpenModel::tensors`]: under the same names, in the same shapes.
    /// What lies in the files stays as it is.
    pub fn presenting(&self, tensors: Arc<dyn TensorSource>) -> OpenModel {
        OpenModel {
            path: self.path.clone(),
            format: self.format,
            family: self.family,
            spec: self.spec.clone(),
            config: self.config.clone(),
            tensors,
            stored: self.stored.clone(),
            warnings: self.warnings.clone(),
            storage: self.storage.clone(),
            gguf: self.gguf.clone(),
            packing: self.packing.clone(),
            tokenizer: OnceLock::new(),
        }
    }

    /// What each tensor of [`OpenModel::stored`] holds.
    pub fn storage(&self) -> &Storage {
        &self.storage
    }

    /// How the matrices are packed, in a line, when [`OpenModel::stored`] presents packed ones decoded.
    pub fn packing(&self) -> Option<&str> {
        self.packing.as_ref().map(|(summary, _)| summary.as_str())
    }

    /// The tensors as they lie in the files, packed ones in their parts.
    pub fn files_tensors(&self) -> &[TensorMeta] {
        self.packing.as_ref().map_or_else(|| self.stored.metas(), |(_, metas)| metas)
    }

    /// What the model is, where that is something whose weights cannot be rewritten: `a GGUF file`. `None` for a
    /// directory of plain tensors.
    pub fn fixed_form(&self) -> Option<&'static str> {
        match (&self.gguf, &self.packing) {
            (Some(_), _) => Some("a GGUF file"),
            (None, Some(_)) => Some("a quantized directory"),
            (None, None) => None,
        }
    }

    /// The GGUF file itself, when the model is one.
    pub fn gguf(&self) -> Option<&GgufFile> {
        self.gguf.as_deref()
    }
}

/// Opens a Hugging Face directory or a GGUF file.
///
/// # Errors
/// Neither of the two; a file that cannot be read; a family or feature this build does not know; a tensor that is
/// missing or has another shape than its config asks for.
pub fn open(path: &Path) -> Result<OpenModel, FamilyError> {
    let is_gguf = path.extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
    if path.is_dir() {
        open_directory(path).map_err(|e| e.at(path))
    } else if is_gguf {
        open_gguf(path).map_err(|e| e.at(path))
    } else {
        Err(FamilyError::NotAModel { path: path.to_owned() })
    }
}

fn open_directory(path: &Path) -> Result<OpenModel, FamilyError> {
    let HfDir { config, tensors, .. } = HfDir::open(path)?;
    let family = of_config(&config)?;
    let spec = spec_of(&config)?;
    let (stored, packing): (Arc<dyn TensorSource>, _) = match quantized::open(&config, tensors)? {
        Opened::Plain(tensors) => (Arc::new(tensors), None),
        Opened::Packed(tensors) => {
            let packing = (tensors.summary().to_owned(), tensors.files_tensors().to_vec());
            (Arc::new(tensors), Some(packing))
        }
    };
    let expert_key = config.expert_key();
    let conventions = Conventions { aliases: family.aliases(), layouts: family.layouts(), expert_key };
    let Located { tensors, storage } = locate::locate(&stored, &spec, &conventions)?;
    check_tensors(&spec, tensors.as_ref())?;
    Ok(OpenModel {
        path: path.to_owned(),
        format: Format::HfDir,
        family,
        spec,
        config,
        tensors,
        stored,
        warnings: ignored(&storage),
        storage,
        gguf: None,
        packing,
        tokenizer: OnceLock::new(),
    })
}

fn open_gguf(path: &Path) -> Result<OpenModel, FamilyError> {
    let file = Arc::new(GgufFile::open(path)?);
    let (family, rules, config) = gguf_config::config_of(&file)?;
    let spec = family.spec(&config)?;
    let tensors = Arc::new(View::new(file.clone(), gguf_layout::entries(&file, &spec, &rules)?)?);
    check_tensors(&spec, tensors.as_ref())?;
    let storage = locate::by_roles(file.metas(), &gguf_layout::roles(&spec, &rules));
    Ok(OpenModel {
        path: path.to_owned(),
        format: Format::Gguf,
        family,
        config,
        tensors,
        stored: file.clone(),
        warnings: ignored(&storage),
        storage,
        gguf: Some(file),
        packing: None,
        tokenizer: OnceLock::new(),
        spec,
    })
}

/// Compares what the specification asks for with what is there.
fn check_tensors(spec: &ModelSpec, tensors: &dyn TensorSource) -> Result<(), FamilyError> {
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
    Ok(())
}

/// Warns of tensors that this build does not know.
fn ignored(storage: &Storage) -> Vec<String> {
    let strange = |name: &str| !is_derived(name) && name != ROPE_FREQS && !ROPE_FACTORS.contains(&name);
    let unknown = storage.tensors().iter().filter(|tensor| tensor.holding == Holding::Unknown);
    let strange: Vec<&str> = unknown.map(|tensor| tensor.name.as_str()).filter(|name| strange(name)).collect();
    match strange[..] {
        [] => Vec::new(),
        [one] => vec![format!("tensor {one} is not part of the model and is ignored")],
        [first, ..] => {
            vec![format!("{} tensors are not part of the model and are ignored, {first} first", strange.len())]
        }
    }
}

/// Tensors that older checkpoints carry although they follow from the config.
fn is_derived(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
}
