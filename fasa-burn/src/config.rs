//! The model's numbers, read from the `config.json` of a Hugging Face checkpoint.
//!
//! Nothing is guessed: a setting that would change what the model computes and that this crate does not implement is
//! refused by name, rather than ignored.

mod fields;

use std::path::Path;

use serde_json::Value;

use crate::checkpoint::read_whole;
use crate::error::{Error, Result};
use fields::Fields;

/// The architectures that can be loaded, as `architectures` spells them.
pub const SUPPORTED_ARCHITECTURES: &[&str] = &["LlamaForCausalLM"];

/// `model_type` of the supported architectures, in the same order.
const SUPPORTED_MODEL_TYPES: &[&str] = &["llama"];

/// A real `config.json` has a few kilobytes.
const MAX_FILE_BYTES: u64 = 4 << 20;

// Bounds well above any published model, so that no number in a file can ask for an absurd amount of memory.
const MAX_VOCAB: usize = 1 << 24;
const MAX_WIDTH: usize = 1 << 20;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1024;
const MAX_POSITIONS: usize = 1 << 24;

/// Rotary base of the configurations that name none, as in `transformers`.
const DEFAULT_ROPE_THETA: f64 = 10_000.0;

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
    /// Rotary base B: chunk i of position m is turned by m * B^(-2i / head_dim) radians.
    pub rope_theta: f64,
    /// Number of positions the model was made for.
    pub max_position_embeddings: usize,
    /// Whether the output projection is the embedding matrix.
    pub tie_word_embeddings: bool,
    /// The id that begins a text; `None` where the file has null or nothing.
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
        check_architecture(&fields)?;
        refuse_unsupported(&fields)?;
        Self::from_fields(&fields)
    }

    /// Query heads that share one key and value head.
    pub fn num_key_value_groups(&self) -> usize {
        self.num_attention_heads / self.num_key_value_heads
    }

    fn from_fields(fields: &Fields<'_>) -> Result<Self> {
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
        Ok(Self {
            vocab_size,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", MAX_WIDTH)?,
            num_hidden_layers: fields.size("num_hidden_layers", MAX_LAYERS)?,
            num_attention_heads,
            num_key_value_heads,
            head_dim: head_dim(fields, hidden_size, num_attention_heads)?,
            rms_norm_eps: fields
                .positive("rms_norm_eps")?
                .ok_or_else(|| fields.error("rms_norm_eps", "is missing", "add it as the model's author gives it"))?,
            rope_theta: rope_theta(fields)?,
            max_position_embeddings: fields.size("max_position_embeddings", MAX_POSITIONS)?,
            tie_word_embeddings: fields.flag("tie_word_embeddings")?.unwrap_or(false),
            bos_token_id: fields.token_id("bos_token_id", vocab_size)?,
            eos_token_ids: fields.token_ids("eos_token_id", vocab_size)?,
        })
    }
}

/// `model_type` says which configuration class this is, `architectures` which head sits on it; a file may lack one.
fn check_architecture(fields: &Fields<'_>) -> Result<()> {
    let supported = || format!("the supported architectures are: {}", SUPPORTED_ARCHITECTURES.join(", "));
    let architectures = fields.texts("architectures")?;
    let model_type = fields.text("model_type")?;
    if let Some(model_type) = model_type
        && !SUPPORTED_MODEL_TYPES.contains(&model_type)
    {
        return Err(fields.unsupported(format!("`model_type` \"{model_type}\""), supported()));
    }
    match (model_type, architectures.as_slice()) {
        (None, []) => Err(fields.error("model_type", "is missing, and so is `architectures`", supported())),
        (Some(_), []) => Ok(()),
        (_, names) if names.iter().all(|n| SUPPORTED_ARCHITECTURES.contains(n)) => Ok(()),
        (_, names) => Err(fields.unsupported(format!("`architectures` {}", names.join(", ")), supported())),
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
    if fields.has("quantization_config") {
        return Err(
            fields.unsupported("`quantization_config`", "use the checkpoint with float weights (F32, F16 or BF16)")
        );
    }
    refuse_partial_rotary(fields)
}

fn refuse_partial_rotary(fields: &Fields<'_>) -> Result<()> {
    match fields.positive("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => Err(fields.unsupported(
            format!("`{}` {factor}", fields.dotted("partial_rotary_factor")),
            "use a model that turns all channels of a head",
        )),
        _ => Ok(()),
    }
}

fn head_dim(fields: &Fields<'_>, hidden_size: usize, heads: usize) -> Result<usize> {
    let head_dim = match fields.optional_size("head_dim", MAX_HEAD_DIM)? {
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

/// The rotary base, from the spelling of `transformers` 4 (`rope_theta` beside `rope_scaling`) or of 5
/// (`rope_parameters`). A file with both must say the same in both.
fn rope_theta(fields: &Fields<'_>) -> Result<f64> {
    let mut theta = fields.positive("rope_theta")?;
    for name in ["rope_parameters", "rope_scaling"] {
        let Some(rope) = fields.nested(name)? else {
            continue;
        };
        for spelling in ["rope_type", "type"] {
            if let Some(kind) = rope.text(spelling)?
                && kind != "default"
            {
                return Err(rope.unsupported(
                    format!("`{}` \"{kind}\"", rope.dotted(spelling)),
                    "use a model with the unscaled rotary positions, type \"default\"",
                ));
            }
        }
        refuse_partial_rotary(&rope)?;
        // Such as `factor` without a type, or the sections of a multimodal rotary scheme.
        let known = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
        if let Some(other) = rope.names().find(|name| !known.contains(name)) {
            return Err(rope.unsupported(
                format!("`{}` with the default rotary positions", rope.dotted(other)),
                "use a model without it",
            ));
        }
        if let Some(inner) = rope.positive("rope_theta")? {
            match theta {
                Some(outer) if outer != inner => {
                    return Err(rope.error(
                        "rope_theta",
                        format!("is {inner}, but elsewhere in the file it is {outer}"),
                        "keep the one that the model was trained with",
                    ));
                }
                _ => theta = Some(inner),
            }
        }
    }
    Ok(theta.unwrap_or(DEFAULT_ROPE_THETA))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
