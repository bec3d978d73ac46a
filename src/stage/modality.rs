//! `modality`: checks that a model has the senses the recipe counts on, and takes their fingerprints. Adds no encoder.

use serde_json::{Map, json};

use super::{Admission, Place, Product, Span, Stage, StageContext};
use crate::fault::{Fault, Outcome};
use crate::gate::{self, Sense};
use crate::recipe::stages::ModalityKind;
use crate::recipe::{self, Finding, PlannedStage, Predicted, StageSpec};
use crate::units::Bytes;

pub(super) struct Modality;

impl Stage for Modality {
    fn type_name(&self) -> &'static str {
        "modality"
    }

    fn summary(&self) -> &'static str {
        "check the towers and token ids of a model that sees or hears, and take their fingerprints"
    }

    fn plan(&self, admission: &mut Admission<'_>, spec: &StageSpec, place: Place) -> PlannedStage {
        let StageSpec::Modality(modality) = spec else { return place.planned(spec) };
        let mut planned = place.planned(spec);
        planned.title = format!("check {}", modality.modality);
        check_settings(admission, modality, place);
        check_source(admission, modality, place);
        let carried: u64 = admission.source().map_or(0, carried_bytes);
        planned.predicted = Predicted { seconds: carried as f64 / 500e6, peak_ram: Bytes(200_000_000), disk: Bytes(0) };
        planned
    }

    fn run(&self, cx: &StageContext<'_>, _planned: &PlannedStage, span: Span<'_>) -> Outcome<Product> {
        let model = cx.open_model()?;
        span.at(0.0, "hash the towers");
        let found = gate::check_senses(&model)?;
        let tokens = gate::protected_tokens(&model)?;
        let names: Vec<String> =
            found.iter().map(|f| format!("{} ({} tensors, {})", f.name, f.tensors, Bytes(f.bytes))).collect();
        let details = Map::from_iter([
            ("towers".to_owned(), json!(found)),
            ("token_ids".to_owned(), json!(tokens)),
            ("vocabulary".to_owned(), model.spec.vocab.into()),
        ]);
        Ok(Product { details, summary: Some(names.join(", ")), ..Product::default() })
    }
}

fn carried_bytes(source: &crate::family::OpenModel) -> u64 {
    let parts = 0..source.spec.carried.len();
    let tensors = parts.flat_map(|part| source.storage().carried(part));
    tensors.filter_map(|tensor| source.stored.meta(&tensor.name)).map(|meta| meta.bytes).sum()
}

/// What would need training, or another encoder than the model's own, is refused.
fn check_settings(admission: &mut Admission<'_>, modality: &recipe::stages::Modality, place: Place) {
    let own = [&admission.recipe.source.base_model, "own"].contains(&modality.encoder_model.as_str());
    if !own {
        let message = format!("this build adds no encoder: {} cannot be joined to the model", modality.encoder_model);
        let hint = "to check the encoder the model has, write \"own\" or the source's baseModel";
        admission.report(Finding::error(place.key("encoderModel"), message).hint(hint));
    }
    for (key, named) in [
        ("trainingDataset", modality.training_dataset.is_some()),
        ("trainingSteps", modality.training_steps.is_some_and(|steps| steps > 0)),
        ("projectionDim", modality.projection_dim.is_some()),
        ("freezeBase", modality.freeze_base == Some(false)),
        ("freezeEncoder", modality.freeze_encoder == Some(false)),
    ] {
        if named {
            let finding = Finding::error(place.key(key), "this build trains no projection");
            admission.report(finding.hint("remove the key: the model's own encoder and projection stay as they are"));
        }
    }
}

/// The source declares what the stage asks for, and what it declares is whole.
fn check_source(admission: &mut Admission<'_>, modality: &recipe::stages::Modality, place: Place) {
    let Some(source) = admission.source() else { return };
    let declared = gate::declared(&source.config);
    let missing: Vec<&str> = match modality.modality {
        ModalityKind::Vision => vec![Sense::Vision],
        ModalityKind::Audio => vec![Sense::Audio],
        ModalityKind::Multimodal if declared.is_empty() => Sense::ALL.to_vec(),
        // A word outside the list is a finding of the schema already.
        _ => Vec::new(),
    }
    .into_iter()
    .filter(|sense| !declared.contains(sense))
    .map(Sense::config_key)
    .collect();
    let is_whole = gate::protected_tokens(source);
    if !missing.is_empty() {
        let message = format!("the model's config.json has no {}", missing.join(" and no "));
        let finding = Finding::error(place.key("modality"), message);
        admission.report(finding.hint("name a model that has this sense: this build adds none"));
    } else if let Err(error) = is_whole {
        admission.fault(&place.key("type"), Fault::from(error));
    }
}
