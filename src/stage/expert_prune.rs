//! `expert-prune`: keeps the most important experts of every layer, proves that nothing else changed, and reads the
//! result back.

use std::path::{Path, PathBuf};
use std::time::Instant;

use super::calibration::{calibration, held_out, profile_before};
use super::prune_choice::{Choice, choose, metrics};
use super::prune_healing::heal;
use super::prune_metadata::{self, About, METADATA_FILE};
use super::{Admission, Place, Product, Span, Stage, StageContext, directory, predict};
use crate::compress::{Importance, PrunePlan, PruneReport, TensorFate, groups, rewrite};
use crate::family::{FfnSpec, ModelSpec, MoeSpec, OpenModel};
use crate::fault::{Fault, Outcome};
use crate::gate::{self, Lineage, Part, ScoreLimit};
use crate::line::stamp;
use crate::model::{Config, HfDir, TensorMeta};
use crate::recipe::stages::ExpertTensorLayout;
use crate::recipe::{self, Finding, PlannedStage, StageSpec};

pub(super) struct ExpertPrune;

impl Stage for ExpertPrune {
    fn type_name(&self) -> &'static str {
        "expert-prune"
    }

    fn summary(&self) -> &'static str {
        "keep the most important experts of every layer and drop the others"
    }

    fn plan(&self, admission: &mut Admission<'_>, spec: &StageSpec, place: Place) -> PlannedStage {
        let StageSpec::ExpertPrune(prune) = spec else { return place.planned(spec) };
        let mut planned = place.planned(spec);
        check_settings(admission, prune, place);
        if prune.needs_profile() {
            planned.inputs = vec!["importance".into()];
        } else if let Some(file) = &prune.importance_json {
            admission.find_text(place.key("importanceJson"), file);
            planned.inputs = vec![place.key("importanceJson")];
        }
        if let Some(name) = &prune.held_out {
            admission.find_text(place.key("heldOut"), name);
            planned.inputs.push(place.key("heldOut"));
        }
        let out = if admission.is_pruned { format!("pruned.{}", place.0) } else { "pruned".to_owned() };
        planned.outputs = vec![out];
        let Some(keep) = prune.keep().map(|keep| keep as usize) else {
            let finding = Finding::error(place.key("keepExpertsPerLayer"), "is missing");
            admission.report(finding.hint("say how many experts each layer keeps"));
            return planned;
        };
        let from = admission.model().and_then(ModelSpec::experts);
        planned.title = match from {
            Some((experts, _)) => format!("prune experts {experts} → {keep} per layer"),
            None => format!("prune experts to {keep} per layer"),
        };
        if let Some(moe) = admission.model().and_then(|spec| spec.mixtures().next()).map(|(_, moe)| moe.clone()) {
            check_count(admission, prune, place, keep, &moe);
        }
        if let Some(spec) = admission.model().cloned() {
            let smaller = with_experts(spec.clone(), keep);
            let stored: u64 = admission.source().map_or(0, |s| s.stored.metas().iter().map(|m| m.bytes).sum());
            let bytes = (stored as f64 * smaller.parameters() as f64 / spec.parameters().max(1) as f64) as u64;
            planned.predicted = predict::rewrite(bytes);
            if admission.has_importance || prune.held_out.is_some() {
                let variants = prune.ranking().map_or(1, |ranking| ranking.metrics().len()) as u64;
                let tokens = prune.held_out_tokens().saturating_mul(1 + variants);
                let damage = predict::pass(&spec, stored, tokens, admission.node.forge.threads, true);
                planned.predicted = damage.then(planned.predicted);
            }
            admission.becomes(smaller);
        }
        admission.is_pruned = true;
        admission.has_importance = false;
        planned
    }

    fn run(&self, cx: &StageContext<'_>, planned: &PlannedStage, span: Span<'_>) -> Outcome<Product> {
        let StageSpec::ExpertPrune(prune) = cx.spec(planned)? else {
            return Err(Fault::internal("plan: this is no expert-prune"));
        };
        let started = stamp::seconds(chrono::Utc::now());
        let (Some(keep), Some(out_name)) = (prune.keep(), planned.outputs.first()) else {
            return Err(Fault::internal("plan: expert-prune without a count or an output"));
        };
        let model = cx.open_model()?;
        let table = importance_path(cx, &prune, planned)?;
        let importance = table.as_deref().map(Importance::read).transpose()?;
        let profile = profile_before(cx, planned)?;
        let of_profile = profile.as_ref().map(|(_, profile)| profile.metric());
        let text = held_out(cx, &model, planned, &prune)?.filter(|text| !text.sequences.is_empty());
        if text.is_none() && prune.needs_held_out() {
            return Err(
                Fault::recipe("expert-prune: no held-out text to judge the damage on").hint("name one in heldOut")
            );
        }
        let candidates = metrics(&prune, of_profile)?;
        let estimate = span.part(0.0, if prune.router_kd() { 0.2 } else { 0.3 });
        let mut choice =
            choose(&model, &candidates, importance.as_ref(), keep as usize, text.as_ref(), &cx.pass, estimate)?;
        if let (true, Some(text), Some((stage, profile))) = (prune.router_kd(), &text, &profile) {
            let (split, _) = calibration(cx, &model, stage, profile, &|_| ())?;
            let options = cx.resumable("router-kd", &format!("{:?}", choice.kept));
            heal(&model, &mut choice, &split.profiled, text, (&cx.pass, &options), span.part(0.2, 0.3))?;
            cx.tell_savepoints(&options);
        }
        let damage = choice.judge(&prune, out_name)?;
        let experts = model.spec.experts().map_or(0, |(experts, _)| experts);
        let mut plan = PrunePlan::new(model.storage(), experts, choice.kept.clone());
        if let Some(healing) = &choice.healing {
            plan.recompute_routers(&model, &healing.routers)?;
        }
        let out = cx.fresh_dir(out_name)?;
        let total = plan.bytes_out(model.stored.metas());
        let write = span.part(0.3, 0.7);
        let progress = |done| write.of(done, total, "rewrite tensors");
        let (report, settling) = rewrite(&model, &plan, &out, directory::MAX_SHARD_BYTES, &progress)?;
        let source = HfDir::open(&model.path)?;
        let mut files = directory::carry(&source, &config_with_experts(&source.config, plan.keep)?, &out)?;
        let gate = Instant::now();
        let (gates, pruned) = inspect(cx, &model, &plan, out_name, span)?;
        let written = settling.wait()?;
        let mut known_hashes = std::collections::HashMap::new();
        for file in written.weights.iter().chain(&written.index) {
            known_hashes.insert(Path::new(out_name).join(&file.filename), file.sha256);
            files.push(file.filename.clone().into());
        }
        let gate_s = gate.elapsed().as_secs_f64();
        let about = About {
            source: &model,
            plan: &plan,
            choice: &choice,
            report: &report,
            written: &written,
            table: table.as_deref().zip(importance.as_ref()),
            pruned: &pruned,
        };
        prune_metadata::write(cx, &about, &started, &out)?;
        files.push(METADATA_FILE.into());
        let bytes: u64 = written.weights.iter().map(|file| file.size).sum();
        Ok(Product {
            files: files.into_iter().map(|file| Path::new(out_name).join(file)).collect(),
            known_hashes,
            model: Some(out_name.into()),
            artifacts: vec![directory::artifact(out_name, &pruned, bytes)],
            evidence: damage.into_iter().chain(gates).collect(),
            gate_s,
            warnings: match choice.damage {
                Some(_) => Vec::new(),
                None => vec!["the damage of the prune was not estimated: there is no held-out text".to_owned()],
            },
            summary: Some(summary(&plan, &choice, &report)),
            ..Product::default()
        })
    }
}

fn summary(plan: &PrunePlan, choice: &Choice, report: &PruneReport) -> String {
    let counts = report.counts;
    let damage = choice.damage.as_ref().map_or_else(String::new, |damage| {
        format!(", KL divergence {:.4} ± {:.4} held out", damage.kld, damage.kld_stderr)
    });
    format!(
        "{} → {} experts in {} layers by {}: {} tensors dropped, {} renamed, {} routers and {} stacks cut{damage}",
        plan.experts,
        plan.keep,
        plan.kept.len(),
        choice.metric.as_str(),
        counts.dropped,
        counts.kept_renamed,
        counts.routers_sliced + counts.routers_recomputed,
        counts.stacks_sliced,
    )
}

fn check_settings(admission: &mut Admission<'_>, prune: &recipe::stages::ExpertPrune, place: Place) {
    let layout = prune.expert_tensor_layout();
    if let Some(found) = admission.source().map(prune_metadata::layout)
        && layout != ExpertTensorLayout::Auto
        && layout.as_str() != found
    {
        let message = format!("says {}, the model's files are {found}", layout.as_str());
        admission.report(Finding::error(place.key("expertTensorLayout"), message).hint("say auto"));
    }
    if prune.router_kd() && !admission.has_importance {
        let message = "routerKd needs the calibration text of an expert-activation-profile stage before it";
        admission.report(Finding::error(place.key("routerKd"), message).hint("add the profile stage, or leave it out"));
    }
    if prune.needs_held_out() && prune.held_out.is_none() && !admission.has_importance {
        let message = "there is no held-out text to estimate the damage on";
        let hint = "name a text in heldOut, or put an expert-activation-profile stage before it";
        admission.report(Finding::error(place.key("heldOut"), message).hint(hint));
    }
    if prune.needs_profile() && !admission.has_importance {
        let hint =
            "put an expert-activation-profile stage before it, name an importanceJson, or use router_l2 or aimer";
        admission.report(Finding::error(place.key("type"), "no profile of this model stands before it").hint(hint));
    }
    if !admission.artifacts.is_empty() {
        let message = "comes after quant: the files already written would not be pruned";
        admission.report(Finding::error(place.key("type"), message).hint("put expert-prune before quant"));
    }
    if let Some(form) = admission.source().and_then(OpenModel::fixed_form) {
        let message = format!("{form} cannot be pruned in this build");
        admission.report(Finding::error(place.key("type"), message).hint("start from the model's safetensors"));
    }
    if admission.model().is_some_and(|model| model.experts().is_none()) {
        let message = "the source is a dense model, it has no experts";
        let hint = "remove the expert stages, or choose a mixture-of-experts model";
        admission.report(Finding::error(place.key("type"), message).hint(hint));
    }
}

fn check_count(
    admission: &mut Admission<'_>,
    prune: &recipe::stages::ExpertPrune,
    place: Place,
    keep: usize,
    moe: &MoeSpec,
) {
    let (experts, top_k, groups) = (moe.experts.len(), moe.top_k, groups(moe));
    let key = place.key(prune.keep_key());
    let range = format!("keep {top_k} to {} experts", experts.saturating_sub(1));
    if keep < top_k {
        let message = format!("{keep} is below the {top_k} experts the model's router chooses per token");
        admission.report(Finding::error(key, message).hint(range));
    } else if keep >= experts {
        let message = format!("{keep} of {experts} experts prunes nothing");
        admission.report(Finding::error(key, message).hint(range));
    } else if !keep.is_multiple_of(groups.count) {
        let message =
            format!("{keep} does not divide into the {} groups the model's router chooses from", groups.count);
        admission.report(Finding::error(key, message).hint(format!("keep a multiple of {}", groups.count)));
    } else if groups.used * (keep / groups.count) < top_k {
        let left = groups.used * (keep / groups.count);
        let message = format!("{keep} leaves {left} experts in the groups of a token, which uses {top_k}");
        admission.report(Finding::error(key, message).hint("keep more experts"));
    } else if !keep.is_multiple_of(8) && experts.is_multiple_of(8) {
        let message = format!("{keep} is no multiple of 8, which some inference kernels want");
        admission.report(Finding::note(key, message));
    }
    if let Some(said) = prune.original_experts_per_layer.filter(|&said| said as usize != experts) {
        let message = format!("{said}, but the model has {experts} experts per layer");
        admission.report(Finding::error(place.key("originalExpertsPerLayer"), message));
    }
}

/// The model's description after a prune: kept experts are numbered from 0.
fn with_experts(mut spec: ModelSpec, keep: usize) -> ModelSpec {
    let blocks = spec.blocks.iter_mut().filter_map(|block| match &mut block.ffn {
        FfnSpec::Moe(moe) => Some(moe),
        FfnSpec::Dense(_) => None,
    });
    for moe in blocks.chain(spec.carried.iter_mut().flat_map(|carried| &mut carried.mixtures)) {
        moe.experts.truncate(keep);
        moe.router.rows = moe.experts.len();
    }
    spec
}

fn importance_path(
    cx: &StageContext<'_>,
    prune: &recipe::stages::ExpertPrune,
    planned: &PlannedStage,
) -> Outcome<Option<PathBuf>> {
    if prune.importance_json.is_some() {
        return Ok(Some(cx.text(&Place(planned.index).key("importanceJson"))?.path.clone()));
    }
    if !prune.needs_profile() {
        return Ok(None);
    }
    let made = cx.importance.clone();
    made.map(Some).ok_or_else(|| Fault::internal("plan: expert-prune runs without an importance table"))
}

/// The config of the model with `keep` experts in every mixture.
fn config_with_experts(source: &Config, keep: usize) -> Outcome<Config> {
    let mut config = source.clone();
    match config.set_experts(keep) {
        0 => Err(Fault::source(format!("{}: no key holds the number of experts", source.path().display()))),
        _ => Ok(config),
    }
}

/// Where every tensor of the output must come from, in source order.
pub fn prune_lineage(plan: &PrunePlan, metas: &[TensorMeta]) -> Vec<Lineage> {
    let line = |meta: &TensorMeta| {
        let (output, part) = match plan.fate(&meta.name) {
            TensorFate::Dropped => return None,
            TensorFate::Kept => (meta.name.clone(), Part::Whole),
            TensorFate::Renamed(name) => (name.clone(), Part::Whole),
            TensorFate::Sliced(rows) => (meta.name.clone(), Part::Rows(rows.clone())),
            TensorFate::Recomputed { rows, .. } => (meta.name.clone(), Part::Recomputed(rows.len())),
        };
        Some(Lineage { output, source: meta.name.clone(), part })
    };
    metas.iter().filter_map(line).collect()
}

/// The gates of a prune: nothing else changed, the directory reads back, and it still scores like its parent.
fn inspect(
    cx: &StageContext<'_>,
    model: &OpenModel,
    plan: &PrunePlan,
    out_name: &str,
    span: Span<'_>,
) -> Outcome<(Vec<gate::Evidence>, OpenModel)> {
    let expected = with_experts(model.spec.clone(), plan.keep);
    let (pruned, reloaded) = gate::reopen(&cx.work.join(out_name), out_name, &expected)?;
    let lineage = prune_lineage(plan, model.stored.metas());
    let total = plan.bytes_out(model.stored.metas());
    let proof = span.part(0.7, 0.85);
    let compared = std::sync::atomic::AtomicU64::new(0);
    let done = |bytes| {
        let all = compared.fetch_add(bytes, std::sync::atomic::Ordering::Relaxed) + bytes;
        proof.of(all, total, "prove the pass-through");
    };
    let passed = gate::pass_through(&*model.stored, &*pruned.stored, &lineage, out_name, &done)?;
    let tokens = cx.gate_tokens(model)?;
    let parent = cx.short_score(model, &tokens, span.part(0.85, 0.92))?;
    let child = cx.short_score(&pruned, &tokens, span.part(0.92, 1.0))?;
    let scored = gate::judge_score(out_name, parent, child, tokens.len(), ScoreLimit::PRUNE)?;
    Ok((vec![reloaded, passed, scored], pruned))
}
