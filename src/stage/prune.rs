//! `prune`: takes the least important attention heads out of every layer, proves that nothing else changed, and reads
//! the result back.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use serde_json::{Map, Value, json};

use super::{Admission, LAYER_IMPORTANCE, Place, Product, Span, Stage, StageContext, directory, predict};
use crate::compress::{
    Axis, Defrag, HeadEdit, HeadMetric, HeadOptions, HeadPlan, HeadReport, HeadScores, LayerHeads, SAMPLE_LENGTH,
    SequenceLimits, config_with_heads, plan_heads, prunable, read_corpus, removable, rewrite_heads, score_heads,
    sequences, sliceable, with_heads,
};
use crate::engine::PassProgress;
use crate::family::{ModelSpec, OpenModel};
use crate::fault::{Fault, Outcome};
use crate::gate::{self, HeadCut, Lineage, Part, ScoreLimit};
use crate::line::stamp;
use crate::model::{HfDir, TensorMeta, TensorSource};
use crate::recipe::stages::PruneStrategy;
use crate::recipe::{self, Finding, PlannedStage, StageSpec};

pub(super) struct Prune;

/// Name of the sidecar that says which heads went, and why.
pub(super) const METADATA_FILE: &str = "head_prune.metadata.v1.json";

impl Stage for Prune {
    fn type_name(&self) -> &'static str {
        "prune"
    }

    fn summary(&self) -> &'static str {
        "remove the least important attention heads: zeroed in place, or sliced out in whole groups"
    }

    fn plan(&self, admission: &mut Admission<'_>, spec: &StageSpec, place: Place) -> PlannedStage {
        let StageSpec::Prune(prune) = spec else { return place.planned(spec) };
        let mut planned = place.planned(spec);
        planned.title = format!("prune {} % of the attention heads by {}", 100.0 * prune.level, prune.strategy);
        planned.outputs = vec![format!("heads.{}", place.0)];
        let metric = check_strategy(admission, prune, place);
        check_place(admission, place);
        let options = check_mode(admission, prune, place);
        let stored: u64 = admission.source().map_or(0, |s| s.tensors.metas().iter().map(|m| m.bytes).sum());
        if metric.is_some_and(HeadMetric::needs_corpus) {
            plan_corpus(admission, prune, place, stored, &mut planned);
        }
        planned.predicted = planned.predicted.then(predict::rewrite(stored));
        if let (Some(options), Some(model)) = (options, admission.model().cloned()) {
            check_amount(admission, place, &model, &options);
            let after = shape_after(&model, &options);
            admission.becomes(after);
        }
        admission.is_pruned = true;
        planned
    }

    fn run(&self, cx: &StageContext<'_>, planned: &PlannedStage, span: Span<'_>) -> Outcome<Product> {
        let StageSpec::Prune(prune) = cx.spec(planned)? else { return Err(Fault::internal("plan: this is no prune")) };
        let started = stamp::seconds(chrono::Utc::now());
        let (Some(metric), Some(options)) = (HeadMetric::parse(prune.strategy.as_str()), options_of(&prune)) else {
            return Err(Fault::internal("plan: prune with a strategy or mode that was to be refused"));
        };
        let out_name = planned.outputs.first().ok_or_else(|| Fault::internal("plan: prune without an output"))?;
        let model = cx.open_model()?;
        let scores = score(cx, &prune, planned, &model, metric, span.part(0.0, 0.5))?;
        let plan = plan_heads(&model.spec, &scores, &options)?;
        let edits = plan.edits(&model)?;
        let out = cx.fresh_dir(out_name)?;
        let source = HfDir::open(&model.path)?;
        let total: u64 = model.stored.metas().iter().map(|meta| meta.bytes).sum();
        let write = span.part(0.5, 0.7);
        let report = rewrite_heads(&*model.stored, &edits, &out, directory::MAX_SHARD_BYTES, &|done| {
            write.of(done, total, "rewrite tensors");
        })?;
        let mut files = directory::carry(&source, &config_with_heads(&model.config, &model.spec, &plan), &out)?;
        let mut known_hashes = std::collections::HashMap::new();
        for file in report.written.weights.iter().chain(&report.written.index) {
            known_hashes.insert(Path::new(out_name).join(&file.filename), file.sha256);
            files.push(file.filename.clone().into());
        }
        let gate = Instant::now();
        let (evidence, pruned) = inspect(cx, &model, &plan, &edits, out_name, span.part(0.7, 1.0))?;
        let gate_s = gate.elapsed().as_secs_f64();
        let decided = decided(&prune, &options, &model.spec, &scores, &plan);
        let mut document = directory::provenance(cx, "prune", &started);
        document.extend(decided.clone());
        document.extend(written(&report, &*pruned.stored));
        directory::write_metadata(&out, METADATA_FILE, &document)?;
        files.push(METADATA_FILE.into());
        let bytes: u64 = report.written.weights.iter().map(|file| file.size).sum();
        Ok(Product {
            files: files.into_iter().map(|file| Path::new(out_name).join(file)).collect(),
            known_hashes,
            model: Some(out_name.into()),
            artifacts: vec![directory::artifact(out_name, &pruned, bytes)],
            evidence,
            gate_s,
            details: decided,
            summary: Some(format!(
                "{} of {} heads in {} layers {}: {} tensors edited",
                plan.gone(),
                plan.heads(),
                plan.layers.len(),
                if plan.defrag == Defrag::Pad { "zeroed" } else { "cut out" },
                report.edited
            )),
            ..Product::default()
        })
    }
}

/// The metric a strategy means; why there is none is a finding.
fn check_strategy(admission: &mut Admission<'_>, prune: &recipe::stages::Prune, place: Place) -> Option<HeadMetric> {
    let metric = HeadMetric::parse(prune.strategy.as_str());
    let (message, hint) = match &prune.strategy {
        _ if metric.is_some() => return metric,
        PruneStrategy::Gradient => (
            "gradient needs a backward pass, which this build does not have".to_owned(),
            "use activation-magnitude, entropy or magnitude",
        ),
        PruneStrategy::CalibrationAwareActivationCount | PruneStrategy::PerLayerNormalizedRouterImportance => (
            format!("{} ranks experts, this stage removes attention heads", prune.strategy),
            "use an expert-prune stage, or rank heads by entropy, activation-magnitude or magnitude",
        ),
        // A word outside the list is a finding of the schema already.
        _ => return None,
    };
    admission.report(Finding::error(place.key("strategy"), message).hint(hint));
    None
}

fn check_place(admission: &mut Admission<'_>, place: Place) {
    let key = place.key("type");
    if !admission.artifacts.is_empty() {
        let message = "comes after quant: the files already written would not be pruned";
        admission.report(Finding::error(&key, message).hint("put prune before quant"));
    }
    if let Some(form) = admission.source().and_then(OpenModel::fixed_form) {
        let message = format!("{form} cannot be pruned in this build");
        admission.report(Finding::error(&key, message).hint("start from the model's safetensors"));
    }
    let layers = admission.model().map(|model| (prunable(model).len(), model.blocks.len()));
    match layers {
        Some((0, all)) => {
            let message = format!("none of the {all} layers has attention heads that can be taken out one by one");
            admission.report(Finding::error(&key, message).hint("remove the stage: this model mixes tokens otherwise"));
        }
        Some((some, all)) if some < all => {
            let message =
                format!("{} of {all} layers have no attention heads to prune and stay as they are", all - some);
            admission.report(Finding::note(&key, message));
        }
        _ => {}
    }
}

/// The settings of the stage; `None` when its mode is not known.
fn options_of(prune: &recipe::stages::Prune) -> Option<HeadOptions> {
    let defrag = Defrag::parse(&prune.defrag_mode())?;
    Some(HeadOptions {
        defrag,
        level: prune.level,
        per_layer: prune.per_layer_normalized.unwrap_or(defrag == Defrag::Slice),
        min_heads: prune.min_heads_per_layer() as usize,
        min_kv_heads: prune.min_kv_heads_per_layer() as usize,
    })
}

fn check_mode(admission: &mut Admission<'_>, prune: &recipe::stages::Prune, place: Place) -> Option<HeadOptions> {
    let key = place.key("defragMode");
    let Some(options) = options_of(prune) else {
        let message = format!("{:?} is no way to remove a head", prune.defrag_mode());
        admission.report(Finding::error(key, message).hint("say pad (zeros, shapes stay) or slice (cut out)"));
        return None;
    };
    if options.defrag == Defrag::Slice {
        if !options.per_layer {
            let message = "slice takes the same number of every layer, perLayerNormalized false does not";
            admission.report(Finding::error(&key, message).hint("use pad, or leave perLayerNormalized out"));
        }
        let refused = admission.model().and_then(|model| sliceable(model).err());
        if let Some(error) = refused {
            admission.fault(&key, error.into());
        }
    }
    Some(options)
}

/// Something must go, and a floor that holds heads back is said.
fn check_amount(admission: &mut Admission<'_>, place: Place, model: &ModelSpec, options: &HeadOptions) {
    let key = place.key("level");
    let (most, asked) = removable(model, options);
    let heads: usize = prunable(model).iter().map(|(_, attention)| attention.heads).sum();
    if heads == 0 {
        return;
    }
    let unit = if options.defrag == Defrag::Slice { "whole groups" } else { "heads" };
    if asked == 0 {
        let message = format!("{} of {heads} heads is less than one of the {unit} to remove", options.level);
        admission.report(Finding::error(key, message).hint("raise the level"));
    } else if most == 0 {
        let (min, kv) = (options.min_heads, options.min_kv_heads);
        let message = format!("minHeadsPerLayer {min} and minKvHeadsPerLayer {kv} leave nothing of {heads} to remove");
        admission.report(Finding::error(key, message).hint("lower them, or remove the stage"));
    } else if most < asked {
        let message = format!("asks for {asked} of {heads} heads, the floors per layer leave {most} to remove");
        admission.report(Finding::warning(key, message).hint("lower minHeadsPerLayer or minKvHeadsPerLayer"));
    }
}

/// Finds the calibration text and adds the pass over it to the prediction.
fn plan_corpus(
    admission: &mut Admission<'_>,
    prune: &recipe::stages::Prune,
    place: Place,
    stored: u64,
    planned: &mut PlannedStage,
) {
    let key = place.key("calibrationCorpus");
    let listed = admission.recipe.calibration_corpora.iter().flatten();
    let listed = match &prune.calibration_corpus {
        Some(name) => listed.into_iter().find(|corpus| corpus.id == *name),
        None => listed.into_iter().next(),
    };
    let named = prune.calibration_corpus_file.clone().or_else(|| listed.map(|corpus| corpus.path.clone()));
    let Some(name) = named.or_else(|| prune.calibration_corpus.clone()) else {
        let message = format!("{} looks at the model at work, and the recipe names no text for that", prune.strategy);
        let hint = "name a calibrationCorpus, or use the strategy magnitude, which needs none";
        return admission.report(Finding::error(key, message).hint(hint));
    };
    planned.inputs.push(key.clone());
    if admission.source().is_some_and(|source| !matches!(source.tokenizer(), Ok(Some(_)))) {
        let finding = Finding::error(&key, "the source has no usable tokenizer.json");
        admission.report(finding.hint("a corpus of text needs the model's tokenizer; magnitude needs no corpus"));
    }
    let Some(bytes) = admission.find_text(key, &name) else { return };
    if let Some(model) = admission.model() {
        let most = u64::from(prune.analysis_steps()) * SAMPLE_LENGTH as u64;
        let tokens = predict::tokens(bytes).min(most);
        let pass = predict::pass(model, stored, tokens, admission.node.forge.threads, false);
        planned.predicted = planned.predicted.then(pass);
    }
}

/// The model's description after the stage, whichever heads it will be.
fn shape_after(model: &ModelSpec, options: &HeadOptions) -> ModelSpec {
    if options.defrag == Defrag::Pad || sliceable(model).is_err() {
        return model.clone();
    }
    let (most, asked) = removable(model, options);
    let layers: BTreeMap<usize, LayerHeads> = prunable(model)
        .into_iter()
        .map(|(index, a)| {
            let gone = (0..most.min(asked) / model.blocks.len()).collect();
            (index, LayerHeads { heads: a.heads, kv_heads: a.kv_heads, gone })
        })
        .collect();
    with_heads(model.clone(), &HeadPlan { defrag: options.defrag, layers })
}

fn score(
    cx: &StageContext<'_>,
    prune: &recipe::stages::Prune,
    planned: &PlannedStage,
    model: &OpenModel,
    metric: HeadMetric,
    span: Span<'_>,
) -> Outcome<HeadScores> {
    let samples = match metric.needs_corpus() {
        true => samples(cx, prune, planned, model, span.part(0.0, 0.05))?,
        false => Vec::new(),
    };
    let pass = span.part(0.05, 1.0);
    let report = |p: PassProgress| pass.at_rate(p.fraction, "rank heads", Some(p.tokens_per_s));
    let options = cx.resumable("scores", "");
    let scores = score_heads(model, metric, &samples, prune.seed(), &options, &report)?;
    cx.tell_savepoints(&options);
    Ok(scores)
}

fn samples(
    cx: &StageContext<'_>,
    prune: &recipe::stages::Prune,
    planned: &PlannedStage,
    model: &OpenModel,
    span: Span<'_>,
) -> Outcome<Vec<Vec<u32>>> {
    let text = cx.text(&Place(planned.index).key("calibrationCorpus"))?;
    let corpus = read_corpus(&text.path)?;
    let Some(tokenizer) = model.open_tokenizer()? else {
        return Err(Fault::source(format!("{} has no tokenizer.json", model.path.display()))
            .hint("a corpus of text needs the model's tokenizer"));
    };
    let limits = SequenceLimits {
        max_length: SAMPLE_LENGTH.min(model.spec.max_positions),
        max_examples: Some(u64::from(prune.analysis_steps())),
        max_tokens: None,
    };
    Ok(sequences(&corpus, &tokenizer, limits, &|done| span.at(done, "tokenize"))?)
}

/// Where every tensor of the output must come from, in source order.
fn lineage(edits: &BTreeMap<String, HeadEdit>, metas: &[TensorMeta]) -> Vec<Lineage> {
    let line = |meta: &TensorMeta| {
        let part = edits.get(&meta.name).map_or(Part::Whole, |edit| {
            let axis = usize::from(edit.axis == Axis::Columns);
            Part::Heads(HeadCut { axis, count: edit.count, gone: edit.gone.clone(), cut_out: edit.slice })
        });
        Lineage { part, ..Lineage::unchanged(&meta.name) }
    };
    metas.iter().map(line).collect()
}

/// The gates: the directory reads back as what the plan says, nothing but the heads changed, and it still scores.
fn inspect(
    cx: &StageContext<'_>,
    model: &OpenModel,
    plan: &HeadPlan,
    edits: &BTreeMap<String, HeadEdit>,
    out_name: &str,
    span: Span<'_>,
) -> Outcome<(Vec<gate::Evidence>, OpenModel)> {
    let (pruned, reloaded) = gate::reopen(&cx.work.join(out_name), out_name, &with_heads(model.spec.clone(), plan))?;
    let total: u64 = pruned.stored.metas().iter().map(|meta| meta.bytes).sum();
    let (proof, compared) = (span.part(0.0, 0.4), AtomicU64::new(0));
    let done = |bytes| proof.of(compared.fetch_add(bytes, Ordering::Relaxed) + bytes, total, "prove the pass-through");
    let lineage = lineage(edits, model.stored.metas());
    let passed = gate::pass_through(&*model.stored, &*pruned.stored, &lineage, out_name, &done)?;
    let tokens = cx.gate_tokens(model)?;
    let parent = cx.short_score(model, &tokens, span.part(0.4, 0.7))?;
    let child = cx.short_score(&pruned, &tokens, span.part(0.7, 1.0))?;
    let scored = gate::judge_score(out_name, parent, child, tokens.len(), ScoreLimit::PRUNE)?;
    Ok((vec![reloaded, passed, scored], pruned))
}

/// What was decided and from what: for the record of the stage and the metadata document.
fn decided(
    prune: &recipe::stages::Prune,
    options: &HeadOptions,
    spec: &ModelSpec,
    scores: &HeadScores,
    plan: &HeadPlan,
) -> Map<String, Value> {
    let layer = |(index, layer): (&usize, &LayerHeads)| {
        let kept = json!({
            "heads": layer.heads,
            "kv_heads": layer.kv_heads,
            "kept": layer.kept(),
            "dropped": layer.gone,
            "dropped_kv_heads": layer.gone_groups(),
            "scores": scores.layers.get(index),
        });
        (index.to_string(), kept)
    };
    let layers: Map<String, Value> = plan.layers.iter().map(layer).collect();
    let all = spec.blocks.iter().map(|block| block.index);
    let skipped: Vec<usize> = all.filter(|index| !plan.layers.contains_key(index)).collect();
    let mut selection = json!({
        "strategy": scores.metric,
        "level": options.level,
        "defrag_mode": options.defrag.as_str(),
        "per_layer": options.per_layer,
        "min_heads_per_layer": options.min_heads,
        "min_kv_heads_per_layer": options.min_kv_heads,
        "calibration_tokens": scores.tokens,
    });
    if scores.metric == HeadMetric::Random {
        selection["seed"] = prune.seed().into();
    }
    Map::from_iter([
        ("selection".to_owned(), selection),
        ("layers".to_owned(), Value::Object(layers)),
        ("skipped_layers".to_owned(), json!(skipped)),
        (LAYER_IMPORTANCE.to_owned(), plan.layers.iter().map(|layer| importance_of(layer, scores)).collect()),
    ])
}

/// One entry of the results' `layerImportance`.
fn importance_of((index, layer): (&usize, &LayerHeads), scores: &HeadScores) -> Value {
    let scores = scores.layers.get(index).map_or(&[][..], Vec::as_slice);
    json!({
        "layer": index,
        "avgImportance": scores.iter().sum::<f64>() / scores.len().max(1) as f64,
        "minImportance": scores.iter().copied().reduce(f64::min),
        "maxImportance": scores.iter().copied().reduce(f64::max),
        "survivingHeads": layer.heads - layer.gone.len(),
        "totalHeads": layer.heads,
        "prunedHeads": layer.gone,
    })
}

/// What was written, for the metadata document.
fn written(report: &HeadReport, tensors: &dyn TensorSource) -> Map<String, Value> {
    Map::from_iter([
        ("tensors".to_owned(), json!({ "unchanged": report.kept_unchanged, "edited": report.edited })),
        ("total_bytes_out".to_owned(), report.bytes_out.into()),
        ("shards_out".to_owned(), directory::shards_out(&report.written, tensors)),
        ("errors".to_owned(), json!([])),
    ])
}
