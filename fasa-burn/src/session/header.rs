//! The header of a session: what it belongs to.

use super::SAVE_AGAIN;
use crate::chat::Message;
use crate::error::{Error, Result};
use crate::model::Decoder;
use fasa_core::policy::OwnedPlan;
use fasa_core::profile::WeightsHash;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::path::Path;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Header {
    model: Model,
    dtype: String,
    pub tokens: usize,
    /// Tokens of the context that the text was read for: some models turn by it.
    pub context: usize,
    pub sketch: Option<Sketch>,
    pub messages: Vec<Message>,
}

/// What names a model, as in a profile.
#[derive(Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    architecture: String,
    layers: u32,
    query_heads: u32,
    kv_heads: u32,
    head_dim: u32,
    rotary_dim: u32,
    rope_theta: f64,
    unrotated_layers: Vec<u8>,
    /// Hexadecimal.
    weights: String,
}

/// What the sketch holds, and so which profile and settings it was made with.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Sketch {
    precision: String,
    chunks: usize,
    heads: usize,
    /// Those that have one, ascending; the others attend to everything.
    pub layers: Vec<usize>,
    row_bytes: usize,
    scale_bytes: usize,
    /// A hash over which channels it holds and how they are scaled, hexadecimal.
    channels: String,
}

impl Header {
    pub fn new(
        decoder: &Decoder,
        tokens: usize,
        context: usize,
        sketch: Option<&(&OwnedPlan, Vec<usize>)>,
        messages: &[Message],
    ) -> Self {
        Self {
            model: model(decoder),
            dtype: decoder.dtype().name().into(),
            tokens,
            context,
            sketch: sketch.map(|(plan, layers)| Sketch::new(plan, layers)),
            messages: messages.to_vec(),
        }
    }

    pub fn to_json(&self, path: &Path) -> Result<Vec<u8>> {
        serde_json::to_vec(self).map_err(|error| Error::session(path, format!("has no header: {error}"), SAVE_AGAIN))
    }

    pub fn from_json(json: &[u8], path: &Path) -> Result<Self> {
        serde_json::from_slice(json)
            .map_err(|error| Error::session(path, format!("has a damaged header: {error}"), SAVE_AGAIN))
    }

    /// Whether it is a session of this model, in its number format, that fits its positions.
    pub fn check(&self, decoder: &Decoder, path: &Path) -> Result<()> {
        let here = model(decoder);
        if self.model != here {
            let [saved, here] = [&self.model, &here].map(|model| serde_json::to_value(model).unwrap_or_default());
            let differs = |(name, value): (&String, &Value)| {
                (here.get(name) != Some(value)).then(|| format!("`{name}` is {value}, here {}", here[name]))
            };
            let field = saved.as_object().and_then(|fields| fields.iter().find_map(differs)).unwrap_or_default();
            let problem = format!("belongs to another model: {field}");
            return Err(Error::session(path, problem, "pass the `--model` that it was saved with"));
        }
        if self.dtype != decoder.dtype().name() {
            let problem = format!("holds a cache in {}, the model runs in {}", self.dtype, decoder.dtype());
            return Err(Error::session(path, problem, format!("pass `--dtype {}`", self.dtype)));
        }
        let positions = decoder.config().max_position_embeddings;
        if self.tokens == 0 || self.tokens > positions || self.context > positions {
            let problem = format!("claims {} tokens, the model has {positions} positions", self.tokens);
            return Err(Error::session(path, problem, SAVE_AGAIN));
        }
        match &self.sketch {
            Some(sketch) if !sketch.is_bounded(&self.model) => {
                Err(Error::session(path, "field `sketch` makes no sense in its header", SAVE_AGAIN))
            }
            _ => Ok(()),
        }
    }

    /// Whether the sketch is one that `plan` reads. Without a plan it does not matter.
    pub fn check_plan(&self, plan: Option<&OwnedPlan>, path: &Path) -> Result<()> {
        let (Some(saved), Some(plan)) = (&self.sketch, plan) else { return Ok(()) };
        let here = Sketch::new(plan, &saved.layers);
        let of = |sketch: &Sketch| (sketch.precision.clone(), sketch.chunks, sketch.heads);
        if of(saved) != of(&here) {
            let named = |s: &Sketch| format!("{} chunks in {} for {} heads", s.chunks, s.precision, s.heads);
            let problem = format!("has a sketch of {}, the settings ask for {}", named(saved), named(&here));
            return Err(Error::session(path, problem, "pass the settings that it was saved with"));
        }
        if saved.channels != here.channels || saved.row_bytes != here.row_bytes || saved.scale_bytes != here.scale_bytes
        {
            let mend = "pass the `--profile` that it was saved with, or save the session again";
            return Err(Error::session(path, "was saved with another profile", mend));
        }
        Ok(())
    }

    /// Bytes of all tables in the file's order, checksums aside; `layer` is that of one layer's keys.
    pub fn tables(&self, layer: usize, layers: usize) -> impl Iterator<Item = u64> {
        let rows = self.tokens as u64;
        let sketch = self.sketch.iter().flat_map(move |sketch| {
            let heads = sketch.heads as u64;
            let tables = [sketch.row_bytes, sketch.scale_bytes].map(move |bytes| heads * rows * bytes as u64);
            let one = tables.into_iter().filter(|bytes| *bytes > 0);
            std::iter::repeat_n(one, sketch.layers.len()).flatten()
        });
        [4 * rows].into_iter().chain(std::iter::repeat_n(layer as u64, 2 * layers)).chain(sketch)
    }
}

impl Sketch {
    fn new(plan: &OwnedPlan, layers: &[usize]) -> Self {
        let plan = plan.view();
        let precision = plan.config().precision;
        let mut hash = WeightsHash::default();
        for (layer, row) in layers.iter().flat_map(|l| (0..plan.rows()).map(move |r| (*l, r))) {
            if let Ok(head) = plan.head(layer, row) {
                hash = hash.with(head.channels().iter().map(|channel| f32::from(*channel)));
                hash = hash.with(head.scale().iter().chain(head.centre()).copied());
            }
        }
        Self {
            precision: precision.name().into(),
            chunks: plan.chunks(),
            heads: plan.rows(),
            layers: layers.to_vec(),
            row_bytes: precision.row_bytes(plan.chunks()),
            scale_bytes: precision.scale_bytes(),
            channels: format!("{:016x}", hash.finish()),
        }
    }

    /// Whether its numbers are those of some sketch of this model, so that products of them cannot overflow.
    fn is_bounded(&self, model: &Model) -> bool {
        self.layers.is_sorted_by(|a, b| a < b)
            && self.layers.iter().all(|layer| *layer < model.layers as usize)
            && self.heads <= model.query_heads as usize
            && self.row_bytes <= 4 * model.head_dim as usize
            && self.row_bytes > 0
            && self.scale_bytes <= 2
    }
}

fn model(decoder: &Decoder) -> Model {
    let model = decoder.fingerprint();
    Model {
        architecture: model.architecture.into(),
        layers: model.layers,
        query_heads: model.query_heads,
        kv_heads: model.kv_heads,
        head_dim: model.head_dim,
        rotary_dim: model.rotary_dim,
        rope_theta: model.rope_theta,
        unrotated_layers: model.unrotated_layers.to_vec(),
        weights: format!("{:016x}", model.weights),
    }
}
