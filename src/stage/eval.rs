//! `eval`: measures the source and everything that ships, on the same texts, side by side in one pass: perplexity, and
//! how far each file diverges from the source.

use std::path::PathBuf;

use serde_json::json;

use super::{Admission, Measurement, Place, Product, Span, Stage, StageContext, predict};
use crate::assay::{self, Convention, Data, Request};
use crate::engine::PassProgress;
use crate::family::{self, OpenModel};
use crate::fault::{Fault, Outcome};
use crate::recipe::stages::{PERPLEXITY, PerplexityConvention, TextSpec};
use crate::recipe::{BenchmarkDef, Finding, PlannedStage, Predicted, StageSpec};

pub(super) struct Eval;

impl Stage for Eval {
    fn type_name(&self) -> &'static str {
        "eval"
    }

    fn summary(&self) -> &'static str {
        "measure the base and everything that ships: perplexity, divergence from the base"
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
            plan_benchmark(admission, benchmark, key, eval.compares(benchmark), &mut planned);
        }
        planned
    }

    fn run(&self, cx: &StageContext<'_>, planned: &PlannedStage, span: Span<'_>) -> Outcome<Product> {
        let StageSpec::Eval(eval) = cx.spec(planned)? else { return Err(Fault::internal("plan: this is no eval")) };
        let place = Place(planned.index);
        let artifacts: Vec<PathBuf> = cx.shipping().into_iter().map(|artifact| artifact.path.clone()).collect();
        let texts: Vec<(usize, &BenchmarkDef, TextSpec)> =
            eval.benchmarks.iter().enumerate().filter_map(|(i, b)| Some((i, b, b.on_text()?))).collect();
        let all = texts.len().max(1) as f64;
        let mut measurements: Vec<Measurement> = Vec::new();
        for (done, (i, benchmark, spec)) in texts.iter().enumerate() {
            let part = span.part(done as f64 / all, (done + 1) as f64 / all);
            let path = cx.text(&place.key(&format!("benchmarks[{i}].data")))?.path.clone();
            let score = Scoring { cx, benchmark: &benchmark.name, spec, path };
            measurements.extend(match eval.compares(benchmark) {
                true => score.beside_base(&artifacts, part)?,
                false => score.alone(&artifacts, part)?,
            });
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
    benchmark: &BenchmarkDef,
    key: String,
    with_base: bool,
    planned: &mut PlannedStage,
) {
    if !benchmark.reads_text() {
        // Refused by its name already.
        return;
    }
    let Some(spec) = benchmark.on_text() else {
        let finding = Finding::error(key, format!("is missing: {} needs a text", benchmark.name));
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

/// One benchmark of one text.
struct Scoring<'a> {
    cx: &'a StageContext<'a>,
    benchmark: &'a str,
    spec: &'a TextSpec,
    path: PathBuf,
}

impl Scoring<'_> {
    /// The source and all artifacts in one pass.
    fn beside_base(&self, artifacts: &[PathBuf], span: Span<'_>) -> Outcome<Vec<Measurement>> {
        let base = family::open(&self.cx.plan.source.path)?;
        let opened = artifacts.iter().map(|path| family::open(&self.cx.work.join(path)));
        let opened = opened.collect::<Result<Vec<OpenModel>, _>>()?;
        let detail = format!("{} of the base and {}", self.benchmark, files(artifacts.len()));
        let report = |p: PassProgress| span.at_rate(p.fraction, &detail, Some(p.tokens_per_s));
        let others: Vec<&OpenModel> = opened.iter().collect();
        let figures = assay::compare(&base, &others, &self.request(), &report)?;
        let whose = std::iter::once(None).chain(artifacts.iter().map(Some));
        whose.zip(figures).map(|(artifact, figure)| self.measurement(artifact, figure)).collect()
    }

    /// The artifacts one after the other.
    fn alone(&self, artifacts: &[PathBuf], span: Span<'_>) -> Outcome<Vec<Measurement>> {
        let (runner, all) = (assay::runner(PERPLEXITY)?, artifacts.len() as f64);
        let mut measured: Vec<Measurement> = Vec::new();
        for artifact in artifacts {
            let span = span.part(measured.len() as f64 / all, (measured.len() + 1) as f64 / all);
            let detail = format!("{} of {}", self.benchmark, name(Some(artifact)));
            let report = |p: PassProgress| span.at_rate(p.fraction, &detail, Some(p.tokens_per_s));
            let model = family::open(&self.cx.work.join(artifact))?;
            let figure = runner.run(&model, &self.request(), &report)?;
            measured.push(self.measurement(Some(artifact), figure)?);
        }
        same_tokens(&measured)?;
        Ok(measured)
    }

    fn request(&self) -> Request<'static> {
        let convention = match self.spec.convention {
            PerplexityConvention::Windowed => Convention::Windowed,
            _ => Convention::LlamaCpp,
        };
        let context = self.spec.context as usize;
        Request {
            data: Data::Text { path: self.path.clone(), context, convention },
            against: None,
            limit: self.spec.max_tokens.map(|most| (most / u64::from(self.spec.context)).max(1) as usize),
            options: self.cx.pass.clone(),
        }
    }

    fn measurement(&self, artifact: Option<&PathBuf>, figure: assay::Measurement) -> Outcome<Measurement> {
        if !figure.nll.is_finite() {
            let (name, data) = (name(artifact), &self.spec.data);
            return Err(Fault::quality(format!("{name}: the perplexity of {data} is not a number")));
        }
        Ok(Measurement {
            benchmark: self.benchmark.to_owned(),
            artifact: artifact.cloned(),
            convention: figure.convention,
            context: figure.context,
            tokens: figure.scored as u64,
            nll: figure.nll,
            nll_stderr: figure.nll_stderr,
            perplexity: figure.perplexity,
            seconds: figure.seconds,
            data_sha256: figure.data_sha256.hex(),
            against: figure.divergence.as_ref().map(|_| self.cx.plan.source.base_model.clone()),
            divergence: figure.divergence,
        })
    }
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

fn name(artifact: Option<&PathBuf>) -> String {
    let file = artifact.and_then(|path| path.file_name());
    file.map_or_else(|| "base".to_owned(), |file| file.to_string_lossy().into_owned())
}

fn files(count: usize) -> String {
    if count == 1 { "1 artifact".to_owned() } else { format!("{count} artifacts") }
}

fn write_measurements(cx: &StageContext<'_>, out: &str, measurements: &[Measurement]) -> Outcome<()> {
    let bytes = serde_json::to_vec_pretty(&json!({ "schema_version": 1, "measurements": measurements }))
        .map_err(|e| Fault::internal("measurements cannot be written as JSON").caused_by(e))?;
    super::replace_file(&cx.work.join(out), &bytes)
}

fn summary(measurements: &[Measurement]) -> String {
    let one = |m: &Measurement| {
        let kld = m.divergence.as_ref().map_or_else(String::new, |d| format!(" (KLD {:.4})", d.kld));
        format!("{} {:.4}{kld}", name(m.artifact.as_ref()), m.perplexity)
    };
    format!("perplexity: {}", measurements.iter().map(one).collect::<Vec<_>>().join(", "))
}
