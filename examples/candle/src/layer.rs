//! One decoder layer.

use crate::cache::{KvCache, rows};
use crate::fasa::Fasa;
use crate::load::{Config, Weights};
use candle_core::{D, Result, Tensor};

/// Cosines and sines of the new tokens' positions, `[1, new, head_dim / 2]` each.
#[derive(Debug)]
pub(crate) struct Angles {
    pub cos: Tensor,
    pub sin: Tensor,
}

/// Weights of one layer, `[out, in]` as checkpoints store them.
#[derive(Debug)]
pub(crate) struct Layer {
    input_layernorm: Tensor,
    q_proj: Tensor,
    pub k_proj: Tensor,
    v_proj: Tensor,
    o_proj: Tensor,
    post_attention_layernorm: Tensor,
    gate_proj: Tensor,
    up_proj: Tensor,
    down_proj: Tensor,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    eps: f64,
}

impl Layer {
    pub fn load(weights: &Weights, index: usize, config: &Config) -> Result<Self> {
        let get = |part: &str| weights.get(&format!("model.layers.{index}.{part}"));
        Ok(Self {
            input_layernorm: get("input_layernorm")?,
            q_proj: get("self_attn.q_proj")?,
            k_proj: get("self_attn.k_proj")?,
            v_proj: get("self_attn.v_proj")?,
            o_proj: get("self_attn.o_proj")?,
            post_attention_layernorm: get("post_attention_layernorm")?,
            gate_proj: get("mlp.gate_proj")?,
            up_proj: get("mlp.up_proj")?,
            down_proj: get("mlp.down_proj")?,
            heads: config.num_attention_heads,
            kv_heads: config.num_key_value_heads,
            head_dim: config.head_dim,
            eps: config.rms_norm_eps,
        })
    }

    /// `x` `[new, hidden]`, the residual stream of the new tokens.
    pub fn forward(
        &self,
        x: &Tensor,
        index: usize,
        angles: &Angles,
        cache: &mut KvCache,
        fasa: Option<&mut Fasa>,
    ) -> Result<Tensor> {
        let new = x.dim(0)?;
        let input = rms_norm(x, &self.input_layernorm, self.eps)?;
        // [heads, new, head_dim]
        let project = |weight: &Tensor, heads: usize| {
            linear(&input, weight)?.reshape((new, heads, self.head_dim))?.transpose(0, 1)?.contiguous()
        };
        let queries = rotate(&project(&self.q_proj, self.heads)?, angles)?;
        let keys = rotate(&project(&self.k_proj, self.kv_heads)?, angles)?;
        cache.append(index, &keys, &project(&self.v_proj, self.kv_heads)?)?;

        let seen = cache.len() + new;
        let attended = match fasa {
            Some(fasa) if new == 1 && !fasa.is_dense(index, seen) => self.chosen(&queries, index, seen, cache, fasa)?,
            _ => self.dense(&queries, index, seen, cache)?,
        };
        let attended = attended.transpose(0, 1)?.reshape((new, self.heads * self.head_dim))?;
        let x = (x + linear(&attended, &self.o_proj)?)?;
        let input = rms_norm(&x, &self.post_attention_layernorm, self.eps)?;
        let inner = (linear(&input, &self.gate_proj)?.silu()? * linear(&input, &self.up_proj)?)?;
        x + linear(&inner, &self.down_proj)?
    }

    /// Causal attention to all `seen` tokens: `queries` `[heads, new, head_dim]`, and so is what it returns.
    fn dense(&self, queries: &Tensor, index: usize, seen: usize, cache: &KvCache) -> Result<Tensor> {
        let (group, new) = (self.heads / self.kv_heads, queries.dim(1)?);
        let layer = cache.layer(index);
        let (keys, values) = (layer.keys.narrow(1, 0, seen)?, layer.values.narrow(1, 0, seen)?);
        let grouped = queries.reshape((self.kv_heads, group * new, self.head_dim))?;
        let scores = self.scores(&grouped, &keys.contiguous()?)?.reshape((self.kv_heads * group, new, seen))?;
        let hidden = |i: usize| (0..seen).map(move |t| if t > seen - new + i { f32::NEG_INFINITY } else { 0.0 });
        let mask = Tensor::from_vec((0..new).flat_map(hidden).collect(), (1, new, seen), queries.device())?;
        let weights = softmax(&scores.broadcast_add(&mask)?)?.reshape((self.kv_heads, group * new, seen))?;
        weights.matmul(&values.contiguous()?)?.reshape((self.heads, new, self.head_dim))
    }

    /// One token's attention to the tokens that FASA chooses, KV head after KV head: `queries` `[heads, 1, head_dim]`.
    fn chosen(
        &self,
        queries: &Tensor,
        index: usize,
        seen: usize,
        cache: &mut KvCache,
        fasa: &mut Fasa,
    ) -> Result<Tensor> {
        let group = self.heads / self.kv_heads;
        let mut attended = Vec::with_capacity(self.kv_heads);
        for kv_head in 0..self.kv_heads {
            let queries = queries.narrow(0, kv_head * group, group)?.squeeze(1)?; // [group, head_dim]
            let (layer, sketch) = cache.layer_and_sketch(index, kv_head);
            // The keys are read where they lie; FASA itself looks at the sketch alone.
            let (storage, layout) = layer.keys.storage_and_layout();
            let keys = rows(&storage, layout, kv_head, seen)?;
            let numbers = queries.flatten_all()?.to_vec1::<f32>()?;
            let positions = fasa.choose(index, kv_head, &numbers, keys, sketch).map_err(candle_core::Error::wrap)?;

            let ids = Tensor::new(positions, queries.device())?;
            let keys = layer.keys.get(kv_head)?.index_select(&ids, 0)?; // [budget, head_dim]
            let values = layer.values.get(kv_head)?.index_select(&ids, 0)?;
            attended.push(softmax(&self.scores(&queries, &keys)?)?.matmul(&values)?);
        }
        Tensor::cat(&attended, 0)?.unsqueeze(1)
    }

    /// `q.k / √d`.
    fn scores(&self, queries: &Tensor, keys: &Tensor) -> Result<Tensor> {
        queries.matmul(&keys.transpose(D::Minus2, D::Minus1)?)? / (self.head_dim as f64).sqrt()
    }
}

pub(crate) fn linear(x: &Tensor, weight: &Tensor) -> Result<Tensor> {
    x.matmul(&weight.t()?)
}

pub(crate) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let mean_square = x.sqr()?.mean_keepdim(D::Minus1)?;
    x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(weight)
}

/// Turns `x`, `[heads, new, head_dim]`, in the layout of Hugging Face checkpoints: dimension i turns with
/// i + head_dim / 2.
fn rotate(x: &Tensor, angles: &Angles) -> Result<Tensor> {
    let half = x.dim(2)? / 2;
    let (first, second) = (x.narrow(2, 0, half)?, x.narrow(2, half, half)?);
    let turned_first = (first.broadcast_mul(&angles.cos)? - second.broadcast_mul(&angles.sin)?)?;
    let turned_second = (second.broadcast_mul(&angles.cos)? + first.broadcast_mul(&angles.sin)?)?;
    Tensor::cat(&[turned_first, turned_second], 2)
}

fn softmax(scores: &Tensor) -> Result<Tensor> {
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)
}
