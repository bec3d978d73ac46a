//! Files that fit no row of the recovery table.

use std::fs;

use serde_json::Value;

use super::{Check, Finding, Patient};
use crate::line::record;

pub struct QuarantineCheck;

impl Check for QuarantineCheck {
    fn name(&self) -> &'static str {
        "quarantine"
    }

    fn look(&self, patient: &Patient) -> Vec<Finding> {
        let dir = patient.layout.quarantine();
        let mut names: Vec<String> = fs::read_dir(&dir)
            .into_iter()
            .flatten()
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.ends_with(".reason.json"))
            .collect();
        names.sort();
        let finding = |name: &String| {
            let said: Option<Value> = record::read_json(&dir.join(format!("{name}.reason.json"))).ok();
            let text = |key: &str| said.as_ref().and_then(|said| said.get(key)?.as_str().map(str::to_owned));
            let reason = text("reason").or_else(|| text("row")).unwrap_or_else(|| "no reason is written".into());
            Finding::warning(format!("quarantine/{name}: {reason}"))
                .why("two different files claimed one place; neither was lost")
                .fix("compare it with the part of its name, then enqueue it under another name or remove it")
        };
        match names.is_empty() {
            true => vec![Finding::ok("empty")],
            false => names.iter().map(finding).collect(),
        }
    }
}
