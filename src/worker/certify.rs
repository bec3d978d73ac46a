//! The certificate: acceptance judged, manifest, executed recipe and model card written, the result put together.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::card;
use crate::assay::Divergence;
use crate::fault::{Fault, Outcome};
use crate::gate::{self, ArtifactFigures, Evidence, Figures};
use crate::line::record::{FileEntry, ResultRecord};
use crate::line::{AttemptToken, stamp};
use crate::model::{FileHash, Manifest};
use crate::recipe::hashes::compose_model_hash;
use crate::recipe::stages::DIVERGENCE;
use crate::recipe::{
    AlloyResults, BenchmarkResult, CodeAttestation, DatasetHash, FileHashEntry, IntegrityAttestation, NumberOrText,
    RecipeFile, TrustLevel,
};
use crate::stage::{
    ARTIFACT_DIR, Artifact, LAYER_IMPORTANCE, Measurement, OutputFile, StageContext, Summary, peak_rss_bytes,
    replace_file,
};
use crate::units::{Bytes, Sha};

/// Everything known about a finished part.
pub(super) struct Certificate {
    record: ResultRecord,
}

impl Certificate {
    /// The result as written by this attempt.
    pub(super) fn with_token(mut self, token: &AttemptToken) -> ResultRecord {
        self.record.attempt_token = token.to_string();
        self.record
    }
}

/// What the documents are written from.
pub(super) struct Outcomes<'a> {
    pub cx: &'a StageContext<'a>,
    pub recipe: &'a RecipeFile,
    pub summary: &'a Summary,
    pub completed_at: String,
    pub artifacts: Vec<Shipped<'a>>,
    /// Every file of the artifact folder but the documents.
    pub files: Vec<OutputFile>,
    /// The weight files among them.
    pub weights: Vec<OutputFile>,
    pub model_hash: Option<Sha>,
    pub acceptance: Vec<Evidence>,
}

/// An artifact that ships, with what was measured on it.
pub(super) struct Shipped<'a> {
    pub artifact: &'a Artifact,
    /// Its place in the artifact folder: a file, or the folder itself.
    pub name: String,
    pub sha256: Option<Sha>,
    pub measurements: Vec<&'a Measurement>,
}

impl Shipped<'_> {
    /// What it loses against the base, by benchmark.
    pub fn divergences(&self) -> impl Iterator<Item = &Divergence> {
        self.measurements.iter().filter_map(|m| m.divergence.as_ref())
    }
}

impl Outcomes<'_> {
    pub fn base(&self) -> impl Iterator<Item = &Measurement> {
        self.cx.measurements.iter().filter(|m| m.artifact.is_none())
    }

    /// Perplexity of the base on the first benchmark.
    pub fn base_perplexity(&self) -> Option<f64> {
        self.base().next().map(|m| m.perplexity)
    }

    /// The figures of the artifact that scored best.
    pub fn best(&self) -> Option<(&Shipped<'_>, f64)> {
        let scored = self.artifacts.iter().filter_map(|a| Some((a, a.measurements.first()?.perplexity)));
        scored.min_by(|a, b| a.1.total_cmp(&b.1))
    }
}

/// Judges the acceptance criteria, writes the documents of the artifact folder and returns the result.
pub(super) fn certify(cx: &StageContext<'_>, recipe: &RecipeFile, summary: &Summary) -> Outcome<Certificate> {
    cx.progress.begin("certify");
    let mut outcomes = collect(cx, recipe, summary)?;
    if let Some(criteria) = &recipe.recipe().acceptance_criteria {
        outcomes.acceptance = gate::judge(criteria, &figures(&outcomes))?;
    }
    let dir = cx.work.join(ARTIFACT_DIR);
    if dir.is_dir() {
        write_documents(&outcomes, &dir)?;
    }
    Ok(Certificate { record: record(&outcomes, &dir)? })
}

fn collect<'a>(cx: &'a StageContext<'a>, recipe: &'a RecipeFile, summary: &'a Summary) -> Outcome<Outcomes<'a>> {
    let below = Path::new(ARTIFACT_DIR);
    let packaged = summary.checkpoints.stages.values().filter(|done| done.stage == "package");
    let mut files: Vec<OutputFile> = packaged
        .flat_map(|done| &done.outputs)
        .filter_map(|file| Some(OutputFile { path: file.path.strip_prefix(below).ok()?.to_owned(), ..file.clone() }))
        .collect();
    files.sort_by(|a, b| a.path.cmp(&b.path));
    let is_weights = |file: &&OutputFile| {
        let ending = file.path.extension().and_then(|e| e.to_str());
        matches!(ending, Some("gguf" | "safetensors"))
    };
    let weights: Vec<OutputFile> = files.iter().filter(is_weights).cloned().collect();
    let named: Vec<(String, Sha)> = weights.iter().map(|f| (f.path.display().to_string(), f.sha256)).collect();
    let shipped = |artifact: &'a Artifact| {
        let file = artifact.path.file_name().unwrap_or_default();
        let found = weights.iter().find(|f| f.path.as_os_str() == file);
        let is_folder = weights.iter().any(|f| f.path.starts_with(file));
        let folder = is_folder.then(|| file.to_string_lossy().into_owned());
        Shipped {
            artifact,
            name: found.map_or_else(|| folder.unwrap_or_else(|| ".".to_owned()), |f| f.path.display().to_string()),
            sha256: found.map(|f| f.sha256),
            measurements: cx.measurements.iter().filter(|m| m.artifact.as_ref() == Some(&artifact.path)).collect(),
        }
    };
    Ok(Outcomes {
        cx,
        recipe,
        summary,
        completed_at: stamp::seconds(chrono::Utc::now()),
        artifacts: if files.is_empty() { Vec::new() } else { cx.shipping().into_iter().map(shipped).collect() },
        model_hash: compose_model_hash(named.iter().map(|(name, sha)| (name.as_str(), *sha))).ok(),
        files,
        weights,
        acceptance: Vec::new(),
    })
}

fn figures(outcomes: &Outcomes<'_>) -> Figures {
    let artifact = |shipped: &Shipped<'_>| ArtifactFigures {
        name: shipped.name.clone(),
        bytes: shipped.artifact.bytes,
        perplexity: shipped.measurements.iter().map(|m| m.perplexity).max_by(f64::total_cmp),
        kld: shipped.divergences().map(|d| d.kld).max_by(f64::total_cmp),
        same_top: shipped.divergences().map(|d| d.same_top).min_by(f64::total_cmp),
    };
    Figures {
        artifacts: outcomes.artifacts.iter().map(artifact).collect(),
        model_hash: outcomes.model_hash.map(|sha| sha.tagged()),
    }
}

fn write_documents(outcomes: &Outcomes<'_>, dir: &Path) -> Outcome<()> {
    let hashes = outcomes.files.iter().map(|f| FileHash {
        filename: f.path.display().to_string(),
        sha256: f.sha256,
        size: f.size,
    });
    Manifest::of(hashes.collect()).write(dir)?;
    let executed = outcomes
        .recipe
        .with_results(&results(outcomes))
        .map_err(|e| Fault::internal("the executed recipe cannot be written as JSON").caused_by(e))?;
    replace_file(&dir.join(format!("{}.alloy.json", outcomes.cx.plan.part)), &executed)?;
    let card = dir.join("README.md");
    // A card carried from the source is a hard link into the stage's output: it must not be written through.
    let _ = fs::remove_file(&card);
    replace_file(&card, card::render(outcomes).as_bytes())
}

/// The `results` block of the executed recipe.
fn results(outcomes: &Outcomes<'_>) -> AlloyResults {
    let elapsed: f64 = outcomes.summary.stages.iter().map(|s| s.elapsed_s).sum();
    let mut results = AlloyResults {
        completed_at: Some(outcomes.completed_at.clone()),
        duration_minutes: Some(elapsed / 60.0),
        benchmarks: Some(benchmarks(outcomes)),
        integrity: Some(integrity(outcomes)),
        ..AlloyResults::default()
    };
    if let Some(shipped) = outcomes.artifacts.first() {
        results.final_size_gb = Some(Bytes(shipped.artifact.bytes).as_gb());
        results.final_params = Some(NumberOrText::Number(shipped.artifact.parameters as f64));
        results.forged_params_b = Some(shipped.artifact.parameters as f64 / 1e9);
        results.active_params_b = Some(shipped.artifact.active_parameters as f64 / 1e9);
    }
    if let (Some(base), Some((_, best))) = (outcomes.base_perplexity(), outcomes.best()) {
        results.set_perplexities(base, best);
    }
    let checkpoints = outcomes.summary.checkpoints.stages.iter().map(|(key, done)| {
        let kept = json!({ "completedAt": done.completed_at, "outputHash": done.output_hash, "inputHashes": done.input_hashes });
        (key.clone(), kept)
    });
    results.extra.insert("stageCheckpoints".into(), Value::Object(checkpoints.collect()));
    let pruned = outcomes.summary.stages.iter().rev().find_map(|stage| stage.details.get(LAYER_IMPORTANCE));
    if let Some(layers) = pruned {
        results.extra.insert(LAYER_IMPORTANCE.into(), layers.clone());
    }
    results
}

fn benchmarks(outcomes: &Outcomes<'_>) -> Vec<BenchmarkResult> {
    let of = |shipped: &Shipped<'_>, m: &Measurement| {
        let base = outcomes.base().find(|b| b.benchmark == m.benchmark && b.data_sha256 == m.data_sha256);
        let mut metrics = Map::new();
        metrics.insert("artifact".into(), json!(shipped.name));
        metrics.insert("type".into(), json!(shipped.artifact.dtype));
        for (name, m) in std::iter::once(("result", m)).chain(base.map(|b| ("base", b))) {
            metrics.insert(name.into(), measurement(m));
        }
        let name = m.benchmark.clone();
        let result = BenchmarkResult { name, metrics: Some(metrics), ..BenchmarkResult::default() };
        match &m.divergence {
            Some(divergence) if m.benchmark == DIVERGENCE => {
                BenchmarkResult { metric: Some("kld".into()), score: Some(divergence.kld), ..result }
            }
            _ => BenchmarkResult {
                metric: Some("perplexity".into()),
                score: Some(m.perplexity),
                base_score: base.map(|b| b.perplexity),
                delta: base.map(|b| m.perplexity - b.perplexity),
                ..result
            },
        }
    };
    outcomes.artifacts.iter().flat_map(|a| a.measurements.iter().map(move |m| of(a, m))).collect()
}

fn measurement(m: &Measurement) -> Value {
    let mut value = json!({
        "perplexity": m.perplexity, "nll": m.nll, "nll_stderr": m.nll_stderr, "tokens": m.tokens, "context": m.context,
        "convention": m.convention, "seconds": m.seconds, "data_sha256": m.data_sha256,
    });
    if let Some(divergence) = &m.divergence {
        value["against"] = json!(m.against);
        value["divergence"] = json!(divergence);
    }
    value
}

fn integrity(outcomes: &Outcomes<'_>) -> IntegrityAttestation {
    let texts = outcomes.cx.plan.texts.iter().map(|text| DatasetHash {
        name: text.named.clone(),
        hash: Some(text.sha256.tagged()),
        ..DatasetHash::default()
    });
    IntegrityAttestation {
        trust_level: Some(TrustLevel::SelfAttested),
        code: Some(CodeAttestation {
            runner: Some("factoryline".into()),
            version: Some(env!("CARGO_PKG_VERSION").into()),
            ..CodeAttestation::default()
        }),
        model_hash: outcomes.model_hash.map(|sha| sha.tagged()),
        file_hashes: Some(
            outcomes
                .weights
                .iter()
                .map(|f| FileHashEntry::new(f.path.display().to_string(), f.sha256, f.size))
                .collect(),
        ),
        datasets: Some(texts.collect()),
        attested_at: Some(outcomes.completed_at.clone()),
        ..IntegrityAttestation::default()
    }
}

/// `result.json`, but for the attempt's token.
fn record(outcomes: &Outcomes<'_>, dir: &Path) -> Outcome<ResultRecord> {
    let plan = outcomes.cx.plan;
    let artifacts: Vec<Value> = outcomes
        .artifacts
        .iter()
        .map(|s| {
            json!({
                "path": s.name, "format": s.artifact.format, "type": s.artifact.dtype, "bytes": s.artifact.bytes,
                "bits_per_weight": s.artifact.bits_per_weight, "parameters": s.artifact.parameters,
                "active_parameters": s.artifact.active_parameters, "sha256": s.sha256,
                "tensor_types": s.artifact.types, "fallbacks": s.artifact.fallbacks,
                "perplexity": s.measurements.first().map(|m| m.perplexity),
                "kld": s.divergences().next().map(|d| d.kld),
                "same_top": s.divergences().next().map(|d| d.same_top),
                "measurements": s.measurements.iter().map(|m| measurement(m)).collect::<Vec<_>>(),
            })
        })
        .collect();
    let best = outcomes.best().map(|(_, perplexity)| perplexity);
    let plan_text = plan.to_json().map_err(|e| Fault::internal("the plan cannot be written as JSON").caused_by(e))?;
    let more = json!({
        "alloy": plan.name,
        "alloyHash": plan.alloy_hash.tagged(),
        "planHash": Sha::of(plan_text.as_bytes()).tagged(),
        "source": {
            "baseModel": plan.source.base_model, "path": plan.source.path, "revision": plan.source.revision,
            "modelHash": plan.source.model_hash.tagged(), "bytes": plan.source.total, "family": plan.source.family,
        },
        "metrics": {
            "baselinePerplexity": outcomes.base_perplexity(),
            "finalPerplexity": best,
            "base": outcomes.base().map(measurement).collect::<Vec<_>>(),
        },
        "artifacts": artifacts,
        "evidence": outcomes.summary.evidence.iter().chain(&outcomes.acceptance).collect::<Vec<_>>(),
        "stages": outcomes.summary.stages,
        "warnings": outcomes.summary.warnings,
        "predicted": plan.predicted,
        "peak_rss_bytes": peak_rss_bytes(),
        "priorMetricBaselines": outcomes.recipe.recipe().prior_metric_baselines.clone().unwrap_or_default(),
    });
    let Value::Object(more) = more else { return Err(Fault::internal("a result is an object")) };
    let entry =
        |f: &OutputFile| FileEntry { filename: f.path.display().to_string(), sha256: f.sha256.hex(), size: f.size };
    Ok(ResultRecord {
        completed_at: outcomes.completed_at.clone(),
        forged_dir: dir.to_owned(),
        published: false,
        model_hash: outcomes.model_hash.map_or_else(String::new, |sha| sha.tagged()),
        file_hashes: outcomes.weights.iter().map(entry).collect(),
        more,
        ..ResultRecord::default()
    })
}
