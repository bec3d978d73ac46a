//! Reading zip files: the methods that Python's `zipfile` reads (stored, deflate, bzip2, LZMA).

use std::collections::BTreeMap;
use std::io::Read;
use std::path::PathBuf;

use rawzip::{CompressionMethod, ZipArchive};

use super::{Intake, UNSAFE};
use crate::frontier::FrontierError;
use crate::units::Bytes;

const DAMAGED: &str = "the archive is damaged or cut off: pack or copy it again";

/// Unpacks `bytes`; false when they are no zip file.
pub(super) fn unpack(bytes: &[u8], intake: &mut Intake<'_>) -> Result<bool, FrontierError> {
    let Ok(archive) = ZipArchive::from_slice(bytes) else { return Ok(false) };
    let damaged = |intake: &Intake<'_>, error: rawzip::Error| intake.refuse(format!("zip: {error}"), DAMAGED);
    let mut entries = archive.entries();
    let mut files: Vec<(PathBuf, rawzip::ZipArchiveEntryWayfinder, CompressionMethod)> = Vec::new();
    let mut ranges = BTreeMap::new();
    let mut declared = 0u64;
    while let Some(entry) = entries.next_entry().map_err(|error| damaged(intake, error))? {
        let raw = entry.file_path();
        let Some(place) = intake.place(raw.as_bytes())? else { continue };
        if entry.is_dir() {
            intake.make_folder(&place)?;
            continue;
        }
        if entry.mode().is_symlink() {
            return Err(intake.refuse(format!("entry {place:?} is a link"), UNSAFE));
        }
        declared = declared.saturating_add(entry.uncompressed_size_hint());
        let way = entry.wayfinder();
        let (from, to) = archive.get_entry(way).map_err(|error| damaged(intake, error))?.compressed_data_range();
        if let Some(other) = ranges.insert(from, to).filter(|_| to > from) {
            return Err(
                intake.refuse(format!("entry {place:?} shares its data with another ({from}..{other})"), UNSAFE)
            );
        }
        files.push((place, way, entry.compression_method()));
    }
    // Data that several entries share is how a small file unpacks to a huge one.
    let starts: Vec<(&u64, &u64)> = ranges.iter().collect();
    if starts.windows(2).any(|pair| pair[0].1 > pair[1].0) {
        return Err(intake.refuse("entries overlap", UNSAFE));
    }
    intake.check_declared(declared, &format!("its directory of {} files", files.len()))?;
    for (place, way, method) in files {
        let entry = archive.get_entry(way).map_err(|error| damaged(intake, error))?;
        let data = decoder(entry.data(), method, way.uncompressed_size_hint());
        let data = data.map_err(|cause| intake.refuse(format!("entry {place:?} {cause}"), DAMAGED))?;
        // Checks size and CRC at the end.
        intake.file(&place, entry.verifying_reader(data))?;
    }
    Ok(true)
}

fn decoder<'a>(data: &'a [u8], method: CompressionMethod, size: u64) -> Result<Box<dyn Read + 'a>, String> {
    match method {
        CompressionMethod::STORE => Ok(Box::new(data)),
        CompressionMethod::DEFLATE => Ok(Box::new(flate2::bufread::DeflateDecoder::new(data))),
        CompressionMethod::BZIP2 => Ok(Box::new(bzip2::bufread::BzDecoder::new(data))),
        CompressionMethod::LZMA => lzma(data, size).map(|reader| Box::new(reader) as Box<dyn Read>),
        other => Err(format!("is packed by method {other}; stored, deflate, bzip2 and LZMA are read")),
    }
}

/// An LZMA member: two bytes of version, the length of the properties (5), the properties, the stream.
fn lzma(data: &[u8], size: u64) -> Result<lzma_rust2::LzmaReader<&[u8]>, String> {
    let short = || "ends inside its LZMA header".to_owned();
    let (header, rest) = data.split_first_chunk::<4>().ok_or_else(short)?;
    let length = u16::from_le_bytes([header[2], header[3]]);
    let (&[properties, a, b, c, d], stream) = rest.split_first_chunk::<5>().ok_or_else(short)?;
    let dictionary = u32::from_le_bytes([a, b, c, d]);
    if length != 5 {
        return Err(format!("has LZMA properties of {length} bytes"));
    }
    if u64::from(dictionary) > super::Limits::default().bytes.0 / 8 {
        return Err(format!("asks for a dictionary of {}", Bytes(dictionary.into())));
    }
    lzma_rust2::LzmaReader::new_with_props(stream, size, properties, dictionary, None)
        .map_err(|error| format!("cannot be unpacked: {error}"))
}
