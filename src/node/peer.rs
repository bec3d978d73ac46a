//! Network tiers. A peer is a directory (another machine's export, mounted here, or another disk) or an address; the hub
//! is always an address. Only what is declared is asked: without such a tier nothing is ever fetched.

use std::path::{Path, PathBuf};

use super::{NetworkKind, NetworkTier};

/// Where models fetched from peers are kept when no cold tier has the purpose `source-cache`, under the line's root.
pub const LINE_CACHE: &str = "cache/sources";

/// The hub that a tier of kind `hf` means when it names no other.
const HUB: &str = "https://huggingface.co";

impl NetworkTier {
    /// The directory of a peer that is one: `file:///path` or a plain absolute path.
    pub fn directory(&self) -> Option<PathBuf> {
        let endpoint = self.endpoint.as_deref().filter(|_| self.kind == NetworkKind::Peer)?;
        let path = endpoint.strip_prefix("file://").unwrap_or(endpoint);
        Some(PathBuf::from(path)).filter(|path| path.is_absolute())
    }

    /// The address models are fetched from, without a slash at its end. `None` for a peer that is a directory, for another
    /// scheme than http and https, and for an address with a name or a password in it: it would end up in receipts.
    pub fn address(&self) -> Option<&str> {
        let endpoint = match self.kind {
            NetworkKind::Hf => self.endpoint.as_deref().unwrap_or(HUB),
            NetworkKind::Peer => self.endpoint.as_deref()?,
        };
        let rest = endpoint.strip_prefix("https://").or_else(|| endpoint.strip_prefix("http://"))?;
        let is_plain = !rest.starts_with('/') && rest.chars().all(|c| c.is_ascii_graphic() && !"@?#\\".contains(c));
        Some(endpoint.trim_end_matches('/')).filter(|_| !rest.is_empty() && is_plain)
    }

    /// Whether a model of this name is asked for at this tier's address: `org/name` for the hub, also `name` for a peer.
    pub fn asks_for(&self, name: &str) -> bool {
        let word = |part: &str| {
            !part.is_empty()
                && part.len() <= 96
                && !part.starts_with('.')
                && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c))
        };
        let parts: Vec<&str> = name.split('/').collect();
        let fits = match self.kind {
            NetworkKind::Hf => parts.len() == 2,
            NetworkKind::Peer => parts.len() <= 2,
        };
        fits && parts.into_iter().all(word) && self.address().is_some()
    }
}

/// What an operator should know about a network tier; nothing when it can be asked.
pub(super) fn note(tier: &NetworkTier) -> Option<String> {
    let name = &tier.name;
    match tier.directory() {
        None if tier.address().is_some() => None,
        None => Some(format!("storage.network {name:?}: {NOT_ASKED}")),
        Some(path) if path.is_dir() => None,
        Some(path) => Some(format!("storage.network {name:?}: {} is not there (not mounted?)", path.display())),
    }
}

/// Said of a tier whose endpoint nothing can be fetched from.
pub const NOT_ASKED: &str =
    "its endpoint is neither a directory nor a plain http:// or https:// address; nothing is fetched from it";

/// The places of models that were fetched or put under `name`, below `cache`; `None` for a name that leaves it.
pub(super) fn below(cache: &Path, name: &str) -> Option<PathBuf> {
    Path::new(name).is_relative().then(|| cache.join(name))
}
