//! Hashes of everything a plan rests on. A file is hashed once: the hash is remembered under its path, size, time and
//! inode in `<root>/work/.hash-cache.json`.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::admission::Admission;
use super::durable::replace_file;
use crate::family::OpenModel;
use crate::fault::{Fault, Outcome};
use crate::line::Layout;
use crate::model::{HfDir, hash_file};
use crate::node::{Found, FoundBy};
use crate::recipe::hashes::compose_model_hash;
use crate::recipe::{self, InputFile, ResolvedSource, ResolvedText};
use crate::units::{Bytes, Sha};

/// A remembered hash is good while all of this is unchanged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Known {
    size: u64,
    mtime_s: i64,
    mtime_ns: i64,
    inode: u64,
    device: u64,
    sha256: Sha,
}

/// Files modified less than this many seconds ago are hashed every time: a second write may share their time stamp.
const SETTLED_S: i64 = 2;

struct Cache {
    file: PathBuf,
    known: Mutex<BTreeMap<PathBuf, Known>>,
}

impl Cache {
    /// A cache that cannot be read is an empty one.
    fn open(layout: &Layout) -> Self {
        let file = layout.work_root().join(".hash-cache.json");
        let known = fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok()).unwrap_or_default();
        Cache { file, known: Mutex::new(known) }
    }

    /// Keeping hashes is a convenience: failing to is no fault. Files that are gone are forgotten.
    fn save(&self) {
        let mut known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        known.retain(|path, _| path.exists());
        if let Ok(text) = serde_json::to_vec(&*known) {
            let _ = replace_file(&self.file, &text);
        }
    }

    fn sha(&self, path: &Path) -> Outcome<(Sha, u64)> {
        let failed = |e| Fault::source(format!("read {}", path.display())).caused_by(e);
        let meta = fs::metadata(path).map_err(failed)?;
        let at = |sha256| Known {
            size: meta.size(),
            mtime_s: meta.mtime(),
            mtime_ns: meta.mtime_nsec(),
            inode: meta.ino(),
            device: meta.dev(),
            sha256,
        };
        let remembered = {
            let known = self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            known.get(path).filter(|k| **k == at(k.sha256)).map(|k| k.sha256)
        };
        if let Some(sha) = remembered {
            return Ok((sha, meta.size()));
        }
        let (sha, _) = hash_file(path)?;
        let now = chrono::Utc::now().timestamp();
        if now - meta.mtime() > SETTLED_S {
            self.known.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).insert(path.to_owned(), at(sha));
        }
        Ok((sha, meta.size()))
    }
}

/// Hashes the source model and every text of an admitted recipe.
pub(super) fn hash_all(
    admission: &Admission<'_>,
    layout: &Layout,
    done: &(dyn Fn(u64, u64) + Sync),
) -> Outcome<(ResolvedSource, Vec<ResolvedText>)> {
    let (Some(model), Some(found)) = (admission.source(), &admission.found) else {
        return Err(Fault::internal("a plan without a source"));
    };
    let cache = Cache::open(layout);
    let files = model_files(model)?;
    let sizes = files.iter().map(|f| fs::metadata(&f.path).map_or(0, |m| m.len())).sum::<u64>();
    let total = sizes + admission.texts.iter().map(|t| t.bytes).sum::<u64>();
    let hashed = AtomicU64::new(0);
    let hash = |path: &Path| {
        let (sha, size) = cache.sha(path)?;
        done(hashed.fetch_add(size, Ordering::Relaxed) + size, total);
        Ok::<_, Fault>((sha, size))
    };
    let mut inputs: Vec<(bool, InputFile)> = files
        .par_iter()
        .map(|file| {
            let (sha256, size) = hash(&file.path)?;
            Ok((file.is_weights, InputFile { name: file.name.clone(), size: Bytes(size), sha256 }))
        })
        .collect::<Outcome<_>>()?;
    inputs.sort_by(|a, b| a.1.name.cmp(&b.1.name));
    let weights =
        inputs.iter().filter(|(is_weights, _)| *is_weights).map(|(_, file)| (file.name.as_str(), file.sha256));
    let model_hash = compose_model_hash(weights).map_err(|e| Fault::source(e.to_string()))?;
    let texts = admission
        .texts
        .iter()
        .map(|text| {
            let (sha256, size) = hash(&text.found.path)?;
            Ok(ResolvedText {
                named: text.named.clone(),
                key: text.key.clone(),
                path: text.found.path.clone(),
                found: how(&text.found),
                size: Bytes(size),
                sha256,
            })
        })
        .collect::<Outcome<_>>()?;
    cache.save();
    let source = ResolvedSource {
        base_model: admission.recipe.source.base_model.clone(),
        path: found.path.clone(),
        found: how(found),
        revision: match &found.how {
            FoundBy::HubCache { commit, .. } => Some(commit.clone()),
            _ => None,
        },
        family: model.spec.family.to_owned(),
        total: inputs.iter().map(|(_, file)| file.size).sum(),
        files: inputs.into_iter().map(|(_, file)| file).collect(),
        model_hash,
    };
    Ok((source, texts))
}

struct ModelFile {
    name: String,
    path: PathBuf,
    is_weights: bool,
}

/// Every file that belongs to a model: weights, config, side files.
fn model_files(model: &OpenModel) -> Outcome<Vec<ModelFile>> {
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let weights = model.tensors.files().iter();
    let mut files: Vec<ModelFile> =
        weights.map(|path| ModelFile { name: name(path), path: path.clone(), is_weights: true }).collect();
    if model.path.is_dir() {
        let dir = HfDir::open(&model.path)?;
        let rest = std::iter::once(PathBuf::from("config.json")).chain(dir.side_files()?);
        files.extend(rest.map(|relative| ModelFile {
            name: relative.to_string_lossy().into_owned(),
            path: model.path.join(relative),
            is_weights: false,
        }));
    }
    Ok(files)
}

fn how(found: &Found) -> recipe::Found {
    match found.how {
        FoundBy::NamedSource { .. } => recipe::Found::NodeSource,
        FoundBy::AbsolutePath => recipe::Found::AbsolutePath,
        FoundBy::RecipeFolder => recipe::Found::BesideRecipe,
        FoundBy::LineRoot => recipe::Found::UnderLine,
        FoundBy::CalibrationFolder => recipe::Found::CalibrationFolder,
        FoundBy::ColdTier { .. } | FoundBy::LineCache | FoundBy::Peer { .. } => recipe::Found::NodeSource,
        FoundBy::HubCache { .. } => recipe::Found::HubCache,
    }
}
