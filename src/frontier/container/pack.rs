//! Writing archives that are the same bytes whenever the same files are packed: names sorted, one time, one mode, one
//! owner, one thread.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use super::Container;
use crate::frontier::FrontierError;
use crate::model::{FileHash, OutputFile};

/// How an archive is packed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packing {
    pub container: Container,
    /// Bytes of a stored number: xz then sees where in a number a byte stands (literal position bits), and what stands
    /// before it no longer matters.
    pub width: usize,
}

/// xz's dictionary: as large as the data up to this.
const MOST_DICTIONARY: u32 = 64 << 20;
/// 1980-01-01, the first second a zip file can name.
const ZIP_TIME: i64 = 315_532_800;

/// Packs every file below `folder` into `target`. Each byte of the archive follows from the names and contents of the
/// files.
///
/// # Errors
/// A folder that cannot be read, or a container that is no archive.
pub fn pack(folder: &Path, target: &Path, packing: Packing) -> Result<FileHash, FrontierError> {
    let mut files = Vec::new();
    list(folder, Path::new(""), &mut files)?;
    files.sort();
    let failed = |error| FrontierError::io("write", target)(error);
    let mut out = OutputFile::create(target)?;
    let sink = BufWriter::with_capacity(1 << 20, Sink(&mut out));
    let done = match packing.container {
        Container::Tar => tar(folder, &files, sink),
        Container::TarGz => {
            let encoder = flate2::GzBuilder::new().mtime(0).write(sink, flate2::Compression::best());
            tar(folder, &files, encoder).and_then(|encoder| encoder.finish())
        }
        Container::TarBz2 => {
            let encoder = bzip2::write::BzEncoder::new(sink, bzip2::Compression::best());
            tar(folder, &files, encoder).and_then(|encoder| encoder.finish())
        }
        Container::TarXz => {
            let options = xz_options(packing.width, total(folder, &files)?);
            let encoder = lzma_rust2::XzWriter::new(sink, options).map_err(failed)?;
            tar(folder, &files, encoder).and_then(|encoder| encoder.finish())
        }
        Container::Zip => zip(folder, &files, sink),
        Container::Directory | Container::Json => {
            let cause = format!("{} is no archive", packing.container.as_str());
            return Err(FrontierError::Request { cause, hint: "pack to tar.xz, tar.bz2, tar.gz, tar or zip" });
        }
    };
    done.and_then(|mut sink| sink.flush()).map_err(failed)?;
    Ok(out.complete()?.publish()?)
}

/// Settings of xz that suit numbers of `width` bytes whose neighbours say nothing about each other.
fn xz_options(width: usize, total: u64) -> lzma_rust2::XzOptions {
    let mut options = lzma_rust2::XzOptions::with_preset(9);
    let bits = width.max(1).trailing_zeros().min(4);
    let lzma = &mut options.lzma_options;
    (lzma.lc, lzma.lp, lzma.pb) = (0, bits, bits);
    lzma.nice_len = 273;
    let fitting = u32::try_from(total.next_power_of_two()).unwrap_or(u32::MAX);
    lzma.dict_size = fitting.clamp(1 << 16, MOST_DICTIONARY);
    options
}

fn total(folder: &Path, files: &[PathBuf]) -> Result<u64, FrontierError> {
    let size = |name: &PathBuf| {
        let path = folder.join(name);
        std::fs::metadata(&path).map(|meta| meta.len()).map_err(FrontierError::io("look at", &path))
    };
    files.iter().map(size).sum()
}

fn list(base: &Path, below: &Path, files: &mut Vec<PathBuf>) -> Result<(), FrontierError> {
    let dir = base.join(below);
    let entries = std::fs::read_dir(&dir).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    for entry in entries.map_err(FrontierError::io("list", &dir))? {
        let name = below.join(entry.file_name());
        match entry.path().is_dir() {
            true => list(base, &name, files)?,
            false => files.push(name),
        }
    }
    Ok(())
}

fn tar<W: Write>(folder: &Path, files: &[PathBuf], out: W) -> io::Result<W> {
    let mut builder = tar::Builder::new(out);
    for name in files {
        let file = File::open(folder.join(name))?;
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Regular);
        header.set_size(file.metadata()?.len());
        header.set_mode(0o644);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        builder.append_data(&mut header, name, file)?;
    }
    builder.into_inner()
}

fn zip<W: Write>(folder: &Path, files: &[PathBuf], out: W) -> io::Result<W> {
    let mut archive = rawzip::ZipArchiveWriter::new(out);
    for name in files {
        let (mut entry, config) = archive
            .new_file(name.to_string_lossy().as_ref())
            .compression_method(rawzip::CompressionMethod::DEFLATE)
            .last_modified(rawzip::time::UtcDateTime::from_unix(ZIP_TIME))
            .unix_permissions(0o100_644)
            .start()
            .map_err(io::Error::other)?;
        let encoder = flate2::write::DeflateEncoder::new(&mut entry, flate2::Compression::best());
        let mut writer = config.wrap(encoder);
        copy(&folder.join(name), &mut writer)?;
        let (encoder, descriptor) = writer.finish().map_err(io::Error::other)?;
        encoder.finish()?;
        entry.finish(descriptor).map_err(io::Error::other)?;
    }
    archive.finish().map_err(io::Error::other)
}

fn copy(path: &Path, out: &mut impl Write) -> io::Result<()> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0u8; 1 << 18];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(()),
            read => out.write_all(&buffer[..read])?,
        }
    }
}

/// An output file of the model room as a writer.
struct Sink<'a>(&'a mut OutputFile);

impl Write for Sink<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map(|()| bytes.len()).map_err(io::Error::other)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
