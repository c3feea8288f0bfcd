//! Rotary positions as a configuration spells them, and the frequencies that follow. Formulas and defaults are those of
//! `transformers` (`modeling_rope_utils`).

use super::MAX_POSITIONS;
use super::fields::Fields;
use crate::error::Result;
use fasa_core::rope::inverse_frequency;
use std::f64::consts::PI;

/// Rotary base of the configurations that name none, as in `transformers`.
const DEFAULT_THETA: f64 = 10_000.0;

/// How far positions are stretched beyond what the model was first trained on.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    Default,
    /// Every frequency divided by the factor.
    Linear(f64),
    /// YaRN (arXiv 2309.00071): low frequencies are divided by the factor, high ones stay.
    Yarn {
        /// The factor.
        factor: f64,
        /// Positions of the first training.
        original: usize,
        /// Turns within `original` above which a frequency stays.
        beta_fast: f64,
        /// Turns within `original` below which it is divided.
        beta_slow: f64,
        /// Whether the bounds between are rounded to whole pairs.
        truncate: bool,
    },
    /// Llama 3.1: as YaRN, with another ramp.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Turns within `original` below which a frequency is divided.
        low: f64,
        /// Turns within `original` above which it stays.
        high: f64,
        /// Positions of the first training.
        original: usize,
    },
}

/// The rotary positions of a model.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RopeConfig {
    /// Rotary base.
    pub theta: f64,
    /// Dimensions of a head that turn, the first ones; even.
    pub rotary_dim: usize,
    /// Scaling.
    pub scaling: RopeScaling,
    /// Cosines and sines are multiplied by this.
    pub attention_factor: f64,
    /// Rounds frequencies to bfloat16, as `model.to(torch.bfloat16)` of `transformers` does with its buffers (loading a
    /// checkpoint in bfloat16 does not). Never set by a configuration; for comparing with such references.
    pub bfloat16: bool,
}

impl RopeConfig {
    pub(super) fn read(fields: &Fields<'_>, head_dim: usize, default_theta: Option<f64>) -> Result<Self> {
        let mut theta = fields.positive("rope_theta")?;
        let mut share = fields.positive("partial_rotary_factor")?;
        let mut scaling = None;
        for name in ["rope_parameters", "rope_scaling"] {
            let Some(rope) = fields.nested(name)? else { continue };
            // First, so that a type that is not supported is named as such.
            let read = read_scaling(&rope)?;
            merge(&rope, "rope_theta", &mut theta)?;
            merge(&rope, "partial_rotary_factor", &mut share)?;
            if scaling.as_ref().is_some_and(|other| *other != read) {
                return Err(fields.error(name, "disagrees with `rope_parameters`", "keep one of the two"));
            }
            scaling = Some(read);
        }
        let rotary_dim = (head_dim as f64 * share.unwrap_or(1.0)) as usize;
        if rotary_dim == 0 || rotary_dim > head_dim || !rotary_dim.is_multiple_of(2) {
            return Err(fields.error(
                "partial_rotary_factor",
                format!("gives {rotary_dim} of {head_dim} dimensions"),
                "it must give an even number of them, at least 2",
            ));
        }
        let (scaling, attention_factor) = scaling.unwrap_or((RopeScaling::Default, 1.0));
        let theta = theta.or(default_theta).unwrap_or(DEFAULT_THETA);
        Ok(Self { theta, rotary_dim, scaling, attention_factor, bfloat16: false })
    }

    /// Radians per token of each pair, `[rotary_dim / 2]`.
    pub fn frequencies(&self) -> Vec<f64> {
        let base = (0..self.rotary_dim / 2).map(|i| inverse_frequency(self.theta, self.rotary_dim, i));
        let scaled: Vec<f64> = match self.scaling {
            RopeScaling::Default => base.collect(),
            RopeScaling::Linear(factor) => base.map(|f| f / factor).collect(),
            RopeScaling::Yarn { factor, original, beta_fast, beta_slow, truncate } => {
                let dim = self.rotary_dim as f64;
                let pair = |turns: f64| dim * (original as f64 / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let (mut low, mut high) = (pair(beta_fast), pair(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                let (low, mut high) = (low.max(0.0), high.min(dim - 1.0));
                if low == high {
                    high += 0.001;
                }
                let ramp = |i: usize| ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                base.enumerate().map(|(i, f)| f / factor * ramp(i) + f * (1.0 - ramp(i))).collect()
            }
            RopeScaling::Llama3 { factor, low, high, original } => base
                .map(|f| {
                    let turns = original as f64 * f / (2.0 * PI);
                    let smooth = ((turns - low) / (high - low)).clamp(0.0, 1.0);
                    (1.0 - smooth) * f / factor + smooth * f
                })
                .collect(),
        };
        match self.bfloat16 {
            true => scaled.into_iter().map(|f| half::bf16::from_f32(f as f32).to_f64()).collect(),
            false => scaled,
        }
    }
}

/// A number that may stand inside and outside, but not with two values.
fn merge(rope: &Fields<'_>, name: &str, outer: &mut Option<f64>) -> Result<()> {
    match (rope.positive(name)?, *outer) {
        (Some(inner), Some(outer)) if inner != outer => Err(rope.error(
            name,
            format!("is {inner}, but elsewhere in the file it is {outer}"),
            "keep the one that the model was trained with",
        )),
        (inner, before) => {
            *outer = inner.or(before);
            Ok(())
        }
    }
}

/// The scaling, and what cosines and sines are multiplied by.
fn read_scaling(rope: &Fields<'_>) -> Result<(RopeScaling, f64)> {
    let name = if rope.has("rope_type") { "rope_type" } else { "type" };
    let kind = rope.text(name)?.unwrap_or("default");
    let own: &[&str] = match kind {
        "default" => &[],
        "linear" => &["factor"],
        "yarn" => &[
            "factor",
            "original_max_position_embeddings",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "truncate",
        ],
        "llama3" => &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
        _ => {
            return Err(rope.unsupported(
                format!("`{}` \"{kind}\"", rope.dotted(name)),
                "the supported types are: default, linear, yarn, llama3",
            ));
        }
    };
    let common = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
    if let Some(other) = rope.names().find(|n| !common.contains(n) && !own.contains(n)) {
        let what = format!("`{}` with {kind} rotary positions", rope.dotted(other));
        return Err(rope.unsupported(what, "use a model without it"));
    }
    let needed = |name: &str| {
        let number = rope.positive(name)?;
        number.ok_or_else(|| rope.error(name, "is missing", format!("\"{kind}\" rotary positions need it")))
    };
    let original = || rope.size("original_max_position_embeddings", MAX_POSITIONS);
    Ok(match kind {
        "linear" => (RopeScaling::Linear(needed("factor")?), 1.0),
        "yarn" => {
            let factor = needed("factor")?;
            let magnitude = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
            let attention_factor = match rope.positive("attention_factor")? {
                Some(given) => given,
                None => match (rope.positive("mscale")?, rope.positive("mscale_all_dim")?) {
                    (Some(some), Some(all)) => magnitude(some) / magnitude(all),
                    _ => magnitude(1.0),
                },
            };
            let scaling = RopeScaling::Yarn {
                factor,
                original: original()?,
                beta_fast: rope.positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: rope.positive("beta_slow")?.unwrap_or(1.0),
                truncate: rope.flag("truncate")?.unwrap_or(true),
            };
            (scaling, attention_factor)
        }
        "llama3" => {
            let (low, high) = (needed("low_freq_factor")?, needed("high_freq_factor")?);
            if low >= high {
                return Err(rope.error("low_freq_factor", "is not below `high_freq_factor`", "download it again"));
            }
            (RopeScaling::Llama3 { factor: needed("factor")?, low, high, original: original()? }, 1.0)
        }
        _ => (RopeScaling::Default, 1.0),
    })
}
