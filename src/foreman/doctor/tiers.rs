//! Cold tiers: there, mounted, and of the kind that is said.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::{Check, Finding, Patient, counted};

pub struct TiersCheck;

impl Check for TiersCheck {
    fn name(&self) -> &'static str {
        "tiers"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let Some(node) = &patient.node else { return vec![Finding::note("not looked at: no node")] };
        let notes = node.notes.iter().filter(|note| note.starts_with("storage.cold"));
        let fix = "mount it, or mend [[storage.cold]] in factory_node.toml";
        let mut found: Vec<Finding> = notes.map(|note| Finding::warning(note).fix(fix)).collect();
        let device = |path: &std::path::Path| fs::metadata(path).map(|meta| meta.dev()).ok();
        for tier in &node.cold {
            let here = device(&tier.path);
            if here.is_some() && here == device("/".as_ref()) {
                let what = format!("storage.cold {:?}: {} lies on the disk of /", tier.name, tier.path.display());
                found.push(Finding::note(what).why("is its own disk not mounted?"));
            }
        }
        if found.is_empty() {
            found.push(Finding::ok(match node.cold.len() {
                0 => "no cold tiers".to_owned(),
                n => format!("{} there", counted(n, "cold tier")),
            }));
        }
        found
    }
}
