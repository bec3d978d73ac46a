//! Rotary position embedding: which angle each pair of dimensions turns by per position, for every scaling rule.
//!
//! Rules follow the published definitions: RoPE (arXiv 2104.09864), linear position interpolation (arXiv 2306.15595),
//! YaRN (arXiv 2309.00071, section 3) and the dynamic NTK-aware scaling it describes, LongRoPE (arXiv 2402.13753) and the
//! banded rule released with Llama 3.1.

use std::f64::consts::PI;

use super::FamilyError;
use crate::model::{Config, Rope};

/// Which two dimensions of a head turn together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pairing {
    /// `i` and `i + dims/2`
    Half,
    /// `2i` and `2i + 1`
    Adjacent,
}

/// Rotary embedding of `dims` dimensions of a head.
#[derive(Clone, Debug, PartialEq)]
pub struct RopeSpec {
    pub theta: f64,
    pub dims: usize,
    pub pairing: Pairing,
    pub scaling: RopeScaling,
}

#[derive(Clone, Debug, PartialEq)]
pub enum RopeScaling {
    Default,
    /// Positions are divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Long wavelengths are slowed by `factor`, short ones kept, those between blended.
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_context: usize,
    },
    /// Blend of interpolation and extrapolation by number of rotations; cos and sin are scaled by `attention_factor`.
    Yarn {
        factor: f64,
        original_context: usize,
        beta_fast: f64,
        beta_slow: f64,
        attention_factor: f64,
        truncate: bool,
    },
    /// Up to `original_context` tokens nothing changes; a longer sequence of n tokens has the base frequency
    /// theta · (factor · n / original_context − (factor − 1)) ^ (dims / (dims − 2)), for all of its positions.
    Dynamic {
        factor: f64,
        original_context: usize,
    },
    /// Each pair's frequency is divided by a number of its own (a GGUF file's `rope_freqs.weight`).
    Divisors(Vec<f64>),
    /// LongRoPE: one set of divisors for sequences of at most `original_context` tokens, another for longer ones.
    Long {
        original_context: usize,
        short: Stretch,
        long: Stretch,
    },
}

/// Divisors of the frequencies of each pair, and a factor on cos and sin.
#[derive(Clone, Debug, PartialEq)]
pub struct Stretch {
    pub divisors: Vec<f64>,
    pub attention_factor: f64,
}

impl RopeSpec {
    /// The rule for a sequence of `length` tokens, which has the same angles at every position of it: only a dynamic rule
    /// and LongRoPE depend on the length.
    pub fn at_length(&self, length: usize) -> RopeSpec {
        match &self.scaling {
            RopeScaling::Dynamic { factor, original_context } => {
                let times = factor * length.max(*original_context) as f64 / *original_context as f64 - (factor - 1.0);
                let theta = ntk_theta(self.theta, times, self.dims);
                RopeSpec { theta, scaling: RopeScaling::Default, ..self.clone() }
            }
            RopeScaling::Long { original_context, long, .. } if length > *original_context => {
                let (original_context, short) = (*original_context, long.clone());
                let scaling = RopeScaling::Long { original_context, short, long: long.clone() };
                RopeSpec { scaling, ..self.clone() }
            }
            _ => self.clone(),
        }
    }

    /// Sequences of one class turn by the same angles: 0 for those within the original context, and for all where the
    /// rule does not depend on the length.
    pub fn length_class(&self, length: usize) -> usize {
        match self.scaling {
            RopeScaling::Dynamic { original_context, .. } if length > original_context => length,
            RopeScaling::Long { original_context, .. } if length > original_context => 1,
            _ => 0,
        }
    }

    /// Positions the model reaches, given `max_position_embeddings` of its config: that of a dynamic rule is the
    /// original context.
    pub(super) fn reach(&self, max_positions: usize) -> usize {
        match self.scaling {
            RopeScaling::Dynamic { factor, .. } => (factor * max_positions as f64) as usize,
            _ => max_positions,
        }
    }

    /// Angle per position of each of the `dims / 2` pairs, radians, in a short sequence: see [`RopeSpec::at_length`].
    pub fn inverse_frequencies(&self) -> Vec<f64> {
        let base: Vec<f64> = (0..self.dims / 2).map(|i| self.theta.powf(-2.0 * i as f64 / self.dims as f64)).collect();
        match self.scaling {
            RopeScaling::Default | RopeScaling::Dynamic { .. } => base,
            RopeScaling::Linear { factor } => base.iter().map(|f| f / factor).collect(),
            RopeScaling::Long { ref short, .. } => base.iter().zip(&short.divisors).map(|(f, d)| f / d).collect(),
            RopeScaling::Llama3 { .. } | RopeScaling::Divisors(_) => {
                base.iter().zip(self.frequency_divisors()).map(|(f, d)| f / d).collect()
            }
            RopeScaling::Yarn { factor, original_context, beta_fast, beta_slow, truncate, .. } => {
                let (low, high) = self.yarn_range(original_context as f64, beta_fast, beta_slow, truncate);
                let blend = |(i, f): (usize, &f64)| {
                    let interpolated = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                    f / factor * interpolated + f * (1.0 - interpolated)
                };
                base.iter().enumerate().map(blend).collect()
            }
        }
    }

    /// Factor on cos and sin (YaRN's attention temperature, LongRoPE's); 1 for every other rule.
    pub fn attention_factor(&self) -> f64 {
        match &self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => *attention_factor,
            RopeScaling::Long { short, .. } => short.attention_factor,
            _ => 1.0,
        }
    }

    /// The divisor of each pair's frequency under the Llama 3.1 rule or given one by one (all ones otherwise): what a
    /// GGUF file carries as `rope_freqs.weight`.
    pub fn frequency_divisors(&self) -> Vec<f64> {
        let pairs = self.dims / 2;
        if let RopeScaling::Divisors(divisors) = &self.scaling {
            return divisors.clone();
        }
        let RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } = self.scaling else {
            return vec![1.0; pairs];
        };
        let context = original_context as f64;
        let divisor = |i: usize| {
            let wavelength = 2.0 * PI * self.theta.powf(2.0 * i as f64 / self.dims as f64);
            if wavelength < context / high_freq_factor {
                return 1.0;
            }
            if wavelength > context / low_freq_factor {
                return factor;
            }
            let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
            1.0 / ((1.0 - smooth) / factor + smooth)
        };
        (0..pairs).map(divisor).collect()
    }

    /// First and last pair of YaRN's blend.
    fn yarn_range(&self, context: f64, beta_fast: f64, beta_slow: f64, truncate: bool) -> (f64, f64) {
        let dims = self.dims as f64;
        let pair_with_rotations = |n: f64| dims * (context / (n * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
        let (mut low, mut high) = (pair_with_rotations(beta_fast), pair_with_rotations(beta_slow));
        if truncate {
            (low, high) = (low.floor(), high.ceil());
        }
        (low, high) = (low.max(0.0), high.min(dims - 1.0));
        if low == high {
            high += 0.001;
        }
        (low, high)
    }

    /// Reads the rope keys of a config: `rope_parameters`, or `rope_theta` beside `rope_scaling`; `theta` is the base
    /// where the config has none.
    ///
    /// # Errors
    /// A scaling rule this build does not know, a missing or non-positive number.
    pub(super) fn from_config(
        config: &Config,
        dims: usize,
        max_positions: usize,
        theta: f64,
    ) -> Result<Self, FamilyError> {
        let keys = config.rope()?;
        if let Some(part) = keys.partial_rotary_factor.filter(|&part| part != 1.0) {
            return Err(FamilyError::Unsupported {
                what: format!("config key partial_rotary_factor = {part}"),
                supported: "1 (the whole head is rotated)".to_owned(),
            });
        }
        Self::read(&keys, dims, max_positions, theta)
    }

    /// As [`RopeSpec::from_config`] for a family that turns only the first part of a head: `usual` of it unless the
    /// config says otherwise.
    pub(super) fn of_part(
        config: &Config,
        head_dim: usize,
        usual: f64,
        max_positions: usize,
        theta: f64,
    ) -> Result<Self, FamilyError> {
        let keys = config.rope()?;
        let part = keys.partial_rotary_factor.unwrap_or(usual);
        if !(part > 0.0 && part <= 1.0) {
            return Err(FamilyError::BadKey {
                key: "partial_rotary_factor".to_owned(),
                found: part.to_string(),
                wanted: "a number above 0, at most 1".to_owned(),
            });
        }
        Self::read(&keys, (head_dim as f64 * part) as usize, max_positions, theta)
    }

    fn read(keys: &Rope, dims: usize, max_positions: usize, theta: f64) -> Result<Self, FamilyError> {
        if dims == 0 || !dims.is_multiple_of(2) {
            return Err(FamilyError::BadKey {
                key: "head_dim".to_owned(),
                found: dims.to_string(),
                wanted: "an even number".to_owned(),
            });
        }
        let theta = positive("rope_theta", keys.theta)?.unwrap_or(theta);
        Ok(RopeSpec { theta, dims, pairing: Pairing::Half, scaling: scaling(keys, dims, max_positions)? })
    }
}

fn positive(key: &str, value: Option<f64>) -> Result<Option<f64>, FamilyError> {
    match value {
        Some(n) if n <= 0.0 => Err(FamilyError::BadKey {
            key: key.to_owned(),
            found: n.to_string(),
            wanted: "a positive number".to_owned(),
        }),
        other => Ok(other),
    }
}

fn scaling(keys: &Rope, dims: usize, max_positions: usize) -> Result<RopeScaling, FamilyError> {
    let required = |key: &str, value: Option<f64>| {
        let key = format!("rope_scaling.{key}");
        positive(&key, value)?.ok_or(FamilyError::MissingKey { key })
    };
    let original_context = keys.original_max_position_embeddings.map_or(max_positions, |n| n as usize);
    match keys.kind.as_str() {
        // At text positions the three position ids of "mrope" are one and the same: its sections make no difference.
        "default" | "mrope" => {
            check_sections(keys, dims)?;
            Ok(RopeScaling::Default)
        }
        "linear" => Ok(RopeScaling::Linear { factor: required("factor", keys.factor)? }),
        "llama3" => Ok(RopeScaling::Llama3 {
            factor: required("factor", keys.factor)?,
            low_freq_factor: required("low_freq_factor", keys.low_freq_factor)?,
            high_freq_factor: required("high_freq_factor", keys.high_freq_factor)?,
            original_context,
        }),
        "divisors" => divisors(keys, dims),
        "longrope" | "su" => longrope(keys, dims, original_context, max_positions),
        // transformers takes max_position_embeddings for the original context here.
        "dynamic" => {
            Ok(RopeScaling::Dynamic { factor: required("factor", keys.factor)?, original_context: max_positions })
        }
        "yarn" => yarn(keys, original_context, max_positions),
        other => Err(FamilyError::Unsupported {
            what: format!("rope scaling {other:?}"),
            supported: "default, linear, dynamic, llama3, longrope, mrope, yarn".to_owned(),
        }),
    }
}

fn divisors(keys: &Rope, dims: usize) -> Result<RopeScaling, FamilyError> {
    factors(keys, "divisors", dims).map(RopeScaling::Divisors)
}

/// A list with one positive number for each pair.
fn factors(keys: &Rope, key: &str, dims: usize) -> Result<Vec<f64>, FamilyError> {
    let list = keys.raw.get(key).and_then(serde_json::Value::as_array);
    let list: Option<Vec<f64>> = list.and_then(|items| items.iter().map(|v| v.as_f64().filter(|n| *n > 0.0)).collect());
    list.filter(|list| list.len() == dims / 2).ok_or_else(|| FamilyError::BadKey {
        key: format!("rope_scaling.{key}"),
        found: keys.raw.get(key).map_or("missing".to_owned(), |_| "another list".to_owned()),
        wanted: format!("a list of {} positive numbers", dims / 2),
    })
}

/// The sections of a multimodal rope must share the pairs out among time, height and width.
fn check_sections(keys: &Rope, dims: usize) -> Result<(), FamilyError> {
    let Some(sections) = keys.raw.get("mrope_section").filter(|value| !value.is_null()) else { return Ok(()) };
    let numbers =
        sections.as_array().map(|list| list.iter().filter_map(serde_json::Value::as_u64).fold(0, u64::saturating_add));
    if numbers == Some(dims as u64 / 2) {
        return Ok(());
    }
    Err(FamilyError::BadKey {
        key: "rope_scaling.mrope_section".to_owned(),
        found: sections.to_string(),
        wanted: format!("counts of pairs that add up to {}", dims / 2),
    })
}

/// The factor on cos and sin is stated for both lengths (`short_mscale`, `long_mscale`), or once, or follows from the
/// stretch.
fn longrope(
    keys: &Rope,
    dims: usize,
    original_context: usize,
    max_positions: usize,
) -> Result<RopeScaling, FamilyError> {
    let factor = keys.factor.unwrap_or(max_positions as f64 / original_context as f64);
    let implied = if factor <= 1.0 { 1.0 } else { (1.0 + factor.ln() / (original_context as f64).ln()).sqrt() };
    let stretch = |list: &str, mscale: &str| {
        let mscale = keys.raw.get(mscale).and_then(serde_json::Value::as_f64);
        let attention_factor = mscale.or(keys.attention_factor).unwrap_or(implied);
        Ok::<Stretch, FamilyError>(Stretch { divisors: factors(keys, list, dims)?, attention_factor })
    };
    Ok(RopeScaling::Long {
        original_context,
        short: stretch("short_factor", "short_mscale")?,
        long: stretch("long_factor", "long_mscale")?,
    })
}

fn yarn(keys: &Rope, original_context: usize, max_positions: usize) -> Result<RopeScaling, FamilyError> {
    let implied = max_positions as f64 / original_context as f64;
    let factor = positive("rope_scaling.factor", keys.factor)?.unwrap_or(implied);
    let attention_factor = match (keys.attention_factor, keys.mscale, keys.mscale_all_dim) {
        (Some(given), _, _) => given,
        (None, Some(mscale), Some(all)) if mscale != 0.0 && all != 0.0 => {
            yarn_temperature(factor, mscale) / yarn_temperature(factor, all)
        }
        _ => yarn_temperature(factor, 1.0),
    };
    Ok(RopeScaling::Yarn {
        factor,
        original_context,
        beta_fast: positive("rope_scaling.beta_fast", keys.beta_fast)?.unwrap_or(32.0),
        beta_slow: positive("rope_scaling.beta_slow", keys.beta_slow)?.unwrap_or(1.0),
        attention_factor,
        truncate: keys.raw.get("truncate").and_then(serde_json::Value::as_bool).unwrap_or(true),
    })
}

/// The base frequency that stretches the longest wavelength `times` times and leaves the shortest (NTK-aware scaling,
/// arXiv 2309.00071 section 3.1).
pub fn ntk_theta(theta: f64, times: f64, dims: usize) -> f64 {
    theta * times.powf(dims as f64 / (dims as f64 - 2.0))
}

/// YaRN's attention temperature for a context stretched by `factor`.
pub(super) fn yarn_temperature(factor: f64, weight: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * weight * factor.ln() + 1.0 }
}
