//! Quantities with their unit in the type: bytes and digests. And reading a file of at most so many bytes.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

/// A number of bytes. Shown in decimal units (1 GB = 10^9 bytes), as disks and model cards count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl Bytes {
    pub const fn from_gb(gb: u64) -> Self {
        Bytes(gb * 1_000_000_000)
    }
    pub const fn from_mb(mb: u64) -> Self {
        Bytes(mb * 1_000_000)
    }
    pub fn as_gb(self) -> f64 {
        self.0 as f64 / 1e9
    }
    pub fn saturating_sub(self, other: Bytes) -> Bytes {
        Bytes(self.0.saturating_sub(other.0))
    }
}

impl std::ops::Add for Bytes {
    type Output = Bytes;
    fn add(self, other: Bytes) -> Bytes {
        Bytes(self.0 + other.0)
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(iter: I) -> Bytes {
        Bytes(iter.map(|b| b.0).sum())
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let n = self.0 as f64;
        let text = match self.0 {
            0..=999 => format!("{} B", self.0),
            1_000..=999_999 => format!("{:.1} kB", n / 1e3),
            1_000_000..=999_999_999 => format!("{:.1} MB", n / 1e6),
            _ => format!("{:.2} GB", n / 1e9),
        };
        f.pad(&text)
    }
}

/// Reads a regular file of at most `most` bytes.
///
/// Every file that others wrote is read through this: a file that is larger than any of its kind has reason to be costs
/// no memory, and a pipe or a device in its place is not waited for.
///
/// # Errors
/// Of kind [`io::ErrorKind::InvalidData`] for a larger file and for what is no regular file; else the system's.
pub fn read_at_most(path: &Path, most: Bytes) -> io::Result<Vec<u8>> {
    let refuse = |cause: String| io::Error::new(io::ErrorKind::InvalidData, cause);
    let too_large = |found: Bytes| refuse(format!("it has {found}; at most {most} of such a file are read"));
    let stated = std::fs::metadata(path)?;
    if !stated.is_file() && !stated.is_dir() {
        return Err(refuse("it is no regular file".to_owned()));
    }
    if stated.is_file() && stated.len() > most.0 {
        return Err(too_large(Bytes(stated.len())));
    }
    let mut bytes = Vec::new();
    // The file may grow while it is read.
    let read = File::open(path)?.take(most.0.saturating_add(1)).read_to_end(&mut bytes)?;
    if read as u64 > most.0 {
        return Err(too_large(Bytes(read as u64)));
    }
    Ok(bytes)
}

/// A SHA-256 digest. Text form: 64 lower-case hex digits, without a prefix.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Sha(pub [u8; 32]);

impl Sha {
    pub fn of(bytes: &[u8]) -> Self {
        Sha(Sha256::digest(bytes).into())
    }
    pub fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }
    /// `sha256:<hex>`, the form used for model, recipe and sample hashes.
    pub fn tagged(&self) -> String {
        format!("sha256:{}", self.hex())
    }
}

impl fmt::Display for Sha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.hex())
    }
}

impl fmt::Debug for Sha {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sha({})", self.hex())
    }
}

/// The text is not 64 hex digits.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a SHA-256 digest (64 hex digits)")]
pub struct NotASha(String);

impl FromStr for Sha {
    type Err = NotASha;
    /// Accepts bare hex and the `sha256:` prefix.
    fn from_str(text: &str) -> Result<Self, NotASha> {
        let hex = text.strip_prefix("sha256:").unwrap_or(text);
        let bad = || NotASha(text.to_owned());
        if hex.len() != 64 || !hex.bytes().all(|digit| digit.is_ascii_hexdigit()) {
            return Err(bad());
        }
        let mut out = [0u8; 32];
        for (i, byte) in out.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&hex[2 * i..2 * i + 2], 16).map_err(|_| bad())?;
        }
        Ok(Sha(out))
    }
}

impl Serialize for Sha {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&self.hex())
    }
}

impl<'de> Deserialize<'de> for Sha {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_read_like_a_disk_label() {
        assert_eq!(Bytes(999).to_string(), "999 B");
        assert_eq!(Bytes(269_030_016).to_string(), "269.0 MB");
        assert_eq!(Bytes::from_gb(12).to_string(), "12.00 GB");
    }

    #[test]
    fn sha_of_empty_input_and_round_trip() {
        let sha = Sha::of(b"");
        assert_eq!(sha.hex(), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
        assert_eq!(sha.tagged().parse::<Sha>().unwrap(), sha);
        assert!("xyz".parse::<Sha>().is_err());
        assert!("+f".repeat(32).parse::<Sha>().is_err(), "a sign is no digit");
    }

    #[test]
    fn a_file_is_read_up_to_its_limit_and_a_pipe_not_at_all() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        std::fs::write(&file, b"12345").unwrap();
        assert_eq!(read_at_most(&file, Bytes(5)).unwrap(), b"12345");
        let error = read_at_most(&file, Bytes(4)).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        assert_eq!(error.to_string(), "it has 5 B; at most 4 B of such a file are read");
        let pipe = dir.path().join("pipe");
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, rustix::fs::Mode::RUSR, 0).unwrap();
        assert_eq!(read_at_most(&pipe, Bytes(5)).unwrap_err().to_string(), "it is no regular file");
        assert_eq!(read_at_most(Path::new("/dev/zero"), Bytes(5)).unwrap_err().kind(), io::ErrorKind::InvalidData);
    }
}
