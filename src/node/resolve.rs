//! One resolver for every input: turns what a recipe calls a model or a text into a file or directory on this machine.
//!
//! Looks only at names; what is found is opened by others. Nothing is downloaded here: the network tiers that were
//! declared are asked when a part is built ([`Resolver::asked_later`]).

use std::path::{Component, Path, PathBuf};

use serde::Serialize;

use super::reach::Reach;
use super::{ColdPurpose, Concern, FilesystemKind, LINE_CACHE, NetworkTier, Node, peer};
use crate::fault::{Fault, Outcome};
use crate::units::Bytes;

/// Largest text (corpus, table, importance matrix) that is read: such a file is held in memory whole.
pub const MOST_TEXT: Bytes = Bytes::from_gb(1);

/// How an input was found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "by", rename_all = "snake_case")]
pub enum FoundBy {
    /// An entry of `[sources]` in `factory_node.toml`.
    NamedSource {
        name: String,
    },
    AbsolutePath,
    /// Relative to the folder the recipe lies in.
    RecipeFolder,
    /// Relative to the line's root.
    LineRoot,
    /// Under `<root>/calibration/`.
    CalibrationFolder,
    /// Under a cold tier with the purpose `source-cache`.
    ColdTier {
        name: String,
    },
    /// Under `<root>/cache/sources`, where models of peers are kept.
    LineCache,
    /// In the directory of a network tier of kind `peer`; copied here before it is used.
    Peer {
        name: String,
    },
    /// A snapshot in the local Hugging Face cache.
    HubCache {
        repo: String,
        revision: String,
        commit: String,
    },
}

/// An input that is there.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// Canonical: absolute, links followed.
    pub path: PathBuf,
    pub how: FoundBy,
    /// The filesystem the file really lies on.
    pub filesystem: FilesystemKind,
}

impl Found {
    /// A warning for people when the filesystem is a poor home for weights.
    pub fn warning(&self) -> Option<String> {
        match self.filesystem.concern() {
            Concern::None => None,
            Concern::Discouraged(why) | Concern::Unfit(why) => Some(format!("{}: {why}", self.path.display())),
        }
    }

    /// A resource fault when weights may not be read from where this lies. What a peer has is copied here first: its
    /// filesystem only carries the copy.
    pub fn refusal(&self, allowed: &[FilesystemKind]) -> Option<Fault> {
        match self.how {
            FoundBy::Peer { .. } => None,
            _ => self.filesystem.refusal(&self.path, allowed),
        }
    }
}

/// The local Hugging Face cache: `models--org--name/{refs,snapshots}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubCache(pub PathBuf);

impl HubCache {
    /// `HF_HUB_CACHE`, else `HF_HOME/hub`, else `$XDG_CACHE_HOME/huggingface/hub`, else `~/.cache/huggingface/hub`.
    pub fn from_env() -> Option<HubCache> {
        let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        var("HF_HUB_CACHE")
            .or_else(|| var("HF_HOME").map(|home| home.join("hub")))
            .or_else(|| var("XDG_CACHE_HOME").map(|cache| cache.join("huggingface/hub")))
            .or_else(|| std::env::home_dir().map(|home| home.join(".cache/huggingface/hub")))
            .map(HubCache)
    }

    fn repo_dir(&self, repo: &str) -> PathBuf {
        self.0.join(format!("models--{}", repo.replace('/', "--")))
    }

    /// The snapshot of `repo` at `revision` (branch, tag or commit; `main` when `None`), with its commit.
    /// Without a `main` reference, an only snapshot is taken for it.
    fn snapshot(&self, repo: &str, revision: Option<&str>) -> Option<(PathBuf, String)> {
        let snapshots = self.repo_dir(repo).join("snapshots");
        let wanted = revision.unwrap_or("main");
        if climbs(Path::new(wanted)) || Path::new(wanted).is_absolute() {
            return None;
        }
        let reference = std::fs::read_to_string(self.repo_dir(repo).join("refs").join(wanted));
        let commit = match reference {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) if revision.is_some() => wanted.to_owned(),
            Err(_) => only_entry(&snapshots)?,
        };
        let plain_name =
            !commit.is_empty() && Path::new(&commit).components().count() == 1 && !climbs(Path::new(&commit));
        let path = snapshots.join(&commit);
        (plain_name && path.is_dir()).then_some((path, commit))
    }
}

/// Finds inputs for one recipe.
pub struct Resolver<'a> {
    node: &'a Node,
    root: &'a Path,
    recipe_folder: Option<PathBuf>,
    hub: Option<HubCache>,
}

impl<'a> Resolver<'a> {
    pub fn new(node: &'a Node, root: &'a Path) -> Self {
        Resolver { node, root, recipe_folder: None, hub: HubCache::from_env() }
    }

    /// What a recipe names: relative paths are also looked for beside the recipe file, and what is found must lie where
    /// a recipe may reach.
    pub fn for_recipe(mut self, recipe: &Path) -> Self {
        self.recipe_folder = recipe.parent().map(Path::to_owned);
        self
    }

    /// Uses another hub cache than the environment names.
    pub fn with_hub(mut self, hub: Option<HubCache>) -> Self {
        self.hub = hub;
        self
    }

    /// A model: a directory or a GGUF file. `name` is `source.baseModel`, `revision` is `source.revision`.
    ///
    /// Errors: a recipe fault for a relative path that climbs out of its folder; a source fault that lists every place
    /// looked at.
    pub fn model(&self, name: &str, revision: Option<&str>) -> Outcome<Found> {
        let asked_later = self.asked_later(name);
        let hint = match asked_later.first() {
            None => "download the model yourself, then give its path or name it under [sources] in factory_node.toml"
                .to_owned(),
            Some(tier) => {
                format!("network tier {:?} is asked for it when a part that starts from it is built", tier.name)
            }
        };
        let found = self.search_model(name, revision)?.finish(&hint)?;
        if let Some(reach) = self.reach() {
            reach.check("model", name, &found)?;
            reach.check_model(&found.path)?;
        }
        Ok(found)
    }

    /// True when a model is in none of the places [`Resolver::model`] looks at: not for one that is there and must not be
    /// used, nor for a name that is none.
    pub fn is_nowhere(&self, name: &str, revision: Option<&str>) -> bool {
        self.search_model(name, revision).is_ok_and(|search| search.hit.is_none())
    }

    /// The network tiers that are asked over the network for a model of this name, in the order they are declared. Only
    /// the worker asks them, before it plans a part.
    pub fn asked_later(&self, name: &str) -> Vec<&'a NetworkTier> {
        self.node.network.iter().filter(|tier| tier.asks_for(name)).collect()
    }

    fn search_model(&self, name: &str, revision: Option<&str>) -> Outcome<Search> {
        let mut search = Search::new("model", name)?;
        if let Some(path) = self.node.sources.get(name) {
            search.try_at(path.clone(), FoundBy::NamedSource { name: name.to_owned() });
        }
        self.search_paths(&mut search);
        for tier in self.node.cold.iter().filter(|tier| tier.purpose.contains(&ColdPurpose::SourceCache)) {
            search.try_at(tier.path.join(name), FoundBy::ColdTier { name: tier.name.clone() });
        }
        let line_cache = self.root.join(LINE_CACHE);
        if let Some(path) = peer::below(&line_cache, name).filter(|_| line_cache.is_dir()) {
            search.try_at(path, FoundBy::LineCache);
        }
        if let Some(hub) = self.hub.as_ref().filter(|_| is_hub_id(name)) {
            match hub.snapshot(name, revision) {
                Some((path, commit)) => {
                    let revision = revision.unwrap_or("main").to_owned();
                    search.try_at(path, FoundBy::HubCache { repo: name.to_owned(), revision, commit });
                }
                None => search.looked.push(match revision {
                    Some(revision) => format!("{} (revision {revision})", hub.repo_dir(name).display()),
                    None => hub.repo_dir(name).display().to_string(),
                }),
            }
        }
        for tier in &self.node.network {
            if let Some(path) = tier.directory().and_then(|peer| peer::below(&peer, name)) {
                search.try_at(path, FoundBy::Peer { name: tier.name.clone() });
            }
        }
        Ok(search)
    }

    /// A calibration or evaluation text: a path, or a name under `<root>/calibration/`.
    pub fn text(&self, name: &str) -> Outcome<Found> {
        let mut search = Search::new("text", name)?;
        self.search_paths(&mut search);
        if Path::new(name).is_relative() {
            search.try_at(self.root.join("calibration").join(name), FoundBy::CalibrationFolder);
        }
        let found = search.finish("put the text under calibration/ in the line's root, or give its path")?;
        if let Some(reach) = self.reach() {
            reach.check("text", name, &found)?;
        }
        Ok(found)
    }

    /// `None` for a person, who may name any path.
    fn reach(&self) -> Option<Reach> {
        let folder = self.recipe_folder.as_deref()?;
        Some(Reach::of(self.node, self.root, folder, self.hub.as_ref()))
    }

    fn search_paths(&self, search: &mut Search) {
        let name = search.name.clone();
        if let Some(path) = from_home(&name) {
            search.try_at(path, FoundBy::AbsolutePath);
        } else if Path::new(&name).is_absolute() {
            search.try_at(PathBuf::from(&name), FoundBy::AbsolutePath);
        } else {
            if let Some(folder) = &self.recipe_folder {
                search.try_at(folder.join(&name), FoundBy::RecipeFolder);
            }
            search.try_at(self.root.join(&name), FoundBy::LineRoot);
        }
    }
}

/// One search: the places looked at, and the first hit.
struct Search {
    /// `model` or `text`.
    what: &'static str,
    name: String,
    looked: Vec<String>,
    hit: Option<(PathBuf, FoundBy)>,
}

impl Search {
    fn new(what: &'static str, name: &str) -> Outcome<Search> {
        if name.trim().is_empty() {
            return Err(Fault::recipe(format!("the name of the {what} is empty")).hint("name a model or a file"));
        }
        if climbs(Path::new(name)) {
            return Err(Fault::recipe(format!("{what} {name:?}: a relative path may not climb out of its folder"))
                .hint("give an absolute path, or name the place under [sources] in factory_node.toml"));
        }
        Ok(Search { what, name: name.to_owned(), looked: Vec::new(), hit: None })
    }

    fn try_at(&mut self, path: PathBuf, how: FoundBy) {
        if self.hit.is_some() {
            return;
        }
        match path.canonicalize() {
            Ok(path) => self.hit = Some((path, how)),
            Err(_) => {
                let shown = path.display().to_string();
                if !self.looked.contains(&shown) {
                    self.looked.push(shown);
                }
            }
        }
    }

    fn finish(self, hint: &str) -> Outcome<Found> {
        let Search { what, name, looked, hit } = self;
        let Some((path, how)) = hit else {
            return Err(
                Fault::source(format!("{what} {name:?} is not here; looked at: {}", looked.join(", "))).hint(hint)
            );
        };
        let filesystem = FilesystemKind::of_weights(&path)
            .map_err(|error| Fault::infra(format!("ask for the filesystem of {}", path.display())).caused_by(error))?;
        Ok(Found { path, how, filesystem })
    }
}

/// `~/rest` as a path under the home directory.
pub(super) fn from_home(text: &str) -> Option<PathBuf> {
    let rest = text.strip_prefix("~/")?;
    std::env::home_dir().map(|home| home.join(rest))
}

/// True when a relative path leaves the folder it starts in.
fn climbs(path: &Path) -> bool {
    let mut depth = 0i32;
    for part in path.components() {
        match part {
            Component::RootDir | Component::Prefix(_) => return false,
            Component::CurDir => {}
            Component::ParentDir => depth -= 1,
            Component::Normal(_) => depth += 1,
        }
        if depth < 0 {
            return true;
        }
    }
    false
}

/// `name` or `org/name` in the hub's alphabet.
fn is_hub_id(name: &str) -> bool {
    let word = |part: &str| !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || "-_.".contains(c));
    let parts: Vec<&str> = name.split('/').collect();
    parts.len() <= 2 && parts.into_iter().all(word)
}

fn only_entry(dir: &Path) -> Option<String> {
    let mut names = std::fs::read_dir(dir).ok()?.filter_map(Result::ok).map(|entry| entry.file_name());
    let first = names.next()?;
    if names.next().is_some() { None } else { first.into_string().ok() }
}
