//! Whether the acceptance criteria can be judged at all, and whether their units are the ones meant.

use super::source::looks_like_megabytes;
use super::values::plain;
use crate::recipe::criteria::{AcceptanceCriteria, BenchmarkCriterion};
use crate::recipe::finding::{Finding, nearest};
use crate::recipe::json::{join, key_step};
use crate::recipe::root::Recipe;
use crate::recipe::stages::{Eval, PERPLEXITY, StageSpec};

pub(super) fn check(recipe: &Recipe) -> Vec<Finding> {
    let mut findings = Vec::new();
    let Some(criteria) = &recipe.acceptance_criteria else { return findings };
    let evals: Vec<&Eval> =
        recipe.stages.iter().filter_map(|s| if let StageSpec::Eval(e) = s { Some(e) } else { None }).collect();
    for (name, floor) in criteria.benchmarks.iter().flatten() {
        let key = join("acceptanceCriteria.benchmarks", &key_step(name));
        units(name, floor, &key, &mut findings);
        findings.extend(measured(name, &evals, &key));
        anchor(name, floor, &evals, &key, &mut findings);
    }
    if criteria.perplexity.as_ref().is_some_and(|p| p.max.is_some()) {
        findings.extend(measured(PERPLEXITY, &evals, "acceptanceCriteria.perplexity"));
    }
    if criteria.divergence.is_some() && !evals.iter().any(|eval| eval.benchmarks.iter().any(|b| eval.compares(b))) {
        let message = "no `eval` stage compares with the base: the criterion can never be met";
        findings.push(
            Finding::error("acceptanceCriteria.divergence", message)
                .hint("add the benchmark `divergence` to an `eval` stage, or remove the criterion"),
        );
    }
    hardware(recipe, criteria, &mut findings);
    findings
}

fn units(name: &str, floor: &BenchmarkCriterion, key: &str, findings: &mut Vec<Finding>) {
    let (min, key_min) = (floor.min, format!("{key}.min"));
    if name == PERPLEXITY {
        findings.push(
            Finding::error(key_min, "a lower perplexity is better: it has no lowest score that passes")
                .hint("write acceptanceCriteria.perplexity.max"),
        );
    } else if min > 1.0 {
        let finding = Finding::error(key_min, format!("{} is no share from 0 to 1", plain(min)));
        findings.push(match min <= 100.0 {
            true => finding.hint(format!(
                "min is a fraction, unlike published scores: write {} for {} %",
                plain(min / 100.0),
                plain(min)
            )),
            false => finding,
        });
    } else if min < 0.0 {
        findings.push(Finding::error(key_min, format!("{} is no share from 0 to 1", plain(min))));
    }
    if let Some(delta) = floor.anchor_delta.filter(|d| *d != 0.0 && d.abs() <= 0.2) {
        findings.push(
            Finding::warning(format!("{key}.anchorDelta"), format!("{} is counted in percentage points", plain(delta)))
                .hint(format!("if it is a share, write {}", plain(delta * 100.0))),
        );
    }
}

/// A criterion on a benchmark that no stage runs could never be met.
fn measured(name: &str, evals: &[&Eval], key: &str) -> Option<Finding> {
    let runs = || evals.iter().flat_map(|e| &e.benchmarks).map(|b| b.name.as_str());
    if runs().any(|run| same_benchmark(run, name)) {
        return None;
    }
    let hint = match nearest(name, runs()) {
        Some(run) => format!("did you mean `{run}`?"),
        None => "add it to the benchmarks of an `eval` stage, or remove the criterion".to_owned(),
    };
    Some(Finding::error(key, format!("no `eval` stage measures `{name}`: the criterion can never be met")).hint(hint))
}

fn anchor(name: &str, floor: &BenchmarkCriterion, evals: &[&Eval], key: &str, findings: &mut Vec<Finding>) {
    if floor.anchor_delta.is_none() {
        return;
    }
    let anchor = floor.anchor_benchmark.as_deref().unwrap_or(name);
    if anchor != name {
        findings.extend(measured(anchor, evals, &format!("{key}.anchorBenchmark")));
    }
    let runs_it = |eval: &&&Eval| eval.benchmarks.iter().any(|b| same_benchmark(&b.name, anchor));
    let mut runs = evals.iter().filter(runs_it).peekable();
    if runs.peek().is_some() && runs.all(|eval| !eval.compare_to_base()) {
        findings.push(
            Finding::error(format!("{key}.anchorDelta"), format!("the base is never scored on `{anchor}`"))
                .hint("set compareToBase to true in the `eval` stage"),
        );
    }
}

fn hardware(recipe: &Recipe, criteria: &AcceptanceCriteria, findings: &mut Vec<Finding>) {
    let Some(most) = criteria.hardware.as_ref().and_then(|h| h.max_vram_gb) else { return };
    findings.extend(looks_like_megabytes("acceptanceCriteria.hardware.maxVramGb".into(), most));
    if let Some(least) = recipe.hardware.as_ref().and_then(|h| h.min_vram_gb).filter(|least| *least > most) {
        let message = format!("{} GB needed, but it must run in {} GB (acceptanceCriteria)", plain(least), plain(most));
        findings.push(Finding::warning("hardware.minVramGb", message));
    }
}

/// `humaneval+` and `humaneval_plus` are the same benchmark.
fn same_benchmark(a: &str, b: &str) -> bool {
    let fold = |name: &str| name.to_lowercase().replace('+', "_plus").replace('-', "_");
    fold(a) == fold(b)
}
