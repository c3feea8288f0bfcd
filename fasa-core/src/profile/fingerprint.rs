//! Which model a profile belongs to.

use super::ProfileError;
use crate::error::{Error, Result};
use crate::rope::{Chunks, Pairing};

/// The numbers that name a model: architecture, rotary parameters and a hash over a few of its weights.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Model<'a> {
    /// `model_type` as in `config.json`.
    pub architecture: &'a str,
    /// `num_hidden_layers`.
    pub layers: u32,
    /// `num_attention_heads`.
    pub query_heads: u32,
    /// `num_key_value_heads`.
    pub kv_heads: u32,
    /// `head_dim`.
    pub head_dim: u32,
    /// Dimensions of a head that turn.
    pub rotary_dim: u32,
    /// `rope_theta`.
    pub rope_theta: f64,
    /// How dimensions are paired.
    pub pairing: Pairing,
    /// See [`WeightsHash`].
    pub weights: u64,
    /// One byte per layer, 1 where the layer has no rotary positions; empty if every layer has.
    pub unrotated_layers: &'a [u8],
}

impl Model<'_> {
    /// The chunks of this model's heads, in layers with rotary positions.
    ///
    /// # Errors
    /// [`crate::Error::Range`] if the head dimensions make no sense.
    pub fn chunks(&self) -> Result<Chunks> {
        Chunks::new(self.head_dim as usize, self.rotary_dim as usize, self.pairing)
    }

    /// The chunks of the heads of one layer: without rotary positions, consecutive pairs.
    ///
    /// # Errors
    /// As [`chunks`](Self::chunks).
    pub fn layer_chunks(&self, layer: usize) -> Result<Chunks> {
        let rotary_dim = if self.turns(layer) { self.rotary_dim } else { 0 };
        Chunks::new(self.head_dim as usize, rotary_dim as usize, self.pairing)
    }

    /// Whether `layer` has rotary positions.
    pub fn turns(&self, layer: usize) -> bool {
        self.unrotated_layers.get(layer).is_none_or(|flag| *flag == 0)
    }

    /// The chunks, if a profile can belong to such a model.
    pub(super) fn check(&self) -> Result<Chunks, ProfileError> {
        let problem = |field, problem| Err(ProfileError::Field { field, problem });
        if self.layers == 0 || self.kv_heads == 0 || self.query_heads == 0 {
            return problem("model", "layers and heads are at least 1");
        }
        if !self.query_heads.is_multiple_of(self.kv_heads) {
            return problem("model.query_heads", "it is a multiple of kv_heads");
        }
        if !(self.rope_theta.is_finite() && self.rope_theta > 0.0) {
            return problem("model.rope_theta", "it is a positive number");
        }
        // One spelling of a model only: no list where every layer turns.
        let flags = self.unrotated_layers;
        let sound = flags.len() == self.layers as usize && flags.iter().all(|flag| *flag <= 1) && flags.contains(&1);
        if !(flags.is_empty() || sound) {
            return problem(
                "model.unrotated_layers",
                "it has a 0 or 1 for each layer, or nothing where all layers turn",
            );
        }
        match self.chunks() {
            Ok(chunks) => Ok(chunks),
            Err(Error::Range { what: "rotary_dim", .. }) => {
                problem("model.rotary_dim", "it is even and at most head_dim")
            }
            Err(_) => problem("model.head_dim", "it is even, from 2 to 1024"),
        }
    }

    /// `Ok` if `self`, the model of a profile, is `other`, the model at hand.
    ///
    /// [`Pairing::Neighbours`] is a way of looking at a half-split model, so it matches one.
    ///
    /// # Errors
    /// [`ProfileError::OtherModel`] naming the first field that differs.
    pub fn matches(&self, other: &Model<'_>) -> Result<(), ProfileError> {
        let pairing = |p| if p == Pairing::Neighbours { Pairing::HalfSplit } else { p };
        let differs = [
            ("architecture", self.architecture != other.architecture),
            ("layers", self.layers != other.layers),
            ("query_heads", self.query_heads != other.query_heads),
            ("kv_heads", self.kv_heads != other.kv_heads),
            ("head_dim", self.head_dim != other.head_dim),
            ("rotary_dim", self.rotary_dim != other.rotary_dim),
            ("rope_theta", self.rope_theta != other.rope_theta),
            ("pairing", pairing(self.pairing) != pairing(other.pairing)),
            ("unrotated_layers", self.unrotated_layers != other.unrotated_layers),
            ("weights", self.weights != other.weights),
        ];
        match differs.into_iter().find(|(_, differs)| *differs) {
            Some((field, _)) => Err(ProfileError::OtherModel { field }),
            None => Ok(()),
        }
    }
}

/// Hash over weights: FNV-1a, 64 bits, over the `f32` bit patterns. A checkpoint gives the same hash in bf16 and f32.
///
/// Engines hash, in this order, the final norm and the key projections of the first and the last layer; see
/// `docs/profile.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WeightsHash(u64);

impl Default for WeightsHash {
    fn default() -> Self {
        Self(0xcbf2_9ce4_8422_2325)
    }
}

impl WeightsHash {
    /// Adds a tensor's numbers in storage order.
    #[must_use]
    pub fn with(self, weights: impl IntoIterator<Item = f32>) -> Self {
        let hash = weights
            .into_iter()
            .flat_map(|w| w.to_bits().to_le_bytes())
            .fold(self.0, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
        Self(hash)
    }

    /// The hash so far.
    pub fn finish(self) -> u64 {
        self.0
    }
}
