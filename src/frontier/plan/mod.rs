//! The documented contract: a JSON plan for the layers of a fixed proxy model. There are no codes of native levels in a
//! plan; a validator makes them from its own weights. What can be checked is the form, the payload of rescued weights,
//! and the accounting. The proxy's score is not computed: the sentences and words it is scored on are not public, and by
//! its published figures it cannot tell plans apart (perplexity about its vocabulary of 495 for all).

mod canonical;
mod entries;
mod layer;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Map, Value};

use super::FrontierError;
use super::container::Container;
use super::contract::{ProxyLayer, Terms};
use super::report::{Reason, Report};
use crate::recipe::json;
use crate::units::{Bytes, Sha};

/// Slack of the limits on fractions and on bits of rescued entries.
const SLACK: f64 = 1e-12;
const HINT: &str = "docs/FRONTIER.md says what a plan holds";

/// What a plan comes to.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PlanFigures {
    /// SHA-256 of the plan in its canonical form.
    pub artifact_hash: String,
    pub layers: Vec<LayerFigures>,
    /// Of layers and extra entries.
    pub proxy_compressed_bits: u64,
    pub proxy_parameter_count: u64,
    /// Weights outside the native levels, layers only.
    pub high_precision_count: u64,
    /// With extra entries that count toward the rescue.
    pub total_rescue_count: u64,
    /// Of the proxy's weights.
    pub overall_high_precision_fraction: f64,
    pub overall_rescue_fraction: f64,
    /// Scaled to the reference model.
    pub compressed_bits: u64,
    pub compressed_size_bytes: u64,
    pub parameter_count: u64,
    pub compression_ratio: f64,
}

/// One layer of the proxy as planned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct LayerFigures {
    pub name: String,
    pub elements: u64,
    pub rescued: u64,
    pub bits: u64,
    pub parameters: u64,
}

/// A message about a plan, to be completed with its path.
type Flaw = String;

/// Judges the plan a report is about.
pub(super) fn judge(report: &mut Report, terms: &Terms<'_>) -> Result<(), FrontierError> {
    let path = report.artifact.clone();
    let wrong = |cause: String| FrontierError::artifact(&path, cause, HINT);
    let bytes = std::fs::read(&path).map_err(FrontierError::io("read", &path))?;
    let text = String::from_utf8(bytes).map_err(|_| wrong("is not UTF-8 text".to_owned()))?;
    let node = json::parse(&text).map_err(|error| {
        let at = json::Position::of(text.as_bytes(), error.offset);
        wrong(format!("line {}, column {}: {}", at.line, at.column, error.cause))
    })?;
    report.container = Some(Container::Json);
    let mut figures = figures(&node.to_value(), terms, &mut report.warnings).map_err(wrong)?;
    figures.artifact_hash = Sha::of(canonical::text(&node).as_bytes()).hex();
    report.size.parameters = Some(figures.parameter_count);
    report.size.bits_per_parameter = Some(figures.compressed_bits as f64 / figures.parameter_count.max(1) as f64);
    limits(report, &figures, terms);
    report.plan = Some(figures);
    let metric = &terms.contract.metric;
    report.unchecked.push(format!("{metric} and the quality floor: what the proxy is scored on is not public"));
    report.unchecked.push("reproducibility: the plan's program would have to be run twice".to_owned());
    Ok(())
}

fn limits(report: &mut Report, figures: &PlanFigures, terms: &Terms<'_>) {
    let budget = report.budget;
    let (fraction, most) = (figures.overall_rescue_fraction, terms.contract.max_rescue_fraction);
    if fraction > most + SLACK {
        let message =
            format!("{:.4} % of the weights are rescued, at most {:.0} % may be", fraction * 100.0, most * 100.0);
        report.reject(Reason::HighPrecisionFraction, message);
    } else if figures.parameter_count > budget.max_parameters {
        let message = format!("{} parameters, at most {} are allowed", figures.parameter_count, budget.max_parameters);
        report.reject(Reason::ParameterCount, message);
    } else if figures.compressed_bits > budget.max_reference_bits {
        let (found, most) = (figures.compressed_bits, budget.max_reference_bits);
        report.reject(
            Reason::CompressedSize,
            format!("{found} bits at the size of the reference, at most {most} are allowed"),
        );
    } else if report.size.bytes > budget.max_reference_bits.div_ceil(8) {
        let (found, most) = (Bytes(report.size.bytes), Bytes(budget.max_reference_bits.div_ceil(8)));
        report.reject(Reason::ArtifactSize, format!("the file has {found}, at most {most} are allowed"));
    }
}

/// Reads a plan and counts what it holds.
fn figures(plan: &Value, terms: &Terms<'_>, warnings: &mut Vec<String>) -> Result<PlanFigures, Flaw> {
    let top = plan.as_object().ok_or("is not a JSON object")?;
    if let Some(version) = top.get("artifact_version").filter(|version| version.as_u64() != Some(1)) {
        return Err(format!("artifact_version {version} is not 1"));
    }
    let missing: Vec<&str> = ["artifact_version", "model_id", "tokenizer_id", "quant_mode"]
        .into_iter()
        .filter(|key| !top.contains_key(*key))
        .collect();
    if !missing.is_empty() {
        warnings.push(format!("the plan does not say {}", missing.join(", ")));
    }
    let rows = top.get("layers").and_then(Value::as_array).ok_or("layers is not a list")?;
    // Of rows with one name the last counts.
    let mut by_name: BTreeMap<&str, (usize, &Map<String, Value>)> = BTreeMap::new();
    for (i, row) in rows.iter().enumerate() {
        let row = row.as_object().ok_or_else(|| format!("layers[{i}] is not an object"))?;
        let name = row.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
        let name = name.ok_or_else(|| format!("layers[{i}] has no name"))?;
        if by_name.insert(name, (i, row)).is_some() {
            warnings.push(format!("the layer {name} stands there more than once: the last counts"));
        }
    }
    let mut out = PlanFigures::default();
    for expected in &terms.size.proxy_layers {
        let (i, row) =
            by_name.get(expected.name.as_str()).ok_or_else(|| format!("the layer {} is missing", expected.name))?;
        let read = layer::read(row, expected, terms, warnings)
            .map_err(|flaw| format!("layers[{i}] ({}): {flaw}", expected.name))?;
        out.proxy_compressed_bits += read.bits;
        out.proxy_parameter_count += read.parameters;
        out.high_precision_count += read.rescued;
        out.layers.push(read);
    }
    let known = |name: &str| terms.size.proxy_layers.iter().any(|layer: &ProxyLayer| layer.name == name);
    let strange: Vec<&str> = by_name.keys().copied().filter(|name| !known(name)).collect();
    if !strange.is_empty() {
        warnings.push(format!("the proxy has no layer {}: only extra components count there", strange.join(", ")));
    }
    out.total_rescue_count = out.high_precision_count;
    for (name, (i, row)) in &by_name {
        for entry in entries::read(row, terms).map_err(|flaw| format!("layers[{i}] ({name}): {flaw}"))? {
            out.proxy_compressed_bits += entry.bits;
            out.proxy_parameter_count += entry.parameters;
            out.total_rescue_count += if entry.counts_as_rescue { entry.parameters } else { 0 };
        }
    }
    scale(&mut out, terms)?;
    entries::check_declared(top.get("accounting"), &out)?;
    Ok(out)
}

/// Totals at the size of the reference model.
fn scale(out: &mut PlanFigures, terms: &Terms<'_>) -> Result<(), Flaw> {
    let (reference, elements) = (terms.contract.reference_parameters, terms.size.proxy_elements);
    let scaled = |total: u64| {
        let scaled = (u128::from(total) * u128::from(reference)).div_ceil(u128::from(elements));
        u64::try_from(scaled).map_err(|_| format!("a total of {total} is beyond all measure"))
    };
    out.compressed_bits = scaled(out.proxy_compressed_bits)?;
    out.parameter_count = scaled(out.proxy_parameter_count)?;
    out.compressed_size_bytes = out.compressed_bits.div_ceil(8);
    let baseline = terms.contract.reference_bits * reference;
    out.compression_ratio = baseline as f64 / out.compressed_bits.max(1) as f64;
    out.overall_high_precision_fraction = out.high_precision_count as f64 / elements as f64;
    out.overall_rescue_fraction = out.total_rescue_count as f64 / elements as f64;
    Ok(())
}
