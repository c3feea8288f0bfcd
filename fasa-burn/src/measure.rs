//! What measurements need: contexts of noise, one layer's attention alone, and what the bytes allow.

use crate::cache::KvCache;
use crate::config::ModelConfig;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::{self, FasaStep, Status};
use burn::tensor::{Device, Distribution, Tensor};
use fasa_core::Pairing;
use fasa_core::config::FasaConfig;
use fasa_core::policy::OwnedPlan;
use fasa_core::profile::Model;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Bytes of weights that one decode step reads: all projections and the output layer. (Of the embedding it reads one row.)
pub fn weight_bytes(config: &ModelConfig, dtype: Dtype) -> u64 {
    let (hidden, dim) = (config.hidden_size, config.head_dim);
    let attention = (2 * config.num_attention_heads + 2 * config.num_key_value_heads) * dim * hidden;
    let layer = attention + 3 * config.intermediate_size * hidden;
    ((config.num_hidden_layers * layer + config.vocab_size * hidden) * dtype.bytes()) as u64
}

/// Bytes per second that the processor reads from memory with all threads: the median of 15 passes over 256 MiB.
pub fn read_bandwidth() -> f64 {
    fasa_cpu::machine::read_bandwidth(256 << 20, 15)
}

/// Bytes per second that a GPU reads and writes when it adds to 256 MiB of numbers: the median of 15 rounds of 10 passes.
///
/// # Errors
/// [`crate::Error::Device`] if the device fails.
pub fn device_bandwidth(device: &Device) -> Result<f64> {
    const NUMBERS: usize = 64 << 20;
    let numbers: Tensor<1> = Tensor::zeros([NUMBERS], device);
    let mut speeds = Vec::new();
    for round in 0..16 {
        wait(device)?;
        let start = Instant::now();
        for _ in 0..10 {
            // Another tensor each time: the numbers have a second owner.
            drop(numbers.clone() + 1.0);
        }
        wait(device)?;
        if round > 0 {
            speeds.push(10.0 * 8.0 * NUMBERS as f64 / start.elapsed().as_secs_f64());
        }
    }
    speeds.sort_by(f64::total_cmp);
    Ok(speeds[speeds.len() / 2])
}

/// Waits until a GPU has done what it was asked to; the processor has.
///
/// # Errors
/// [`crate::Error::Device`] if it could not.
pub fn wait(device: &Device) -> Result<()> {
    match crate::device::is_gpu(device) {
        true => device.sync().map_err(|e| crate::device::failure(&e.to_string())),
        false => Ok(()),
    }
}

/// Runs what is measured as a decode step runs: with the CPU's threads awake. See [`fasa_cpu::awake`].
pub fn awake<R: Send>(body: impl FnOnce() -> R + Send) -> R {
    fasa_cpu::awake(body)
}

/// Heads and dimensions of an attention layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub query_heads: usize,
    /// KV heads.
    pub kv_heads: usize,
    /// Dimensions per head.
    pub head_dim: usize,
}

/// Decode attention of one layer over a context of noise: no projections, no other layers.
#[derive(Debug)]
pub struct Attention {
    shape: AttentionShape,
    cache: KvCache,
    queries: Tensor<3>,
}

impl Attention {
    /// A context of `len` tokens.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for a shape that no model has, [`crate::Error::Request`] if the device does not compute with `dtype`.
    pub fn new(shape: AttentionShape, len: usize, dtype: Dtype, device: &Device) -> Result<Self> {
        let AttentionShape { query_heads, kv_heads, head_dim } = shape;
        let json = format!(
            r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "vocab_size": 8,
                "hidden_size": {}, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": {query_heads},
                "num_key_value_heads": {kv_heads}, "head_dim": {head_dim}, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
                "max_position_embeddings": {}, "tie_word_embeddings": true, "bos_token_id": 0, "eos_token_id": 0}}"#,
            query_heads * head_dim,
            len + 1
        );
        let config = ModelConfig::from_json(json.as_bytes(), Path::new("the shape"))?;
        let mut cache = KvCache::new(&config, len, dtype, device)?;
        cache.append_noise(len);
        let queries = Tensor::random([1, query_heads, head_dim], Distribution::Normal(0.0, 1.0), device);
        Ok(Self { shape, cache, queries })
    }

    /// A plan for this shape, its chunks ranked by noise.
    ///
    /// # Errors
    /// [`crate::Error::Core`] for more chunks than there are.
    pub fn plan(&self, config: FasaConfig) -> Result<Arc<OwnedPlan>> {
        let AttentionShape { query_heads, kv_heads, head_dim } = self.shape;
        let model = Model {
            architecture: "llama",
            layers: 1,
            query_heads: query_heads as u32,
            kv_heads: kv_heads as u32,
            head_dim: head_dim as u32,
            rotary_dim: head_dim as u32,
            rope_theta: 5e5,
            pairing: Pairing::HalfSplit,
            weights: 0,
            unrotated_layers: &[],
        };
        crate::random::plan(model, config)
    }

    /// A step that reads everything.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if an operation fails.
    pub fn dense(&mut self) -> Result<Tensor<3>> {
        let (keys, values) = self.cache.layer(0);
        ops::dense_decode(self.queries.clone(), keys, values, self.cache.len())
    }

    /// A FASA step: the newest token's sketch row, scores, selection, attention to `budget` tokens.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if an operation fails.
    pub fn fasa(&mut self, plan: &Arc<OwnedPlan>, budget: usize) -> Result<Tensor<3>> {
        let len = self.cache.len();
        self.cache.truncate(len - 1);
        let sketch = self.cache.sketch(0, len, plan)?;
        self.cache.advance(1);
        let (keys, values) = self.cache.layer(0);
        let step = FasaStep { layer: 0, len, budget, plan: plan.clone(), recorder: None, status: Status::default() };
        ops::fasa_decode(self.queries.clone(), keys, values, sketch, step)
    }
}
