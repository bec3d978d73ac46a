//! Contracts as data: the tables of `recipes/frontier/contracts.toml`, read and checked for references that lead nowhere.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::FrontierError;

/// The contracts this build brings along.
const BUILTIN: &str = include_str!("../../recipes/frontier/contracts.toml");
const SCHEMA: &str = "frontier-contract/1";

/// How far a value of a contract can be trusted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Evidence {
    /// A public benchmark does it.
    Code,
    /// Only prose says it.
    Docs,
    /// Inferred, not verified.
    #[default]
    Assumed,
}

/// What an artifact is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ArtifactKind {
    /// A model directory, bare or in an archive; scored as it loads.
    HfDir,
    /// A JSON plan for the layers of a fixed proxy model.
    PlanJson,
}

/// What the submissions of a contract are ranked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ranking {
    Scalar,
    Pareto,
}

/// How weights outside the native levels are kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rescue {
    #[serde(skip)]
    pub name: String,
    /// Other names plans may use.
    #[serde(default)]
    pub aliases: Vec<String>,
    pub code_bits: u32,
    pub code_min: Option<i64>,
    pub code_max: Option<i64>,
    pub scale_dtype: Option<String>,
    pub scale_bits: u32,
    /// Values that share a scale; 0: there are no scales.
    pub scale_group: u32,
    pub scale_rule: Option<String>,
    pub round: Option<String>,
}

impl Rescue {
    /// Bits of one rescued weight, its share of the scale included.
    pub fn effective_bits(&self) -> f64 {
        match self.scale_group {
            0 => f64::from(self.code_bits),
            group => f64::from(self.code_bits) + f64::from(self.scale_bits) / f64::from(group),
        }
    }

    /// Weights are coded with scales, so that a plan has to carry both.
    pub fn has_codes(&self) -> bool {
        self.scale_group > 0
    }
}

/// How an artifact is scored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Scorer {
    #[serde(skip)]
    pub name: String,
    pub tokenizer: String,
    pub passes: String,
    pub logits: String,
    pub batch: Option<u32>,
    pub short_logits_fallback: Option<String>,
}

/// Where the token ids of a scorer come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tokens<'a> {
    /// UTF-8 byte + 1.
    Bytes,
    /// The tokenizer inside the artifact.
    Artifact,
    /// A tokenizer of the validator's, by its hub id.
    Validator(&'a str),
    /// A network of the benchmark's own scores; there is nothing for a model to read.
    Proxy,
}

impl Scorer {
    /// Where its token ids come from.
    pub fn tokens(&self) -> Option<Tokens<'_>> {
        match (self.tokenizer.as_str(), self.passes.as_str()) {
            (_, "teacher_cross_entropy") => Some(Tokens::Proxy),
            ("bytes_plus_one", _) => Some(Tokens::Bytes),
            ("artifact", _) => Some(Tokens::Artifact),
            (other, _) => other.strip_prefix("hf:").map(Tokens::Validator),
        }
    }

    /// A loss that is not a number goes on into the perplexity (and is rejected there) instead of being an error.
    pub fn passes_bad_losses_on(&self) -> bool {
        self.logits == "model_dtype_loss"
    }
}

/// One matrix of a proxy model.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProxyLayer {
    pub name: String,
    pub rows: u64,
    pub cols: u64,
}

/// How size is measured and limited.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SizeRule {
    pub measured: String,
    pub compare: String,
    pub per_parameter: Option<String>,
    pub rounding: Option<String>,
    pub parameters: Option<String>,
    #[serde(default)]
    pub proxy_elements: u64,
    #[serde(default)]
    pub proxy_layers: Vec<ProxyLayer>,
    #[serde(default)]
    pub per_layer_overhead_bits: u64,
    pub scale_to_reference: Option<String>,
}

/// The words that the choice of documents is seeded with when nothing else is said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DocumentChoice {
    pub dataset: String,
    pub split: String,
    pub rotation_key: String,
    pub seed: u64,
}

/// One contract.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Contract {
    pub id: String,
    /// Name of the benchmark's folder.
    pub pack: String,
    /// `ternary`, `binary` …
    pub family: String,
    pub levels: Vec<i32>,
    pub reference_model: String,
    pub reference_parameters: u64,
    pub reference_bits: u64,
    pub native_bits: f64,
    /// A row of `[rescue]`.
    pub rescue: String,
    pub max_rescue_fraction: f64,
    pub max_parameter_multiplier: u64,
    pub quality_floor: Option<f64>,
    pub artifact: ArtifactKind,
    #[serde(default)]
    pub containers: Vec<String>,
    /// A row of `[size_rule]`.
    pub size_rule: String,
    /// A row of `[scorer]`.
    pub scorer: String,
    #[serde(default)]
    pub scorer_evidence: Evidence,
    /// Tokens of a document that are read.
    pub max_tokens: Option<usize>,
    /// Documents that are scored.
    pub documents: usize,
    /// A row of `[document_choice]`.
    pub document_choice: String,
    pub metric: String,
    pub direction: String,
    pub ranking: Ranking,
    pub secondary_metric: Option<String>,
    pub secondary_direction: Option<String>,
    /// Cross-entropies nearer than this count as equal, nats.
    pub resolution_nats: f64,
    /// A smaller artifact inside the resolution may replace the best.
    #[serde(default)]
    pub smaller_inside_band_wins: bool,
    #[serde(default)]
    pub acceptance_evidence: Evidence,
    pub mode: String,
    #[serde(default)]
    pub required_fields: Vec<String>,
    #[serde(default)]
    pub conditional_fields: Vec<String>,
    #[serde(default)]
    pub allowed_patch_paths: Vec<String>,
    pub max_patch_bytes: Option<u64>,
    pub result_path: String,
}

/// A contract with the tables it refers to.
#[derive(Clone, Copy, Debug)]
pub struct Terms<'a> {
    pub contract: &'a Contract,
    pub rescue: &'a Rescue,
    pub scorer: &'a Scorer,
    pub size: &'a SizeRule,
    pub choice: &'a DocumentChoice,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    schema: String,
    #[serde(default)]
    rescue: BTreeMap<String, Rescue>,
    #[serde(default)]
    scorer: BTreeMap<String, Scorer>,
    #[serde(default)]
    size_rule: BTreeMap<String, SizeRule>,
    #[serde(default)]
    document_choice: BTreeMap<String, DocumentChoice>,
    #[serde(default)]
    contract: Vec<Contract>,
}

/// Ids of built-in contracts that are so; the names live as long as the program.
pub fn contract_ids(holds: impl Fn(&Contract) -> bool) -> Vec<&'static str> {
    static BUILT_IN: LazyLock<Vec<Contract>> =
        LazyLock::new(|| Contracts::builtin().map_or_else(|_| Vec::new(), |contracts| contracts.file.contract));
    BUILT_IN.iter().filter(|contract| holds(contract)).map(|contract| contract.id.as_str()).collect()
}

/// Every contract of a file.
#[derive(Clone, Debug)]
pub struct Contracts {
    file: File,
}

impl Contracts {
    /// Those this build brings along.
    pub fn builtin() -> Result<Contracts, FrontierError> {
        Contracts::parse(BUILTIN, Path::new("contracts.toml (built in)"))
    }

    /// Those of a file.
    pub fn read(path: &Path) -> Result<Contracts, FrontierError> {
        let text = std::fs::read_to_string(path).map_err(FrontierError::io("read", path))?;
        Contracts::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Contracts, FrontierError> {
        let wrong = |cause: String| FrontierError::Contracts { path: path.to_owned(), cause };
        let mut file: File = toml::from_str(text).map_err(|error| wrong(error.to_string().trim_end().to_owned()))?;
        if file.schema != SCHEMA {
            return Err(wrong(format!("schema {:?} is not {SCHEMA:?}", file.schema)));
        }
        file.rescue.iter_mut().for_each(|(name, rescue)| rescue.name = name.clone());
        file.scorer.iter_mut().for_each(|(name, scorer)| scorer.name = name.clone());
        let contracts = Contracts { file };
        for (i, contract) in contracts.file.contract.iter().enumerate() {
            let terms = contracts.terms_of(contract).map_err(|cause| wrong(format!("{}: {cause}", contract.id)))?;
            check_terms(&terms).map_err(|cause| wrong(format!("{}: {cause}", contract.id)))?;
            if contracts.file.contract[..i].iter().any(|other| other.id == contract.id) {
                return Err(wrong(format!("{} is there twice", contract.id)));
            }
        }
        Ok(contracts)
    }

    /// All of them, in the order written.
    pub fn all(&self) -> &[Contract] {
        &self.file.contract
    }

    /// The contract of this id with its tables.
    pub fn terms(&self, id: &str) -> Result<Terms<'_>, FrontierError> {
        let contract = self.file.contract.iter().find(|contract| contract.id == id);
        let contract = contract.ok_or_else(|| FrontierError::UnknownContract {
            id: id.to_owned(),
            known: self.file.contract.iter().map(|c| c.id.as_str()).collect::<Vec<_>>().join(", "),
        })?;
        self.terms_of(contract).map_err(|cause| FrontierError::Contracts { path: "contracts".into(), cause })
    }

    /// The same contract under another scorer of the file: which one is live is not certain.
    pub fn with_scorer<'a>(&'a self, terms: Terms<'a>, scorer: &str) -> Result<Terms<'a>, FrontierError> {
        let scorer = self.file.scorer.get(scorer).ok_or_else(|| FrontierError::UnknownScorer {
            name: scorer.to_owned(),
            known: self.file.scorer.keys().cloned().collect::<Vec<_>>().join(", "),
        })?;
        Ok(Terms { scorer, ..terms })
    }

    fn terms_of<'a>(&'a self, contract: &'a Contract) -> Result<Terms<'a>, String> {
        let none = |table: &str, row: &str| format!("there is no [{table}.{row}]");
        let file = &self.file;
        Ok(Terms {
            contract,
            rescue: file.rescue.get(&contract.rescue).ok_or_else(|| none("rescue", &contract.rescue))?,
            scorer: file.scorer.get(&contract.scorer).ok_or_else(|| none("scorer", &contract.scorer))?,
            size: file.size_rule.get(&contract.size_rule).ok_or_else(|| none("size_rule", &contract.size_rule))?,
            choice: file
                .document_choice
                .get(&contract.document_choice)
                .ok_or_else(|| none("document_choice", &contract.document_choice))?,
        })
    }
}

/// Refuses rules that no code here computes.
fn check_terms(terms: &Terms<'_>) -> Result<(), String> {
    let Terms { contract, rescue, scorer, size, .. } = terms;
    let computed = |value: &Option<String>, known: &str| value.as_deref().is_none_or(|value| value == known);
    if scorer.tokens().is_none() {
        return Err(format!("tokenizer {:?} of scorer {} is not known", scorer.tokenizer, scorer.name));
    }
    if !computed(&size.rounding, "ceil_f64") || size.compare != "reject_if_greater" {
        return Err("the size rule rounds or compares in a way this build does not know".to_owned());
    }
    if !computed(&rescue.scale_rule, "maxabs_over_7_else_1") || !computed(&rescue.round, "half_even") {
        return Err(format!("rescue {} has a rule this build does not know", rescue.name));
    }
    let elements: u64 = size.proxy_layers.iter().map(|layer| layer.rows * layer.cols).sum();
    if contract.artifact == ArtifactKind::PlanJson && (elements == 0 || elements != size.proxy_elements) {
        return Err(format!(
            "the proxy's layers have {elements} elements, proxy_elements says {}",
            size.proxy_elements
        ));
    }
    let fraction = contract.max_rescue_fraction;
    if !(0.0..=1.0).contains(&fraction)
        || contract.native_bits <= 0.0
        || contract.native_bits.is_nan()
        || contract.reference_parameters == 0
    {
        return Err("max_rescue_fraction, native_bits or reference_parameters is out of range".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_builtin_contracts_read_and_their_references_resolve() {
        let contracts = Contracts::builtin().unwrap();
        let ids: Vec<&str> = contracts.all().iter().map(|c| c.id.as_str()).collect();
        assert_eq!(
            ids,
            [
                "qwen3-27b-ternary-frontier",
                "qwen3-27b-binary-frontier",
                "qwen3-06b-ternary-frontier",
                "qwen3-06b-binary-kernel"
            ]
        );
        assert_eq!(contracts.terms(ids[0]).unwrap().rescue.effective_bits(), 4.125);
        assert_eq!(contracts.terms(ids[2]).unwrap().rescue.effective_bits(), 16.0);
        assert_eq!(contracts.terms(ids[0]).unwrap().scorer.tokens(), Some(Tokens::Bytes));
    }

    #[test]
    fn a_new_family_is_rows_and_a_wrong_row_is_named() {
        let row = BUILTIN.split("[[contract]]").nth(1).unwrap();
        let four_levels = row
            .replace("qwen3-27b-ternary-frontier", "four-levels")
            .replace("levels = [-1, 0, 1]", "levels = [-2, -1, 1, 2]")
            .replace("rescue = \"q4_symmetric_int_scaled_g128\"", "rescue = \"q4_g64\"");
        let rescue = "\n[rescue.q4_g64]\ncode_bits = 4\nscale_bits = 16\nscale_group = 64\n";
        let both = format!("{BUILTIN}{rescue}[[contract]]{four_levels}");
        let read = Contracts::parse(&both, Path::new("x.toml")).unwrap();
        assert_eq!(read.terms("four-levels").unwrap().rescue.effective_bits(), 4.25);

        let error = |text: String| Contracts::parse(&text, Path::new("x.toml")).unwrap_err().to_string();
        assert!(error(format!("{BUILTIN}[[contract]]{four_levels}")).contains("there is no [rescue.q4_g64]"));
        assert!(error(BUILTIN.replace("frontier-contract/1", "frontier-contract/9")).contains("frontier-contract/9"));
        assert!(error(BUILTIN.replace("quality_floor", "quality_flor")).contains("quality_flor"));
        assert!(error(format!("{BUILTIN}[[contract]]{row}")).contains("is there twice"));
        assert!(error(BUILTIN.replace("proxy_elements = 59040", "proxy_elements = 59041")).contains("59041"));
    }
}
