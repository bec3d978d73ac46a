//! Models on disk: configuration, tokenizer, tensors in safetensors and GGUF (read and write), manifest and hashes.
//!
//! Enters: paths. Leaves: tensor bytes and values by name ([`TensorSource`]), typed configuration, files written once,
//! in order, under their final name only when complete. Knows nothing of families (which tensor means what) and nothing
//! of recipes.
mod config;
mod error;
mod hf_dir;
mod mapped;
mod python_json;
pub mod safetensors;
mod source;

pub use crate::codec::Dtype;
pub use config::{Config, Rope};
pub use error::ModelError;
pub use hf_dir::HfDir;
pub use mapped::MappedFile;
pub use python_json::to_python_json;
pub use safetensors::SafetensorsModel;
pub use source::{TensorMeta, TensorSource, decode_f32};
