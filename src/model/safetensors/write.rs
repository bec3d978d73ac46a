//! Writing a safetensors model: tensors streamed once, in declared order, into deterministic shards.

use std::path::{Path, PathBuf};

use safetensors::tensor::{Dtype as StDtype, TensorInfo};
use serde_json::{Map, Value, json};

use super::{INDEX_FILE, SINGLE_FILE};
use crate::codec::Dtype;
use crate::model::declared::Sequence;
use crate::model::output::{self, OutputFile, Settling};
use crate::model::{DeclaredTensor, FileHash, ModelError, TensorSource};
use crate::recipe::json::{Node, Style, render};

/// The shard size transformers uses: 5 GB.
pub const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// What a finished writer has put on disk.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WrittenModel {
    /// The weight files in shard order.
    pub weights: Vec<FileHash>,
    /// The index, when there is more than one shard.
    pub index: Option<FileHash>,
}

/// Weight files that have their names and all their bytes, and are being made durable and hashed as they lie on disk.
#[derive(Debug)]
pub struct SettlingModel {
    directory: PathBuf,
    weights: Vec<Settling>,
    index: Option<FileHash>,
}

impl SettlingModel {
    /// Waits until every file is durable.
    pub fn wait(self) -> Result<WrittenModel, ModelError> {
        let weights = self.weights.into_iter().map(Settling::wait).collect::<Result<_, _>>()?;
        output::sync_directory(&self.directory.join(INDEX_FILE))?;
        Ok(WrittenModel { weights, index: self.index })
    }
}

/// A streaming writer. A shard has its final name once its last byte is written.
#[derive(Debug)]
pub struct SafetensorsWriter {
    directory: PathBuf,
    sequence: Sequence,
    /// First tensor of each shard, and the end.
    bounds: Vec<usize>,
    current: Option<OutputFile>,
    done: Vec<Settling>,
}

impl SafetensorsWriter {
    /// Plans the shards: tensors in the order given, a new shard when one more would exceed `max_shard_bytes` of data
    /// (a larger single tensor has a shard of its own). `directory` must exist.
    ///
    /// Data is packed without gaps in this order, as the format demands; types of different width should therefore be
    /// declared widest first where alignment matters to a reader.
    pub fn create(
        directory: &Path,
        tensors: Vec<DeclaredTensor>,
        max_shard_bytes: u64,
    ) -> Result<SafetensorsWriter, ModelError> {
        let sequence = Sequence::new(directory, tensors)?;
        let mut bounds = vec![0];
        let mut filled = 0u64;
        for (i, (tensor, bytes)) in sequence.tensors.iter().enumerate() {
            to_safetensors(tensor.dtype).ok_or_else(|| {
                ModelError::misuse(directory, format!("{:?}: safetensors has no type {}", tensor.name, tensor.dtype))
            })?;
            if filled > 0 && filled.saturating_add(*bytes) > max_shard_bytes {
                bounds.push(i);
                filled = 0;
            }
            filled = filled.saturating_add(*bytes);
        }
        bounds.push(sequence.tensors.len());
        Ok(SafetensorsWriter { directory: directory.to_owned(), sequence, bounds, current: None, done: Vec::new() })
    }

    fn shards(&self) -> usize {
        self.bounds.len() - 1
    }

    /// `model.safetensors`, or `model-00001-of-00003.safetensors` and so on.
    fn shard_name(&self, shard: usize) -> String {
        match self.shards() {
            1 => SINGLE_FILE.to_owned(),
            n => format!("model-{:05}-of-{n:05}.safetensors", shard + 1),
        }
    }

    /// Starts the next tensor, which must be `name`. Returns its size in bytes.
    pub fn begin(&mut self, name: &str) -> Result<u64, ModelError> {
        let (at, bytes) = self.sequence.begin(&self.directory, name)?;
        let shard = self.bounds.partition_point(|&first| first <= at) - 1;
        while self.done.len() + usize::from(self.current.is_some()) <= shard {
            self.next_shard()?;
        }
        Ok(bytes)
    }

    /// Hands over a piece of the tensor that has begun.
    pub fn write_owned(&mut self, piece: Vec<u8>) -> Result<(), ModelError> {
        self.sequence.add(&self.directory, piece.len())?;
        self.file()?.write_owned(piece)
    }

    /// As [`SafetensorsWriter::write_owned`], copying.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.sequence.add(&self.directory, bytes.len())?;
        self.file()?.write(bytes)
    }

    /// An empty buffer for [`SafetensorsWriter::write_owned`]; reuses the memory of written ones.
    pub fn buffer(&self) -> Vec<u8> {
        self.current.as_ref().map(OutputFile::buffer).unwrap_or_default()
    }

    /// Ends the tensor; fails unless exactly its bytes have come.
    pub fn end(&mut self) -> Result<(), ModelError> {
        self.sequence.end(&self.directory).map(|_| ())
    }

    /// Begin, write and end in one.
    pub fn tensor(&mut self, name: &str, bytes: &[u8]) -> Result<(), ModelError> {
        self.begin(name)?;
        self.write(bytes)?;
        self.end()
    }

    /// Copies a tensor from a source, possibly under another name; inside the kernel where the source is a plain file.
    pub fn copy(&mut self, name: &str, source: &dyn TensorSource, source_name: &str) -> Result<(), ModelError> {
        let bytes = self.begin(name)?;
        match source.file_range(source_name) {
            Some((from, offset)) if source.require(source_name)?.bytes == bytes => {
                self.sequence.add(&self.directory, bytes as usize)?;
                self.file()?.copy_range(from, offset, bytes)?;
            }
            _ => {
                self.write(&source.bytes(source_name)?)?;
                source.release(source_name);
            }
        }
        self.end()
    }

    /// All tensors have come: every file is written and readable under its final name, the index too. They become
    /// durable, and their hashes known, with [`SettlingModel::wait`].
    pub fn publish(mut self) -> Result<SettlingModel, ModelError> {
        self.sequence.check_done(&self.directory)?;
        while self.done.len() < self.shards() {
            self.next_shard()?;
            self.close_shard()?;
        }
        let path = self.directory.join(INDEX_FILE);
        let text = |index| render(&Node::from_value(&index), Style::PYTHON) + "\n";
        let index = (self.shards() > 1).then(|| output::write_file(&path, text(self.index()).as_bytes()));
        Ok(SettlingModel { weights: self.done, index: index.transpose()?, directory: self.directory })
    }

    /// [`SafetensorsWriter::publish`] and [`SettlingModel::wait`].
    pub fn finish(self) -> Result<WrittenModel, ModelError> {
        self.publish()?.wait()
    }

    fn file(&mut self) -> Result<&mut OutputFile, ModelError> {
        self.current.as_mut().ok_or_else(|| ModelError::misuse(&self.directory, "no tensor has begun"))
    }

    fn close_shard(&mut self) -> Result<(), ModelError> {
        if let Some(file) = self.current.take() {
            self.done.push(file.settle()?);
        }
        Ok(())
    }

    fn next_shard(&mut self) -> Result<(), ModelError> {
        self.close_shard()?;
        let shard = self.done.len();
        if shard >= self.shards() {
            return Ok(());
        }
        let mut file = OutputFile::create_unhashed(&self.directory.join(self.shard_name(shard)))?;
        file.write(&header(&self.sequence.tensors[self.bounds[shard]..self.bounds[shard + 1]]))?;
        self.current = Some(file);
        Ok(())
    }

    fn index(&self) -> Value {
        let mut weight_map = Map::new();
        for shard in 0..self.shards() {
            for (tensor, _) in &self.sequence.tensors[self.bounds[shard]..self.bounds[shard + 1]] {
                weight_map.insert(tensor.name.clone(), self.shard_name(shard).into());
            }
        }
        let total: u64 = self.sequence.tensors.iter().map(|(_, bytes)| bytes).sum();
        json!({"metadata": {"total_size": total}, "weight_map": weight_map})
    }
}

/// Length, JSON and the spaces that bring the data to a multiple of 8.
fn header(tensors: &[(DeclaredTensor, u64)]) -> Vec<u8> {
    let mut members = Map::new();
    members.insert("__metadata__".to_owned(), json!({"format": "pt"}));
    let mut at = 0usize;
    for (tensor, bytes) in tensors {
        let end = at + *bytes as usize;
        // `create` has refused every other type.
        let dtype = to_safetensors(tensor.dtype).unwrap_or(StDtype::U8);
        let info = TensorInfo { dtype, shape: tensor.shape.clone(), data_offsets: (at, end) };
        members.insert(tensor.name.clone(), json!(info));
        at = end;
    }
    let mut json = Value::Object(members).to_string().into_bytes();
    json.resize(json.len().next_multiple_of(8), b' ');
    let mut out = (json.len() as u64).to_le_bytes().to_vec();
    out.extend_from_slice(&json);
    out
}

fn to_safetensors(dtype: Dtype) -> Option<StDtype> {
    Some(match dtype {
        Dtype::Bool => StDtype::BOOL,
        Dtype::U8 => StDtype::U8,
        Dtype::I8 => StDtype::I8,
        Dtype::U16 => StDtype::U16,
        Dtype::I16 => StDtype::I16,
        Dtype::U32 => StDtype::U32,
        Dtype::I32 => StDtype::I32,
        Dtype::U64 => StDtype::U64,
        Dtype::I64 => StDtype::I64,
        Dtype::F16 => StDtype::F16,
        Dtype::BF16 => StDtype::BF16,
        Dtype::F32 => StDtype::F32,
        Dtype::F64 => StDtype::F64,
        Dtype::F8E4M3 => StDtype::F8_E4M3,
        Dtype::F8E5M2 => StDtype::F8_E5M2,
        Dtype::F8E8M0 => StDtype::F8_E8M0,
        _ => return None,
    })
}
