//! Extra entries of a plan's accounting, and the totals a plan may declare.

use serde_json::{Map, Value};

use super::{Flaw, PlanFigures, SLACK};
use crate::frontier::contract::Terms;

/// Roles that take no part in the rescue.
const ROLES: &[&str] = &["binary", "ternary", "quantized", "residual", "scale", "side", "metadata"];
/// Roles that do.
const RESCUE_ROLES: &[&str] = &["high_precision", "full_precision", "rescue"];
/// More of those, where rescued weights are coded in 4 bits.
const Q4_ROLES: &[&str] = &["q4_rescue", "rescue_q4"];

/// One extra entry.
pub(super) struct Entry {
    pub parameters: u64,
    pub bits: u64,
    pub counts_as_rescue: bool,
}

/// The extra entries of a layer row.
pub(super) fn read(row: &Map<String, Value>, terms: &Terms<'_>) -> Result<Vec<Entry>, Flaw> {
    let said = ["extra_components", "accounting_entries"].iter().find_map(|key| row.get(*key).map(|list| (key, list)));
    let Some((key, list)) = said.filter(|(_, list)| !list.is_null()) else { return Ok(Vec::new()) };
    let list = list.as_array().ok_or_else(|| format!("{key} is not a list"))?;
    let read = |(i, entry): (usize, &Value)| one(entry, terms).map_err(|flaw| format!("{key}[{i}]: {flaw}"));
    list.iter().enumerate().map(read).collect()
}

fn one(entry: &Value, terms: &Terms<'_>) -> Result<Entry, Flaw> {
    let fields = entry.as_object().ok_or("is not an object")?;
    let role = match fields.get("role") {
        None | Some(Value::Null) => "side",
        Some(role) => role.as_str().ok_or_else(|| format!("role {role} is not a text"))?,
    };
    let q4 = terms.rescue.has_codes();
    let is_rescue_role = RESCUE_ROLES.contains(&role) || q4 && Q4_ROLES.contains(&role);
    if !is_rescue_role && !ROLES.contains(&role) {
        return Err(format!("role {role:?} is not known"));
    }
    let counts_as_rescue = is_rescue_role || fields.get("counts_toward_rescue").is_some_and(is_truthy);
    let parameters = fields.get("parameter_count").and_then(Value::as_u64).filter(|&count| count > 0);
    let parameters = parameters.ok_or("parameter_count is not a positive whole number")?;
    let whole = |key: &str, value: &Value| value.as_u64().ok_or_else(|| format!("{key} {value} is not a whole number"));
    let bits = match (fields.get("compressed_bits"), fields.get("size_bytes"), fields.get("bits_per_parameter")) {
        (Some(bits), ..) => whole("compressed_bits", bits)?,
        (None, Some(bytes), _) => whole("size_bytes", bytes)?.saturating_mul(8),
        (None, None, Some(per)) => {
            let per =
                per.as_f64().filter(|per| *per >= 0.0).ok_or_else(|| format!("bits_per_parameter {per} is no size"))?;
            (parameters as f64 * per).ceil() as u64
        }
        (None, None, None) if counts_as_rescue => parameters.saturating_mul(u64::from(terms.rescue.code_bits)),
        (None, None, None) => return Err("says neither compressed_bits nor size_bytes nor bits_per_parameter".into()),
    };
    let (per, most) = (bits as f64 / parameters as f64, terms.rescue.effective_bits());
    if counts_as_rescue && q4 && per > most + SLACK {
        return Err(format!("a rescued entry of {per} bits per parameter, at most {most} are allowed"));
    }
    Ok(Entry { parameters, bits, counts_as_rescue })
}

/// As Python takes a value for true.
fn is_truthy(value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(yes) => *yes,
        Value::Number(number) => number.as_f64() != Some(0.0),
        Value::String(text) => !text.is_empty(),
        Value::Array(items) => !items.is_empty(),
        Value::Object(fields) => !fields.is_empty(),
    }
}

/// Compares what a plan declares with what it comes to.
pub(super) fn check_declared(declared: Option<&Value>, found: &PlanFigures) -> Result<(), Flaw> {
    let Some(declared) = declared.filter(|declared| !declared.is_null()) else { return Ok(()) };
    let declared = declared.as_object().ok_or("accounting is not an object")?;
    let counts = [
        ("parameter_count", found.parameter_count),
        ("compressed_bits", found.compressed_bits),
        ("compressed_size_bytes", found.compressed_size_bytes),
        ("high_precision_count", found.high_precision_count),
        ("rescue_count", found.high_precision_count),
        ("total_rescue_count", found.total_rescue_count),
    ];
    for (key, found) in counts {
        if let Some(said) = declared.get(key).filter(|said| said.as_u64() != Some(found)) {
            return Err(format!("accounting.{key} says {said}, the plan comes to {found}"));
        }
    }
    let fractions = [
        ("overall_high_precision_fraction", found.overall_high_precision_fraction),
        ("high_precision_fraction", found.overall_high_precision_fraction),
        ("rescue_fraction", found.overall_rescue_fraction),
        ("overall_rescue_fraction", found.overall_rescue_fraction),
    ];
    for (key, found) in fractions {
        let near = |said: f64| (said - found).abs() <= (1e-6 * said.abs().max(found.abs())).max(1e-9);
        if let Some(said) = declared.get(key).filter(|said| !said.as_f64().is_some_and(near)) {
            return Err(format!("accounting.{key} says {said}, the plan comes to {found}"));
        }
    }
    Ok(())
}
