//! A profile for people: the same content, ready for any serde format, and the way back.

use super::{Body, Model, Profile, ProfileError, ProfileView, VERSION};
use crate::config::Scope;
use crate::criterion::CriterionKind;
use crate::rope::Pairing;
use alloc::borrow::ToOwned;
use alloc::string::String;
use alloc::vec::Vec;

/// Everything that a profile holds, as plain numbers. `fasa inspect --format json` prints it.
///
/// Nothing is lost: [`Profile::from_export`] gives the profile back. With the feature `serde` an export can be written
/// and read in any format. Fields that are not listed here are refused, and what is read takes memory for the elements
/// that are there, whatever lengths the input claims. The values make sense only once `from_export` has checked them.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct Export {
    /// The version of the profile format, at most [`VERSION`].
    pub version: u16,
    /// The model it was calibrated for.
    pub model: ExportedModel,
    /// The criterion that ranked the chunks.
    pub criterion: CriterionKind,
    /// K of the agreement criterion, 0 for others.
    pub agreement_k: u32,
    /// Whether chunks are ranked per KV head or per query head.
    pub scope: Scope,
    /// Decode steps observed.
    pub steps: u64,
    /// What was read to calibrate.
    pub text: String,
    /// The rankings, layer by layer, and head by head within a layer.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::spelling::list"))]
    pub heads: Vec<ExportedHead>,
    /// What normalises the keys, layer by layer, and KV head by KV head within a layer.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::spelling::list"))]
    pub keys: Vec<ExportedKeys>,
}

/// The numbers that name a model: a [`Model`] that owns its text.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct ExportedModel {
    /// See [`Model::architecture`].
    pub architecture: String,
    /// See [`Model::layers`].
    pub layers: u32,
    /// See [`Model::query_heads`].
    pub query_heads: u32,
    /// See [`Model::kv_heads`].
    pub kv_heads: u32,
    /// See [`Model::head_dim`].
    pub head_dim: u32,
    /// See [`Model::rotary_dim`].
    pub rotary_dim: u32,
    /// See [`Model::rope_theta`].
    pub rope_theta: f64,
    /// See [`Model::pairing`].
    pub pairing: Pairing,
    /// See [`Model::weights`]. Written as 16 hexadecimal digits: many readers know no whole numbers beyond 2^53.
    #[cfg_attr(feature = "serde", serde(with = "super::spelling::hash"))]
    pub weights: u64,
    /// See [`Model::unrotated_layers`]; empty in version 1.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::spelling::list"))]
    pub unrotated_layers: Vec<u8>,
}

/// The chunks of one head.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct ExportedHead {
    /// Layer, from 0.
    pub layer: usize,
    /// KV head or query head within the layer, from 0.
    pub head: usize,
    /// Chunks, best first.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::spelling::list"))]
    pub ranking: Vec<u16>,
    /// Their scores, in the same order.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::spelling::list"))]
    pub scores: Vec<f32>,
}

/// What normalises the keys of one KV head.
#[derive(Debug, Clone, PartialEq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(deny_unknown_fields))]
#[non_exhaustive]
pub struct ExportedKeys {
    /// Layer, from 0.
    pub layer: usize,
    /// KV head within the layer, from 0.
    pub kv_head: usize,
    /// Static scale of each channel.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::spelling::list"))]
    pub scale: Vec<f32>,
    /// Static centre of each channel.
    #[cfg_attr(feature = "serde", serde(deserialize_with = "super::spelling::list"))]
    pub centre: Vec<f32>,
}

impl ExportedModel {
    fn new(model: &Model<'_>) -> Self {
        Self {
            architecture: model.architecture.to_owned(),
            layers: model.layers,
            query_heads: model.query_heads,
            kv_heads: model.kv_heads,
            head_dim: model.head_dim,
            rotary_dim: model.rotary_dim,
            rope_theta: model.rope_theta,
            pairing: model.pairing,
            weights: model.weights,
            unrotated_layers: model.unrotated_layers.to_vec(),
        }
    }

    /// The same numbers, to compare with a model at hand ([`Model::matches`]).
    pub fn as_model(&self) -> Model<'_> {
        Model {
            architecture: &self.architecture,
            layers: self.layers,
            query_heads: self.query_heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            rotary_dim: self.rotary_dim,
            rope_theta: self.rope_theta,
            pairing: self.pairing,
            weights: self.weights,
            unrotated_layers: &self.unrotated_layers,
        }
    }
}

impl ProfileView<'_> {
    /// The profile as plain numbers.
    pub fn export(&self) -> Export {
        let model = self.model();
        let channels = model.head_dim as usize;
        Export {
            version: self.version(),
            model: ExportedModel::new(model),
            criterion: self.criterion(),
            agreement_k: self.agreement_k(),
            scope: self.scope(),
            steps: self.steps(),
            text: self.text().to_owned(),
            heads: places(model.layers, self.rows())
                .map(|(layer, head)| ExportedHead {
                    layer,
                    head,
                    ranking: self.ranking(layer, head).collect(),
                    scores: self.scores(layer, head).collect(),
                })
                .collect(),
            keys: places(model.layers, model.kv_heads as usize)
                .map(|(layer, kv_head)| ExportedKeys {
                    layer,
                    kv_head,
                    scale: (0..channels).map(|channel| self.key_scale(layer, kv_head, channel)).collect(),
                    centre: (0..channels).map(|channel| self.key_centre(layer, kv_head, channel)).collect(),
                })
                .collect(),
        }
    }
}

impl Profile {
    /// The profile that was exported. Time and memory O(elements of the lists in `export`).
    ///
    /// # Errors
    /// [`ProfileError::Version`] for another version, else [`ProfileError::Field`] naming what makes no sense: everything
    /// is checked that [`ProfileView::parse`] checks, and that each head is there once, in order.
    pub fn from_export(export: &Export) -> Result<Self, ProfileError> {
        let problem = |field, problem| Err(ProfileError::Field { field, problem });
        if export.version == 0 || export.version > VERSION {
            return Err(ProfileError::Version { found: export.version });
        }
        let model = export.model.as_model();
        if export.version != model.version() {
            return problem("version", "it is 2 where `unrotated_layers` says something, else 1");
        }
        let chunks = model.check()?;
        let (query_heads, kv_heads) = (model.query_heads as usize, model.kv_heads as usize);
        // No product of the model's numbers is formed: both sides end with the elements that are there.
        let heads = export.heads.iter().map(|head| (head.layer, head.head));
        if !heads.eq(places(model.layers, export.scope.rows(query_heads, kv_heads))) {
            return problem("heads", "it lists each head of each layer once, in order");
        }
        let keys = export.keys.iter().map(|keys| (keys.layer, keys.kv_head));
        if !keys.eq(places(model.layers, kv_heads)) {
            return problem("keys", "it lists each KV head of each layer once, in order");
        }
        // Per head, since the table as a whole would not show a number that went to its neighbour.
        if export.heads.iter().any(|head| head.ranking.len() != chunks.len()) {
            return problem("ranking", "every head ranks each of its chunks once");
        }
        if export.heads.iter().any(|head| head.scores.len() != chunks.len()) {
            return problem("scores", "every chunk has one score");
        }
        if export.keys.iter().any(|keys| keys.scale.len() != chunks.head_dim()) {
            return problem("key_scale", "every channel has one scale");
        }
        if export.keys.iter().any(|keys| keys.centre.len() != chunks.head_dim()) {
            return problem("key_centre", "every channel has one centre");
        }
        let floats = |x: &f32| x.to_le_bytes();
        let ranking: Vec<u8> = export.heads.iter().flat_map(|h| &h.ranking).flat_map(|x| x.to_le_bytes()).collect();
        let scores: Vec<u8> = export.heads.iter().flat_map(|h| &h.scores).flat_map(floats).collect();
        let key_scale: Vec<u8> = export.keys.iter().flat_map(|k| &k.scale).flat_map(floats).collect();
        let key_centre: Vec<u8> = export.keys.iter().flat_map(|k| &k.centre).flat_map(floats).collect();
        Self::seal(&Body {
            model,
            criterion: export.criterion,
            agreement_k: export.agreement_k,
            scope: export.scope,
            steps: export.steps,
            text: &export.text,
            ranking: &ranking,
            scores: &scores,
            key_scale: &key_scale,
            key_centre: &key_centre,
        })
    }
}

/// Every (layer, head), in the order of the tables.
fn places(layers: u32, heads: usize) -> impl Iterator<Item = (usize, usize)> {
    (0..layers as usize).flat_map(move |layer| (0..heads).map(move |head| (layer, head)))
}
