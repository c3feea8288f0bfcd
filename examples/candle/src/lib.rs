//! FASA inside a Llama decoder written in candle tensors: what an engine adds to its decode loop, and nothing else.
//!
//! | module | what it holds |
//! |---|---|
//! | [`load`] | a Hugging Face folder: `config.json`, safetensors |
//! | [`layer`] | one decoder layer: ordinary candle code, and the one place where it asks which tokens to read |
//! | [`cache`] | keys and values as tensors, the sketch as bytes beside them |
//! | [`fasa`] | the part this example is about: sketch rows in, token positions out, all of it by `fasa-core` |
//!
//! It is written to be read. An engine would batch, keep its cache in half precision and fuse the three steps of
//! [`fasa`] into kernels; what it must compute stays the same.

pub mod cache;
pub mod fasa;
pub mod layer;
pub mod load;

use cache::KvCache;
use candle_core::{Device, Result, Tensor};
use fasa::Fasa;
use fasa_core::Pairing;
use fasa_core::profile::Model;
use fasa_core::rope::{angles, inverse_frequency};
use layer::{Angles, Layer, linear, rms_norm};
use load::Config;

/// A Llama model.
#[derive(Debug)]
pub struct Decoder {
    config: Config,
    /// `[vocab, hidden]`.
    embed_tokens: Tensor,
    layers: Vec<Layer>,
    /// `[hidden]`.
    norm: Tensor,
    /// `[vocab, hidden]`.
    lm_head: Tensor,
    inverse_frequencies: Vec<f64>,
    weights_hash: u64,
}

impl Decoder {
    /// The model's numbers.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What names this model in a profile.
    pub fn fingerprint(&self) -> Model<'_> {
        Model {
            architecture: &self.config.model_type,
            layers: self.config.num_hidden_layers as u32,
            query_heads: self.config.num_attention_heads as u32,
            kv_heads: self.config.num_key_value_heads as u32,
            head_dim: self.config.head_dim as u32,
            rotary_dim: self.config.head_dim as u32,
            rope_theta: self.config.rope_theta,
            pairing: Pairing::HalfSplit,
            weights: self.weights_hash,
            unrotated_layers: &[],
        }
    }

    /// Runs `tokens` behind those in the cache and returns the logits of the last one, `[vocab]`. Several tokens are a
    /// prefill and attend densely; one token is a decode step and attends to what `fasa` chooses, if there is one.
    ///
    /// # Errors
    /// Whatever candle or `fasa-core` returns.
    pub fn forward(&self, tokens: &[u32], cache: &mut KvCache, mut fasa: Option<&mut Fasa>) -> Result<Tensor> {
        let device = self.embed_tokens.device();
        let ids = Tensor::new(tokens, device)?;
        let mut x = self.embed_tokens.index_select(&ids, 0)?;
        let angles = self.angles(cache.len(), tokens.len(), device)?;
        for (index, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, index, &angles, cache, fasa.as_deref_mut())?;
        }
        cache.advance(tokens.len());
        let last = x.narrow(0, tokens.len() - 1, 1)?;
        linear(&rms_norm(&last, &self.norm, self.config.rms_norm_eps)?, &self.lm_head)?.squeeze(0)
    }

    /// Cosines and sines of the positions `from .. from + len`.
    fn angles(&self, from: usize, len: usize, device: &Device) -> Result<Angles> {
        let pairs = self.inverse_frequencies.len();
        let (mut cos, mut sin) = (vec![0.0; len * pairs], vec![0.0; len * pairs]);
        for (i, (cos, sin)) in cos.chunks_exact_mut(pairs).zip(sin.chunks_exact_mut(pairs)).enumerate() {
            angles(from + i, &self.inverse_frequencies, cos, sin).map_err(candle_core::Error::wrap)?;
        }
        let tensor = |numbers: Vec<f32>| Tensor::from_vec(numbers, (1, len, pairs), device);
        Ok(Angles { cos: tensor(cos)?, sin: tensor(sin)? })
    }
}

/// Frequencies of the rotary pairs, in radians per token.
fn inverse_frequencies(config: &Config) -> Vec<f64> {
    (0..config.head_dim / 2).map(|i| inverse_frequency(config.rope_theta, config.head_dim, i)).collect()
}
