//! `factory_node.toml`: what it refuses, and what it says that has no effect.

use super::{Check, Finding, Patient};
use crate::line::PROTOCOL_VERSION;

pub struct ConfigCheck;

impl Check for ConfigCheck {
    fn name(&self) -> &'static str {
        "config"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        if let Some(error) = &patient.refused {
            let finding = Finding::error(error.to_string()).why("the daemon does not start with it");
            return vec![match error.hint() {
                Some(hint) => finding.fix(hint),
                None => finding,
            }];
        }
        let Some(node) = &patient.node else { return Vec::new() };
        // What is said of disks, GPUs and memory is judged by the checks of these.
        let elsewhere = ["storage.cold", "node.gpu_count", "forge.memory_budget_gb"];
        let notes = node.notes.iter().filter(|note| !elsewhere.iter().any(|key| note.starts_with(key)));
        let mut found: Vec<Finding> = notes.map(Finding::note).collect();
        if !node.forges() {
            let what = "this node builds nothing: node.roles lacks \"forge\"";
            found.push(Finding::note(what).fix("add \"forge\" to node.roles to build parts here"));
        }
        for (name, path) in node.sources.iter().filter(|(_, path)| !path.exists()) {
            let what = format!("sources.{name:?}: {} is not there", path.display());
            let why = "recipes that name it go to rework";
            found.push(Finding::warning(what).why(why).fix("mount it, or mend [sources] in factory_node.toml"));
        }
        if found.is_empty() {
            let what = if node.file.is_some() { "factory_node.toml holds" } else { "no factory_node.toml: detected" };
            found.push(Finding::ok(format!("{what}; protocol {PROTOCOL_VERSION}")));
        }
        found
    }
}
