//! GGUF: one file with typed metadata and aligned tensors. Reads versions 2 and 3, writes version 3.
//!
//! Shapes are row-major everywhere outside this module; on disk the fastest dimension comes first.
mod read;
mod types;
mod value;
mod write;

pub use read::GgufFile;
pub use types::{dtype_of, type_id};
pub use value::{GgufArray, GgufValue};
pub use write::{GgufWriter, file_bytes};

/// `GGUF`, the first four bytes.
const MAGIC: [u8; 4] = *b"GGUF";
/// Where data and tensors begin, unless `general.alignment` says otherwise.
pub const ALIGNMENT: u64 = 32;
/// Longest tensor name llama.cpp reads.
const MAX_NAME: usize = 64;
const MAX_DIMS: usize = 4;
