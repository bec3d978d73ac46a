//! Writing a GGUF file: the whole header first, then every tensor once, in declared order.

use std::path::Path;

use super::types::type_id;
use super::value::Field;
use super::{ALIGNMENT, GgufValue, MAGIC, MAX_DIMS, MAX_NAME};
use crate::model::declared::Sequence;
use crate::model::output::{self, OutputFile};
use crate::model::{DeclaredTensor, FileHash, ModelError};

const VERSION: u32 = 3;

/// A streaming writer. The file has its final name only after [`GgufWriter::finish`].
#[derive(Debug)]
pub struct GgufWriter {
    file: OutputFile,
    sequence: Sequence,
}

impl GgufWriter {
    /// Writes the header. Sizes follow from type and shape, so all offsets are known before any data.
    pub fn create(
        path: &Path,
        metadata: &[(String, GgufValue)],
        tensors: Vec<DeclaredTensor>,
    ) -> Result<GgufWriter, ModelError> {
        let sequence = Sequence::new(path, tensors)?;
        let header = header(path, metadata, &sequence)?;
        let mut file = OutputFile::create(path)?;
        file.write(&header)?;
        Ok(GgufWriter { file, sequence })
    }

    /// Starts the next tensor, which must be `name`. Returns its size in bytes.
    pub fn begin(&mut self, name: &str) -> Result<u64, ModelError> {
        Ok(self.sequence.begin(self.file.target(), name)?.1)
    }

    /// An empty buffer for [`GgufWriter::write_owned`]; reuses the memory of written ones.
    pub fn buffer(&self) -> Vec<u8> {
        self.file.buffer()
    }

    /// Hands over a piece of the tensor that has begun; writing and hashing go on in the background.
    pub fn write_owned(&mut self, piece: Vec<u8>) -> Result<(), ModelError> {
        self.sequence.add(self.file.target(), piece.len())?;
        self.file.write_owned(piece)
    }

    /// As [`GgufWriter::write_owned`], copying.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.sequence.add(self.file.target(), bytes.len())?;
        self.file.write(bytes)
    }

    /// Ends the tensor, which must have got exactly its bytes, and pads to the alignment.
    pub fn end(&mut self) -> Result<(), ModelError> {
        let bytes = self.sequence.end(self.file.target())?;
        let padding = bytes.next_multiple_of(ALIGNMENT) - bytes;
        if padding > 0 { self.file.write(&vec![0; padding as usize]) } else { Ok(()) }
    }

    /// Begin, write and end in one.
    pub fn tensor(&mut self, name: &str, bytes: &[u8]) -> Result<(), ModelError> {
        self.begin(name)?;
        self.write(bytes)?;
        self.end()
    }

    /// All tensors have come: durable, renamed, hashed.
    pub fn finish(self) -> Result<FileHash, ModelError> {
        self.sequence.check_done(self.file.target())?;
        let target = self.file.target().to_owned();
        let hash = self.file.complete()?.publish()?;
        output::sync_directory(&target)?;
        Ok(hash)
    }
}

/// Bytes of the file that a writer with the same arguments makes.
pub fn file_bytes(
    path: &Path,
    metadata: &[(String, GgufValue)],
    tensors: Vec<DeclaredTensor>,
) -> Result<u64, ModelError> {
    let sequence = Sequence::new(path, tensors)?;
    let data: u64 = sequence.tensors.iter().map(|(_, bytes)| bytes.next_multiple_of(ALIGNMENT)).sum();
    Ok(header(path, metadata, &sequence)?.len() as u64 + data)
}

fn header(path: &Path, metadata: &[(String, GgufValue)], sequence: &Sequence) -> Result<Vec<u8>, ModelError> {
    let mut out = MAGIC.to_vec();
    VERSION.put(&mut out);
    (sequence.tensors.len() as u64).put(&mut out);
    (metadata.len() as u64).put(&mut out);
    let mut seen = std::collections::HashSet::new();
    for (key, value) in metadata {
        if !seen.insert(key) {
            return Err(ModelError::misuse(path, format!("metadata key {key:?} is given twice")));
        }
        if key == "general.alignment" && value.as_u64() != Some(ALIGNMENT) {
            return Err(ModelError::misuse(path, format!("general.alignment must be {ALIGNMENT}")));
        }
        key.put(&mut out);
        value.type_id().put(&mut out);
        value.put(&mut out);
    }
    let mut offset = 0u64;
    for (tensor, bytes) in &sequence.tensors {
        let DeclaredTensor { name, dtype, shape } = tensor;
        // llama.cpp keeps names in a buffer of 64 bytes with a terminator.
        if name.len() >= MAX_NAME {
            return Err(ModelError::misuse(
                path,
                format!("the tensor name {name:?} is longer than GGUF readers allow"),
            ));
        }
        if shape.len() > MAX_DIMS {
            return Err(ModelError::misuse(path, format!("{name:?} has more than {MAX_DIMS} dimensions")));
        }
        let id = type_id(*dtype)
            .ok_or_else(|| ModelError::misuse(path, format!("{name:?}: GGUF has no tensor type {dtype}")))?;
        name.put(&mut out);
        (shape.len() as u32).put(&mut out);
        for dim in shape.iter().rev() {
            (*dim as u64).put(&mut out);
        }
        id.put(&mut out);
        offset.put(&mut out);
        offset += bytes.next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT as usize), 0);
    Ok(out)
}
