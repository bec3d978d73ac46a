//! What the stages that write a model directory have in common: side files and config carried, the shards recorded, the
//! directory as an artifact.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::{Artifact, StageContext, context_extend, prune, prune_metadata};
use crate::family::OpenModel;
use crate::fault::{Fault, Outcome};
use crate::line::stamp;
use crate::model::{Config, HfDir, TensorSource, WrittenModel};

/// A new shard begins when a file would grow past this.
pub(super) const MAX_SHARD_BYTES: u64 = 5 << 30;

/// The documents in which these stages say what they decided; they travel with the model.
pub(super) const METADATA_FILES: [&str; 3] =
    [prune::METADATA_FILE, prune_metadata::METADATA_FILE, context_extend::METADATA_FILE];

/// Copies the side files of `source` to `out` and writes `config` there. Returns the names.
pub(super) fn carry(source: &HfDir, config: &Config, out: &Path) -> Outcome<Vec<PathBuf>> {
    let mut files = source.copy_side_files(out)?;
    let path = out.join("config.json");
    std::fs::write(&path, config.to_json())
        .map_err(|e| Fault::infra(format!("write {}", path.display())).caused_by(e))?;
    files.push("config.json".into());
    Ok(files)
}

/// The directory `name` below the work folder, as an artifact of `bytes` bytes of weights.
pub(super) fn artifact(name: &str, model: &OpenModel, bytes: u64) -> Artifact {
    let spec = &model.spec;
    let largest = model.tensors.metas().iter().max_by_key(|meta| meta.bytes);
    Artifact {
        path: name.into(),
        format: "safetensors".into(),
        dtype: largest.map_or_else(String::new, |meta| meta.dtype.to_string()),
        bytes,
        parameters: spec.parameters(),
        active_parameters: spec.active_parameters(),
        bits_per_weight: 8.0 * bytes as f64 / spec.parameters().max(1) as f64,
        archive: None,
        quantized: false,
        types: Vec::new(),
        fallbacks: Vec::new(),
    }
}

/// The parts that every metadata document begins with: who, when, from what.
pub(super) fn provenance(cx: &StageContext<'_>, stage: &str, started: &str) -> serde_json::Map<String, Value> {
    let source = &cx.plan.source;
    let shards = source.files.iter().filter(|f| f.name.ends_with(".safetensors"));
    let shards: Vec<Value> = shards.map(|f| json!({ "path": f.name, "sha256": f.sha256, "bytes": f.size })).collect();
    let finished = chrono::Utc::now();
    let seconds = stamp::parse(started).map_or(0.0, |at| (finished - at).as_seconds_f64());
    let document = json!({
        "schema_version": "1",
        "tool": { "name": format!("factoryline {stage}"), "version": env!("CARGO_PKG_VERSION") },
        "started_at": started,
        "finished_at": stamp::seconds(finished),
        "total_seconds": seconds,
        "source": { "dir": source.path, "shards": shards },
    });
    match document {
        Value::Object(map) => map,
        _ => serde_json::Map::new(),
    }
}

/// The shards written, for a metadata document; `tensors` is the directory opened again.
pub(super) fn shards_out(written: &WrittenModel, tensors: &dyn TensorSource) -> Value {
    let shard = |(i, file): (usize, &crate::model::FileHash)| {
        let count = tensors.metas().iter().filter(|meta| meta.file == i).count();
        json!({ "path": file.filename, "bytes": file.size, "sha256": file.sha256, "tensor_count": count })
    };
    written.weights.iter().enumerate().map(shard).collect()
}

/// Writes a metadata document into `out`.
pub(super) fn write_metadata(out: &Path, file: &str, document: &serde_json::Map<String, Value>) -> Outcome<()> {
    let bytes = serde_json::to_vec_pretty(document)
        .map_err(|e| Fault::internal(format!("{file} cannot be written as JSON")).caused_by(e))?;
    super::replace_file(&out.join(file), &bytes)
}
