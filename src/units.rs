//! Quantities with their unit in the type: bytes and digests.

use std::fmt;
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
        if hex.len() != 64 || !hex.is_ascii() {
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
    }
}
