//! Safetensors: one file or the shards of an index, read through memory maps; written as deterministic shards.
mod header;
mod index;
mod read;
mod write;

pub use read::SafetensorsModel;
pub use write::{DEFAULT_SHARD_BYTES, SafetensorsWriter, SettlingModel, WrittenModel};

/// The index file of a sharded model.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The file of a model that is not sharded.
pub const SINGLE_FILE: &str = "model.safetensors";
