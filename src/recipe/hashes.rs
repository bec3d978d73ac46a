//! Identities: hashes of recipes, of models and of data sets, to the byte as they are published.

use crate::recipe::json::{Kind, Member, Node, Style, parse, render};
use crate::units::Sha;

/// Identity of a recipe: SHA-256 of its file's bytes, exactly as they stand.
pub fn alloy_hash(bytes: &[u8]) -> Sha {
    Sha::of(bytes)
}

/// The first 16 hex digits of a recipe's identity, as verify links carry it.
pub fn short_hash(sha: &Sha) -> String {
    sha.hex()[..16].to_owned()
}

/// `receipt.alloyHash`: SHA-256 of the recipe without its `receipt` key, written as Python's `json.dumps(indent=2)`
/// writes it, without a final newline. `None` when `text` is not a JSON object.
pub fn receipt_hash(text: &str) -> Option<Sha> {
    let root = parse(text).ok()?;
    let Kind::Object(members) = root.kind else { return None };
    let rest = Node::made(Kind::Object(members.into_iter().filter(|m| m.key != "receipt").collect()));
    Some(Sha::of(render(&rest, Style::PYTHON).as_bytes()))
}

/// A model hash was asked for over no files; the hash of nothing would vouch for nothing.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("there are no model files to hash")]
pub struct NoFiles;

/// `integrity.modelHash`: one hash over all files of a model, from their names and hashes.
///
/// The files are sorted by name (by code point) and written as a compact JSON list of objects with exactly the keys
/// `filename` and `sha256` (bare hex), everything outside ASCII escaped as Python does; the SHA-256 of that text is
/// the hash. Published with the prefix `sha256:` ([`Sha::tagged`]).
pub fn compose_model_hash<'a>(files: impl IntoIterator<Item = (&'a str, Sha)>) -> Result<Sha, NoFiles> {
    let mut files: Vec<(&str, Sha)> = files.into_iter().collect();
    if files.is_empty() {
        return Err(NoFiles);
    }
    // UTF-8 sorts bytewise as its code points do.
    files.sort_by(|a, b| a.0.cmp(b.0));
    let text = |text: &str| Node::made(Kind::Text(text.to_owned()));
    let member = |key: &str, value| Member { key: key.to_owned(), key_span: 0..0, value };
    let entries = files
        .iter()
        .map(|(name, sha)| {
            Node::made(Kind::Object(vec![member("filename", text(name)), member("sha256", text(&sha.hex()))]))
        })
        .collect();
    Ok(Sha::of(render(&Node::made(Kind::List(entries)), Style::Compact).as_bytes()))
}

/// Hash of a data set of several files: a Merkle tree in the manner of RFC 6962 over the files sorted by name.
/// A leaf is `SHA-256(0x00 ‖ content)`, a node `SHA-256(0x01 ‖ left ‖ right)`; where a level has an odd number of
/// entries its last one moves up unchanged. `leaves` are (name, [`dataset_leaf`]) pairs. No files is an error.
pub fn dataset_hash<'a>(leaves: impl IntoIterator<Item = (&'a str, Sha)>) -> Result<Sha, NoFiles> {
    let mut leaves: Vec<(&str, Sha)> = leaves.into_iter().collect();
    leaves.sort_by(|a, b| a.0.cmp(b.0));
    let mut level: Vec<Sha> = leaves.into_iter().map(|(_, sha)| sha).collect();
    while level.len() > 1 {
        level = level
            .chunks(2)
            .map(|pair| match pair {
                [left, right] => Sha::of(&[&[1u8][..], &left.0, &right.0].concat()),
                rest => rest[0],
            })
            .collect();
    }
    level.pop().ok_or(NoFiles)
}

/// The leaf of one file of a data set: `SHA-256(0x00 ‖ content)`, read in pieces.
pub fn dataset_leaf(mut content: impl std::io::Read) -> std::io::Result<Sha> {
    use sha2::{Digest, Sha256};
    let mut hasher = Sha256::new();
    hasher.update([0u8]);
    let mut buffer = vec![0u8; 1 << 16];
    loop {
        match content.read(&mut buffer) {
            Ok(0) => return Ok(Sha(hasher.finalize().into())),
            Ok(n) => hasher.update(&buffer[..n]),
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
}
