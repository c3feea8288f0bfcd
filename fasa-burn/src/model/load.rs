//! From a checkpoint to a decoder.

use super::layer::{HeadNorms, Layer, Turning};
use super::parts::{Input, Linear, Mlp, Norm, Output};
use super::{Decoder, Rope, names};
use crate::cache::Placement;
use crate::checkpoint::Checkpoint;
use crate::config::{self, ModelConfig, NormPlace, QkNorm, RopeScaling};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::AttentionOptions;
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
    /// [`crate::Error::Checkpoint`] naming the file and the tensors, [`crate::Error::Overflow`] if a weight is too large for
    /// `dtype`, [`crate::Error::Request`] if the device does not compute with `dtype`.
    pub fn load(
        config: ModelConfig,
        checkpoint: &Checkpoint,
        device: &Device,
        dtype: Dtype,
        progress: LoadProgress<'_>,
    ) -> Result<Self> {
        dtype.check(device)?;
        names::check(&config, checkpoint)?;
        let source = Source { checkpoint, device, dtype };
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let query = config.num_attention_heads * config.head_dim;
        let kv = config.num_key_value_heads * config.head_dim;

        let embed_tokens = source.weight(&[("model.embed_tokens.weight", config.vocab_size)], hidden)?;
        let (last_norm, numbers) = source.norm("model.norm", &config)?;
        let mut hash = WeightsHash::default().with(numbers);
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
            let bias = |present: bool, parts: &[(&str, usize)]| -> Result<Option<Tensor<2>>> {
                let parts = parts.iter().map(|(part, n)| (format!("model.layers.{i}.{part}_proj.bias"), *n));
                if present { source.bias(&parts.collect::<Vec<_>>()).map(Some) } else { Ok(None) }
            };
            let norm = |name: Option<&str>| -> Result<Option<Norm>> {
                let norm = name.map(|name| source.norm(&format!("model.layers.{i}.{name}"), &config));
                norm.transpose().map(|norm| norm.map(|(norm, _)| norm))
            };
            let names = BlockNorms::of(&config);
            let qkv_bias = [("self_attn.q", query), ("self_attn.k", kv), ("self_attn.v", kv)];
            layers.push(Layer {
                turning: match config.layer_rope(i) {
                    None => Turning::Still,
                    rope if rope == config.local_rope.as_ref() => Turning::Local,
                    _ => Turning::Usual,
                },
                qk_norm: config.qk_norm.map(|kind| source.head_norms(i, kind, &config)).transpose()?,
                query_multiplier: config.query_multiplier(),
                attention: AttentionOptions {
                    window: config.window(i),
                    softcap: config.attention_softcap.map(|cap| cap as f32),
                },
                qkv: Input {
                    norm: norm(names.before_attention)?,
                    linear: Linear { weight: source.weight(&qkv, hidden)?, bias: bias(config.qkv_bias, &qkv_bias)? },
                },
                output: Output {
                    linear: Linear {
                        weight: source.weight(&[(&o, hidden)], query)?,
                        bias: bias(config.output_bias, &[("self_attn.o", hidden)])?,
                    },
                    norm: norm(names.after_attention)?,
                    multiplier: config.residual_multiplier,
                },
                mlp: Mlp {
                    gate_up: Input {
                        norm: norm(names.before_mlp)?,
                        linear: Linear {
                            weight: source.weight(&gate_up, hidden)?,
                            bias: bias(config.mlp_bias, &[("mlp.gate", inner), ("mlp.up", inner)])?,
                        },
                    },
                    activation: config.activation,
                    down: Output {
                        linear: Linear {
                            weight: source.weight(&[(&down, hidden)], inner)?,
                            bias: bias(config.mlp_bias, &[("mlp.down", hidden)])?,
                        },
                        norm: norm(names.after_mlp)?,
                        multiplier: config.residual_multiplier,
                    },
                },
                parallel: config.parallel_residual,
            });
        }
        for rope in [Some(&config.rope), config.local_rope.as_ref()].into_iter().flatten() {
            if rope.scaling != RopeScaling::Default || config.local_rope.is_some() {
                let mut all = rope.frequencies(1);
                if let RopeScaling::Dynamic { original, .. } | RopeScaling::Long { original, .. } = rope.scaling {
                    all.extend(rope.frequencies(original + 1));
                }
                hash = hash.with(all.into_iter().chain([rope.attention_factor]).map(|x| x as f32));
            }
        }
        let head = match config.tie_word_embeddings {
            true => embed_tokens.clone(),
            false => source.weight(&[("lm_head.weight", config.vocab_size)], hidden)?,
        };
        progress(config.num_hidden_layers, config.num_hidden_layers);
        Ok(Self {
            rope: Rope::new(&config.rope),
            local_rope: config.local_rope.as_ref().map(Rope::new),
            config,
            device: device.clone(),
            dtype,
            embed_tokens,
            layers,
            lm_head: Input { norm: Some(last_norm), linear: Linear { weight: head, bias: None } },
            weights_hash: hash.finish(),
            placement: Placement::Device,
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
            Dtype::Bf16 => TensorData::new(stacked(parts, inputs, |n, s| self.checkpoint.tensor_bf16(n, s))?, shape),
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

    /// The norms of a layer's queries and keys.
    fn head_norms(&self, layer: usize, kind: QkNorm, config: &ModelConfig) -> Result<HeadNorms> {
        let (dim, query_heads, kv_heads) = (config.head_dim, config.num_attention_heads, config.num_key_value_heads);
        let mut all = Vec::with_capacity((query_heads + kv_heads) * dim);
        for (part, heads) in [("q", query_heads), ("k", kv_heads)] {
            let name = |rest: &str| format!("model.layers.{layer}.self_attn.{part}_{rest}.weight");
            match kind {
                QkNorm::Head => all.extend(self.checkpoint.tensor_f32(&name("norm"), &[dim])?.repeat(heads)),
                QkNorm::Projection => all.extend(self.checkpoint.tensor_f32(&name("norm"), &[heads * dim])?),
                QkNorm::EachHead => {
                    for head in 0..heads {
                        let name = name(&format!("layernorm.norms.{head}"));
                        all.extend(self.checkpoint.tensor_f32(&name, &[dim])?);
                    }
                }
            }
        }
        plus_one(&mut all, config);
        let weight = Tensor::from_data(TensorData::new(all, [1, query_heads + kv_heads, dim]), self.device);
        Ok(HeadNorms { kind, weight, query_heads, eps: config.norm_eps })
    }

    /// A norm of the residual stream, and its weight as the checkpoint has it.
    fn norm(&self, name: &str, config: &ModelConfig) -> Result<(Norm, Vec<f32>)> {
        let width = config.hidden_size;
        let tensor = |numbers| Tensor::from_data(TensorData::new(numbers, [1, width]), self.device);
        let numbers = self.checkpoint.tensor_f32(&format!("{name}.weight"), &[width])?;
        let mut weight = numbers.clone();
        plus_one(&mut weight, config);
        let layer = match config.norm {
            config::Norm::Layer => Some(tensor(self.checkpoint.tensor_f32(&format!("{name}.bias"), &[width])?)),
            _ => None,
        };
        Ok((Norm { weight: tensor(weight), layer, eps: config.norm_eps }, numbers))
    }
}

/// Gemma's checkpoints have the difference from 1.
fn plus_one(weight: &mut [f32], config: &ModelConfig) {
    if config.norm == config::Norm::RmsPlusOne {
        weight.iter_mut().for_each(|w| *w += 1.0);
    }
}

/// The names of the norms around the two blocks of a layer.
pub(super) struct BlockNorms {
    pub before_attention: Option<&'static str>,
    pub after_attention: Option<&'static str>,
    pub before_mlp: Option<&'static str>,
    pub after_mlp: Option<&'static str>,
}

impl BlockNorms {
    pub fn of(config: &ModelConfig) -> Self {
        let after = (Some("post_attention_layernorm"), Some("post_feedforward_layernorm"));
        let ((before_attention, before_mlp), (after_attention, after_mlp)) = match config.norm_place {
            // One norm for both blocks.
            NormPlace::Before if config.parallel_residual => {
                ((Some("input_layernorm"), Some("input_layernorm")), (None, None))
            }
            NormPlace::Before => ((Some("input_layernorm"), Some("post_attention_layernorm")), (None, None)),
            NormPlace::After => ((None, None), after),
            NormPlace::Around => ((Some("input_layernorm"), Some("pre_feedforward_layernorm")), after),
        };
        Self { before_attention, after_attention, before_mlp, after_mlp }
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
