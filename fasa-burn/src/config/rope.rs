//! Rotary positions as a configuration spells them, and the frequencies that follow. Formulas and defaults are those of
//! `transformers` (`modeling_rope_utils`).

use super::MAX_POSITIONS;
use super::family::Family;
use super::fields::Fields;
use crate::error::Result;
use fasa_core::rope::inverse_frequency;
use std::f64::consts::PI;

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
    /// Dynamic NTK: the base grows with the length of the context, once that exceeds what the model was trained on.
    ///
    /// Keys keep the angles that they were cached with, as in `transformers`: what a model gives beyond `original` depends
    /// on the pieces in which the context was read.
    Dynamic {
        /// The factor.
        factor: f64,
        /// Positions of the training.
        original: usize,
    },
    /// LongRoPE (arXiv 2402.13753): every frequency is divided by a factor of its own, from one list or the other.
    Long {
        /// The factors of contexts up to `original`.
        short: Vec<f64>,
        /// The factors of longer ones.
        long: Vec<f64>,
        /// Positions of the first training.
        original: usize,
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
    /// The rotary positions, and those of layers with a sliding window where they have their own.
    pub(super) fn read(
        fields: &Fields<'_>,
        family: &Family,
        head_dim: usize,
        positions: usize,
    ) -> Result<(Self, Option<Self>)> {
        let mut place = Place { fields, family, head_dim, positions, theta: family.theta };
        if !family.local_rope {
            return Ok((place.read("rope_theta", &["rope_parameters", "rope_scaling"])?, None));
        }
        let Some(parameters) = fields.nested("rope_parameters")? else {
            let whole = place.read("rope_theta", &["rope_scaling"])?;
            place.theta = DEFAULT_LOCAL_THETA;
            return Ok((whole, Some(place.read("rope_local_base_freq", &[])?)));
        };
        let kinds = ["full_attention", "sliding_attention"];
        if let Some(other) = parameters.names().find(|name| !kinds.contains(name)) {
            let mend = "it holds \"full_attention\" and \"sliding_attention\" in this family";
            return Err(parameters.error(other, "does not belong here", mend));
        }
        place.fields = &parameters;
        let whole = place.read("rope_theta", &kinds[..1])?;
        place.theta = DEFAULT_LOCAL_THETA;
        Ok((whole, Some(place.read("rope_theta", &kinds[1..])?)))
    }

    /// Whether the angles of a context of `len` tokens differ from those of one token fewer.
    pub fn changes_at(&self, len: usize) -> bool {
        match self.scaling {
            RopeScaling::Dynamic { original, .. } => len > original,
            RopeScaling::Long { original, .. } => len == original + 1,
            _ => false,
        }
    }

    /// Radians per token of each pair in a context of `len` tokens, `[rotary_dim / 2]`.
    pub fn frequencies(&self, len: usize) -> Vec<f64> {
        let with_base = |base: f64| (0..self.rotary_dim / 2).map(move |i| inverse_frequency(base, self.rotary_dim, i));
        let base = with_base(self.theta);
        let scaled: Vec<f64> = match self.scaling {
            RopeScaling::Default => base.collect(),
            RopeScaling::Dynamic { factor, original } => {
                let (dim, stretch) = (self.rotary_dim as f64, len.max(original) as f64 / original as f64);
                // With a single pair, whose frequency is 1 whatever the base, the exponent would be infinite.
                let exponent = dim / (dim - 2.0).max(1.0);
                with_base(self.theta * (factor * stretch - (factor - 1.0)).powf(exponent)).collect()
            }
            RopeScaling::Long { ref short, ref long, original } => {
                let factors = if len > original { long } else { short };
                base.zip(factors).map(|(f, factor)| f / factor).collect()
            }
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

/// Rotary base of Gemma's layers with a window, where the configuration names none.
const DEFAULT_LOCAL_THETA: f64 = 10_000.0;

/// Where rotary parameters are, and what follows from elsewhere.
struct Place<'a, 'f> {
    fields: &'a Fields<'f>,
    family: &'a Family,
    head_dim: usize,
    /// `max_position_embeddings`.
    positions: usize,
    /// If none is named.
    theta: f64,
}

impl Place<'_, '_> {
    /// Parameters spelled as the field `theta` beside objects with these names, of which at most one need be there.
    fn read(&self, theta: &str, objects: &[&str]) -> Result<RopeConfig> {
        let fields = self.fields;
        let mut base = fields.positive(theta)?;
        let mut share = fields.positive("partial_rotary_factor")?;
        let mut found = Vec::new();
        for name in objects {
            let Some(rope) = fields.nested(name)? else { continue };
            // First, so that a type that is not supported is named as such.
            let kind = self.kind(&rope)?;
            merge(&rope, "rope_theta", &mut base)?;
            merge(&rope, "partial_rotary_factor", &mut share)?;
            found.push((*name, rope, kind));
        }
        let share = share.unwrap_or(self.family.rotary_share);
        let rotary_dim = (self.head_dim as f64 * share) as usize;
        if rotary_dim == 0 || rotary_dim > self.head_dim || !rotary_dim.is_multiple_of(2) {
            return Err(fields.error(
                "partial_rotary_factor",
                format!("gives {rotary_dim} of {} dimensions", self.head_dim),
                "it must give an even number of them, at least 2",
            ));
        }
        let mut scaling = None;
        for (name, rope, kind) in found {
            let read = self.scaling(&rope, kind, rotary_dim)?;
            if scaling.as_ref().is_some_and(|other| *other != read) {
                return Err(fields.error(name, "disagrees with `rope_parameters`", "keep one of the two"));
            }
            scaling = Some(read);
        }
        let (scaling, attention_factor) = scaling.unwrap_or((RopeScaling::Default, 1.0));
        Ok(RopeConfig { theta: base.unwrap_or(self.theta), rotary_dim, scaling, attention_factor, bfloat16: false })
    }

    /// The type of the scaling, if all that is said about it belongs to that type.
    fn kind<'r>(&self, rope: &Fields<'r>) -> Result<&'r str> {
        let name = if rope.has("rope_type") { "rope_type" } else { "type" };
        let kind = match rope.text(name)?.unwrap_or("default") {
            // Early names of what became LongRoPE.
            "su" | "yarn" if self.family.name == "phi3" => "longrope",
            kind => kind,
        };
        let own: &[&str] = match kind {
            "default" => &[],
            "linear" => &["factor"],
            "dynamic" => &["factor"],
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
            "longrope" => {
                &["factor", "original_max_position_embeddings", "attention_factor", "short_factor", "long_factor"]
            }
            "llama3" => &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
            _ => {
                return Err(rope.unsupported(
                    format!("`{}` \"{kind}\"", rope.dotted(name)),
                    "the supported types are: default, linear, dynamic, yarn, longrope, llama3",
                ));
            }
        };
        let common = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
        if let Some(other) = rope.names().find(|n| !common.contains(n) && !own.contains(n)) {
            let what = format!("`{}` with {kind} rotary positions", rope.dotted(other));
            return Err(rope.unsupported(what, "use a model without it"));
        }
        Ok(kind)
    }

    /// The scaling, and what cosines and sines are multiplied by.
    fn scaling(&self, rope: &Fields<'_>, kind: &str, rotary_dim: usize) -> Result<(RopeScaling, f64)> {
        let missing = |name: &str| rope.error(name, "is missing", format!("\"{kind}\" rotary positions need it"));
        let needed = |name: &str| rope.positive(name)?.ok_or_else(|| missing(name));
        let original = || -> Result<usize> {
            let name = "original_max_position_embeddings";
            let outer = self.fields.optional_size(name, MAX_POSITIONS)?;
            Ok(outer.or(rope.optional_size(name, MAX_POSITIONS)?).unwrap_or(self.positions))
        };
        Ok(match kind {
            "linear" => (RopeScaling::Linear(needed("factor")?), 1.0),
            "dynamic" => (RopeScaling::Dynamic { factor: needed("factor")?, original: self.positions }, 1.0),
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
            "longrope" => {
                let original = original()?;
                let factors = |name: &str| rope.positives(name, rotary_dim / 2)?.ok_or_else(|| missing(name));
                let factor = match rope.positive("factor")? {
                    Some(factor) => factor,
                    None => self.positions as f64 / original as f64,
                };
                let attention_factor = match rope.positive("attention_factor")? {
                    Some(given) => given,
                    None if factor <= 1.0 => 1.0,
                    None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
                };
                let scaling =
                    RopeScaling::Long { short: factors("short_factor")?, long: factors("long_factor")?, original };
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
