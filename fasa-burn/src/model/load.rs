//! From a checkpoint to a decoder.

use super::layer::{Heads, Layer, Linear, RmsNorm};
use super::{Decoder, Rope};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::error::{Error, Result};
use burn::tensor::{Device, Tensor, TensorData};
use fasa_core::profile::WeightsHash;

/// Called while weights are read: layers done, and how many there are.
pub type LoadProgress<'a> = &'a mut dyn FnMut(usize, usize);

impl Decoder {
    /// Reads the weights of `config` from a checkpoint, in f32.
    ///
    /// Every tensor must be there in the right shape, and every tensor of the checkpoint must be one that this
    /// architecture has.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the file and the tensor.
    pub fn load(
        config: ModelConfig,
        checkpoint: &Checkpoint,
        device: &Device,
        progress: LoadProgress<'_>,
    ) -> Result<Self> {
        let source = Source { checkpoint, device };
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let heads = Heads { query: config.num_attention_heads, kv: config.num_key_value_heads, dim: config.head_dim };
        let (query, kv) = (heads.query * heads.dim, heads.kv * heads.dim);
        let eps = config.rms_norm_eps;

        let embed = checkpoint.tensor_f32("model.embed_tokens.weight", &[config.vocab_size, hidden])?;
        let embed_tokens = source.upload(embed, [config.vocab_size, hidden]);
        let (norm, mut hash) = source.norm("model.norm.weight", hidden, eps, WeightsHash::default())?;
        let last = config.num_hidden_layers - 1;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            progress(i, config.num_hidden_layers);
            let name = |part: &str| format!("model.layers.{i}.{part}.weight");
            let keys = checkpoint.tensor_f32(&name("self_attn.k_proj"), &[kv, hidden])?;
            if i == 0 || i == last {
                hash = hash.with(keys.iter().copied());
            }
            let mut qkv = checkpoint.tensor_f32(&name("self_attn.q_proj"), &[query, hidden])?;
            qkv.extend(keys);
            qkv.extend(checkpoint.tensor_f32(&name("self_attn.v_proj"), &[kv, hidden])?);
            let mut gate_up = checkpoint.tensor_f32(&name("mlp.gate_proj"), &[inner, hidden])?;
            gate_up.extend(checkpoint.tensor_f32(&name("mlp.up_proj"), &[inner, hidden])?);
            let norm = |part: &str| source.norm(&name(part), hidden, eps, hash).map(|(norm, _)| norm);
            layers.push(Layer {
                input_layernorm: norm("input_layernorm")?,
                qkv_proj: Linear::new(source.upload(qkv, [query + 2 * kv, hidden])),
                o_proj: source.linear(&name("self_attn.o_proj"), hidden, query)?,
                post_attention_layernorm: norm("post_attention_layernorm")?,
                gate_up_proj: Linear::new(source.upload(gate_up, [2 * inner, hidden])),
                down_proj: source.linear(&name("mlp.down_proj"), hidden, inner)?,
                heads,
            });
        }
        let lm_head = if config.tie_word_embeddings {
            Linear::new(embed_tokens.clone())
        } else {
            source.linear("lm_head.weight", config.vocab_size, hidden)?
        };
        progress(config.num_hidden_layers, config.num_hidden_layers);
        refuse_unknown(checkpoint, config.tie_word_embeddings)?;
        let rope = Rope::new(config.rope_theta, config.head_dim);
        Ok(Self {
            config,
            device: device.clone(),
            embed_tokens,
            layers,
            norm,
            lm_head,
            rope,
            weights_hash: hash.finish(),
        })
    }
}

/// Where weights come from and go to.
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
}

impl Source<'_> {
    fn upload(&self, weights: Vec<f32>, shape: [usize; 2]) -> Tensor<2> {
        Tensor::from_data(TensorData::new(weights, shape), self.device)
    }

    fn linear(&self, name: &str, outputs: usize, inputs: usize) -> Result<Linear> {
        let weights = self.checkpoint.tensor_f32(name, &[outputs, inputs])?;
        Ok(Linear::new(self.upload(weights, [outputs, inputs])))
    }

    fn norm(&self, name: &str, width: usize, eps: f64, hash: WeightsHash) -> Result<(RmsNorm, WeightsHash)> {
        let weights = self.checkpoint.tensor_f32(name, &[width])?;
        let hash = hash.with(weights.iter().copied());
        Ok((RmsNorm::new(self.upload(weights, [1, width]), eps), hash))
    }
}

/// A tensor nobody asked for means that the checkpoint is of another architecture than it says.
fn refuse_unknown(checkpoint: &Checkpoint, tied: bool) -> Result<()> {
    let unknown: Vec<&str> = checkpoint
        .unread()
        .into_iter()
        // Older checkpoints store the rotary frequencies, and a copy of tied embeddings.
        .filter(|name| !name.ends_with("rotary_emb.inv_freq"))
        .filter(|name| !tied || *name != "lm_head.weight")
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    let shown = unknown.iter().take(5).copied().collect::<Vec<_>>().join("`, `");
    Err(Error::checkpoint(
        checkpoint.path(),
        format!("holds {} tensors that this architecture does not have: `{shown}`", unknown.len()),
        "check that config.json and the weights belong together",
    ))
}
