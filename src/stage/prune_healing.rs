//! Router-kd in a prune: recalibrated routers are tried on held-out text, and kept only if they help there.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::Span;
use super::calibration::HeldOut;
use super::prune_choice::Choice;
use crate::assay::divergence;
use crate::compress::{KD_TOKENS, recalibrate};
use crate::engine::{PassOptions, PassProgress};
use crate::family::{MixtureId, OpenModel};
use crate::fault::Outcome;

/// Shares of the change that are tried.
const SHARES: [f32; 3] = [1.0, 0.5, 0.25];

/// What was tried and what came of it.
pub(super) struct Healing {
    /// Mixture → the kept rows of its router `[kept, hidden]`; empty when nothing helped.
    pub routers: HashMap<MixtureId, Vec<f32>>,
    /// Divergence with each share of the change, in the order tried.
    tried: Vec<(f32, f64)>,
    before: f64,
    /// The share kept.
    share: Option<f32>,
    /// Mean over the layers of the squared distance of the survivors' output from the mixture's, over its square.
    residual: f64,
    tokens: usize,
}

impl Healing {
    /// The record for the result.
    pub fn figures(&self) -> Value {
        let best = self.tried.iter().map(|(_, kld)| *kld).fold(f64::INFINITY, f64::min);
        json!({
            "kept": self.share.is_some(),
            "share": self.share,
            "kld_before": self.before,
            "kld_after": best,
            "tried": self.tried.iter().map(|(share, kld)| json!({ "share": share, "kld": kld })).collect::<Vec<_>>(),
            "layer_residual": self.residual,
            "tokens": self.tokens,
        })
    }
}

/// Recalibrates the routers of `choice` on `sequences`, in a pass that can be taken up again; keeps the share of the change that lowers the divergence on
/// `text` most, if any does.
pub(super) fn heal(
    model: &OpenModel,
    choice: &mut Choice,
    sequences: &[Vec<u32>],
    text: &HeldOut,
    (pass, resumable): (&PassOptions, &PassOptions),
    span: Span<'_>,
) -> Outcome<()> {
    let Some(damage) = &choice.damage else { return Ok(()) };
    let learn = |p: PassProgress| span.part(0.0, 0.6).at_rate(p.fraction, "recalibrate routers", Some(p.tokens_per_s));
    let found = recalibrate(model, &choice.kept, sequences, resumable, &learn)?;
    let routers = SHARES.iter().map(|&share| found.routers(model, share)).collect::<Result<Vec<_>, _>>()?;
    let variants = routers.iter().map(|routers| found.variant(model, routers)).collect::<Result<Vec<_>, _>>()?;
    let judge = |p: PassProgress| span.part(0.6, 1.0).at_rate(p.fraction, "try the routers", Some(p.tokens_per_s));
    let measured = divergence(model, &variants, &text.sequences, pass, &judge)?;
    let best = (0..measured.len()).min_by(|&a, &b| measured[a].kld.total_cmp(&measured[b].kld));
    let best = best.filter(|&best| measured[best].kld < damage.kld);
    let before = damage.kld;
    let kept = best.map(|best| {
        let rows = routers[best].iter().map(|(&layer, rows)| (MixtureId::Layer(layer), rows.clone()));
        (SHARES[best], rows.collect::<HashMap<_, _>>(), measured[best].clone())
    });
    let (share, routers, after) = match kept {
        Some((share, routers, after)) => (Some(share), routers, Some(after)),
        None => (None, HashMap::new(), None),
    };
    let layers = found.residuals.len().max(1) as f64;
    choice.healing = Some(Healing {
        routers,
        tried: SHARES.into_iter().zip(measured.iter().map(|d| d.kld)).collect(),
        before,
        share,
        residual: found.residuals.values().sum::<f64>() / layers,
        tokens: sequences.iter().map(Vec::len).sum::<usize>().min(KD_TOKENS),
    });
    choice.damage = after.or_else(|| choice.damage.take());
    Ok(())
}
