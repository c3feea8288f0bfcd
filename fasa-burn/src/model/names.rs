//! The names of a model's tensors, held against those of a checkpoint before any is read.

use super::load::BlockNorms;
use crate::checkpoint::Checkpoint;
use crate::config::{ModelConfig, Norm, QkNorm};
use crate::error::{Error, Result};
use std::collections::BTreeSet;

/// Names that an error shows of each kind; a checkpoint of another architecture differs in all.
const SHOWN: usize = 20;

/// Refuses a checkpoint that lacks tensors of the model, or has some that the model does not: all of them are listed.
pub(super) fn check(config: &ModelConfig, checkpoint: &Checkpoint) -> Result<()> {
    let wanted = names(config);
    let missing: Vec<&str> = wanted.iter().map(String::as_str).filter(|name| !checkpoint.contains(name)).collect();
    let unknown: Vec<&str> =
        checkpoint.names().filter(|name| !wanted.contains(*name) && !is_spare(name, config)).collect();
    let list = |names: &[&str]| {
        let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
        match names.len().checked_sub(SHOWN) {
            None | Some(0) => shown,
            Some(more) => format!("{shown} and {more} more"),
        }
    };
    let mut problems = Vec::new();
    if !missing.is_empty() {
        problems.push(format!("{} of the model's tensors are missing: {}", missing.len(), list(&missing)));
    }
    if !unknown.is_empty() {
        let count = unknown.len();
        problems.push(format!("it holds {count} tensors that this architecture does not have: {}", list(&unknown)));
    }
    match problems.is_empty() {
        true => Ok(()),
        false => Err(Error::checkpoint(
            checkpoint.path(),
            problems.join("; "),
            "use the config.json and the weights of the same model, all of them",
        )),
    }
}

/// Older checkpoints store the rotary frequencies, and a copy of tied embeddings.
fn is_spare(name: &str, config: &ModelConfig) -> bool {
    name.ends_with("rotary_emb.inv_freq") || (config.tie_word_embeddings && name == "lm_head.weight")
}

/// Every tensor that loading asks for.
pub(super) fn names(config: &ModelConfig) -> BTreeSet<String> {
    let mut names = BTreeSet::from(["model.embed_tokens.weight".to_owned()]);
    if !config.tie_word_embeddings {
        names.insert("lm_head.weight".into());
    }
    let mut norm = |name: String| {
        if config.norm == Norm::Layer {
            names.insert(format!("{name}.bias"));
        }
        names.insert(format!("{name}.weight"));
    };
    norm("model.norm".into());
    let block = BlockNorms::of(config);
    let block = [block.before_attention, block.after_attention, block.before_mlp, block.after_mlp];
    for layer in 0..config.num_hidden_layers {
        for part in block.into_iter().flatten() {
            norm(format!("model.layers.{layer}.{part}"));
        }
    }
    let fused = config.fused_projections;
    let separate =
        [("self_attn.q", config.qkv_bias), ("self_attn.k", config.qkv_bias), ("self_attn.v", config.qkv_bias)];
    let linear = [("self_attn.o", config.output_bias), ("mlp.down", config.mlp_bias)];
    let gates = [("mlp.gate", config.mlp_bias), ("mlp.up", config.mlp_bias)];
    for layer in 0..config.num_hidden_layers {
        let mut insert = |part: &str, kind: &str| {
            names.insert(format!("model.layers.{layer}.{part}.{kind}"));
        };
        if fused {
            insert("self_attn.qkv_proj", "weight");
            insert("mlp.gate_up_proj", "weight");
        }
        for (part, bias) in separate.iter().chain(&gates) {
            if !fused {
                insert(&format!("{part}_proj"), "weight");
            }
            if *bias {
                insert(&format!("{part}_proj"), "bias");
            }
        }
        for (part, bias) in linear {
            insert(&format!("{part}_proj"), "weight");
            if bias {
                insert(&format!("{part}_proj"), "bias");
            }
        }
        for (part, heads) in [("q", config.num_attention_heads), ("k", config.num_key_value_heads)] {
            match config.qk_norm {
                None => {}
                Some(QkNorm::Head | QkNorm::Projection) => insert(&format!("self_attn.{part}_norm"), "weight"),
                Some(QkNorm::EachHead) => {
                    for head in 0..heads {
                        insert(&format!("self_attn.{part}_layernorm.norms.{head}"), "weight");
                    }
                }
            }
        }
    }
    names
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::model::Decoder;
    use burn::tensor::Device;
    use std::path::Path;

    /// What is listed is what loading asks for, in every family.
    #[test]
    fn the_names_are_those_that_loading_reads() {
        let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fixtures/families");
        let mut count = 0;
        for entry in std::fs::read_dir(families).expect("fixtures") {
            let folder = entry.expect("readable").path();
            if !folder.is_dir() {
                continue;
            }
            let config = ModelConfig::read(&folder).expect("a config");
            let checkpoint = Checkpoint::open(&folder).expect("weights");
            Decoder::load(config.clone(), &checkpoint, &Device::flex(), crate::Dtype::F32, &mut |_, _| {})
                .unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
            let unread = checkpoint.unread();
            let read = checkpoint.names().filter(|name| !unread.contains(name)).map(str::to_owned);
            assert_eq!(read.collect::<BTreeSet<_>>(), names(&config), "{}", folder.display());
            count += 1;
        }
        assert!(count > 8, "{count} families");
    }
}
