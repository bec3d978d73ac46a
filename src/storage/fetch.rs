//! A model that only a peer or the hub has is brought here before it is used: whole, proved, under a lock, and under its
//! name only when it is complete. Nothing is asked over a network but the tiers that `factory_node.toml` declares.

use std::path::{Path, PathBuf};
use std::time::Duration;

use chrono::Utc;

use super::archive::{self, Archive};
use super::copy::{self, Links, Steps};
use super::download::{Incoming, Told};
use super::receipt::{RECEIPT_VERSION, Receipt, beside};
use super::remote::{Asked, Offer, Remote};
use super::{StorageError, lock, sources, tier};
use crate::fault::{Fault, Outcome};
use crate::line::{EventLog, Layout, record, stamp};
use crate::node::{ColdPurpose, Found, FoundBy, LINE_CACHE, Mounts, Node, Resolver, Space};
use crate::recipe::{self, Finding, RecipeFile};
use crate::units::Bytes;

/// How often a fetch that another process makes is looked at.
const PATIENCE: Duration = Duration::from_millis(100);

/// Brings the model of a recipe here when only a peer or the hub has it, and remembers that a cached one is used now.
/// `told` hears bytes that are here and bytes there are in all. Returns the receipt of what was brought. A model that is
/// nowhere, with no tier to ask, is not this function's to tell.
///
/// # Errors
/// Infra when a transfer broke (what has arrived stays for the next try), source when the model is not to be had or is not
/// what it was said to be, resource when it does not fit.
pub fn bring(
    file: &RecipeFile,
    node: &Node,
    layout: &Layout,
    steps: &dyn Steps,
    told: Told<'_>,
) -> Outcome<Option<Receipt>> {
    let source = &file.recipe().source;
    let (name, revision) = (source.base_model.as_str(), source.revision.as_deref());
    let resolver = Resolver::new(node, layout.root()).for_recipe(file.path());
    let find = || resolver.model(name, revision);
    let errand = Errand { name, find: &find, node, layout, steps, told };
    if let Ok(found) = find() {
        same_revision(&found, name, revision)?;
        return errand.copy(&found);
    }
    // A recipe that will be refused anyhow is not worth a download.
    let is_sound = !recipe::check(file.recipe()).iter().any(Finding::is_error);
    if !is_sound || !resolver.is_nowhere(name, revision) {
        return Ok(None);
    }
    let mut failed: Option<Fault> = None;
    for remote in resolver.asked_later(name).into_iter().filter_map(Remote::of) {
        match remote.offer(name, revision) {
            Ok(Asked::Has(offer)) => return errand.download(&remote, &offer),
            // What may pass is worth another try, whatever the others say.
            Ok(Asked::Lacks(fault)) | Err(fault) => {
                failed = Some(failed.filter(|before| before.class.is_retryable()).unwrap_or(fault));
            }
        }
    }
    failed.map_or(Ok(None), Err)
}

/// A model that was fetched at another revision than the recipe names is not that model.
fn same_revision(found: &Found, name: &str, revision: Option<&str>) -> Outcome<()> {
    let is_cached = matches!(found.how, FoundBy::ColdTier { .. } | FoundBy::LineCache);
    let (true, Some(wanted)) = (is_cached, revision) else { return Ok(()) };
    let Ok(receipt) = record::read_json::<Receipt>(&beside(&found.path)) else { return Ok(()) };
    let is = |at: &Option<String>| at.as_deref() == Some(wanted);
    if receipt.revision.is_none() || is(&receipt.revision) || is(&receipt.commit) {
        return Ok(());
    }
    let (here, place) = (receipt.revision.unwrap_or_default(), found.path.display());
    Err(Fault::source(format!("{name:?} was fetched at revision {here:?}, the recipe names {wanted:?}"))
        .hint(format!("remove {place} to have {wanted:?} fetched, or name the revision that is here")))
}

/// One model to bring.
struct Errand<'a> {
    name: &'a str,
    /// Looks for it again.
    find: &'a dyn Fn() -> Outcome<Found>,
    node: &'a Node,
    layout: &'a Layout,
    steps: &'a dyn Steps,
    told: Told<'a>,
}

impl Errand<'_> {
    /// Receives an offered model into the cache with room for it.
    fn download(&self, remote: &Remote<'_>, offer: &Offer) -> Outcome<Option<Receipt>> {
        let total = offer.bytes();
        let here = |cache: &Path| Incoming::of(&cache.join(self.name)).bytes(offer);
        // What an earlier try left takes no room again.
        let most_here = sources::places(self.layout, self.node).iter().map(|(_, cache)| here(cache)).max().unwrap_or(0);
        let mut cache = choose(self.node, self.layout, Bytes(total - most_here))?;
        if here(&cache) < most_here {
            cache = choose(self.node, self.layout, Bytes(total))?;
        }
        let _lock = wait_for(&cache, &|| (self.told)(0, total))?;
        // Whoever held the lock may have brought it.
        if let Ok(again) = (self.find)() {
            let _ = sources::touch_source(&again.path);
            return Ok(None);
        }
        let to = cache.join(self.name);
        let (area, file) = (to.parent().unwrap_or(&cache), to.file_name().unwrap_or_default().to_string_lossy());
        std::fs::create_dir_all(area).map_err(StorageError::io("create", area))?;
        clear_receipt(&to);
        let incoming = Incoming::of(&to);
        let now = Utc::now();
        let files = incoming.receive(remote, offer, self.steps, self.told)?;
        let size_only = offer.files.iter().filter(|file| file.sha256.is_none()).map(|file| file.path.clone().into());
        let mut receipt = Receipt {
            receipt_version: RECEIPT_VERSION,
            what: "source".to_owned(),
            from: offer.address.clone().into(),
            to: PathBuf::new(),
            at: stamp::seconds(now),
            host: self.node.name.to_string(),
            bytes: Bytes(total),
            files,
            revision: offer.revision.clone(),
            commit: offer.commit.clone(),
            size_only: size_only.collect(),
        };
        let archive = Archive { layout: self.layout, host: &self.node.name, steps: self.steps, now };
        archive.settle_fetched(&mut receipt, &incoming.room, &incoming.content, area, &file)?;
        let _ = sources::touch_source(&receipt.to);
        self.tell(remote.name(), &receipt);
        Ok(Some(receipt))
    }

    /// Copies a model that was found in the directory of a peer; one in a cache is only marked as used.
    fn copy(&self, found: &Found) -> Outcome<Option<Receipt>> {
        if matches!(found.how, FoundBy::ColdTier { .. } | FoundBy::LineCache) {
            let _ = sources::touch_source(&found.path);
            return Ok(None);
        }
        let FoundBy::Peer { name: peer } = &found.how else { return Ok(None) };
        let bytes = copy::bytes_of(&copy::list(&found.path, Links::Follow)?);
        let cache = choose(self.node, self.layout, bytes)?;
        let _lock = wait_for(&cache, &|| (self.told)(0, bytes.0))?;
        // Whoever held the lock may have brought it.
        let again = (self.find)()?;
        if !matches!(again.how, FoundBy::Peer { .. }) {
            let _ = sources::touch_source(&again.path);
            return Ok(None);
        }
        let to = cache.join(self.name);
        let (area, file) = (to.parent().unwrap_or(&cache), to.file_name().unwrap_or_default().to_string_lossy());
        archive::sweep(area);
        clear_receipt(&to);
        let archive = Archive { layout: self.layout, host: &self.node.name, steps: self.steps, now: Utc::now() };
        let brought = archive.place_as(&found.path, area, &file, "source", Links::Follow);
        let receipt = brought.inspect_err(|_| drop(archive::sweep(area)))?;
        let _ = sources::touch_source(&receipt.to);
        self.tell(peer, &receipt);
        Ok(Some(receipt))
    }

    fn tell(&self, peer: &str, receipt: &Receipt) {
        let told = serde_json::json!({"model": self.name, "peer": peer, "path": receipt.to, "bytes": receipt.bytes});
        EventLog::new(self.layout, &*self.node.name).tell("line/fetched", None, told);
    }
}

/// The right to fill a cache; `meanwhile` is called as long as somebody else has it.
fn wait_for(cache: &Path, meanwhile: &dyn Fn()) -> Outcome<std::fs::File> {
    let lock_file = cache.join(".fetch.lock");
    loop {
        match lock::held(&lock_file)? {
            Some(lock) => return Ok(lock),
            None => std::thread::sleep(PATIENCE),
        }
        meanwhile();
    }
}

/// A receipt without its model would take the name.
fn clear_receipt(to: &Path) {
    if !to.exists() {
        let _ = std::fs::remove_file(beside(to));
    }
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
