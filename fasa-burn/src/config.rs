//! The model's numbers, read from the `config.json` of a Hugging Face checkpoint.
//!
//! Nothing is guessed: a setting that would change what the model computes and that this crate does not implement is
//! refused by name, rather than ignored.

mod choices;
mod family;
mod fields;
mod generation;
mod layers;
mod rope;

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::read_whole;
use crate::error::{Error, Result};
use choices::Attending;
pub use choices::{Activation, Norm, NormPlace, QkNorm};
use family::{Cap, FAMILIES, Family};
use fields::Fields;
pub use generation::GenerationConfig;
pub use rope::{RopeConfig, RopeScaling};

/// The architectures that can be loaded, as `architectures` spells them.
pub const SUPPORTED_ARCHITECTURES: [&str; FAMILIES.len()] = {
    let mut names = [""; FAMILIES.len()];
    let mut i = 0;
    while i < names.len() {
        names[i] = FAMILIES[i].class;
        i += 1;
    }
    names
};

/// A real `config.json` has a few kilobytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

// Bounds well above any published model, so that no number in a file can ask for an absurd amount of memory.
const MAX_VOCAB: usize = 1 << 24;
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1024;
const MAX_POSITIONS: usize = 1 << 24;

/// The numbers of a decoder, named as in `transformers`. Read and checked by [`ModelConfig::read`].
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ModelConfig {
    /// Number of token ids: rows of the embedding and of the output projection.
    pub vocab_size: usize,
    /// Width of the residual stream.
    pub hidden_size: usize,
    /// Width inside the feed-forward block.
    pub intermediate_size: usize,
    /// Number of decoder layers.
    pub num_hidden_layers: usize,
    /// Number of query heads per layer.
    pub num_attention_heads: usize,
    /// Number of key and value heads per layer; it divides `num_attention_heads`.
    pub num_key_value_heads: usize,
    /// Channels per head; even, since rotary positions turn pairs.
    pub head_dim: usize,
    /// `model_type`: which family it is.
    pub model_type: &'static str,
    /// What norms compute.
    pub norm: Norm,
    /// Added to the mean square or variance inside norms.
    pub norm_eps: f64,
    /// Where norms are.
    pub norm_place: NormPlace,
    /// What queries and keys go through.
    pub qk_norm: Option<QkNorm>,
    /// What is inside the feed-forward block.
    pub activation: Activation,
    /// Whether query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether the projection behind attention has a bias.
    pub output_bias: bool,
    /// Whether the projections of the feed-forward block have biases.
    pub mlp_bias: bool,
    /// Whether the feed-forward block reads what attention reads, its norm included, instead of attention's result.
    pub parallel_residual: bool,
    /// Whether the checkpoint stores the projections that read the same input as one matrix.
    pub fused_projections: bool,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// Rotary positions of the layers with a sliding window, where they have their own.
    pub local_rope: Option<RopeConfig>,
    /// One byte per layer, 1 where the layer has no rotary positions; empty if every layer has.
    pub unrotated_layers: Vec<u8>,
    /// Tokens that a token attends to in layers with a sliding window, itself included.
    pub sliding_window: Option<usize>,
    /// One byte per layer, 1 where the layer has a sliding window; empty if none has.
    pub sliding_layers: Vec<u8>,
    /// What `q · k` is multiplied by: `1 / sqrt(head_dim)` in most models.
    pub attention_scale: f64,
    /// Attention scores are capped: `cap * tanh(score / cap)`.
    pub attention_softcap: Option<f64>,
    /// What embeddings are multiplied by.
    pub embedding_multiplier: f64,
    /// What a block's result is multiplied by before it is added to the residual stream.
    pub residual_multiplier: f64,
    /// What logits are multiplied by.
    pub logits_multiplier: f64,
    /// Logits are capped, after the multiplication.
    pub logits_softcap: Option<f64>,
    /// Number of positions the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the output projection is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// The id that begins a text, which may lie outside a cut vocabulary; `None` where the file has null or nothing.
    pub bos_token_id: Option<u32>,
    /// The ids that end a text, ascending; empty where the file has null or nothing.
    pub eos_token_ids: Vec<u32>,
}

impl ModelConfig {
    /// Reads `config.json` in `folder`.
    ///
    /// # Errors
    /// [`Error::Io`] if the file cannot be read, else as [`ModelConfig::from_json`].
    pub fn read(folder: impl AsRef<Path>) -> Result<Self> {
        let path = folder.as_ref().join("config.json");
        let json = read_whole(&path, MAX_FILE_BYTES)?;
        Self::from_json(json, &path)
    }

    /// Reads the text of a `config.json`; `path` is only named in errors.
    ///
    /// # Errors
    /// [`Error::Unsupported`] for another architecture, activation, rotary scheme or anything else that this crate does
    /// not compute; [`Error::Config`] for a field that is missing, of the wrong type, out of bounds or at odds with
    /// another.
    pub fn from_json(json: impl AsRef<[u8]>, path: &Path) -> Result<Self> {
        let value: Value = serde_json::from_slice(json.as_ref()).map_err(|error| {
            Error::config(path, "(the whole file)", format!("is not JSON: {error}"), "download config.json again")
        })?;
        let Value::Object(object) = &value else {
            return Err(Error::config(path, "(the whole file)", "is not a JSON object", "download config.json again"));
        };
        let fields = Fields::new(path, object);
        let family = check_architecture(&fields)?;
        refuse_unsupported(&fields)?;
        Self::from_fields(&fields, family)
    }

    /// Query heads that share one key and value head.
    pub fn num_key_value_groups(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    /// Tokens that a token attends to in `layer`; `None` for all before it.
    pub fn window(&self, layer: usize) -> Option<usize> {
        self.sliding_window.filter(|_| self.sliding_layers.get(layer) == Some(&1))
    }

    /// Rotary positions of `layer`; `None` if it has none.
    pub fn layer_rope(&self, layer: usize) -> Option<&RopeConfig> {
        match self.unrotated_layers.get(layer) {
            Some(1) => None,
            _ if self.window(layer).is_some() => self.local_rope.as_ref().or(Some(&self.rope)),
            _ => Some(&self.rope),
        }
    }

    /// What queries are multiplied by once they are turned, so that scores divided by the root of `head_dim` are the
    /// model's.
    pub fn query_multiplier(&self) -> f64 {
        let usual = (self.head_dim as f64).sqrt();
        // Exactly 1 where the root's own rounding is the only difference.
        if self.attention_scale == 1.0 / usual { 1.0 } else { self.attention_scale * usual }
    }

    fn from_fields(fields: &Fields<'_>, family: &'static Family) -> Result<Self> {
        let vocab_size = fields.size("vocab_size", MAX_VOCAB)?;
        let hidden_size = fields.size("hidden_size", MAX_WIDTH)?;
        let num_attention_heads = fields.size("num_attention_heads", MAX_HEADS)?;
        let num_key_value_heads =
            fields.optional_size("num_key_value_heads", MAX_HEADS)?.unwrap_or(num_attention_heads);
        if !num_attention_heads.is_multiple_of(num_key_value_heads) {
            return Err(fields.error(
                "num_key_value_heads",
                format!("is {num_key_value_heads}, which does not divide `num_attention_heads` {num_attention_heads}"),
                "use the config.json that belongs to the weights",
            ));
        }
        let head_dim = head_dim(fields, family.head_dim, hidden_size, num_attention_heads)?;
        let num_hidden_layers = fields.size("num_hidden_layers", MAX_LAYERS)?;
        let max_position_embeddings = fields.size("max_position_embeddings", MAX_POSITIONS)?;
        let unrotated_layers = layers::unrotated(fields, family, num_hidden_layers)?;
        let (rope, local_rope) = RopeConfig::read(fields, family, head_dim, max_position_embeddings)?;
        let max_position_embeddings = match rope.scaling {
            // Its frequencies follow the length, without end.
            RopeScaling::Dynamic { .. } => MAX_POSITIONS,
            _ => max_position_embeddings,
        };
        let (sliding_window, sliding_layers) =
            match layers::windows(fields, family, num_hidden_layers, &unrotated_layers)? {
                // Phi 3.5 has one of twice its positions: none, as far as its layers can see.
                (Some(window), _) if window >= max_position_embeddings => (None, Vec::new()),
                windows => windows,
            };
        let eps = fields.positive(family.norm_eps)?;
        let has_qk_norm = fields.presence(family.has_qk_norm)?;
        let multiplier = |name| match family.multipliers {
            true => fields.positive(name).map(|x| x.unwrap_or(1.0)),
            false => Ok(1.0),
        };
        let softcap = |name, cap| match cap {
            Cap::Given(default) if !fields.is_null(name) => fields.positive(name).map(|cap| cap.or(default)),
            _ => Ok(None),
        };
        Ok(Self {
            vocab_size,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", MAX_WIDTH)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            model_type: family.name,
            norm: family.norm,
            norm_eps: eps
                .ok_or_else(|| fields.error(family.norm_eps, "is missing", "add it as the model's author gives it"))?,
            norm_place: family.place,
            qk_norm: family.qk_norm.filter(|_| has_qk_norm),
            activation: activation(fields, family)?,
            qkv_bias: fields.presence(family.qkv_bias)?,
            output_bias: fields.presence(family.output_bias)?,
            mlp_bias: fields.presence(family.mlp_bias)?,
            parallel_residual: fields.presence(family.parallel_residual)?,
            fused_projections: family.fused,
            max_position_embeddings,
            rope,
            local_rope,
            unrotated_layers,
            sliding_window,
            sliding_layers,
            attention_scale: match family.attending {
                Attending::HeadDim => 1.0 / (head_dim as f64).sqrt(),
                Attending::PreScalar => 1.0 / fields.positive("query_pre_attn_scalar")?.unwrap_or(256.0).sqrt(),
                Attending::Multiplier => fields.positive("attention_multiplier")?.unwrap_or(1.0),
            },
            attention_softcap: softcap("attn_logit_softcapping", family.attention_softcap)?,
            embedding_multiplier: match family.embedding_root {
                true => (hidden_size as f64).sqrt(),
                false => multiplier("embedding_multiplier")?,
            },
            residual_multiplier: multiplier("residual_multiplier")?,
            logits_multiplier: 1.0 / multiplier("logits_scaling")?,
            logits_softcap: softcap("final_logit_softcapping", family.logits_softcap)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(family.tied),
            bos_token_id: fields.token_id("bos_token_id")?,
            eos_token_ids: fields.token_ids("eos_token_id")?,
        })
    }
}

/// `model_type` says which configuration class this is, `architectures` which head sits on it; a file may lack one.
fn check_architecture(fields: &Fields<'_>) -> Result<&'static Family> {
    let supported = || format!("the supported architectures are: {}", SUPPORTED_ARCHITECTURES.join(", "));
    let classes = fields.texts("architectures")?;
    let find = |wanted: &dyn Fn(&Family) -> bool| FAMILIES.iter().find(|family| wanted(family));
    let named = match fields.text("model_type")? {
        Some(name) => match find(&|family| family.name == name) {
            Some(family) => Some(family),
            None => return Err(fields.unsupported(format!("`model_type` \"{name}\""), supported())),
        },
        None => None,
    };
    let family = match (named, classes.as_slice()) {
        (None, []) => return Err(fields.error("model_type", "is missing, and so is `architectures`", supported())),
        (named, []) => named,
        (named, classes) => find(&|family| {
            classes.iter().all(|class| *class == family.class) && named.is_none_or(|n| n.name == family.name)
        }),
    };
    family.ok_or_else(|| fields.unsupported(format!("`architectures` {}", classes.join(", ")), supported()))
}

fn activation(fields: &Fields<'_>, family: &Family) -> Result<Activation> {
    let (field, default) = family.activation;
    let Some(name) = fields.text(field)? else { return Ok(default) };
    Activation::named(name).ok_or_else(|| {
        fields.unsupported(format!("`{field}` \"{name}\""), "the supported ones are: silu, gelu, gelu_pytorch_tanh")
    })
}

/// Settings that would change the result and that are not implemented.
fn refuse_unsupported(fields: &Fields<'_>) -> Result<()> {
    if let Some(ranks) = fields.optional_size("pretraining_tp", usize::MAX)?
        && ranks > 1
    {
        return Err(fields.unsupported(
            format!("`pretraining_tp` {ranks}"),
            "set it to 1 if the rounding of a single rank is acceptable",
        ));
    }
    if fields.flag("use_bidirectional_attention")? == Some(true) {
        return Err(fields.unsupported("`use_bidirectional_attention` true", "use a model that attends to the past"));
    }
    if fields.has("quantization_config") {
        return Err(
            fields.unsupported("`quantization_config`", "use the checkpoint with float weights (F32, F16 or BF16)")
        );
    }
    Ok(())
}

fn head_dim(fields: &Fields<'_>, default: Option<usize>, hidden_size: usize, heads: usize) -> Result<usize> {
    let head_dim = match fields.optional_size("head_dim", MAX_HEAD_DIM)?.or(default) {
        Some(head_dim) => head_dim,
        None if hidden_size.is_multiple_of(heads) => hidden_size / heads,
        None => {
            return Err(fields.error(
                "head_dim",
                format!("is missing, and `num_attention_heads` {heads} does not divide `hidden_size` {hidden_size}"),
                "add it, or use the config.json that belongs to the weights",
            ));
        }
    };
    if head_dim > MAX_HEAD_DIM || !head_dim.is_multiple_of(2) {
        return Err(fields.error(
            "head_dim",
            format!("is {head_dim}"),
            format!("rotary positions need an even number from 2 to {MAX_HEAD_DIM}"),
        ));
    }
    Ok(head_dim)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
