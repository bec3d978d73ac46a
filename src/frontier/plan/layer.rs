//! One layer row of a plan: how many weights are rescued, what they are stored as, what the layer costs.

use serde_json::{Map, Value};

use super::{Flaw, LayerFigures};
use crate::frontier::contract::{ProxyLayer, Rescue, Terms};
use crate::frontier::q4;

/// Reads a row for the layer `expected`.
pub(super) fn read(
    row: &Map<String, Value>,
    expected: &ProxyLayer,
    terms: &Terms<'_>,
    warnings: &mut Vec<String>,
) -> Result<LayerFigures, Flaw> {
    if let Some(shape) = row.get("shape").filter(|shape| **shape != serde_json::json!([expected.rows, expected.cols])) {
        return Err(format!("shape {shape} is not [{}, {}]", expected.rows, expected.cols));
    }
    for (key, floor) in [("scale_multiplier", 0.25), ("threshold_multiplier", 0.10)] {
        if number(row, key)?.is_some_and(|value| value < floor) {
            warnings.push(format!("{}: {key} below {floor} counts as {floor}", expected.name));
        }
    }
    let elements = expected.rows * expected.cols;
    let fraction = number(row, "high_precision_fraction")?.unwrap_or(0.0).clamp(0.0, 1.0);
    let rescued = keep_count(elements, fraction);
    let bases = bases(row, terms)?;
    if rescued > 0 && terms.rescue.has_codes() {
        payload(row, rescued, terms.rescue)?;
    }
    let group = u64::from(terms.rescue.scale_group.max(1));
    let rescue_bits = u64::from(terms.rescue.code_bits) * rescued
        + u64::from(terms.rescue.scale_bits) * if terms.rescue.has_codes() { rescued.div_ceil(group) } else { 0 };
    let overhead = terms.size.per_layer_overhead_bits;
    let (native_bits, parameters) = match bases {
        1 => ((terms.contract.native_bits * (elements - rescued) as f64).ceil() as u64 + overhead, elements + 1),
        m => (elements * m + overhead * m, elements * m + rescued + m),
    };
    Ok(LayerFigures { name: expected.name.clone(), elements, rescued, bits: native_bits + rescue_bits, parameters })
}

/// `round(elements · fraction)`, halves to the even number as Python rounds.
fn keep_count(elements: u64, fraction: f64) -> u64 {
    (elements as f64 * fraction).round_ties_even() as u64
}

fn number(row: &Map<String, Value>, key: &str) -> Result<Option<f64>, Flaw> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| format!("{key} {value} is not a number")),
    }
}

/// Number of residual bases of a binary layer; one elsewhere.
fn bases(row: &Map<String, Value>, terms: &Terms<'_>) -> Result<u64, Flaw> {
    let count = match row.get("binary_basis_count") {
        None | Some(Value::Null) => 1,
        Some(value) => value
            .as_u64()
            .filter(|count| (1..=64).contains(count))
            .ok_or_else(|| format!("binary_basis_count {value} is not a whole number from 1 to 64"))?,
    };
    if count > 1 && terms.contract.family != "binary" {
        return Err(format!("{count} bases are for binary contracts"));
    }
    if let Some(scales) = row.get("binary_basis_scales").filter(|scales| !scales.is_null()) {
        let list = scales.as_array().filter(|list| list.len() as u64 == count);
        let list = list.ok_or_else(|| format!("binary_basis_scales is not a list of {count}"))?;
        if let Some(bad) = list.iter().find(|scale| !scale.as_f64().is_some_and(|scale| scale > 0.0)) {
            return Err(format!("binary_basis_scales holds {bad}, not a positive number"));
        }
    }
    Ok(count)
}

/// The codes and scales of rescued weights.
fn payload(row: &Map<String, Value>, rescued: u64, rescue: &Rescue) -> Result<(), Flaw> {
    if let Some(named) = row.get("rescue_quantization").filter(|named| !named.is_null()) {
        let known = named.as_str().is_some_and(|name| name == rescue.name || rescue.aliases.iter().any(|a| a == name));
        if !known {
            return Err(format!("rescue_quantization {named} is not {}", rescue.name));
        }
    }
    let group = u64::from(rescue.scale_group);
    if let Some(said) =
        row.get("rescue_scale_group_size").filter(|said| !said.is_null() && said.as_u64() != Some(group))
    {
        return Err(format!("rescue_scale_group_size {said} is not {group}"));
    }
    let list = |key: &str, wanted: u64| {
        let list = row.get(key).and_then(Value::as_array).ok_or_else(|| format!("{key} is missing or no list"))?;
        match list.len() as u64 == wanted {
            true => Ok(list),
            false => Err(format!("{key} has {} items, {wanted} are needed for {rescued} weights", list.len())),
        }
    };
    let (least, most) = (rescue.code_min.unwrap_or(-7), rescue.code_max.unwrap_or(7));
    let codes = list("rescue_values_q4", rescued)?;
    if let Some(bad) = codes.iter().find(|code| !code.as_i64().is_some_and(|code| (least..=most).contains(&code))) {
        return Err(format!("rescue_values_q4 holds {bad}, not a whole number from {least} to {most}"));
    }
    for scale in list("rescue_scales", rescued.div_ceil(group))? {
        let value = scale.as_f64().filter(|value| value.is_finite() && *value > 0.0);
        let value = value.ok_or_else(|| format!("rescue_scales holds {scale}, not a positive number"))?;
        if !q4::is_f16_scale(value) {
            return Err(format!("rescue_scales holds {scale}, which f16 cannot hold within a thousandth"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn case_20_counts_round_as_python_does() {
        let cases = [(5, 0.1, 0), (15, 0.1, 2), (25, 0.1, 2), (10, 0.25, 2), (2304, 0.02, 46), (23_760, 0.025, 594)];
        for (elements, fraction, count) in cases {
            assert_eq!(keep_count(elements, fraction), count, "{elements} · {fraction}");
        }
    }
}
