//! Reading a safetensors model.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::header;
use super::index::{self, Shards};
use crate::model::{MappedFile, ModelError, TensorMeta, TensorSource};

/// An open safetensors model: headers checked, data mapped.
#[derive(Debug)]
pub struct SafetensorsModel {
    files: Vec<PathBuf>,
    maps: Vec<MappedFile>,
    metas: Vec<TensorMeta>,
    ranges: Vec<Range<usize>>,
    by_name: HashMap<String, usize>,
}

impl SafetensorsModel {
    /// Opens a file, an index, or a directory that holds one of them. Every header is read and checked: offsets, sizes,
    /// gaps, and that index and shards agree. No tensor data is read.
    pub fn open(path: &Path) -> Result<Self, ModelError> {
        let Shards { files, weight_map, index } = index::locate(path)?;
        let mut model = SafetensorsModel {
            files,
            maps: Vec::new(),
            metas: Vec::new(),
            ranges: Vec::new(),
            by_name: HashMap::new(),
        };
        for (number, file) in model.files.iter().enumerate() {
            let map = MappedFile::open(file)?;
            for entry in header::parse(file, map.bytes())? {
                if let Some(expected) = &weight_map {
                    let cause = match expected.get(&entry.name) {
                        Some(at) if *at == number => None,
                        Some(at) => Some(format!("the index puts it into {}", model.files[*at].display())),
                        None => Some("it is not in the index".to_owned()),
                    };
                    if let Some(cause) = cause {
                        return Err(ModelError::broken_tensor(file, &entry.name, cause)
                            .with_hint("index and shards do not belong together: download both again"));
                    }
                }
                model.by_name.insert(entry.name.clone(), model.metas.len());
                model.metas.push(TensorMeta {
                    name: entry.name,
                    dtype: entry.dtype,
                    shape: entry.shape,
                    bytes: entry.range.len() as u64,
                    file: number,
                });
                model.ranges.push(entry.range);
            }
            model.maps.push(map);
        }
        for (tensor, shard) in weight_map.iter().flatten() {
            if !model.by_name.contains_key(tensor) {
                let cause = format!("the index puts it into {}, which lacks it", model.files[*shard].display());
                return Err(ModelError::broken_tensor(&index, tensor, cause)
                    .with_hint("index and shards do not belong together: download both again"));
            }
        }
        Ok(model)
    }

    fn place(&self, name: &str) -> Result<(&MappedFile, Range<usize>), ModelError> {
        let at = *self.by_name.get(name).ok_or_else(|| ModelError::NoTensor {
            path: self.files.first().cloned().unwrap_or_default(),
            tensor: name.to_owned(),
        })?;
        Ok((&self.maps[self.metas[at].file], self.ranges[at].clone()))
    }
}

impl TensorSource for SafetensorsModel {
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
        let (map, range) = self.place(name)?;
        Ok(Cow::Borrowed(&map.bytes()[range]))
    }
    fn file_range(&self, name: &str) -> Option<(File, u64)> {
        let (map, range) = self.place(name).ok()?;
        Some((map.handle().ok()?, range.start as u64))
    }
    fn prefetch(&self, name: &str) {
        if let Ok((map, range)) = self.place(name) {
            map.prefetch(range);
        }
    }
    fn release(&self, name: &str) {
        if let Ok((map, range)) = self.place(name) {
            map.release(range);
        }
    }
    fn prefetch_part(&self, name: &str, bytes: Range<usize>) {
        if let Ok((map, range)) = self.place(name) {
            map.prefetch(range.start + bytes.start..(range.start + bytes.end).min(range.end));
        }
    }
    fn release_part(&self, name: &str, bytes: Range<usize>) {
        if let Ok((map, range)) = self.place(name) {
            map.release(range.start + bytes.start..(range.start + bytes.end).min(range.end));
        }
    }
    fn read_bytes(&self, name: &str, out: &mut Vec<u8>) -> Result<(), ModelError> {
        let (map, range) = self.place(name)?;
        map.read_range(range, out)
    }
}
