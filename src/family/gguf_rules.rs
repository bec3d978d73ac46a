//! What a family says about its GGUF files: the rules of llama.cpp's architectures, as data.

use serde_json::{Map, Value};

use super::gguf_config::GgufReader;
use super::gguf_keys::GgufKeys;
use super::piece::{Change, Piece};
use super::role::{ExpectedTensor, Role};
use super::spec::ModelSpec;
use super::{FAMILIES, Family, FamilyError, by_name};
use crate::model::Config;

/// What GGUF readers expect of a family. [`GgufRules::of`] is the plain case; a family states how it differs.
#[derive(Clone, Copy)]
pub struct GgufRules {
    /// `general.architecture`, also the prefix of the model's keys.
    pub arch: &'static str,
    /// Where several families share an architecture: whether a file of it is this one's.
    pub claims: Claim,
    /// The rows of q and k are interleaved pairwise (adjacent rotary pairs) instead of half-split.
    pub permutes_qk: bool,
    /// Dense blocks may stand before the mixtures.
    pub leading_dense: bool,
    /// LongRoPE's divisors can be said.
    pub long_rope: bool,
    /// Whether llama.cpp reads a tensor of that role in this architecture; it refuses files with others.
    pub reads: fn(Role) -> bool,
    /// What a tensor is called inside its block where that is not the usual name.
    pub name: fn(Role) -> Option<&'static str>,
    /// Where a tensor goes that is not one tensor of the same shape in the file.
    pub placing: Placing,
    /// What happens to a tensor's values on the way into the file.
    pub change: fn(Role) -> Change,
    /// Whether the values of a file by another writer are as they are in the model, whatever `change` says.
    pub unchanged: Claim,
    /// Adds the architecture's own keys.
    pub keys: WriteKeys,
    /// Adds config keys that follow from the architecture's own.
    pub config: ReadKeys,
    /// A model of the family that readers of the architecture cannot compute.
    pub limit: fn(&ModelSpec) -> Option<Limit>,
    /// What a reader other than ours will compute differently, one line each.
    pub warnings: fn(&ModelSpec) -> Vec<String>,
}

/// See [`GgufRules::claims`].
pub type Claim = fn(&GgufReader<'_>) -> Result<bool, FamilyError>;
/// See [`GgufRules::placing`].
pub type Placing = fn(&ModelSpec, &ExpectedTensor) -> Option<Vec<Placed>>;
/// See [`GgufRules::keys`].
pub type WriteKeys = fn(&ModelSpec, &Config, &mut GgufKeys) -> Result<(), FamilyError>;
/// See [`GgufRules::config`].
pub type ReadKeys = fn(&GgufReader<'_>, &mut Map<String, Value>) -> Result<(), FamilyError>;

/// Where a tensor of the model, or a part of it, stands in the file.
pub struct Placed {
    /// Below the block, with its ending.
    pub name: &'static str,
    /// Row-major.
    pub shape: Vec<usize>,
    /// Of the tensor, in the order of the file.
    pub pieces: Vec<Piece>,
}

/// Something a file of the architecture cannot say, or its readers compute otherwise.
pub struct Limit {
    /// Follows "a GGUF file of a model".
    pub what: String,
    pub supported: String,
}

impl Limit {
    pub fn new(what: impl Into<String>, supported: impl Into<String>) -> Option<Self> {
        Some(Limit { what: what.into(), supported: supported.into() })
    }
}

impl GgufRules {
    /// An architecture without peculiarities.
    pub const fn of(arch: &'static str) -> Self {
        GgufRules {
            arch,
            claims: |_| Ok(true),
            permutes_qk: false,
            leading_dense: false,
            long_rope: false,
            reads: |role| !matches!(role, Role::OBias(_)),
            name: |_| None,
            placing: |_, _| None,
            change: |_| Change::None,
            unchanged: |_| Ok(false),
            keys: |_, _, _| Ok(()),
            config: |_, _| Ok(()),
            limit: |_| None,
            warnings: |_| Vec::new(),
        }
    }
}

/// How the model's family is written to GGUF.
///
/// # Errors
/// This build has no rules for it.
pub(super) fn gguf_rules(spec: &ModelSpec) -> Result<GgufRules, FamilyError> {
    by_name(spec.family).and_then(Family::gguf).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().filter(|f| f.gguf().is_some()).map(|f| f.name()).collect();
        FamilyError::Unsupported {
            what: format!("a GGUF file of a model of the family {:?}", spec.family),
            supported: format!("GGUF files of {}", known.join(", ")),
        }
    })
}
