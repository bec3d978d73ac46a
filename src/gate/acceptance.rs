//! Acceptance criteria: which of them this build can judge, and whether the result meets them.
//!
//! `perplexity.max`, `divergence` and `size.maxGb` hold for every artifact that ships; `hardware.maxVramGb` holds when at least one
//! artifact's bytes fit (a recipe may ship one file per class of device). `integrity.modelHashRequired` asks for the
//! hash of the files. Everything else needs measurements that this build does not make, and is refused at admission.

use super::{Evidence, GateError};
use crate::recipe::{AcceptanceCriteria, Finding};
use crate::units::Bytes;

/// What is known about one artifact when the criteria are judged.
#[derive(Clone, Debug, PartialEq)]
pub struct ArtifactFigures {
    pub name: String,
    pub bytes: u64,
    /// The highest perplexity any benchmark measured on it.
    pub perplexity: Option<f64>,
    /// The highest mean KL divergence from the base that any benchmark measured on it, nats.
    pub kld: Option<f64>,
    /// The lowest share of tokens on which it agrees with the base.
    pub same_top: Option<f64>,
}

/// What is known about the result as a whole.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Figures {
    pub artifacts: Vec<ArtifactFigures>,
    pub model_hash: Option<String>,
}

/// Findings about criteria that cannot be judged. `measures_perplexity`: an `eval` stage scores perplexity;
/// `makes_artifact`: some stage leaves an artifact.
pub fn admissible(criteria: &AcceptanceCriteria, measures_perplexity: bool, makes_artifact: bool) -> Vec<Finding> {
    let mut findings = Vec::new();
    let key = |rest: &str| format!("acceptanceCriteria.{rest}");
    for name in criteria.benchmarks.iter().flat_map(|all| all.keys()) {
        findings.push(
            Finding::error(key(&format!("benchmarks.{name}")), format!("this build cannot measure {name:?}"))
                .hint("remove the criterion; this build judges perplexity.max, divergence.maxKld, divergence.minSameTop1, size.maxGb, hardware.maxVramGb and integrity.modelHashRequired"),
        );
    }
    if criteria.perplexity.as_ref().is_some_and(|p| p.max.is_some()) && !measures_perplexity {
        findings.push(
            Finding::error(key("perplexity.max"), "no eval stage measures perplexity")
                .hint("add an eval stage with the benchmark \"perplexity\""),
        );
    }
    let hardware = criteria.hardware.as_ref();
    let integrity = criteria.integrity.as_ref();
    let needs_artifact = [
        ("size.maxGb", criteria.size.as_ref().is_some_and(|s| s.max_gb.is_some())),
        ("hardware.maxVramGb", hardware.is_some_and(|h| h.max_vram_gb.is_some())),
        ("integrity.modelHashRequired", integrity.is_some_and(|i| i.model_hash_required == Some(true))),
    ];
    for (name, asked) in needs_artifact {
        if asked && !makes_artifact {
            findings.push(
                Finding::error(key(name), "no stage makes an artifact").hint("add a quant or an expert-prune stage"),
            );
        }
    }
    if integrity.is_some_and(|i| i.samples_path_required == Some(true)) {
        findings.push(
            Finding::error(key("integrity.samplesPathRequired"), "this build's benchmarks write no sample files")
                .hint("remove it; a perplexity result names the SHA-256 of the text it was measured on"),
        );
    }
    if let Some(tier) = hardware.and_then(|h| h.device_tier.as_deref()) {
        findings.push(Finding::note(
            key("hardware.deviceTier"),
            format!("{tier:?} is a name for people; only maxVramGb is judged"),
        ));
    }
    findings
}

/// Judges every criterion that is stated. All misses are in one error, with figure and limit.
pub fn judge(criteria: &AcceptanceCriteria, figures: &Figures) -> Result<Vec<Evidence>, GateError> {
    let mut verdicts = Vec::new();
    let mut missed = Vec::new();
    let mut state = |subject: &str, passed: bool, value: f64, limit: f64, miss: String| {
        let mut evidence = Evidence::passed("acceptance", subject).with("value", value).with("limit", limit);
        evidence.passed = passed;
        verdicts.push(evidence);
        if !passed {
            missed.push(miss);
        }
    };
    if let Some(limit) = criteria.perplexity.as_ref().and_then(|p| p.max) {
        for artifact in &figures.artifacts {
            let name = &artifact.name;
            // An artifact without a figure has not been shown to pass.
            let value = artifact.perplexity.unwrap_or(f64::NAN);
            let miss = match artifact.perplexity {
                Some(_) => format!("{name}: perplexity {value:.4} is above {limit}"),
                None => format!("{name}: perplexity was not measured, {limit} is asked for"),
            };
            state(&format!("perplexity.max of {name}"), value <= limit, value, limit, miss);
        }
    }
    let divergence = criteria.divergence.as_ref();
    if let Some(limit) = divergence.and_then(|d| d.max_kld) {
        for ArtifactFigures { name, kld, .. } in &figures.artifacts {
            let value = kld.unwrap_or(f64::NAN);
            let miss = match kld {
                Some(_) => format!("{name}: KL divergence {value:.6} from the base is above {limit}"),
                None => format!("{name}: KL divergence was not measured, {limit} is asked for"),
            };
            state(&format!("divergence.maxKld of {name}"), value <= limit, value, limit, miss);
        }
    }
    if let Some(limit) = divergence.and_then(|d| d.min_same_top1) {
        for ArtifactFigures { name, same_top, .. } in &figures.artifacts {
            let value = same_top.unwrap_or(f64::NAN);
            let miss = match same_top {
                Some(_) => format!("{name}: agrees with the base on a share of {value:.4}, below {limit}"),
                None => format!("{name}: agreement with the base was not measured, {limit} is asked for"),
            };
            state(&format!("divergence.minSameTop1 of {name}"), value >= limit, value, limit, miss);
        }
    }
    if let Some(limit) = criteria.size.as_ref().and_then(|s| s.max_gb) {
        for artifact in &figures.artifacts {
            let (name, value) = (&artifact.name, Bytes(artifact.bytes).as_gb());
            let miss = format!("{name}: {value:.3} GB are more than size.maxGb {limit}");
            state(&format!("size.maxGb of {name}"), value <= limit, value, limit, miss);
        }
    }
    if let Some(limit) = criteria.hardware.as_ref().and_then(|h| h.max_vram_gb) {
        let smallest = figures.artifacts.iter().min_by_key(|a| a.bytes);
        let value = smallest.map_or(f64::NAN, |a| Bytes(a.bytes).as_gb());
        let name = smallest.map_or("no artifact", |a| a.name.as_str());
        let miss = format!("the smallest artifact ({name}) has {value:.3} GB, hardware.maxVramGb is {limit}");
        state("hardware.maxVramGb", value <= limit, value, limit, miss);
    }
    if criteria.integrity.as_ref().is_some_and(|i| i.model_hash_required == Some(true)) {
        let passed = figures.model_hash.is_some();
        let miss = "integrity.modelHashRequired: there is no model hash".to_owned();
        state("integrity.modelHashRequired", passed, f64::from(u8::from(passed)), 1.0, miss);
    }
    if missed.is_empty() { Ok(verdicts) } else { Err(GateError::Missed(missed)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn criteria(value: serde_json::Value) -> AcceptanceCriteria {
        serde_json::from_value(value).unwrap()
    }

    fn figures() -> Figures {
        let artifact = |name: &str, bytes, perplexity| {
            let (kld, same_top) = (Some(bytes as f64 / 1e11), Some(0.9));
            ArtifactFigures { name: name.into(), bytes, perplexity, kld, same_top }
        };
        Figures {
            artifacts: vec![
                artifact("a-Q8_0.gguf", 2_000_000_000, Some(10.0)),
                artifact("a-Q4_0.gguf", 1_000_000_000, Some(12.0)),
            ],
            model_hash: Some("sha256:0".into()),
        }
    }

    #[test]
    fn what_is_met_is_evidence() {
        let met = criteria(
            json!({"perplexity": {"max": 12.0}, "size": {"maxGb": 2.0}, "hardware": {"maxVramGb": 1.5}, "integrity": {"modelHashRequired": true}}),
        );
        let evidence = judge(&met, &figures()).unwrap();
        assert_eq!(evidence.len(), 6);
        assert!(evidence.iter().all(|e| e.passed));
    }

    #[test]
    fn all_misses_are_named_with_figure_and_limit() {
        let strict =
            criteria(json!({"perplexity": {"max": 11.0}, "size": {"maxGb": 1.5}, "hardware": {"maxVramGb": 0.5}}));
        insta::assert_snapshot!(judge(&strict, &figures()).unwrap_err(), @"acceptance criteria missed: a-Q4_0.gguf: perplexity 12.0000 is above 11; a-Q8_0.gguf: 2.000 GB are more than size.maxGb 1.5; the smallest artifact (a-Q4_0.gguf) has 1.000 GB, hardware.maxVramGb is 0.5");
        let mut unmeasured = figures();
        unmeasured.artifacts[0].perplexity = None;
        assert!(judge(&criteria(json!({"perplexity": {"max": 20.0}})), &unmeasured).is_err());
    }

    #[test]
    fn divergence_is_judged_file_by_file() {
        let met = criteria(json!({"divergence": {"maxKld": 0.02, "minSameTop1": 0.9}}));
        assert_eq!(judge(&met, &figures()).unwrap().len(), 4);
        let strict = criteria(json!({"divergence": {"maxKld": 0.015, "minSameTop1": 0.95}}));
        let mut figures = figures();
        figures.artifacts[1].same_top = None;
        insta::assert_snapshot!(judge(&strict, &figures).unwrap_err(), @"acceptance criteria missed: a-Q8_0.gguf: KL divergence 0.020000 from the base is above 0.015; a-Q8_0.gguf: agrees with the base on a share of 0.9000, below 0.95; a-Q4_0.gguf: agreement with the base was not measured, 0.95 is asked for");
    }

    #[test]
    fn what_cannot_be_judged_is_refused_at_admission() {
        let seed = criteria(
            json!({"benchmarks": {"humaneval": {"min": 0.5}}, "integrity": {"samplesPathRequired": true}, "perplexity": {"max": 9.0}, "hardware": {"deviceTier": "12 GB", "maxVramGb": 12}}),
        );
        let lines: Vec<String> = admissible(&seed, false, false)
            .iter()
            .map(|f| format!("{} {}: {}", f.severity.as_str(), f.key, f.message))
            .collect();
        insta::assert_snapshot!(lines.join("\n"), @r#"
        error acceptanceCriteria.benchmarks.humaneval: this build cannot measure "humaneval"
        error acceptanceCriteria.perplexity.max: no eval stage measures perplexity
        error acceptanceCriteria.hardware.maxVramGb: no stage makes an artifact
        error acceptanceCriteria.integrity.samplesPathRequired: this build's benchmarks write no sample files
        note acceptanceCriteria.hardware.deviceTier: "12 GB" is a name for people; only maxVramGb is judged
        "#);
        assert!(
            admissible(&criteria(json!({"perplexity": {"max": 9.0}, "size": {"maxGb": 1}})), true, true).is_empty()
        );
    }
}
