//! What was moved: every file with size and hash, from where, to where, when. One lies beside the copy, one in
//! `line/receipts/`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::units::{Bytes, Sha};

/// The version of the shape below.
pub const RECEIPT_VERSION: u32 = 1;

/// `<name>.receipt.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Receipt {
    pub receipt_version: u32,
    /// `work`, `artifact` or `source`.
    pub what: String,
    /// A path, or the address a model was fetched from.
    pub from: PathBuf,
    pub to: PathBuf,
    /// Time to the second.
    pub at: String,
    /// Name of the node that moved it.
    pub host: String,
    /// A file with two names counts twice here, as both are listed.
    pub bytes: Bytes,
    pub files: Vec<FileReceipt>,
    /// Of a model from the network: the revision that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revision: Option<String>,
    /// Of a model from the network: the commit that was fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub commit: Option<String>,
    /// Files whose sender told a size and no SHA-256: only the size is known to be theirs. Their `sha256` in `files` is that
    /// of what arrived.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub size_only: Vec<PathBuf>,
}

/// One file or link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileReceipt {
    /// Relative to the folder; empty when a single file was moved.
    pub path: PathBuf,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sha256: Option<Sha>,
    /// Where a link leads; its target was not moved.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<PathBuf>,
}

/// The file beside a copy.
pub fn beside(copy: &Path) -> PathBuf {
    let mut name = copy.file_name().unwrap_or_default().to_owned();
    name.push(".receipt.json");
    copy.with_file_name(name)
}
