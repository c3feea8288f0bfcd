//! From a checkpoint to a decoder.

use super::layer::{Layer, NormLinear, QkNorm, RmsNorm};
use super::{Decoder, Rope};
use crate::checkpoint::Checkpoint;
use crate::config::{ModelConfig, RopeScaling};
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use burn::tensor::{Device, Tensor, TensorCreationOptions, TensorData};
use fasa_core::profile::WeightsHash;

/// Called while weights are read: layers done, and how many there are.
pub type LoadProgress<'a> = &'a mut dyn FnMut(usize, usize);

impl Decoder {
    /// Reads the weights of `config` from a checkpoint and keeps them, and later the keys and values of its caches, as
    /// `dtype`. Norms stay in single precision.
    ///
    /// Every tensor must be there in the right shape, and every tensor of the checkpoint must be one that this
    /// architecture has.
    ///
    /// # Errors
    /// [`Error::Checkpoint`] naming the file and the tensor, [`Error::Overflow`] if a weight is too large for `dtype`,
    /// [`Error::Request`] if the device does not compute with `dtype`.
    pub fn load(
        config: ModelConfig,
        checkpoint: &Checkpoint,
        device: &Device,
        dtype: Dtype,
        progress: LoadProgress<'_>,
    ) -> Result<Self> {
        dtype.check(device)?;
        let source = Source { checkpoint, device, dtype };
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let query = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;

        let embed_tokens = source.weight(&[("model.embed_tokens.weight", config.vocab_size)], hidden)?;
        let norm = |name: &str| source.norm(name, hidden, config.rms_norm_eps);
        let (last_norm, numbers) = norm("model.norm.weight")?;
        let mut hash = WeightsHash::default().with(numbers.iter().copied());
        let last = config.num_hidden_layers - 1;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            progress(i, config.num_hidden_layers);
            let name = |part: &str| format!("model.layers.{i}.{part}.weight");
            let [q, k, v, o] = ["q", "k", "v", "o"].map(|p| name(&format!("self_attn.{p}_proj")));
            let [gate, up, down] = ["gate", "up", "down"].map(|p| name(&format!("mlp.{p}_proj")));
            if i == 0 || i == last {
                // The fingerprint is that of the checkpoint, whatever the weights are kept as.
                hash = match config.fused_projections {
                    true => {
                        let all = checkpoint.tensor_f32(&name("self_attn.qkv_proj"), &[query + 2 * kv, hidden])?;
                        hash.with(all[query * hidden..(query + kv) * hidden].iter().copied())
                    }
                    false => hash.with(checkpoint.tensor_f32(&k, &[kv, hidden])?),
                };
            }
            let (fused_qkv, fused_gate_up) = (name("self_attn.qkv_proj"), name("mlp.gate_up_proj"));
            let (qkv, gate_up) = match config.fused_projections {
                true => (vec![(&fused_qkv, query + 2 * kv)], vec![(&fused_gate_up, 2 * inner)]),
                false => (vec![(&q, query), (&k, kv), (&v, kv)], vec![(&gate, inner), (&up, inner)]),
            };
            let bias = |part: &str| format!("model.layers.{i}.self_attn.{part}_proj.bias");
            layers.push(Layer {
                turns: config.unrotated_layers.get(i).is_none_or(|flag| *flag == 0),
                qk_norm: match config.qk_norm {
                    true => Some(source.qk_norm([&name("self_attn.q_norm"), &name("self_attn.k_norm")], &config)?),
                    false => None,
                },
                qkv_proj: NormLinear {
                    norm: norm(&name("input_layernorm"))?.0,
                    weight: source.weight(&qkv, hidden)?,
                    bias: match config.qkv_bias {
                        true => Some(source.bias(&[(bias("q"), query), (bias("k"), kv), (bias("v"), kv)])?),
                        false => None,
                    },
                },
                o_proj: source.weight(&[(&o, hidden)], query)?,
                gate_up_proj: NormLinear {
                    norm: norm(&name("post_attention_layernorm"))?.0,
                    weight: source.weight(&gate_up, hidden)?,
                    bias: None,
                },
                down_proj: source.weight(&[(&down, hidden)], inner)?,
            });
        }
        if config.rope.scaling != RopeScaling::Default {
            hash = hash
                .with(config.rope.frequencies().into_iter().chain([config.rope.attention_factor]).map(|x| x as f32));
        }
        let head = match config.tie_word_embeddings {
            true => embed_tokens.clone(),
            false => source.weight(&[("lm_head.weight", config.vocab_size)], hidden)?,
        };
        progress(config.num_hidden_layers, config.num_hidden_layers);
        refuse_unknown(checkpoint, config.tie_word_embeddings)?;
        Ok(Self {
            rope: Rope::new(&config.rope),
            config,
            device: device.clone(),
            dtype,
            embed_tokens,
            layers,
            lm_head: NormLinear { norm: last_norm, weight: head, bias: None },
            weights_hash: hash.finish(),
        })
    }
}

/// Where weights come from and go to.
struct Source<'a> {
    checkpoint: &'a Checkpoint,
    device: &'a Device,
    dtype: Dtype,
}

impl Source<'_> {
    /// Tensors one below the other, each given by its name and its outputs: `[sum of outputs, inputs]`.
    fn weight<S: AsRef<str>>(&self, parts: &[(S, usize)], inputs: usize) -> Result<Tensor<2>> {
        let shape = [parts.iter().map(|(_, outputs)| outputs).sum(), inputs];
        let data = match self.dtype {
            Dtype::F32 => TensorData::new(stacked(parts, inputs, |n, s| self.checkpoint.tensor_f32(n, s))?, shape),
            Dtype::F16 => TensorData::new(stacked(parts, inputs, |n, s| self.checkpoint.tensor_f16(n, s))?, shape),
        };
        let options = TensorCreationOptions::new(self.device.clone()).with_dtype(self.dtype.float().into());
        Ok(Tensor::from_data(data, options))
    }

    /// Biases one behind the other: `[1, sum of outputs]`, f32.
    fn bias(&self, parts: &[(String, usize)]) -> Result<Tensor<2>> {
        let mut all = Vec::new();
        for (name, outputs) in parts {
            all.extend(self.checkpoint.tensor_f32(name, &[*outputs])?);
        }
        let shape = [1, all.len()];
        Ok(Tensor::from_data(TensorData::new(all, shape), self.device))
    }

    /// The norms of a layer's queries and keys, named in this order.
    fn qk_norm(&self, [q, k]: [&str; 2], config: &ModelConfig) -> Result<QkNorm> {
        let (dim, heads) = (config.head_dim, config.num_attention_heads + config.num_key_value_heads);
        let mut all = self.checkpoint.tensor_f32(q, &[dim])?.repeat(config.num_attention_heads);
        all.extend(self.checkpoint.tensor_f32(k, &[dim])?.repeat(config.num_key_value_heads));
        let weight = Tensor::from_data(TensorData::new(all, [1, heads, dim]), self.device);
        Ok(QkNorm { weight, eps: config.rms_norm_eps })
    }

    /// A norm, and its weight on the host.
    fn norm(&self, name: &str, width: usize, eps: f64) -> Result<(RmsNorm, Vec<f32>)> {
        let numbers = self.checkpoint.tensor_f32(name, &[width])?;
        let weight = Tensor::from_data(TensorData::new(numbers.clone(), [1, width]), self.device);
        Ok((RmsNorm { weight, eps }, numbers))
    }
}

/// The numbers of tensors, one after the other.
fn stacked<T, S: AsRef<str>>(
    parts: &[(S, usize)],
    inputs: usize,
    read: impl Fn(&str, &[usize]) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let mut parts = parts.iter().map(|(name, outputs)| read(name.as_ref(), &[*outputs, inputs]));
    let mut all = parts.next().unwrap_or_else(|| Ok(Vec::new()))?;
    parts.try_for_each(|part| part.map(|part| all.extend(part)))?;
    Ok(all)
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
