//! `source-config`: says what the source is used for. Opens the model's headers, changes nothing.

use super::{Admission, Place, Product, Span, Stage, StageContext};
use crate::fault::Outcome;
use crate::recipe::{Finding, PlannedStage, StageSpec};

pub(super) struct SourceConfig;

impl Stage for SourceConfig {
    fn type_name(&self) -> &'static str {
        "source-config"
    }

    fn summary(&self) -> &'static str {
        "check the source model: config, tensors and context length"
    }

    fn plan(&self, admission: &mut Admission<'_>, spec: &StageSpec, place: Place) -> PlannedStage {
        let StageSpec::SourceConfig(config) = spec else { return place.planned(spec) };
        let extended = admission.recipe.stages.iter().filter_map(|stage| match stage {
            StageSpec::ContextExtend(extend) => Some(extend.target_length as usize),
            _ => None,
        });
        let most = admission.model().map(|m| m.max_positions).max(extended.max());
        if let (Some(asked), Some(most)) = (config.context_length, most)
            && asked > most as u64
        {
            let key = place.key("contextLength");
            admission.report(
                Finding::error(key, format!("{asked} is more than the model's {most} positions"))
                    .hint("lower it, or add a context-extend stage"),
            );
        }
        PlannedStage { title: "check the source".into(), ..place.planned(spec) }
    }

    fn run(&self, cx: &StageContext<'_>, _planned: &PlannedStage, span: Span<'_>) -> Outcome<Product> {
        let model = cx.open_source()?;
        span.at(1.0, "headers read");
        let tensors = model.stored.metas().len();
        let summary = format!("{}: {tensors} tensors, {} parameters", model.spec.family, model.spec.parameters());
        Ok(Product { summary: Some(summary), ..Product::default() })
    }
}
