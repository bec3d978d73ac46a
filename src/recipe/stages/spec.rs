//! The union of all stage types.

use std::borrow::Cow;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{Deserialize, Deserializer, Error as _};
use serde::ser::{Serialize, Serializer};
use serde_json::{Map, Value};

use super::*;
use crate::recipe::json::{Node, NodeError, from_object_without};

/// Where a stage stands in the way of a part: input stages first, then transforms (repeated `cycles` times), then
/// output stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Position {
    Input,
    Transform,
    Output,
}

/// Lists the stage types: wire name, variant, struct, position.
macro_rules! stage_union {
    ($($wire:literal => $variant:ident($ty:ident) $position:ident),+ $(,)?) => {
        /// One stage of a recipe, as read.
        #[derive(Clone, Debug, PartialEq)]
        pub enum StageSpec {
            $(#[doc = concat!("`", $wire, "`")] $variant($ty),)+
            /// A type this schema does not know, kept as it stands (with its `type` key).
            Unknown { type_name: String, raw: Map<String, Value> },
        }

        impl StageSpec {
            /// The wire names of all types the schema knows.
            pub const TYPES: &[&str] = &[$($wire),+];

            /// The value of the `type` key.
            pub fn type_name(&self) -> &str {
                match self {
                    $(Self::$variant(_) => $wire,)+
                    Self::Unknown { type_name, .. } => type_name,
                }
            }

            /// Where this stage stands in the way of a part.
            pub fn position(&self) -> Position {
                match self {
                    $(Self::$variant(_) => Position::$position,)+
                    Self::Unknown { .. } => Position::Transform,
                }
            }

            /// Reads the object of a stage whose type is known to be `type_name`.
            fn from_typed_node(type_name: &str, node: &Node) -> Result<Self, NodeError> {
                match type_name {
                    $($wire => from_object_without(node, "type").map(Self::$variant),)+
                    _ => Ok(Self::Unknown { type_name: type_name.to_owned(), raw: node_map(node) }),
                }
            }

            /// The keys as read (null and absent ones left out), without `type`.
            fn fields(&self) -> Map<String, Value> {
                match self {
                    $(Self::$variant(stage) => value_map(stage),)+
                    Self::Unknown { raw, .. } => raw.iter().filter(|(k, _)| *k != "type").map(cloned).collect(),
                }
            }

            /// The keys of a type that have a default, with it; empty for a type nobody knows.
            pub fn defaults_of(type_name: &str) -> Map<String, Value> {
                match type_name {
                    $($wire => <$ty as StageFields>::defaults(),)+
                    _ => Map::new(),
                }
            }

            /// Schema definition name and schema of each type, in the order of [`Self::TYPES`].
            fn schemas(generator: &mut SchemaGenerator) -> Vec<(&'static str, Schema)> {
                vec![$(($wire, generator.subschema_for::<$ty>())),+]
            }
        }
    };
}

stage_union! {
    "source-config" => SourceConfig(SourceConfig) Input,
    "context-extend" => ContextExtend(ContextExtend) Input,
    "modality" => Modality(Modality) Input,
    "prune" => Prune(Prune) Transform,
    "train" => Train(Train) Transform,
    "lora" => Lora(Lora) Transform,
    "compact" => Compact(Compact) Transform,
    "expert-activation-profile" => ExpertActivationProfile(ExpertActivationProfile) Transform,
    "expert-prune" => ExpertPrune(ExpertPrune) Transform,
    "compensation-lora" => CompensationLora(CompensationLora) Transform,
    "quant" => Quant(Quant) Output,
    "eval" => Eval(Eval) Output,
    "package" => Package(Package) Output,
    "publish" => Publish(Publish) Output,
    "deliver" => Deliver(Publish) Output,
    "deploy" => Deploy(Deploy) Output,
    "team-search" => TeamSearch(TeamSearch) Transform,
    "many-worlds-substrate" => ManyWorldsSubstrate(ManyWorldsSubstrate) Transform,
    "many-worlds-adapter" => ManyWorldsAdapter(ManyWorldsAdapter) Transform,
    "many-worlds-ensemble" => ManyWorldsEnsemble(ManyWorldsEnsemble) Transform,
    "gate-profile" => GateProfile(GateProfile) Transform,
    "population-prune" => PopulationPrune(PopulationPrune) Transform,
    "cv-ingest" => CvIngest(CvIngest) Transform,
    "cv-eval" => CvEval(CvEval) Transform,
}

impl StageSpec {
    /// Reads a stage; the error names the innermost value at fault.
    pub fn from_node(node: &Node) -> Result<Self, NodeError> {
        let fail =
            |node: &Node, cause: &str, missing| NodeError { span: node.span.clone(), cause: cause.into(), missing };
        if !matches!(node.kind, crate::recipe::json::Kind::Object(_)) {
            return Err(fail(node, "expected an object with a `type` key", None));
        }
        match node.get("type").map(|t| (t, t.as_text())) {
            Some((_, Some(type_name))) => Self::from_typed_node(type_name, node),
            Some((other, None)) => Err(fail(other, "expected a stage type in double quotes", None)),
            None => Err(fail(node, "the key `type` is missing", Some("type"))),
        }
    }

    /// The stage as JSON, `type` first: what was read, unknown keys included, null keys left out.
    pub fn to_value(&self) -> Value {
        let mut map = Map::new();
        map.insert("type".into(), self.type_name().into());
        map.extend(self.fields());
        Value::Object(map)
    }

    /// The stage as JSON with every default filled in: what a plan records.
    pub fn resolved(&self) -> Value {
        let Value::Object(mut map) = self.to_value() else { return Value::Null };
        for (key, value) in Self::defaults_of(self.type_name()) {
            map.entry(key).or_insert(value);
        }
        if let StageSpec::Eval(eval) = self {
            let benchmarks = eval.benchmarks.iter().map(|b| Value::Object(b.resolved())).collect();
            map.insert("benchmarks".into(), Value::Array(benchmarks));
        }
        Value::Object(map)
    }

    /// True for a type the schema knows.
    pub fn is_known(&self) -> bool {
        !matches!(self, Self::Unknown { .. })
    }
}

/// The keys of a stage struct with its defaults filled in.
pub(super) fn fill_defaults<T: Serialize + StageFields>(stage: &T) -> Map<String, Value> {
    let mut map = value_map(stage);
    for (key, value) in T::defaults() {
        map.entry(key).or_insert(value);
    }
    map
}

fn value_map<T: Serialize>(stage: &T) -> Map<String, Value> {
    match serde_json::to_value(stage) {
        Ok(Value::Object(map)) => map,
        // Stage structs hold nothing that JSON cannot (their maps have text keys).
        _ => Map::new(),
    }
}

fn node_map(node: &Node) -> Map<String, Value> {
    node.members().iter().map(|m| (m.key.clone(), m.value.to_value())).collect()
}

fn cloned((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

impl Serialize for StageSpec {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for StageSpec {
    /// Goes through a tree without positions; [`StageSpec::from_node`] is the way that keeps them.
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        StageSpec::from_node(&Node::from_value(&value)).map_err(|e| D::Error::custom(e.cause))
    }
}

impl JsonSchema for StageSpec {
    fn schema_name() -> Cow<'static, str> {
        "Stage".into()
    }

    /// An object whose `type` decides what else it holds. Types outside the list are allowed and kept.
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let branches: Vec<Value> = Self::schemas(generator)
            .into_iter()
            .map(|(wire, schema)| {
                serde_json::json!({
                    "if": { "properties": { "type": { "const": wire } }, "required": ["type"] },
                    "then": schema,
                })
            })
            .collect();
        json_schema!({
            "description": "One stage of a recipe. `type` says which; a type outside this list is kept but cannot be executed.",
            "type": "object",
            "properties": { "type": { "type": "string", "examples": Self::TYPES } },
            "required": ["type"],
            "allOf": branches,
        })
    }
}
