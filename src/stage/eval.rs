//! `eval`: measures the source and everything that ships, on the same texts, in the same run.

use std::path::PathBuf;

use serde_json::json;

use super::{Admission, Measurement, Place, Product, Span, Stage, StageContext, predict};
use crate::assay::{self, Convention, Data, Request};
use crate::engine::PassProgress;
use crate::family;
use crate::fault::{Fault, Outcome};
use crate::recipe::stages::{PerplexityConvention, PerplexitySpec};
use crate::recipe::{self, Finding, PlannedStage, Predicted, StageSpec};

pub(super) struct Eval;

impl Stage for Eval {
    fn type_name(&self) -> &'static str {
        "eval"
    }

    fn summary(&self) -> &'static str {
        "measure the base and everything that ships: perplexity"
    }

    fn plan(&self, admission: &mut Admission<'_>, spec: &StageSpec, place: Place) -> PlannedStage {
        let StageSpec::Eval(eval) = spec else { return place.planned(spec) };
        let mut planned = place.planned(spec);
        let names: Vec<&str> = eval.benchmarks.iter().map(|b| b.name.as_str()).collect();
        planned.title = format!("measure {}", names.join(", "));
        planned.outputs = vec![output_name(place)];
        if eval.passing_threshold.is_some() {
            let finding = Finding::error(place.key("passingThreshold"), "is a percent score, and perplexity has none");
            admission.report(finding.hint("state acceptanceCriteria.perplexity.max instead"));
        }
        for (i, benchmark) in eval.benchmarks.iter().enumerate() {
            let key = place.key(&format!("benchmarks[{i}].data"));
            plan_benchmark(admission, benchmark, key, eval.compare_to_base(), &mut planned);
        }
        planned
    }

    fn run(&self, cx: &StageContext<'_>, planned: &PlannedStage, span: Span<'_>) -> Outcome<Product> {
        let StageSpec::Eval(eval) = cx.spec(planned)? else { return Err(Fault::internal("plan: this is no eval")) };
        let place = Place(planned.index);
        let candidates = candidates(cx, eval.compare_to_base());
        let specs: Vec<(String, PerplexitySpec)> = eval
            .benchmarks
            .iter()
            .enumerate()
            .filter_map(|(i, b)| Some((place.key(&format!("benchmarks[{i}].data")), b.perplexity()?)))
            .collect();
        let all = (candidates.len() * specs.len()).max(1) as f64;
        let mut measurements: Vec<Measurement> = Vec::new();
        for (key, spec) in &specs {
            let first = measurements.len();
            for artifact in &candidates {
                let part = span.part(measurements.len() as f64 / all, (measurements.len() + 1) as f64 / all);
                measurements.push(measure(cx, artifact.as_ref(), key, spec, part)?);
            }
            same_tokens(&measurements[first..])?;
        }
        let out = output_name(place);
        write_measurements(cx, &out, &measurements)?;
        Ok(Product {
            files: vec![out.into()],
            summary: Some(summary(&measurements)),
            measurements,
            ..Product::default()
        })
    }
}

fn output_name(place: Place) -> String {
    format!("eval.{}.json", place.0)
}

fn plan_benchmark(
    admission: &mut Admission<'_>,
    benchmark: &recipe::BenchmarkDef,
    key: String,
    with_base: bool,
    planned: &mut PlannedStage,
) {
    if benchmark.name != recipe::stages::PERPLEXITY {
        // Refused by its name already.
        return;
    }
    let Some(spec) = benchmark.perplexity() else {
        let finding = Finding::error(key, "is missing: perplexity needs a text");
        return admission.report(finding.hint("name a text under calibration/ in the line's root, or give its path"));
    };
    admission.measures_perplexity = true;
    planned.inputs.push(key.clone());
    let bytes = admission.find_text(key.clone(), &spec.data);
    if admission.source().is_some_and(|source| !matches!(source.tokenizer(), Ok(Some(_)))) {
        admission.report(
            Finding::error(&key, "the source has no usable tokenizer.json")
                .hint("a text needs the model's tokenizer; foreman assay --token-ids scores ids without one"),
        );
    }
    let (Some(bytes), Some(model), Some(source)) = (bytes, admission.model(), admission.source()) else { return };
    let most = if with_base { source.spec.max_positions } else { model.max_positions };
    let too_long = spec.context as usize > most;
    let tokens = predict::tokens(bytes).min(spec.max_tokens.unwrap_or(u64::MAX));
    let threads = admission.node.forge.threads;
    let stored = source.stored.metas().iter().map(|m| m.bytes).sum();
    let mut predicted = planned.predicted;
    if with_base {
        predicted = predicted.then(predict::pass(&source.spec, stored, tokens, threads, true));
    }
    let shipping = admission.artifacts.len().max(usize::from(admission.is_pruned));
    for _ in 0..shipping {
        predicted = predicted.then(predict::pass(model, stored, tokens, threads, true));
    }
    planned.predicted = Predicted { ..predicted };
    if too_long {
        let context = key.replace(".data", ".context");
        let message = format!("{} is more than the model's {most} positions", spec.context);
        admission.report(Finding::error(context, message).hint("use a shorter window"));
    }
}

/// What is measured: the source (`None`), and every artifact that ships.
fn candidates(cx: &StageContext<'_>, with_base: bool) -> Vec<Option<PathBuf>> {
    let base = with_base.then_some(None);
    base.into_iter().chain(cx.shipping().into_iter().map(|artifact| Some(artifact.path.clone()))).collect()
}

fn measure(
    cx: &StageContext<'_>,
    artifact: Option<&PathBuf>,
    key: &str,
    spec: &PerplexitySpec,
    span: Span<'_>,
) -> Outcome<Measurement> {
    let path = artifact.map_or_else(|| cx.plan.source.path.clone(), |path| cx.work.join(path));
    let model = family::open(&path)?;
    let name = artifact
        .map_or_else(|| "base".to_owned(), |path| path.file_name().unwrap_or_default().to_string_lossy().into_owned());
    let detail = format!("perplexity of {name}");
    let report = |p: PassProgress| span.at_rate(p.fraction, &detail, Some(p.tokens_per_s));
    let convention = match spec.convention {
        PerplexityConvention::Windowed => Convention::Windowed,
        _ => Convention::LlamaCpp,
    };
    let context = spec.context as usize;
    let request = Request {
        data: Data::Text { path: cx.text(key)?.path.clone(), context, convention },
        limit: spec.max_tokens.map(|most| (most / u64::from(spec.context)).max(1) as usize),
        model_hash: None,
        options: cx.pass.clone(),
    };
    let figure = assay::runner(recipe::stages::PERPLEXITY)?.run(&model, &request, &report)?;
    if !figure.nll.is_finite() {
        return Err(Fault::quality(format!("{name}: the perplexity of {} is not a number", spec.data)));
    }
    Ok(Measurement {
        benchmark: figure.runner,
        artifact: artifact.cloned(),
        convention: figure.convention,
        context: figure.context,
        tokens: figure.scored as u64,
        nll: figure.nll,
        nll_stderr: figure.nll_stderr,
        perplexity: figure.perplexity,
        seconds: figure.seconds,
        data_sha256: figure.data_sha256.hex(),
    })
}

/// Figures can be compared only when they were measured on the same tokens.
fn same_tokens(measurements: &[Measurement]) -> Outcome<()> {
    match measurements.windows(2).find(|pair| pair[0].tokens != pair[1].tokens) {
        None => Ok(()),
        Some(pair) => Err(Fault::internal(format!(
            "eval: one text gave {} scored tokens on one model and {} on another: their tokenizers differ",
            pair[0].tokens, pair[1].tokens
        ))),
    }
}

fn write_measurements(cx: &StageContext<'_>, out: &str, measurements: &[Measurement]) -> Outcome<()> {
    let bytes = serde_json::to_vec_pretty(&json!({ "schema_version": 1, "measurements": measurements }))
        .map_err(|e| Fault::internal("measurements cannot be written as JSON").caused_by(e))?;
    super::replace_file(&cx.work.join(out), &bytes)
}

fn summary(measurements: &[Measurement]) -> String {
    let one = |m: &Measurement| {
        let name = m.artifact.as_ref().and_then(|path| path.file_name()).map(|n| n.to_string_lossy().into_owned());
        format!("{} {:.4}", name.as_deref().unwrap_or("base"), m.perplexity)
    };
    format!("perplexity: {}", measurements.iter().map(one).collect::<Vec<_>>().join(", "))
}
