//! Models on disk: configuration, tokenizer, tensors in safetensors and GGUF (read and write), manifest and hashes.
//!
//! Enters: paths. Leaves: tensor bytes and values by name ([`TensorSource`]), typed configuration, files written once,
//! in order, under their final name only when complete. Knows nothing of families (which tensor means what).
mod config;
mod declared;
mod error;
pub mod gguf;
mod hash;
mod hf_dir;
mod limits;
mod manifest;
mod mapped;
mod output;
pub mod quantized;
pub mod safetensors;
mod source;
mod tokenizer;
mod transcode;

pub use crate::codec::Dtype;
pub use config::{Config, Rope};
pub use declared::DeclaredTensor;
pub use error::ModelError;
pub use gguf::{GgufFile, GgufValue, GgufWriter};
pub use hash::{FileHash, compose_model_hash, hash_file, hash_files};
pub use hf_dir::HfDir;
pub use manifest::{MANIFEST_FILE, Manifest};
pub use mapped::MappedFile;
pub use output::{CompleteFile, OutputFile, sync_directory, write_file};
pub use safetensors::{INDEX_FILE, SafetensorsModel, SafetensorsWriter, SettlingModel, WrittenModel};
pub use source::{TensorMeta, TensorSource, decode_f32};
pub use tokenizer::{SpecialTokens, Tokenizer, TokenizerExport, export_gguf};
pub use transcode::{Encoding, rows_of, transcode_rows};
