//! The model's numbers, read from the `config.json` of a Hugging Face checkpoint.
//!
//! Nothing is guessed: a setting that would change what the model computes and that this crate does not implement is
//! refused by name, rather than ignored.

mod fields;
mod generation;
mod rope;

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::read_whole;
use crate::error::{Error, Result};
use fields::Fields;
pub use generation::GenerationConfig;
pub use rope::{RopeConfig, RopeScaling};

/// The architectures that can be loaded, as `architectures` spells them.
pub const SUPPORTED_ARCHITECTURES: &[&str] =
    &["LlamaForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM", "SmolLM3ForCausalLM"];

/// `model_type` of the supported architectures, in the same order.
const SUPPORTED_MODEL_TYPES: &[&str] = &["llama", "qwen2", "qwen3", "phi3", "smollm3"];

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
    /// Added to the mean square inside RMSNorm.
    pub rms_norm_eps: f64,
    /// `model_type`: which family it is.
    pub model_type: &'static str,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// One byte per layer, 1 where the layer has no rotary positions; empty if every layer has.
    pub unrotated_layers: Vec<u8>,
    /// Whether query, key and value projections have a bias.
    pub qkv_bias: bool,
    /// Whether queries and keys go through a norm of their own, head by head.
    pub qk_norm: bool,
    /// Whether the checkpoint stores the projections that read the same input as one matrix.
    pub fused_projections: bool,
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
        let model_type = check_architecture(&fields)?;
        refuse_unsupported(&fields)?;
        Self::from_fields(&fields, model_type)
    }

    /// Query heads that share one key and value head.
    pub fn num_key_value_groups(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    fn from_fields(fields: &Fields<'_>, model_type: &'static str) -> Result<Self> {
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
        let default_head_dim = (model_type == "qwen3").then_some(128);
        let head_dim = head_dim(fields, default_head_dim, hidden_size, num_attention_heads)?;
        let default_theta = (model_type == "smollm3").then_some(2_000_000.0);
        let num_hidden_layers = fields.size("num_hidden_layers", MAX_LAYERS)?;
        Ok(Self {
            vocab_size,
            model_type,
            rope: RopeConfig::read(fields, head_dim, default_theta)?,
            unrotated_layers: if model_type == "smollm3" { unrotated(fields, num_hidden_layers)? } else { Vec::new() },
            qkv_bias: model_type == "qwen2",
            qk_norm: model_type == "qwen3",
            fused_projections: model_type == "phi3",
            hidden_size,
            intermediate_size: fields.size("intermediate_size", MAX_WIDTH)?,
            num_hidden_layers,
            num_attention_heads,
            num_key_value_heads,
            head_dim,
            rms_norm_eps: fields
                .positive("rms_norm_eps")?
                .ok_or_else(|| fields.error("rms_norm_eps", "is missing", "add it as the model's author gives it"))?,
            max_position_embeddings: fields.size("max_position_embeddings", MAX_POSITIONS)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(model_type == "smollm3"),
            bos_token_id: fields.token_id("bos_token_id")?,
            eos_token_ids: fields.token_ids("eos_token_id")?,
        })
    }
}

/// `model_type` says which configuration class this is, `architectures` which head sits on it; a file may lack one.
fn check_architecture(fields: &Fields<'_>) -> Result<&'static str> {
    let supported = || format!("the supported architectures are: {}", SUPPORTED_ARCHITECTURES.join(", "));
    let architectures = fields.texts("architectures")?;
    let named = match fields.text("model_type")? {
        Some(name) => match SUPPORTED_MODEL_TYPES.iter().position(|t| *t == name) {
            Some(family) => Some(family),
            None => return Err(fields.unsupported(format!("`model_type` \"{name}\""), supported())),
        },
        None => None,
    };
    let of_heads = |names: &[&str]| SUPPORTED_ARCHITECTURES.iter().position(|a| names.iter().all(|n| n == a));
    let family = match (named, architectures.as_slice()) {
        (None, []) => return Err(fields.error("model_type", "is missing, and so is `architectures`", supported())),
        (named, []) => named,
        (named, names) => of_heads(names).filter(|family| named.is_none_or(|n| n == *family)),
    };
    match family {
        Some(family) => Ok(SUPPORTED_MODEL_TYPES[family]),
        None => Err(fields.unsupported(format!("`architectures` {}", architectures.join(", ")), supported())),
    }
}

/// Settings that would change the result and that are not implemented.
fn refuse_unsupported(fields: &Fields<'_>) -> Result<()> {
    for bias in ["attention_bias", "mlp_bias"] {
        if fields.flag(bias)? == Some(true) {
            return Err(fields.unsupported(format!("`{bias}` true"), "use a model whose projections have no bias"));
        }
    }
    if let Some(activation) = fields.text("hidden_act")?
        && activation != "silu"
    {
        return Err(fields.unsupported(format!("`hidden_act` \"{activation}\""), "use a model with \"silu\""));
    }
    if let Some(ranks) = fields.optional_size("pretraining_tp", usize::MAX)?
        && ranks > 1
    {
        return Err(fields.unsupported(
            format!("`pretraining_tp` {ranks}"),
            "set it to 1 if the rounding of a single rank is acceptable",
        ));
    }
    if fields.flag("use_sliding_window")? == Some(true) {
        return Err(fields.unsupported("`use_sliding_window` true", "use a model without sliding windows"));
    }
    if fields.text("model_type")? == Some("phi3") && fields.has("sliding_window") {
        return Err(fields.unsupported("`sliding_window`", "use a model without sliding windows"));
    }
    if let Some(kind) = fields.texts("layer_types")?.into_iter().find(|kind| *kind != "full_attention") {
        return Err(fields.unsupported(format!("`layer_types` \"{kind}\""), "use a model with full attention"));
    }
    if fields.has("quantization_config") {
        return Err(
            fields.unsupported("`quantization_config`", "use the checkpoint with float weights (F32, F16 or BF16)")
        );
    }
    Ok(())
}

/// SmolLM3's layers without rotary positions: `no_rope_layers` has 1 for those that turn.
fn unrotated(fields: &Fields<'_>, layers: usize) -> Result<Vec<u8>> {
    let interval = fields.optional_size("no_rope_layer_interval", MAX_LAYERS)?.unwrap_or(4);
    let flags: Vec<u8> = match fields.flags("no_rope_layers")? {
        None => (1..=layers).map(|number| u8::from(number.is_multiple_of(interval))).collect(),
        Some(turns) if turns.len() == layers => turns.into_iter().map(|turns| u8::from(!turns)).collect(),
        Some(turns) => {
            let problem = format!("has {} entries for {layers} layers", turns.len());
            return Err(fields.error("no_rope_layers", problem, "it needs a 0 or 1 for each layer"));
        }
    };
    Ok(if flags.contains(&1) { flags } else { Vec::new() })
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
