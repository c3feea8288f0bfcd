//! From llama.cpp's names and order of rows to those of `transformers`.

use std::path::Path;

use crate::error::{Error, Result};

/// The order of a tensor's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rows {
    /// As in `transformers`.
    Same,
    /// Of so many heads, each with the two dimensions that turn together next to one another.
    Interleaved(usize),
}

impl Rows {
    /// The row of the file that is row `row` of `total`.
    pub fn source(self, row: usize, total: usize) -> usize {
        match self {
            Rows::Same => row,
            Rows::Interleaved(heads) => {
                let dim = total / heads;
                let (head, within) = (row / dim, row % dim);
                head * dim + 2 * (within % (dim / 2)) + within / (dim / 2)
            }
        }
    }
}

/// Architectures that are translated, and whether their queries and keys are interleaved.
const ARCHITECTURES: &[(&str, bool)] = &[("llama", true), ("qwen2", false), ("qwen3", false)];

const OUTSIDE: &[(&str, &str)] =
    &[("token_embd", "model.embed_tokens"), ("output_norm", "model.norm"), ("output", "lm_head")];

const INSIDE: &[(&str, &str)] = &[
    ("attn_norm", "input_layernorm"),
    ("attn_q", "self_attn.q_proj"),
    ("attn_k", "self_attn.k_proj"),
    ("attn_v", "self_attn.v_proj"),
    ("attn_output", "self_attn.o_proj"),
    ("attn_q_norm", "self_attn.q_norm"),
    ("attn_k_norm", "self_attn.k_norm"),
    ("ffn_norm", "post_attention_layernorm"),
    ("ffn_gate", "mlp.gate_proj"),
    ("ffn_up", "mlp.up_proj"),
    ("ffn_down", "mlp.down_proj"),
];

/// Rotary frequencies that a scaling changed; they become part of the configuration.
pub(super) const ROPE_FACTORS: &str = "rope_freqs.weight";

/// Whether queries and keys of `architecture` are interleaved.
///
/// # Errors
/// [`Error::Unsupported`] for one whose names are not known here.
pub(super) fn interleaved(architecture: &str, path: &Path) -> Result<bool> {
    match ARCHITECTURES.iter().find(|(name, _)| *name == architecture) {
        Some((_, interleaved)) => Ok(*interleaved),
        None => {
            let names: Vec<&str> = ARCHITECTURES.iter().map(|(name, _)| *name).collect();
            let mend = format!("use the safetensors of this model, or a file of {}", names.join(", "));
            Err(Error::unsupported(path, format!("`general.architecture` \"{architecture}\" in GGUF"), mend))
        }
    }
}

/// The name in `transformers`; `None` if it is none of a decoder's.
pub(super) fn translate(name: &str) -> Option<String> {
    let (rest, kind) = name.rsplit_once('.')?;
    let of = |table: &[(&str, &str)], part: &str| {
        table.iter().find(|(from, _)| *from == part).map(|(_, to)| (*to).to_owned())
    };
    let translated = match rest.strip_prefix("blk.") {
        None => of(OUTSIDE, rest)?,
        Some(block) => {
            let (number, part) = block.split_once('.')?;
            let number: usize = number.parse().ok()?;
            format!("model.layers.{number}.{}", of(INSIDE, part)?)
        }
    };
    matches!(kind, "weight" | "bias").then(|| format!("{translated}.{kind}"))
}
