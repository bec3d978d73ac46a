//! A file in mixed precision for a target: bytes, bits per weight, or the divergence it may have.
//!
//! Three measurements on the calibration text and the text held out from it, then a choice: what every type would lose of
//! every tensor's output, how much the model diverges when each group of tensors is rounded, and how much the file
//! written diverges. What they mean is told in `compress::budget`.

mod mixed;
mod rounds;

use std::path::Path;

use self::mixed::Mixed;
use super::gguf::{out_path, write_plan};
use super::{Draft, Request, Writing, Written};
use crate::codec::{Dtype, codec_named};
use crate::compress::{Candidates, MOST_GROUPS, gguf_metadata};
use crate::family::OpenModel;
use crate::fault::{Fault, Outcome};
use crate::recipe::stages::{Quant, QuantAim};
use crate::recipe::{Finding, Predicted};
use crate::stage::{Admission, StageContext, predict};
use crate::units::Bytes;

/// Tokens of the calibration text that types are measured on.
const ERROR_TOKENS: usize = 8192;
/// Tokens of held-out text that every probe is measured on.
const PROBE_TOKENS: usize = 1024;
/// A file this much below its limit is worth a warning.
const NEAR: f64 = 0.995;

/// The types to choose from; words that are none are findings of the recipe's own checks.
fn types(quant: &Quant) -> Vec<Dtype> {
    quant.quant_types.iter().filter_map(|name| codec_named(name)).map(|codec| codec.dtype()).collect()
}

/// The most bytes that a file for this target may have; `None` when its divergence is what counts.
fn limit(aim: QuantAim, parameters: u64) -> Option<u64> {
    match aim {
        QuantAim::Bytes(bytes) => Some(bytes),
        QuantAim::BitsPerWeight(bits) => Some((bits * parameters as f64 / 8.0) as u64),
        QuantAim::MaxKld(_) => None,
    }
}

/// Where the file goes and what it takes: as much as its target, or all that its types can.
pub(super) fn plan(admission: &mut Admission<'_>, aim: QuantAim, request: &Request<'_>) -> Option<Draft> {
    let (name, types) = (aim.label(), types(request.quant));
    if types.is_empty() || types.len() < request.quant.quant_types.len() {
        return None;
    }
    let out = out_path(&admission.recipe.name, &name);
    let planned = Candidates::of(admission.model()?, &types).and_then(|candidates| {
        let mut plan = candidates.extreme(&name, false)?;
        plan.fallbacks = candidates.fallbacks.clone();
        Ok((plan, candidates.extreme(&name, true)?))
    });
    let parameters = admission.model()?.parameters();
    let (least, most) = match planned {
        Ok(plans) => plans,
        Err(error) => {
            admission.fault(&request.key, error.into());
            return None;
        }
    };
    for line in least.fallback_lines() {
        admission.report(Finding::warning(&request.key, line));
    }
    let header = admission.source().map(|source| gguf_metadata(source, &least, None, &admission.recipe.name))?;
    let sized = header.and_then(|header| {
        let bytes = |plan: &crate::compress::QuantPlan| plan.file_bytes(&header.fields, Path::new(&out));
        Ok((bytes(&least)?, bytes(&most)?, header.warnings))
    });
    let (least, most, warnings) = match sized {
        Ok(sized) => sized,
        Err(error) => {
            admission.fault(&request.key, error.into());
            return None;
        }
    };
    warnings.into_iter().for_each(|warning| admission.report(Finding::warning(&request.key, warning)));
    let Some(limit) = limit(aim, parameters) else { return Some(Draft { name, out, bytes: most }) };
    if least > limit || (most as f64) < NEAR * limit as f64 {
        let bits = |bytes: u64| 8.0 * bytes as f64 / parameters.max(1) as f64;
        let message = format!(
            "{limit} bytes are out of reach: files of these types take {least} to {most} ({:.2} to {:.2} bits per weight)",
            bits(least),
            bits(most)
        );
        let hint =
            if least > limit { "raise the target, or add smaller types" } else { "lower it, or add larger types" };
        admission.report(Finding::error(&request.key, message).hint(hint));
        return None;
    }
    Some(Draft { name, out, bytes: limit.min(most) })
}

/// What measuring and choosing take, beside one file's calibration.
pub(super) fn predicted(admission: &Admission<'_>, aim: QuantAim) -> Predicted {
    let (Some(model), Some(source)) = (admission.model(), admission.source()) else { return Predicted::default() };
    let stored = source.stored.metas().iter().map(|m| m.bytes).sum();
    let threads = admission.node.forge.threads;
    let errors = predict::pass(model, stored, 2 * ERROR_TOKENS as u64, threads, false);
    let probes = predict::pass(model, stored, (MOST_GROUPS * PROBE_TOKENS) as u64, threads, true);
    let beside = mixed::BESIDE as u64 * (PROBE_TOKENS * model.hidden * 4) as u64;
    let mut all = errors.then(probes);
    all.peak_ram = Bytes(all.peak_ram.0 + beside);
    if matches!(aim, QuantAim::MaxKld(_)) {
        // Every round writes a file, calibrated anew.
        let round = predict::pass(model, stored, 3 * 32_768, threads, false);
        all.seconds += (rounds::ROUNDS - 1) as f64 * round.seconds;
    }
    all
}

/// Measures, chooses and writes.
pub(super) fn write(
    cx: &StageContext<'_>,
    model: &OpenModel,
    aim: QuantAim,
    writing: &Writing<'_>,
) -> Outcome<Written> {
    let span = writing.span;
    let mixed = Mixed::measure(cx, model, &types(writing.quant), writing, span.part(0.0, 0.4))?;
    match (aim, limit(aim, model.spec.parameters())) {
        (QuantAim::MaxKld(most), _) => rounds::smallest(&mixed, aim, most, span.part(0.4, 1.0)),
        (_, Some(limit)) => within(&mixed, aim, limit, span.part(0.4, 1.0)),
        (_, None) => Err(Fault::internal(format!("plan: no bytes in {}", aim.label()))),
    }
}

/// The best file of at most `limit` bytes.
fn within(mixed: &Mixed<'_>, aim: QuantAim, limit: u64, span: crate::stage::Span<'_>) -> Outcome<Written> {
    let picks = mixed.within(limit)?;
    let mut file = mixed.write(aim, &picks, span)?;
    if (file.written.bytes as f64) < NEAR * limit as f64 {
        let line = format!("{}: no choice of these types comes nearer to {limit} bytes", aim.label());
        file.written.warnings.push(line);
    }
    let details = mixed.details(aim, &picks, &file, &[]);
    Ok(Written { details, ..file.written })
}
