//! What measurements need: contexts of noise, one layer's attention alone, and what the bytes allow.

use crate::cache::KvCache;
use crate::config::ModelConfig;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::ops::{AttentionOptions, FasaStep, Status};
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

/// Memory to read, for a measure of how fast that goes.
#[derive(Debug)]
pub struct Memory(Kind);

#[derive(Debug)]
enum Kind {
    Host(fasa_cpu::machine::Memory),
    Device(Box<Tensor<1>>),
}

/// 256 MiB of `device`'s memory; of the host's on huge pages, on which weights and caches lie ([`HugePages`](crate::HugePages)).
///
/// # Errors
/// [`crate::Error::Device`] if the device fails.
pub fn memory(device: &Device) -> Result<Memory> {
    const BYTES: usize = 256 << 20;
    if !crate::device::is_gpu(device) {
        return Ok(Memory(Kind::Host(fasa_cpu::machine::Memory::on_huge_pages(BYTES))));
    }
    let memory = Memory(Kind::Device(Box::new(Tensor::zeros([BYTES / 4], device))));
    memory.read(); // the first pass compiles
    wait(device)?;
    Ok(memory)
}

/// 256 MiB of the host's memory on ordinary pages. `None` for a GPU, which has pages of its own.
pub fn memory_on_ordinary_pages(device: &Device) -> Option<Memory> {
    (!crate::device::is_gpu(device)).then(|| Memory::new(256 << 20))
}

impl Memory {
    /// So many bytes of the host's memory, on ordinary pages.
    pub fn new(bytes: usize) -> Self {
        Self(Kind::Host(fasa_cpu::machine::Memory::new(bytes)))
    }

    /// Bytes per second: read by all of the processor's threads, or read and written by a GPU that adds to all numbers, 10 times.
    /// NaN if the device fails.
    pub fn read(&self) -> f64 {
        let numbers = match &self.0 {
            Kind::Host(memory) => return memory.read(),
            Kind::Device(numbers) => numbers,
        };
        let device = numbers.device();
        if wait(&device).is_err() {
            return f64::NAN;
        }
        let start = Instant::now();
        for _ in 0..10 {
            // Another tensor each time: the numbers have a second owner.
            drop((**numbers).clone() + 1.0);
        }
        match wait(&device) {
            Ok(()) => (10 * 8 * numbers.dims()[0]) as f64 / start.elapsed().as_secs_f64(),
            Err(_) => f64::NAN,
        }
    }
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

/// Bytes per second from the host's memory to that of a GPU; `None` for the processor.
///
/// # Errors
/// [`crate::Error::Device`] if the device fails.
pub fn link(device: &Device) -> Result<Option<f64>> {
    #[cfg(feature = "cube")]
    if crate::device::is_gpu(device) {
        let gpu = crate::ops::cube::hosted::open(device)?;
        let speed = fasa_cube::tier::to_device(&gpu.client);
        return speed.map(Some).map_err(|error| crate::device::failure(&error.to_string()));
    }
    let _ = device;
    Ok(None)
}

/// Bytes of a GPU's memory that this process has taken, in use or kept for later; `None` for the processor.
pub fn reserved(device: &Device) -> Option<u64> {
    #[cfg(feature = "cube")]
    if let Ok(gpu) = crate::ops::cube::hosted::open(device) {
        return Some(fasa_cube::tier::reserved(&gpu.client));
    }
    let _ = device;
    None
}

/// Gives back what a GPU's memory is kept for later.
///
/// # Errors
/// [`crate::Error::Device`] if the device fails.
pub fn release(device: &Device) -> Result<()> {
    wait(device)?;
    #[cfg(feature = "cube")]
    if crate::device::is_gpu(device) {
        let gpu = crate::ops::cube::hosted::open(device)?;
        return gpu.client.memory_cleanup().map_err(|error| crate::device::failure(&error.to_string()));
    }
    Ok(())
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
        cache.append_noise(len)?;
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
        self.cache.dense_decode(0, self.queries.clone(), self.cache.len(), AttentionOptions::default())
    }

    /// A FASA step: the newest token's sketch row, scores, selection, attention to `budget` tokens.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if an operation fails.
    pub fn fasa(&mut self, plan: &Arc<OwnedPlan>, budget: usize) -> Result<Tensor<3>> {
        let len = self.cache.len();
        self.cache.truncate(len - 1);
        let step = FasaStep {
            layer: 0,
            len,
            budget,
            softcap: None,
            plan: plan.clone(),
            recorder: None,
            status: Status::default(),
        };
        let attended = self.cache.fasa_decode(self.queries.clone(), step);
        self.cache.advance(1);
        attended
    }
}
