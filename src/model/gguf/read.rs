//! Reading a GGUF file.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::types::{dtype_of, retired_name};
use super::value::{Field, Input, take_value};
use super::{ALIGNMENT, GgufValue, MAGIC, MAX_DIMS};
use crate::codec::Dtype;
use crate::model::{MappedFile, ModelError, TensorMeta, TensorSource};

/// An open GGUF file: metadata and tensor infos read and checked, data mapped.
#[derive(Debug)]
pub struct GgufFile {
    files: [PathBuf; 1],
    map: MappedFile,
    version: u32,
    metadata: Vec<(String, GgufValue)>,
    keys: HashMap<String, usize>,
    metas: Vec<TensorMeta>,
    ranges: Vec<Range<usize>>,
    by_name: HashMap<String, usize>,
}

/// A tensor info as it stands in the header; the offset counts from the start of the data.
struct Info {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: u64,
    offset: u64,
}

impl GgufFile {
    /// Opens and checks a file: everything up to the data, and that each tensor lies inside the file, aligned, without
    /// overlap. No tensor data is read.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let map = MappedFile::open(path)?;
        let mut input = Input::of(map.bytes());
        let (version, tensors, pairs) = counts(path, &mut input)?;

        let mut metadata = Vec::new();
        let mut keys = HashMap::new();
        for number in 0..pairs {
            let (key, value) = pair(path, number, &mut input)?;
            if keys.insert(key.clone(), metadata.len()).is_some() {
                return Err(ModelError::broken(path, format!("metadata key {key:?} stands there twice")));
            }
            metadata.push((key, value));
        }
        let alignment = match keys.get("general.alignment").map(|&at| &metadata[at].1) {
            None => ALIGNMENT,
            Some(value) => value
                .as_u64()
                .filter(|n| n.is_power_of_two() && *n <= 1 << 20)
                .ok_or_else(|| ModelError::broken(path, "general.alignment is not a power of two"))?,
        };
        let mut infos = Vec::new();
        for number in 0..tensors {
            infos.push(info(path, number, &mut input)?);
        }
        let start = (input.at as u64).next_multiple_of(alignment);
        infos.sort_by_key(|info| info.offset);
        let ranges = place(path, &infos, start, alignment, map.bytes().len() as u64)?;

        let mut by_name = HashMap::with_capacity(infos.len());
        let mut metas = Vec::with_capacity(infos.len());
        for info in infos {
            if by_name.insert(info.name.clone(), metas.len()).is_some() {
                return Err(ModelError::broken_tensor(path, &info.name, "the header names it twice"));
            }
            let Info { name, dtype, shape, bytes, .. } = info;
            metas.push(TensorMeta { name, dtype, shape, bytes, file: 0 });
        }
        Ok(GgufFile { files: [path.to_owned()], map, version, metadata, keys, metas, ranges, by_name })
    }

    pub fn path(&self) -> &Path {
        &self.files[0]
    }
    pub fn version(&self) -> u32 {
        self.version
    }
    /// All metadata in the order of the file.
    pub fn metadata(&self) -> &[(String, GgufValue)] {
        &self.metadata
    }
    /// The value of a metadata key.
    pub fn value(&self, key: &str) -> Option<&GgufValue> {
        self.keys.get(key).map(|&at| &self.metadata[at].1)
    }

    pub fn opt_u64(&self, key: &str) -> Result<Option<u64>, ModelError> {
        self.typed(key, "a whole number", GgufValue::as_u64)
    }
    pub fn opt_f64(&self, key: &str) -> Result<Option<f64>, ModelError> {
        self.typed(key, "a number", GgufValue::as_f64)
    }
    pub fn opt_bool(&self, key: &str) -> Result<Option<bool>, ModelError> {
        self.typed(key, "true or false", GgufValue::as_bool)
    }
    pub fn opt_str(&self, key: &str) -> Result<Option<&str>, ModelError> {
        self.typed(key, "text", GgufValue::as_str)
    }
    pub fn opt_texts(&self, key: &str) -> Result<Option<&[String]>, ModelError> {
        self.typed(key, "a list of texts", GgufValue::as_texts)
    }
    pub fn u64(&self, key: &str) -> Result<u64, ModelError> {
        self.opt_u64(key)?.ok_or_else(|| self.error(key, "is missing".to_owned()))
    }
    pub fn f64(&self, key: &str) -> Result<f64, ModelError> {
        self.opt_f64(key)?.ok_or_else(|| self.error(key, "is missing".to_owned()))
    }
    pub fn str(&self, key: &str) -> Result<&str, ModelError> {
        self.opt_str(key)?.ok_or_else(|| self.error(key, "is missing".to_owned()))
    }

    /// An error about one metadata key.
    pub fn error(&self, key: &str, cause: String) -> ModelError {
        ModelError::Key { path: self.path().to_owned(), key: key.to_owned(), cause }
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &str,
        read: impl FnOnce(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>, ModelError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let wrong = || self.error(key, format!("expected {expected}, found {}", value.type_name()));
        read(value).map(Some).ok_or_else(wrong)
    }

    fn place(&self, name: &str) -> Result<Range<usize>, ModelError> {
        match self.by_name.get(name) {
            Some(&at) => Ok(self.ranges[at].clone()),
            None => Err(ModelError::NoTensor { path: self.path().to_owned(), tensor: name.to_owned() }),
        }
    }
}

/// Magic, version, and how many tensors and metadata pairs follow.
fn counts(path: &Path, input: &mut Input<'_>) -> Result<(u32, u64, u64), ModelError> {
    let broken = |cause: String| ModelError::broken(path, cause);
    if !input.bytes.starts_with(&MAGIC) {
        return Err(broken("does not begin with GGUF".to_owned()).with_hint("this is not a GGUF file"));
    }
    input.at = MAGIC.len();
    let version = u32::take(input).map_err(broken)?;
    match version {
        2 | 3 => {}
        1 => {
            return Err(ModelError::unsupported(path, "GGUF version 1", "convert the model again with a current tool"));
        }
        other if (1..=3).contains(&other.swap_bytes()) => {
            let hint = "convert the model for little-endian machines";
            return Err(ModelError::unsupported(path, "a big-endian GGUF file", hint));
        }
        other => {
            let hint = "versions 2 and 3 can be read";
            return Err(ModelError::unsupported(path, format!("GGUF version {other}"), hint));
        }
    }
    let tensors = u64::take(input).map_err(broken)?;
    let pairs = u64::take(input).map_err(broken)?;
    // An info needs at least 24 bytes, a pair at least 13: larger counts are damage, not data.
    let size = input.bytes.len() as u64;
    if tensors > size / 24 || pairs > size / 13 {
        return Err(broken(format!("claims {tensors} tensors and {pairs} metadata keys in {size} bytes")));
    }
    Ok((version, tensors, pairs))
}

fn pair(path: &Path, number: u64, input: &mut Input<'_>) -> Result<(String, GgufValue), ModelError> {
    let key = String::take(input).map_err(|e| ModelError::broken(path, format!("metadata key {number}: {e}")))?;
    let value = u32::take(input)
        .and_then(|id| take_value(id, input))
        .map_err(|e| ModelError::broken(path, format!("metadata {key:?}: {e}")))?;
    Ok((key, value))
}

fn info(path: &Path, number: u64, input: &mut Input<'_>) -> Result<Info, ModelError> {
    let name = String::take(input).map_err(|e| ModelError::broken(path, format!("tensor {number}: {e}")))?;
    let broken = |cause: String| ModelError::broken_tensor(path, &name, cause);
    let dims = u32::take(input).map_err(broken)?;
    if dims as usize > MAX_DIMS {
        return Err(broken(format!("has {dims} dimensions; at most {MAX_DIMS} are allowed")));
    }
    let mut shape = Vec::with_capacity(dims as usize);
    for _ in 0..dims {
        let dim = u64::take(input).map_err(broken)?;
        shape.push(usize::try_from(dim).map_err(|_| broken(format!("dimension {dim} is too large")))?);
    }
    shape.reverse();
    let id = u32::take(input).map_err(broken)?;
    let offset = u64::take(input).map_err(broken)?;
    let dtype = dtype_of(id).ok_or_else(|| match retired_name(id) {
        Some(retired) => broken(format!("type {id} ({retired}) is no longer in use"))
            .with_hint("convert the model again with a current tool"),
        None => broken(format!("type {id} is not known to this build")).with_hint("use a newer build, or another file"),
    })?;
    let bytes = dtype
        .checked_bytes(&shape)
        .ok_or_else(|| broken(format!("the shape {shape:?} is too large or not a whole number of {dtype} blocks")))?;
    Ok(Info { name, dtype, shape, bytes, offset })
}

/// Turns offsets into ranges of the file; `infos` are sorted by offset.
fn place(path: &Path, infos: &[Info], start: u64, alignment: u64, size: u64) -> Result<Vec<Range<usize>>, ModelError> {
    let mut free = start;
    let mut ranges = Vec::with_capacity(infos.len());
    for info in infos {
        let broken = |cause: String| ModelError::broken_tensor(path, &info.name, cause);
        if !info.offset.is_multiple_of(alignment) {
            return Err(broken(format!("its offset {} is not a multiple of {alignment}", info.offset)));
        }
        let from = start.checked_add(info.offset);
        let end = from.and_then(|from| from.checked_add(info.bytes));
        let (Some(from), Some(end)) = (from, end) else {
            return Err(broken(format!("its offset {} overflows", info.offset)));
        };
        if from < free {
            return Err(broken("its data overlaps the tensor before it".to_owned()));
        }
        if end > size {
            return Err(broken(format!("its data ends at byte {end}, but the file has {size}")));
        }
        free = end;
        ranges.push(from as usize..end as usize);
    }
    Ok(ranges)
}

impl TensorSource for GgufFile {
    fn metas(&self) -> &[TensorMeta] {
        &self.metas
    }
    fn meta(&self, name: &str) -> Option<&TensorMeta> {
        self.by_name.get(name).map(|&at| &self.metas[at])
    }
    fn files(&self) -> &[PathBuf] {
        &self.files
    }
    fn bytes(&self, name: &str) -> Result<Cow<'_, [u8]>, ModelError> {
        Ok(Cow::Borrowed(&self.map.bytes()[self.place(name)?]))
    }
    fn prefetch(&self, name: &str) {
        if let Ok(range) = self.place(name) {
            self.map.prefetch(range);
        }
    }
    fn release(&self, name: &str) {
        if let Ok(range) = self.place(name) {
            self.map.release(range);
        }
    }
    fn prefetch_part(&self, name: &str, bytes: Range<usize>) {
        if let Ok(range) = self.place(name) {
            self.map.prefetch(range.start + bytes.start..(range.start + bytes.end).min(range.end));
        }
    }
    fn release_part(&self, name: &str, bytes: Range<usize>) {
        if let Ok(range) = self.place(name) {
            self.map.release(range.start + bytes.start..(range.start + bytes.end).min(range.end));
        }
    }
    fn read_bytes(&self, name: &str, out: &mut Vec<u8>) -> Result<(), ModelError> {
        self.map.read_range(self.place(name)?, out)
    }
}
