//! Models of any shape with random weights: their speed is that of real ones, what they write means nothing.

use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::model::{Decoder, LoadProgress};
use burn::tensor::Device;
use fasa_core::Rows;
use fasa_core::config::FasaConfig;
use fasa_core::criterion::{CriterionKind, Margin, Observation, Tally};
use fasa_core::policy::OwnedPlan;
use fasa_core::profile::{Model, Profile};
use half::f16;
use std::path::Path;
use std::sync::Arc;

/// Numbers that noise repeats after: a prime, so that rows differ.
const PERIOD: usize = 65_537;

/// A decoder of `config`'s shape. Needs twice the memory of its weights while it is made.
///
/// # Errors
/// As [`Decoder::load`].
pub fn decoder(config: &ModelConfig, device: &Device, dtype: Dtype, progress: LoadProgress<'_>) -> Result<Decoder> {
    Decoder::load(config.clone(), &checkpoint(config)?, device, dtype, progress)
}

/// A Llama checkpoint in F16, as it would lie in a file.
fn checkpoint(config: &ModelConfig) -> Result<Checkpoint> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (query, kv) = (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
    let mut tensors = vec![("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden])];
    if !config.tie_word_embeddings {
        tensors.push(("lm_head.weight".into(), vec![config.vocab_size, hidden]));
    }
    tensors.push(("model.norm.weight".into(), vec![hidden]));
    for layer in 0..config.num_hidden_layers {
        for (part, shape) in [
            ("input_layernorm", vec![hidden]),
            ("post_attention_layernorm", vec![hidden]),
            ("self_attn.q_proj", vec![query, hidden]),
            ("self_attn.k_proj", vec![kv, hidden]),
            ("self_attn.v_proj", vec![kv, hidden]),
            ("self_attn.o_proj", vec![hidden, query]),
            ("mlp.gate_proj", vec![inner, hidden]),
            ("mlp.up_proj", vec![inner, hidden]),
            ("mlp.down_proj", vec![hidden, inner]),
        ] {
            tensors.push((format!("model.layers.{layer}.{part}.weight"), shape));
        }
    }
    let (mut header, mut end) = (serde_json::Map::new(), 0);
    for (name, shape) in tensors {
        let bytes = 2 * shape.iter().product::<usize>();
        let entry = serde_json::json!({"dtype": "F16", "shape": shape, "data_offsets": [end, end + bytes]});
        header.insert(name, entry);
        end += bytes;
    }
    let header = serde_json::Value::Object(header).to_string().into_bytes();
    // Small, so that sums over thousands of them stay in range.
    let noise: Vec<u8> = noise(PERIOD).flat_map(|x| f16::from_f32(0.03 * x).to_le_bytes()).collect();
    let mut file = Vec::new();
    let len = 8 + header.len() + end;
    file.try_reserve_exact(len).map_err(|_| {
        Error::request("shape", format!("needs {len} bytes for its weights"), "use a smaller one, or more memory")
    })?;
    file.extend((header.len() as u64).to_le_bytes());
    file.extend(header);
    while file.len() < len {
        let piece = noise.len().min(len - file.len());
        file.extend_from_slice(&noise[..piece]);
    }
    Checkpoint::from_bytes("random weights", file)
}

/// A plan for `model` whose chunks were ranked by noise.
///
/// # Errors
/// [`Error::Core`] for more chunks than there are.
pub fn plan(model: Model<'_>, config: FasaConfig) -> Result<Arc<OwnedPlan>> {
    // By which criterion noise was ranked makes no difference to speed, and the margin is the cheapest.
    let config = FasaConfig { criterion: CriterionKind::Margin, ..config };
    let (query_heads, dim) = (model.query_heads as usize, model.head_dim as usize);
    let (layers, kv_heads) = (model.layers as usize, model.kv_heads as usize);
    let chunks = model.chunks()?;
    let mut tally = Tally::new(CriterionKind::Margin, layers * query_heads, chunks.len());
    let noise: Vec<f32> = noise(64 * dim).collect();
    for head in 0..layers * query_heads {
        let query = &noise[head % 32 * dim..][..dim];
        tally.observe(&Margin, head, &Observation { query, keys: Rows::contiguous(&noise, dim)?, chunks: &chunks })?;
    }
    let (scale, centre) = (vec![1.0; layers * kv_heads * dim], vec![0.0; layers * kv_heads * dim]);
    let scope = config.chunk_scope;
    let profile = Profile::new(model, CriterionKind::Margin, 0, scope, &tally, &scale, &centre, "noise")?;
    let wrap = |problem| Error::Profile { path: "the shape".into(), problem };
    Ok(Arc::new(OwnedPlan::new(&profile.view().map_err(wrap)?, config)?))
}

/// Numbers from -1 to 1, the same ones every time.
fn noise(len: usize) -> impl Iterator<Item = f32> {
    (0..len as u64).map(|i| {
        let mixed = (i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> 40) as f32 / (1u32 << 23) as f32 - 1.0
    })
}

/// Shapes of well-known models, as `config.json` spells them. Scaled rotary positions are left out: they cost nothing.
const SHAPES: [(&str, &str); 2] = [
    (
        "llama-3.2-1b",
        r#""vocab_size": 128256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
           "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": true"#,
    ),
    (
        "llama-3.1-8b",
        r#""vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
           "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": false"#,
    ),
];

/// Names that [`shape`] knows.
pub fn shapes() -> impl Iterator<Item = &'static str> {
    SHAPES.iter().map(|(name, _)| *name)
}

/// The shape of a well-known model.
///
/// # Errors
/// [`Error::Request`] for an unknown name.
pub fn shape(name: &str) -> Result<ModelConfig> {
    let Some((_, numbers)) = SHAPES.iter().find(|(known, _)| *known == name) else {
        let known: Vec<&str> = shapes().collect();
        return Err(Error::request(
            "shape",
            format!("`{name}` is unknown"),
            format!("use one of {}", known.join(", ")),
        ));
    };
    let json = format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "rms_norm_eps": 1e-5,
            "rope_theta": 500000.0, "max_position_embeddings": 131072, "bos_token_id": 128000, "eos_token_id": 128001,
            {numbers}}}"#
    );
    ModelConfig::from_json(json.as_bytes(), Path::new(name))
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use crate::method::Method;
    use crate::model::{Logits, to_host};
    use fasa_core::Budget;

    #[test]
    fn shapes_are_read_and_unknown_ones_refused() {
        for name in shapes() {
            let config = shape(name).expect("known");
            assert_eq!(config.num_attention_heads / config.num_key_value_heads, 4, "{name}");
        }
        let error = shape("gpt-2").expect_err("unknown").to_string();
        assert!(error.contains("gpt-2") && error.contains("llama-3.2-1b"), "{error}");
    }

    #[test]
    fn a_random_model_decodes_dense_and_sparse() {
        let json = include_bytes!("../../fixtures/nano/config.json");
        let config = ModelConfig::from_json(json, Path::new("config.json")).expect("valid");
        let model = decoder(&config, &Device::flex(), Dtype::F16, &mut |_, _| ()).expect("it loads");
        let fasa = [FasaConfig::DEFAULT, FasaConfig::PAPER].map(|config| {
            let plan = plan(model.fingerprint(), config).expect("it fits");
            Method::Fasa { plan, budget: Budget::Tokens(32), dense_below: 0 }
        });
        let mut cache = model.new_cache(101);
        cache.append_noise(100).expect("memory");
        for method in [Method::Dense].into_iter().chain(fasa) {
            cache.truncate(100);
            let logits = model.forward(&[1], &mut cache, &method, Logits::Last).expect("runs").expect("logits");
            let logits = to_host(logits).expect("host");
            assert!(logits.iter().all(|x| x.is_finite()) && logits.iter().any(|x| *x != logits[0]), "{method:?}");
        }
    }
}
