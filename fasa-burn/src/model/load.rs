//! From a checkpoint to a decoder.

use super::layer::{Layer, NormLinear, RmsNorm};
use super::{Decoder, Rope};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
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
                hash = hash.with(checkpoint.tensor_f32(&k, &[kv, hidden])?);
            }
            layers.push(Layer {
                qkv_proj: NormLinear {
                    norm: norm(&name("input_layernorm"))?.0,
                    weight: source.weight(&[(&q, query), (&k, kv), (&v, kv)], hidden)?,
                },
                o_proj: source.weight(&[(&o, hidden)], query)?,
                gate_up_proj: NormLinear {
                    norm: norm(&name("post_attention_layernorm"))?.0,
                    weight: source.weight(&[(&gate, inner), (&up, inner)], hidden)?,
                },
                down_proj: source.weight(&[(&down, hidden)], inner)?,
            });
        }
        let head = match config.tie_word_embeddings {
            true => embed_tokens.clone(),
            false => source.weight(&[("lm_head.weight", config.vocab_size)], hidden)?,
        };
        progress(config.num_hidden_layers, config.num_hidden_layers);
        refuse_unknown(checkpoint, config.tie_word_embeddings)?;
        Ok(Self {
            rope: Rope::new(config.rope_theta, config.head_dim),
            config,
            device: device.clone(),
            dtype,
            embed_tokens,
            layers,
            lm_head: NormLinear { norm: last_norm, weight: head },
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
    fn weight(&self, parts: &[(&str, usize)], inputs: usize) -> Result<Tensor<2>> {
        let shape = [parts.iter().map(|(_, outputs)| outputs).sum(), inputs];
        let data = match self.dtype {
            Dtype::F32 => TensorData::new(stacked(parts, inputs, |n, s| self.checkpoint.tensor_f32(n, s))?, shape),
            Dtype::F16 => TensorData::new(stacked(parts, inputs, |n, s| self.checkpoint.tensor_f16(n, s))?, shape),
        };
        let options = TensorCreationOptions::new(self.device.clone()).with_dtype(self.dtype.float().into());
        Ok(Tensor::from_data(data, options))
    }

    /// A norm, and its weight on the host.
    fn norm(&self, name: &str, width: usize, eps: f64) -> Result<(RmsNorm, Vec<f32>)> {
        let numbers = self.checkpoint.tensor_f32(name, &[width])?;
        let weight = Tensor::from_data(TensorData::new(numbers.clone(), [1, width]), self.device);
        Ok((RmsNorm { weight, eps }, numbers))
    }
}

/// The numbers of tensors, one after the other.
fn stacked<T>(
    parts: &[(&str, usize)],
    inputs: usize,
    read: impl Fn(&str, &[usize]) -> Result<Vec<T>>,
) -> Result<Vec<T>> {
    let mut parts = parts.iter().map(|(name, outputs)| read(name, &[*outputs, inputs]));
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
