//! The stage types: one struct each, as read. Every key a type knows is a field; keys it does not know stay in
//! `extra`; a type nobody knows is kept whole as [`StageSpec::Unknown`]. Defaults are not filled in while reading:
//! the accessor of a field gives them, and [`StageSpec::resolved`] writes them all out for the plan.

mod expert;
mod input;
mod measure;
mod output;
mod shrink;
mod spec;
mod train;
mod worlds;

pub use expert::*;
pub use input::*;
pub use measure::*;
pub use output::*;
pub use shrink::*;
pub use spec::{Position as StagePosition, StageSpec};
pub use train::*;
pub use worlds::*;

use serde_json::{Map, Value};

/// What every stage struct can tell about itself.
pub trait StageFields {
    /// Keys that have a default, with it, in the order of the specification.
    fn defaults() -> Map<String, Value>;
}

/// Declares a stage type: `required` keys are plain fields, `optional` ones are `Option` (null and absent read the
/// same) and, where a default is given after `=`, have an accessor of the same name that falls back to it.
macro_rules! stage_type {
    (
        $(#[$attr:meta])* $name:ident {
            required { $($(#[$required_attr:meta])* $required:ident : $required_type:ty,)* }
            optional { $($(#[$optional_attr:meta])* $optional:ident : $optional_type:ty $(= $default:expr)?,)* }
        }
    ) => {
        $(#[$attr])*
        #[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize, schemars::JsonSchema)]
        #[serde(rename_all = "camelCase")]
        pub struct $name {
            $($(#[$required_attr])* pub $required: $required_type,)*
            $(
                $(#[$optional_attr])*
                #[serde(default, skip_serializing_if = "Option::is_none")]
                pub $optional: Option<$optional_type>,
            )*
            /// Keys this type does not know, kept as they stand.
            #[serde(flatten)]
            pub extra: serde_json::Map<String, serde_json::Value>,
        }

        impl $name {
            $($(
                #[doc = concat!("`", stringify!($optional), "`, or its default when the recipe does not say.")]
                pub fn $optional(&self) -> $optional_type {
                    self.$optional.clone().unwrap_or_else(|| $default)
                }
            )?)*
        }

        impl $crate::recipe::stages::StageFields for $name {
            fn defaults() -> serde_json::Map<String, serde_json::Value> {
                let entries: Vec<(String, serde_json::Value)> = vec![$($({
                    let value: $optional_type = $default;
                    ($crate::recipe::stages::wire_name(stringify!($optional)), serde_json::json!(value))
                },)?)*];
                entries.into_iter().collect()
            }
        }
    };
}
pub(crate) use stage_type;

/// `keep_experts_per_layer` → `keepExpertsPerLayer`.
pub(crate) fn wire_name(field: &str) -> String {
    let mut out = String::with_capacity(field.len());
    let mut raise = false;
    for c in field.chars() {
        if c == '_' {
            raise = true;
        } else {
            out.extend(raise.then(|| c.to_ascii_uppercase()).or(Some(c)));
            raise = false;
        }
    }
    out
}
