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
    /// Formats of `quant` stages.
    pub quant: Vec<QuantCapability>,
    /// `algorithm` of `quant` stages.
    pub quant_algorithms: Vec<String>,
    /// `source.architecture`: the model types of the families.
    pub architectures: Vec<String>,
}

/// A format that `quant` stages can write, by the names recipes use. An empty list is not checked against.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct QuantCapability {
    /// `format`.
    pub format: String,
    /// `quantTypes`.
    pub types: Vec<String>,
    /// `quantTypes` beside a `target`: types of single tensors. Empty where the format takes no target.
    pub choices: Vec<String>,
    /// Model types it can hold.
    pub architectures: Vec<String>,
}

const STAGE: &str = "stage";

/// One error per thing that is asked for and not there, naming what is there and what was probably meant.
pub fn check_executable(recipe: &Recipe, can: &Capabilities) -> Vec<Finding> {
    let (mut findings, mut refused) = (Vec::new(), Vec::new());
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
                want(&can.quant_algorithms, &quant.algorithm(), format!("{at}.algorithm"), "quantization algorithm");
                let (format, key) = (quant.format.as_str(), format!("{at}.format"));
                if quant.format == QuantFormat::Onnx && !can.quant.iter().any(|known| known.format == format) {
                    let message =
                        "this build does not write ONNX, which holds a graph of operators and not just weights";
                    let hint = "write safetensors (BF16, or W4A16 for fewer bits) and export that, or use gguf";
                    refused.push(Finding::error(key, message).hint(hint));
                    continue;
                }
                let formats: Vec<String> = can.quant.iter().map(|known| known.format.clone()).collect();
                want(&formats, format, key.clone(), "quantization format");
                let Some(known) = can.quant.iter().find(|known| known.format == format) else { continue };
                let architecture = &recipe.source.architecture;
                if can.architectures.contains(architecture) {
                    want(&known.architectures, architecture, key, &format!("{format} writer for architecture"));
                }
                let types = if quant.target.is_some() { &known.choices } else { &known.types };
                for (j, name) in quant.quant_types.iter().enumerate() {
                    want(types, name, format!("{at}.quantTypes[{j}]"), "quantization type");
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
    findings.extend(refused);
    findings
}
