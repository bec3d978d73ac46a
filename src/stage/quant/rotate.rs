//! The rotation a model is folded into before it is quantized: planned from its blocks, then applied as its tensors are
//! read.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::compress::{Folded, RotationKind, RotationPlan};
use crate::family::{Holding, OpenModel};
use crate::fault::Outcome;
use crate::model::TensorSource;
use crate::recipe::Finding;
use crate::recipe::stages::{Quant, QuantFormat, Rotation};
use crate::stage::{Admission, Place};

/// The key of the rotation.
const KEY: &str = "rotation";

fn kind(quant: &Quant) -> Option<RotationKind> {
    match quant.rotation() {
        Rotation::Hadamard => Some(RotationKind::ResidualAndValues),
        Rotation::HadamardValues => Some(RotationKind::Values),
        Rotation::None | Rotation::Other(_) => None,
    }
}

fn plan(kind: RotationKind, spec: &crate::family::ModelSpec, source: &OpenModel) -> Outcome<RotationPlan> {
    let names: Vec<String> = source.tensors.metas().iter().map(|meta| meta.name.clone()).collect();
    Ok(RotationPlan::new(spec, kind, &names, source.tensors.as_ref())?)
}

/// Everything wrong with the stage's rotation, and what it leaves as it is.
pub(super) fn check(admission: &mut Admission<'_>, quant: &Quant, place: Place) {
    let Some(kind) = kind(quant) else { return };
    let Some((spec, source)) = admission.model().zip(admission.source()) else { return };
    let planned = plan(kind, spec, source);
    let is_stack = |tensor: &&crate::family::StoredTensor| matches!(tensor.holding, Holding::Stack { .. });
    let stack = source.storage().tensors().iter().find(is_stack).map(|tensor| tensor.name.clone());
    match planned {
        Ok(plan) => {
            for warning in &plan.warnings {
                admission.report(Finding::warning(place.key(KEY), warning));
            }
            // Such a directory keeps what it does not pack as the files have it.
            if let Some(stack) = stack.filter(|_| plan.residual && quant.format == QuantFormat::Safetensors) {
                let message = format!("{stack} holds all experts of a block, and a directory would keep it unturned");
                let finding = Finding::error(place.key(KEY), message);
                admission.report(finding.hint("say rotation: hadamard-values, or use format gguf"));
            }
        }
        Err(fault) => admission.fault(&place.key(KEY), fault),
    }
}

/// The model as it is turned, and what a result says about it; `None` when nothing is asked for.
pub(super) fn turned(model: &OpenModel, quant: &Quant) -> Outcome<Option<(OpenModel, Map<String, Value>)>> {
    let Some(kind) = kind(quant) else { return Ok(None) };
    let plan = plan(kind, &model.spec, model)?;
    let folds = plan.folds(&model.spec, model.tensors.as_ref())?;
    let tensors: Arc<dyn TensorSource> = Arc::new(Folded::new(model.tensors.clone(), folds)?);
    let details = json!({
        "rotation": {
            "residual": plan.residual,
            "values": plan.blocks.len(),
            "blocks": model.spec.blocks.len(),
            "notTurned": plan.warnings,
        },
    });
    let details = if let Value::Object(map) = details { map } else { Map::new() };
    Ok(Some((model.presenting(tensors), details)))
}
