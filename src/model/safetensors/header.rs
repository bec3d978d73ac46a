//! The header of one safetensors file: 8 bytes length (little-endian), JSON, then the data without gaps.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::path::Path;

use safetensors::tensor::{Dtype as StDtype, TensorInfo};
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::codec::Dtype;
use crate::model::ModelError;
use crate::model::limits::MOST_TENSORS;

/// Longest header that is read; as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// One tensor of a file; `range` counts from the start of the file.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    pub range: Range<usize>,
}

/// Reads and checks the header of a whole file's bytes. The entries come in the order of their data.
pub(super) fn parse(path: &Path, file: &[u8]) -> Result<Vec<Entry>, ModelError> {
    let broken = |cause: String| ModelError::broken(path, cause);
    let Some((length, rest)) = file.split_first_chunk::<8>() else {
        return Err(broken(format!("{} bytes are too few for a safetensors file", file.len())));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(broken(format!("the header claims {length} bytes; at most {MAX_HEADER} are allowed"))
            .with_hint("this is not a safetensors file, or it is damaged"));
    }
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    let Some((json, data)) = rest.split_at_checked(length) else {
        return Err(broken(format!("cut off inside the header: {length} bytes claimed, {} present", rest.len())));
    };
    let raw: Members =
        serde_json::from_slice(json).map_err(|e| broken(format!("the header is not valid JSON: {e}")))?;

    let mut entries = Vec::with_capacity(raw.0.len());
    let mut names = HashSet::with_capacity(raw.0.len());
    for (name, value) in raw.0 {
        if !names.insert(name.clone()) {
            return Err(ModelError::broken_tensor(path, &name, "the header names it twice"));
        }
        if name == "__metadata__" {
            serde_json::from_str::<std::collections::HashMap<String, String>>(value.get())
                .map_err(|e| broken(format!("__metadata__ must map strings to strings: {e}")))?;
            continue;
        }
        entries.push(entry(path, name, value.get(), 8 + length, data.len())?);
    }
    entries.sort_by_key(|entry| (entry.range.start, entry.range.end));
    check_cover(path, &entries, 8 + length, file.len())?;
    Ok(entries)
}

fn entry(path: &Path, name: String, json: &str, start: usize, data: usize) -> Result<Entry, ModelError> {
    let broken = |cause: String| ModelError::broken_tensor(path, &name, cause);
    let info: TensorInfo = serde_json::from_str(json).map_err(|e| broken(format!("bad header entry: {e}")))?;
    let (from, to) = info.data_offsets;
    if from > to {
        return Err(broken(format!("its data ends ({to}) before it begins ({from})")));
    }
    if to > data {
        return Err(broken(format!("its data ends at {to}, but the file has only {data} bytes of data")));
    }
    let dtype = from_safetensors(info.dtype).ok_or_else(|| {
        broken(format!("type {:?} is not known to this build", info.dtype))
            .with_hint("convert the model to bf16, f16 or f32 first")
    })?;
    match dtype.checked_bytes(&info.shape) {
        Some(bytes) if bytes == (to - from) as u64 => {}
        Some(bytes) => {
            return Err(broken(format!(
                "{dtype} {:?} needs {bytes} bytes, the header gives {}",
                info.shape,
                to - from
            )));
        }
        None => return Err(broken(format!("the shape {:?} overflows", info.shape))),
    }
    Ok(Entry { name, dtype, shape: info.shape, range: start + from..start + to })
}

/// The data must be covered without gap and overlap, up to the last byte.
fn check_cover(path: &Path, entries: &[Entry], start: usize, end: usize) -> Result<(), ModelError> {
    let mut at = start;
    for entry in entries {
        let from = entry.range.start;
        if from != at {
            let what = if from < at { "overlaps the tensor before it" } else { "leaves a gap before it" };
            return Err(ModelError::broken_tensor(path, &entry.name, format!("its data {what} ({from} for {at})")));
        }
        at = entry.range.end;
    }
    if at != end {
        return Err(ModelError::broken(path, format!("{} bytes after the last tensor belong to none", end - at)));
    }
    Ok(())
}

fn from_safetensors(dtype: StDtype) -> Option<Dtype> {
    Some(match dtype {
        StDtype::BOOL => Dtype::Bool,
        StDtype::U8 => Dtype::U8,
        StDtype::I8 => Dtype::I8,
        StDtype::U16 => Dtype::U16,
        StDtype::I16 => Dtype::I16,
        StDtype::U32 => Dtype::U32,
        StDtype::I32 => Dtype::I32,
        StDtype::U64 => Dtype::U64,
        StDtype::I64 => Dtype::I64,
        StDtype::F16 => Dtype::F16,
        StDtype::BF16 => Dtype::BF16,
        StDtype::F32 => Dtype::F32,
        StDtype::F64 => Dtype::F64,
        StDtype::F8_E4M3 => Dtype::F8E4M3,
        StDtype::F8_E5M2 => Dtype::F8E5M2,
        StDtype::F8_E8M0 => Dtype::F8E8M0,
        _ => return None,
    })
}

/// The members of a JSON object in order, repeated names included (a map would hide them).
struct Members(Vec<(String, Box<RawValue>)>);

impl<'de> serde::Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;
        impl<'de> Visitor<'de> for Collect {
            type Value = Members;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    if members.len() == MOST_TENSORS {
                        return Err(serde::de::Error::custom(format!("it names more than {MOST_TENSORS} tensors")));
                    }
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Collect)
    }
}
