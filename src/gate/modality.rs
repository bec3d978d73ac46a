//! The senses of a model beside text: what stands for them in its files, and the proof that nobody touched it.
//!
//! Enters: an open model, or two of them (before and after a stage). Leaves: fingerprints of every part that goes along
//! with the language model (towers, their merger, a talker), the token ids that stand for pictures and sound, and
//! evidence that parts, ids, the rows of these ids in the vocabulary and the position keys of the config are the same
//! on both sides, from the bytes of the files.

use std::collections::BTreeMap;

use rayon::prelude::*;
use serde::Serialize;
use serde_json::Value;
use sha2::{Digest, Sha256};

use super::{Evidence, GateError};
use crate::family::{ModelSpec, OpenModel};
use crate::model::Config;
use crate::units::Sha;

/// A sense besides text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sense {
    Vision,
    Audio,
}

impl Sense {
    pub const ALL: [Sense; 2] = [Sense::Vision, Sense::Audio];

    /// The key of the config that declares its tower, which is also how people call it.
    pub fn config_key(self) -> &'static str {
        match self {
            Sense::Vision => "vision_config",
            Sense::Audio => "audio_config",
        }
    }

    /// What the name of its part begins with.
    fn word(self) -> &'static str {
        match self {
            Sense::Vision => "vision",
            Sense::Audio => "audio",
        }
    }

    /// The token ids it needs, each under the names configs give it.
    fn token_keys(self) -> &'static [&'static [&'static str]] {
        match self {
            Sense::Vision => &[
                &["image_token_id", "image_token_index"],
                &["video_token_id", "video_token_index"],
                &["vision_start_token_id"],
                &["vision_end_token_id"],
            ],
            Sense::Audio => {
                &[&["audio_token_id", "audio_token_index"], &["audio_start_token_id"], &["audio_end_token_id"]]
            }
        }
    }
}

/// Keys of the config, at whatever depth, that no stage may change in a model with more senses than text.
const PROTECTED_KEYS: [&str; 4] = ["mrope_section", "mrope_interleaved", "partial_rotary_factor", "rope_theta"];

/// What one part of a model is made of, from the bytes of its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Fingerprint {
    /// `vision tower`, `vision tower merger`.
    pub name: String,
    pub tensors: usize,
    pub bytes: u64,
    /// SHA-256 over the tensors sorted by name: name, a zero byte, the bytes as stored.
    pub sha256: Sha,
    /// Every byte of it is zero.
    #[serde(skip)]
    pub is_zero: bool,
}

/// True when parts go along that no stage may touch.
pub fn has_towers(spec: &ModelSpec) -> bool {
    spec.carried.iter().any(|part| part.mixtures.is_empty() && part.required)
}

/// The fingerprints of every part that goes along byte for byte and is in the files; the merger of a tower (what brings
/// its output to the language model's width) once more by itself. A part with experts of its own is not among them: an
/// expert prune cuts it.
///
/// # Errors
/// A tensor cannot be read.
pub fn fingerprints(model: &OpenModel) -> Result<Vec<Fingerprint>, GateError> {
    let parts = model.spec.carried.iter().enumerate().filter(|(_, part)| part.mixtures.is_empty());
    let mut wanted: Vec<(String, Vec<&str>)> = Vec::new();
    for (number, part) in parts {
        let mut names: Vec<&str> = model.storage().carried(number).map(|tensor| tensor.name.as_str()).collect();
        names.sort_unstable();
        let merger = names.iter().copied().filter(|name| is_merger(name)).collect();
        wanted.push((part.name.to_owned(), names));
        wanted.push((format!("{} merger", part.name), merger));
    }
    wanted.retain(|(_, names)| !names.is_empty());
    wanted.into_par_iter().map(|(name, tensors)| fingerprint(model, name, &tensors)).collect()
}

/// A component of the name says so: `visual.merger.mlp.0.weight`, `visual.deepstack_merger_list.0.norm.weight`.
fn is_merger(tensor: &str) -> bool {
    tensor.split('.').any(|component| component.contains("merger"))
}

fn fingerprint(model: &OpenModel, name: String, tensors: &[&str]) -> Result<Fingerprint, GateError> {
    let (mut hasher, mut bytes, mut is_zero) = (Sha256::new(), 0, true);
    for tensor in tensors {
        let stored = model.stored.bytes(tensor)?;
        hasher.update(tensor.as_bytes());
        hasher.update([0]);
        hasher.update(&stored);
        bytes += stored.len() as u64;
        is_zero = is_zero && stored.iter().all(|byte| *byte == 0);
        drop(stored);
        model.stored.release(tensor);
    }
    Ok(Fingerprint { name, tensors: tensors.len(), bytes, sha256: Sha(hasher.finalize().into()), is_zero })
}

/// The senses whose tower the config declares.
pub fn declared(config: &Config) -> Vec<Sense> {
    Sense::ALL.into_iter().filter(|sense| config.get(sense.config_key()).is_some()).collect()
}

/// The token ids that stand for what towers see and hear, by their config keys.
///
/// # Errors
/// An id of a declared sense is missing, no whole number, or outside the vocabulary.
pub fn protected_tokens(model: &OpenModel) -> Result<BTreeMap<String, u32>, GateError> {
    let mut ids = BTreeMap::new();
    for names in declared(&model.config).into_iter().flat_map(|sense| sense.token_keys()) {
        let found = names.iter().find_map(|name| Some((*name, model.config.get(name)?)));
        let Some((name, value)) = found else {
            return Err(senseless(model, format!("config key {} is missing", names.join(" or "))));
        };
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        match id.filter(|id| (*id as usize) < model.spec.vocab) {
            Some(id) => ids.insert(name.to_owned(), id),
            None => {
                let why = format!("config key {name} is {value}, no id below the vocabulary's {}", model.spec.vocab);
                return Err(senseless(model, why));
            }
        };
    }
    Ok(ids)
}

fn senseless(model: &OpenModel, why: String) -> GateError {
    GateError::Senses { model: model.path.clone(), why }
}

/// Checks that everything the config declares is there: a tower with tensors that are not all zero, a merger for
/// pictures, sound token ids, and a list of layers if the config says which layers of the tower feed deeper ones (it may
/// be empty or absent). Returns the fingerprints.
///
/// # Errors
/// What is missing or wrong, by name.
pub fn check_senses(model: &OpenModel) -> Result<Vec<Fingerprint>, GateError> {
    protected_tokens(model)?;
    check_deepstack(model)?;
    let found = fingerprints(model)?;
    for sense in declared(&model.config) {
        let is_there =
            |suffix: &str| found.iter().any(|f| f.name.starts_with(sense.word()) && f.name.ends_with(suffix));
        if !is_there("tower") {
            let why = format!("config key {} declares a tower, and no tensor belongs to it", sense.config_key());
            return Err(senseless(model, why));
        }
        if sense == Sense::Vision && !is_there("merger") {
            return Err(senseless(model, "the vision tower has no merger".to_owned()));
        }
    }
    match found.iter().find(|fingerprint| fingerprint.is_zero) {
        Some(zero) => Err(senseless(model, format!("zeroed tower: every value of the {} is zero", zero.name))),
        None => Ok(found),
    }
}

fn check_deepstack(model: &OpenModel) -> Result<(), GateError> {
    const KEY: &str = "deepstack_visual_indexes";
    let Some(vision) = model.config.get("vision_config") else { return Ok(()) };
    let Some(list) = vision.get(KEY).filter(|value| !value.is_null()) else { return Ok(()) };
    let depth = vision.get("depth").and_then(Value::as_u64).unwrap_or(u64::MAX);
    let is_layer = |value: &Value| value.as_u64().is_some_and(|layer| layer < depth);
    match list.as_array().is_some_and(|layers| layers.iter().all(is_layer)) {
        true => Ok(()),
        false => Err(senseless(model, format!("config key vision_config.{KEY} is {list}, no list of its layers"))),
    }
}

/// Proves that a stage left the senses of a model alone: every part byte for byte, the rows of their token ids in
/// embedding and head, and the protected keys of the config. `None` for a model of text alone.
///
/// # Errors
/// The first thing that differs, by name.
pub fn senses_unchanged(source: &OpenModel, output: &OpenModel, subject: &str) -> Result<Option<Evidence>, GateError> {
    if !has_towers(&source.spec) {
        return Ok(None);
    }
    let keys = same_keys(source, output, subject)?;
    let tokens = protected_tokens(source)?;
    let rows = same_rows(source, output, &tokens, subject)?;
    let (before, after) = rayon::join(|| fingerprints(source), || fingerprints(output));
    let (before, after) = (before?, after?);
    for was in &before {
        match after.iter().find(|is| is.name == was.name) {
            Some(is) if is == was => {}
            Some(is) if is.is_zero => {
                let why = format!("zeroed tower: every value of the {} is zero, the source's is not", was.name);
                return Err(touched(subject, why));
            }
            _ => return Err(first_difference(source, output, &was.name, subject)?),
        }
    }
    let mut evidence = Evidence::passed("modality", subject)
        .with("vocabulary_rows", rows)
        .with("config_keys", keys)
        .with("tensors", before.iter().filter(|f| !f.name.ends_with("merger")).map(|f| f.tensors).sum::<usize>());
    for fingerprint in &before {
        evidence = evidence.with(&fingerprint.name, fingerprint.sha256.tagged());
    }
    Ok(Some(evidence))
}

fn touched(subject: &str, why: String) -> GateError {
    GateError::Touched { subject: subject.to_owned(), why }
}

/// The first tensor of a part that is not the same on both sides.
fn first_difference(source: &OpenModel, output: &OpenModel, part: &str, subject: &str) -> Result<GateError, GateError> {
    let tower = part.trim_end_matches(" merger");
    let number = source.spec.carried.iter().position(|carried| carried.name == tower).unwrap_or_default();
    for tensor in source.storage().carried(number) {
        let name = tensor.name.as_str();
        let changed = |why: &str| GateError::changed(subject, name, &format!("of the {part} {why}"));
        if output.stored.meta(name).is_none() {
            return Ok(changed("is missing in the output"));
        }
        let (before, after) = (source.stored.bytes(name)?, output.stored.bytes(name)?);
        if before != after {
            let is_zero = after.iter().all(|byte| *byte == 0);
            return Ok(changed(if is_zero { "is zeroed in the output" } else { "has other bytes in the output" }));
        }
    }
    Ok(touched(subject, format!("the output has more tensors of the {part} than the source")))
}

/// Compares the rows of the ids in embedding and head; returns how many rows that were.
fn same_rows(
    source: &OpenModel,
    output: &OpenModel,
    tokens: &BTreeMap<String, u32>,
    subject: &str,
) -> Result<usize, GateError> {
    let mut tensors = vec![(&source.spec.embed, &output.spec.embed)];
    if !source.spec.tied {
        tensors.push((&source.spec.head, &output.spec.head));
    }
    for (was, is) in &tensors {
        let (before, after) = (source.tensors.bytes(was)?, output.tensors.bytes(is)?);
        let row = before.len() / source.spec.vocab.max(1);
        for (key, id) in tokens {
            let place = *id as usize * row..(*id as usize + 1) * row;
            if before.get(place.clone()) != after.get(place) {
                let why = format!("has another row for {key} = {id}");
                return Err(GateError::changed(subject, is, &why));
            }
        }
    }
    Ok(tokens.len() * tensors.len())
}

/// Compares the protected keys of both configs; returns how many there are.
fn same_keys(source: &OpenModel, output: &OpenModel, subject: &str) -> Result<usize, GateError> {
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    protected_keys("", &Value::Object(source.config.root().clone()), &mut before);
    protected_keys("", &Value::Object(output.config.root().clone()), &mut after);
    let differs = before.keys().chain(after.keys()).find(|key| before.get(*key) != after.get(*key));
    match differs {
        None => Ok(before.len()),
        Some(key) => {
            let shown = |keys: &BTreeMap<String, Value>| keys.get(key).map_or("absent".to_owned(), Value::to_string);
            let (is, was) = (shown(&after), shown(&before));
            Err(touched(subject, format!("config key {key} is {is}, the source has {was}")))
        }
    }
}

/// Key path → value of every protected key, at any depth.
fn protected_keys(at: &str, value: &Value, found: &mut BTreeMap<String, Value>) {
    let Some(map) = value.as_object() else { return };
    let tokens = || Sense::ALL.into_iter().flat_map(|sense| sense.token_keys()).flat_map(|names| names.iter());
    for (key, inner) in map {
        let path = if at.is_empty() { key.clone() } else { format!("{at}.{key}") };
        if PROTECTED_KEYS.contains(&key.as_str()) || tokens().any(|name| name == key) {
            found.insert(path, inner.clone());
        } else {
            protected_keys(&path, inner, found);
        }
    }
}
