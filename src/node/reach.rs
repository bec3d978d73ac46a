//! How far a recipe reaches on this machine: which paths it may name, and which files a model it names may consist of.
//!
//! A person who types a path may name any. A recipe comes from whoever can write into intake, and a model from wherever
//! it was downloaded, so both are held to the places the operator declared.

use std::fs;
use std::path::{Path, PathBuf};

use super::{ColdPurpose, Found, FoundBy, HubCache, Node};
use crate::fault::{Fault, Outcome};

/// Files there are not data: reading them can block, or tells of this machine.
const NEVER: [&str; 3] = ["/dev", "/proc", "/sys"];

/// The one folder of a model directory below which files of the model may lie.
const TEMPLATES: &str = "additional_chat_templates";

/// The places a recipe may reach.
pub(super) struct Reach {
    /// Canonical; those that are not there are left out.
    declared: Vec<PathBuf>,
    /// `[safety] roots` is written: paths outside of what is declared are refused.
    is_closed: bool,
}

impl Reach {
    pub fn of(node: &Node, root: &Path, recipe_folder: &Path, hub: Option<&HubCache>) -> Reach {
        let caches = node.cold.iter().filter(|tier| tier.purpose.contains(&ColdPurpose::SourceCache));
        let declared = [root, recipe_folder].into_iter();
        let declared = declared.chain(node.sources.values().map(PathBuf::as_path));
        let declared = declared.chain(caches.map(|tier| tier.path.as_path()));
        let declared = declared.chain(hub.map(|hub| hub.0.as_path()));
        let peers: Vec<PathBuf> = node.network.iter().filter_map(|tier| tier.directory()).collect();
        let declared = declared.chain(peers.iter().map(PathBuf::as_path));
        let declared = declared.chain(node.safety_roots.iter().flatten().map(PathBuf::as_path));
        Reach {
            declared: declared.filter_map(|path| path.canonicalize().ok()).collect(),
            is_closed: node.safety_roots.is_some(),
        }
    }

    /// Whether a recipe may name what was found.
    pub fn check(&self, what: &str, name: &str, found: &Found) -> Outcome<()> {
        let path = &found.path;
        if NEVER.iter().any(|place| path.starts_with(place)) && !path.starts_with("/dev/shm") {
            let message = format!("{what} {name:?} leads to {}, where no {what} lies", path.display());
            return Err(Fault::recipe(message).hint("name a file or folder on a disk"));
        }
        // What the operator named leads where the operator wants.
        let by_name = matches!(
            found.how,
            FoundBy::NamedSource { .. } | FoundBy::ColdTier { .. } | FoundBy::HubCache { .. } | FoundBy::Peer { .. }
        );
        if !self.is_closed || by_name || self.holds(path) {
            return Ok(());
        }
        let message = format!("{what} {name:?} leads to {}, outside the places a recipe may name", path.display());
        Err(Fault::recipe(message)
            .hint("put it under the line's root, or declare its place under [safety] roots in factory_node.toml"))
    }

    fn holds(&self, path: &Path) -> bool {
        self.declared.iter().any(|root| path.starts_with(root))
    }

    /// Whether every file that would be read as part of the model lies in its own folder, among the blobs of its hub
    /// cache, or in a declared place: a link out of a downloaded model could otherwise carry a private file into an
    /// artifact.
    pub fn check_model(&self, model: &Path) -> Outcome<()> {
        if !model.is_dir() {
            return Ok(());
        }
        let mut own = vec![model.to_owned()];
        let snapshots = model.parent().filter(|parent| parent.ends_with("snapshots"));
        own.extend(snapshots.and_then(Path::parent).map(|repo| repo.join("blobs")));
        self.check_folder(model, &own)?;
        let templates = model.join(TEMPLATES);
        if templates.is_dir() { self.check_folder(&templates, &own) } else { Ok(()) }
    }

    fn check_folder(&self, folder: &Path, own: &[PathBuf]) -> Outcome<()> {
        let failed = |error| Fault::source(format!("list {}", folder.display())).caused_by(error);
        for entry in fs::read_dir(folder).map_err(failed)? {
            let path = entry.map_err(failed)?.path();
            // A link that leads nowhere, or to a folder that is not read, is no file of the model.
            let Ok(target) = path.canonicalize() else { continue };
            let is_read = target.is_file() || path.ends_with(TEMPLATES);
            if is_read && !own.iter().any(|place| target.starts_with(place)) && !self.holds(&target) {
                let message = format!("{} leads to {}, outside the model's folder", path.display(), target.display());
                return Err(Fault::source(message).hint(
                    "put the file itself there, or declare the place it leads to under [safety] roots in \
                     factory_node.toml",
                ));
            }
        }
        Ok(())
    }
}
