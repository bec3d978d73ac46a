//! A model that only a peer has is copied here before it is used: whole, proved, under a lock, and under its name only
//! when it is complete.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::Utc;

use super::archive::{self, Archive};
use super::copy::{self, Links, Steps};
use super::receipt::{Receipt, beside};
use super::{StorageError, lock, sources, tier};
use crate::fault::{Fault, Outcome};
use crate::line::{EventLog, Layout};
use crate::node::{ColdPurpose, Found, FoundBy, LINE_CACHE, Mounts, Node, Resolver, Space};
use crate::recipe::RecipeFile;
use crate::units::Bytes;

/// How often a fetch that another process makes is looked at.
const PATIENCE: Duration = Duration::from_millis(100);

/// Brings the model of a recipe here when only a peer has it, and remembers that a cached one is used now. Returns the
/// receipt of what was copied. A model that is nowhere is not this function's to tell.
pub fn bring(recipe: &RecipeFile, node: &Node, layout: &Layout, steps: &dyn Steps) -> Outcome<Option<Receipt>> {
    let source = &recipe.recipe().source;
    let resolver = Resolver::new(node, layout.root()).for_recipe(recipe.path());
    let find = || resolver.model(&source.base_model, source.revision.as_deref());
    let Ok(found) = find() else { return Ok(None) };
    fetch(&found, &source.base_model, &find, node, layout, steps)
}

/// The same for one model; `find` looks for it again.
fn fetch(
    found: &Found,
    name: &str,
    find: &dyn Fn() -> Outcome<Found>,
    node: &Node,
    layout: &Layout,
    steps: &dyn Steps,
) -> Outcome<Option<Receipt>> {
    if matches!(found.how, FoundBy::ColdTier { .. } | FoundBy::LineCache) {
        let _ = sources::touch_source(&found.path);
        return Ok(None);
    }
    let FoundBy::Peer { name: peer } = &found.how else { return Ok(None) };
    let bytes = copy::bytes_of(&copy::list(&found.path, Links::Follow)?);
    let cache = choose(node, layout, bytes)?;
    let lock_file = cache.join(".fetch.lock");
    let _lock = loop {
        match lock::held(&lock_file)? {
            Some(lock) => break lock,
            None => std::thread::sleep(PATIENCE),
        }
    };
    // Whoever held the lock may have brought it.
    let again = find()?;
    if !matches!(again.how, FoundBy::Peer { .. }) {
        let _ = sources::touch_source(&again.path);
        return Ok(None);
    }
    let to = cache.join(name);
    let (area, file) = (to.parent().unwrap_or(&cache), to.file_name().unwrap_or_default().to_string_lossy());
    archive::sweep(area);
    if !to.exists() {
        // A receipt without its model would take the name.
        let _ = std::fs::remove_file(beside(&to));
    }
    let archive = Archive { layout, host: &node.name, steps, now: Utc::now() };
    let brought = archive.place_as(&found.path, area, &file, "source", Links::Follow);
    let receipt = brought.inspect_err(|_| drop(archive::sweep(area)))?;
    let _ = sources::touch_source(&receipt.to);
    let told = serde_json::json!({"model": name, "peer": peer, "path": receipt.to, "bytes": receipt.bytes});
    EventLog::new(layout, &*node.name).tell("line/fetched", None, told);
    Ok(Some(receipt))
}

/// The first source cache that can take it, else `<root>/cache/sources`.
fn choose(node: &Node, layout: &Layout, bytes: Bytes) -> Outcome<PathBuf> {
    let mounts = Mounts::read().map_err(StorageError::io("read", Path::new("/proc/self/mountinfo")))?;
    let tiers = node.cold.iter().filter(|tier| tier.purpose.contains(&ColdPurpose::SourceCache));
    // A cache that weights may not be read from is no use.
    let fit = |state: &tier::TierState| {
        state.filesystem.is_none_or(|kind| kind.refusal(&state.path, &node.storage.allow_unfit_filesystems).is_none())
    };
    let states: Vec<_> = tiers.map(|tier| tier::verify(tier, layout, &mounts)).filter(fit).collect();
    if let Some(state) = tier::choose(&states, bytes, &mut Vec::new()) {
        return Ok(state.path.clone());
    }
    if let Space::Later { free } = node.space_for(layout.root(), bytes)? {
        let place = layout.root().display();
        return Err(Fault::resource(format!("{bytes} are needed at {place} for the model, {free} are free"))
            .hint("free some space (`foreman gc`), or name a source-cache on another disk"));
    }
    let cache = layout.root().join(LINE_CACHE);
    std::fs::create_dir_all(&cache).map_err(|e| Fault::infra(format!("create {}", cache.display())).caused_by(e))?;
    Ok(cache)
}
