//! Whether this build can do what a recipe asks for.

use crate::recipe::finding::{Finding, suggest};
use crate::recipe::json::excerpt;
use crate::recipe::root::Recipe;
use crate::recipe::stages::{QuantFormat, StageSpec};

/// What a build can execute, by the names recipes use. An empty list is not checked against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Stage types.
    pub stages: Vec<String>,
    /// Benchmarks of `eval` stages.
    pub benchmarks: Vec<String>,
    /// `format` of `quant` stages.
    pub quant_formats: Vec<String>,
    /// `quantTypes` of `quant` stages.
    pub quant_types: Vec<String>,
    /// `source.architecture`: the model types of the families.
    pub architectures: Vec<String>,
    /// Those of them that can be written as GGUF.
    pub gguf_architectures: Vec<String>,
}

const STAGE: &str = "stage";

/// One error per thing that is asked for and not there, naming what is there and what was probably meant.
pub fn check_executable(recipe: &Recipe, can: &Capabilities) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut want = |list: &[String], word: &str, key: String, what: &str| {
        if !list.is_empty() && !list.iter().any(|known| known == word) {
            let names = list.iter().map(String::as_str);
            // A stage of the format that is not built here was not misspelt.
            let finding = if what == STAGE && StageSpec::TYPES.contains(&word) {
                let names = names.collect::<Vec<_>>().join(", ");
                Finding::error(key, format!("this build cannot execute `{word}` stages"))
                    .hint(format!("it can: {names}"))
            } else {
                Finding::error(key, format!("this build has no {what} `{}`", excerpt(word))).hint(suggest(word, names))
            };
            findings.push(finding);
        }
    };
    want(
        &can.architectures,
        &recipe.source.architecture,
        "source.architecture".into(),
        "model family for architecture",
    );
    for (i, stage) in recipe.stages.iter().enumerate() {
        let at = format!("stages[{i}]");
        want(&can.stages, stage.type_name(), format!("{at}.type"), STAGE);
        match stage {
            StageSpec::Quant(quant) => {
                want(&can.quant_formats, quant.format.as_str(), format!("{at}.format"), "quantization format");
                let architecture = &recipe.source.architecture;
                if quant.format == QuantFormat::Gguf && can.architectures.contains(architecture) {
                    want(&can.gguf_architectures, architecture, format!("{at}.format"), "GGUF writer for architecture");
                }
                for (j, name) in quant.quant_types.iter().enumerate() {
                    want(&can.quant_types, name, format!("{at}.quantTypes[{j}]"), "quantization type");
                }
            }
            StageSpec::Eval(eval) => {
                for (j, benchmark) in eval.benchmarks.iter().enumerate() {
                    want(&can.benchmarks, &benchmark.name, format!("{at}.benchmarks[{j}].name"), "benchmark");
                }
            }
            _ => {}
        }
    }
    findings
}
