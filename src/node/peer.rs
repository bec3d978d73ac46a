//! Network tiers. A peer that is a directory (another machine's export, mounted here, or another disk) is read by this
//! version; peers by address and the hub are shown and not used: nothing is fetched over the network.

use std::path::{Path, PathBuf};

use super::{NetworkKind, NetworkTier};

/// Where models fetched from peers are kept when no cold tier has the purpose `source-cache`, under the line's root.
pub const LINE_CACHE: &str = "cache/sources";

impl NetworkTier {
    /// The directory of a peer that is one: `file:///path` or a plain absolute path.
    pub fn directory(&self) -> Option<PathBuf> {
        let endpoint = self.endpoint.as_deref().filter(|_| self.kind == NetworkKind::Peer)?;
        let path = endpoint.strip_prefix("file://").unwrap_or(endpoint);
        Some(PathBuf::from(path)).filter(|path| path.is_absolute())
    }
}

/// What an operator should know about a network tier; nothing when it is a directory that is there.
pub(super) fn note(tier: &NetworkTier) -> Option<String> {
    let name = &tier.name;
    match tier.directory() {
        None => Some(format!("storage.network {name:?}: nothing is fetched over the network in this version")),
        Some(path) if path.is_dir() => None,
        Some(path) => Some(format!("storage.network {name:?}: {} is not there (not mounted?)", path.display())),
    }
}

/// The places of models that were fetched or put under `name`, below `cache`; `None` for a name that leaves it.
pub(super) fn below(cache: &Path, name: &str) -> Option<PathBuf> {
    Path::new(name).is_relative().then(|| cache.join(name))
}
