//! A Hugging Face folder to a decoder.

use crate::Decoder;
use crate::inverse_frequencies;
use crate::layer::Layer;
use candle_core::{DType, Device, Error, Result, Tensor};
use fasa_core::profile::WeightsHash;
use std::collections::HashMap;
use std::path::Path;

/// The numbers of `config.json` that matter here.
#[derive(Debug, Clone, serde::Deserialize)]
#[allow(missing_docs)] // the names are those of `transformers`
pub struct Config {
    pub model_type: String,
    pub num_hidden_layers: usize,
    pub num_attention_heads: usize,
    pub num_key_value_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    pub rope_theta: f64,
    pub tie_word_embeddings: bool,
}

impl Decoder {
    /// Reads `config.json` and `model.safetensors` of a folder; weights become f32.
    ///
    /// # Errors
    /// If a file cannot be read or a tensor is missing.
    pub fn load(folder: &Path, device: &Device) -> Result<Self> {
        let config = std::fs::read(folder.join("config.json"))?;
        let config: Config = serde_json::from_slice(&config).map_err(Error::wrap)?;
        let weights = Weights(candle_core::safetensors::load(folder.join("model.safetensors"), device)?);
        let layers =
            (0..config.num_hidden_layers).map(|i| Layer::load(&weights, i, &config)).collect::<Result<Vec<_>>>()?;
        let embed_tokens = weights.get("model.embed_tokens")?;
        let lm_head = if config.tie_word_embeddings { embed_tokens.clone() } else { weights.get("lm_head")? };
        let norm = weights.get("model.norm")?;

        // What a profile knows its model by: the final norm, and the key projections of the first and the last layer.
        let mut hash = WeightsHash::default().with(norm.to_vec1::<f32>()?);
        for (i, layer) in layers.iter().enumerate() {
            if i == 0 || i + 1 == layers.len() {
                hash = hash.with(layer.k_proj.flatten_all()?.to_vec1::<f32>()?);
            }
        }
        Ok(Self {
            inverse_frequencies: inverse_frequencies(&config),
            weights_hash: hash.finish(),
            config,
            embed_tokens,
            layers,
            norm,
            lm_head,
        })
    }
}

/// The tensors of a checkpoint.
pub(crate) struct Weights(HashMap<String, Tensor>);

impl Weights {
    /// `{name}.weight`, in f32.
    pub(crate) fn get(&self, name: &str) -> Result<Tensor> {
        match self.0.get(&format!("{name}.weight")) {
            Some(tensor) => tensor.to_dtype(DType::F32),
            None => candle_core::bail!("the checkpoint has no tensor {name}.weight"),
        }
    }
}
