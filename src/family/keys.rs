//! Typed reading of `config.json` keys with errors that name the key, what was found and what is wanted.

use serde_json::Value;

use super::FamilyError;
use crate::model::Config;

/// Largest count a key may hold: above any width, vocabulary or context, and such that the product of two fits.
const MOST: u64 = 1 << 31;
/// Most layers of a model.
const MOST_LAYERS: usize = 4096;
/// Most experts of a model, over all its layers: a specification has a few names for each.
const MOST_EXPERTS: usize = 1 << 18;

/// A view of a config; nested `text_config` keys are found as if they stood at the top.
pub(super) struct Keys<'a>(pub &'a Config);

impl<'a> Keys<'a> {
    fn value(&self, key: &str) -> Option<&'a Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn bad(key: &str, found: &Value, wanted: &str) -> FamilyError {
        FamilyError::BadKey { key: key.to_owned(), found: found.to_string(), wanted: wanted.to_owned() }
    }

    fn missing(key: &str) -> FamilyError {
        FamilyError::MissingKey { key: key.to_owned() }
    }

    /// A count of at least one; `None` when the key is absent or null.
    pub fn count(&self, key: &str) -> Result<Option<usize>, FamilyError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n @ 1..=MOST) => Ok(usize::try_from(n).ok()),
            Some(n) if n > MOST => Err(Self::bad(key, value, "at most 2147483648")),
            _ => Err(Self::bad(key, value, "a whole number of at least 1")),
        }
    }

    /// A count that may be none; absent or null is 0.
    pub fn count_or_none(&self, key: &str) -> Result<usize, FamilyError> {
        match self.value(key).and_then(Value::as_u64) {
            Some(0) => Ok(0),
            _ => Ok(self.count(key)?.unwrap_or(0)),
        }
    }

    /// How many layers the model has.
    pub fn layers(&self) -> Result<usize, FamilyError> {
        self.required_count("num_hidden_layers").and_then(|layers| self.as_layers("num_hidden_layers", layers))
    }

    /// A count of layers under any key.
    pub fn as_layers(&self, key: &str, layers: usize) -> Result<usize, FamilyError> {
        match layers {
            0..=MOST_LAYERS => Ok(layers),
            _ => Err(Self::bad(key, &layers.into(), "at most 4096 layers")),
        }
    }

    /// A count of experts in each layer: memory for their names is taken before a tensor was seen.
    pub fn as_experts(&self, experts: usize) -> Result<usize, FamilyError> {
        match experts.saturating_mul(self.layers()?) {
            0..=MOST_EXPERTS => Ok(experts),
            _ => Err(Self::bad("num_experts", &experts.into(), "at most 262144 experts over all layers")),
        }
    }

    pub fn required_count(&self, key: &str) -> Result<usize, FamilyError> {
        self.count(key)?.ok_or_else(|| Self::missing(key))
    }

    /// The first of several names for the same count.
    pub fn count_of(&self, names: &[&str]) -> Result<usize, FamilyError> {
        for name in names {
            if let Some(n) = self.count(name)? {
                return Ok(n);
            }
        }
        Err(Self::missing(&names.join(" (or ")))
    }

    pub fn positive(&self, key: &str) -> Result<Option<f64>, FamilyError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64() {
            Some(n) if n > 0.0 => Ok(Some(n)),
            _ => Err(Self::bad(key, value, "a positive number")),
        }
    }

    pub fn not_negative(&self, key: &str) -> Result<Option<f64>, FamilyError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        match value.as_f64() {
            Some(n) if n >= 0.0 => Ok(Some(n)),
            _ => Err(Self::bad(key, value, "a number that is not negative")),
        }
    }

    pub fn flag(&self, key: &str, default: bool) -> Result<bool, FamilyError> {
        match self.value(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| Self::bad(key, value, "true or false")),
        }
    }

    pub fn text(&self, key: &str) -> Result<Option<&'a str>, FamilyError> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => value.as_str().map(Some).ok_or_else(|| Self::bad(key, value, "a string")),
        }
    }

    /// A list of layer indices; absent or null is empty.
    pub fn indices(&self, key: &str) -> Result<Vec<usize>, FamilyError> {
        let Some(value) = self.value(key) else { return Ok(Vec::new()) };
        let parse = |item: &Value| item.as_u64().map(|n| n as usize);
        let list = value.as_array().and_then(|items| items.iter().map(parse).collect());
        list.ok_or_else(|| Self::bad(key, value, "a list of layer numbers"))
    }

    /// A list of strings; `None` when absent.
    pub fn texts(&self, key: &str) -> Result<Option<Vec<&'a str>>, FamilyError> {
        let Some(value) = self.value(key) else { return Ok(None) };
        let list = value.as_array().and_then(|items| items.iter().map(Value::as_str).collect());
        list.map(Some).ok_or_else(|| Self::bad(key, value, "a list of strings"))
    }

    /// Refuses a config whose MLPs are not gated by SiLU.
    pub fn refuse_activation(&self) -> Result<(), FamilyError> {
        match self.text("hidden_act")? {
            None | Some("silu" | "swish") => Ok(()),
            Some(other) => Err(FamilyError::Unsupported {
                what: format!("config key hidden_act = {other:?}"),
                supported: "silu".to_owned(),
            }),
        }
    }

    /// Query heads and key/value heads.
    pub fn heads(&self) -> Result<(usize, usize), FamilyError> {
        let heads = self.required_count("num_attention_heads")?;
        let kv_heads = self.count("num_key_value_heads")?.unwrap_or(heads);
        if heads.is_multiple_of(kv_heads) {
            return Ok((heads, kv_heads));
        }
        Err(FamilyError::BadKey {
            key: "num_key_value_heads".to_owned(),
            found: kv_heads.to_string(),
            wanted: format!("a divisor of num_attention_heads = {heads}"),
        })
    }

    /// The kind of every layer: `layer_types`, or what the family does without it.
    pub fn layer_kinds(
        &self,
        layers: usize,
        known: &[&'static str],
        usual: impl Fn(usize) -> &'static str,
    ) -> Result<Vec<&'static str>, FamilyError> {
        let Some(kinds) = self.texts("layer_types")? else { return Ok((0..layers).map(usual).collect()) };
        if kinds.len() != layers {
            return Err(FamilyError::BadKey {
                key: "layer_types".to_owned(),
                found: format!("{} kinds", kinds.len()),
                wanted: format!("one for each of the {layers} layers"),
            });
        }
        let kind = |found: &str| {
            known.iter().copied().find(|kind| *kind == found).ok_or_else(|| FamilyError::Unsupported {
                what: format!("config key layer_types with {found:?}"),
                supported: known.join(", "),
            })
        };
        kinds.into_iter().map(kind).collect()
    }
}
