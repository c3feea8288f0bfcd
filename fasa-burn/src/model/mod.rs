//! The decoder.

mod batch;
mod layer;
mod load;
mod names;
mod parts;
#[cfg(feature = "cube")]
mod replay;

pub use load::LoadProgress;
#[cfg(feature = "cube")]
pub(crate) use replay::Recorded;

use crate::cache::{KvCache, Placement};
use crate::config::{ModelConfig, RopeScaling};
use crate::device::is_gpu;
use crate::dtype::Dtype;
use crate::error::{Error, Result};
use crate::method::Method;
use crate::ops::Recorder;
use crate::rope::{Angles, Rope};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use fasa_core::Pairing;
use fasa_core::profile::{Model, ProfileError, ProfileView};
use fasa_cpu::linear::FEW_TOKENS;
use layer::{Layer, Turning};
use parts::{Input, capped, scaled};
use std::path::Path;

/// Tokens of a prompt that are computed together. Attention scores of a chunk live in tiles, so memory does not grow with
/// the prompt; larger chunks only make better use of matrix products.
pub const PREFILL_CHUNK: usize = 512;

/// A causal language model.
#[derive(Debug)]
pub struct Decoder {
    config: ModelConfig,
    device: Device,
    dtype: Dtype,
    embed_tokens: Tensor<2>,
    layers: Vec<Layer>,
    /// Behind the last norm.
    lm_head: Input,
    rope: Rope,
    /// Of layers with a sliding window.
    local_rope: Option<Rope>,
    weights_hash: u64,
    placement: Placement,
}

/// Which logits a forward pass returns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logits {
    /// None: the tokens only enter the cache.
    None,
    /// Those of the last token, `[1, vocab]`.
    Last,
    /// Those of every token, `[tokens, vocab]`.
    All,
}

/// Looks at a forward pass from inside: what calibration and tests read. The pass may run on another thread.
pub trait Observer: Send {
    /// Called for each layer with the rotated queries of the new tokens, `[query_heads, new, head_dim]`, the first of which
    /// is at `position`; times [`ModelConfig::query_multiplier`], so that scores are always divided by `√head_dim`. The
    /// layer's keys are in the cache by then.
    fn queries(&mut self, layer: usize, position: usize, queries: &Tensor<3>);
}

/// Options of [`Decoder::forward`] that most calls leave alone.
#[derive(Default)]
pub struct Watch<'a> {
    /// Sees every layer's queries.
    pub observer: Option<&'a mut dyn Observer>,
    /// Collects the tokens that sparse steps attended to.
    pub recorder: Option<Recorder>,
}

impl Decoder {
    /// The model's numbers.
    pub fn config(&self) -> &ModelConfig {
        &self.config
    }

    /// The device it lives on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The number format of its weights and caches.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// Lets contexts grow to `positions`, beyond what the model was trained for. For measuring speed: what it writes there
    /// means nothing.
    pub fn allow_positions(&mut self, positions: usize) {
        self.config.max_position_embeddings = self.config.max_position_embeddings.max(positions);
    }

    /// Where caches made from now on keep keys and values; at first, on the device.
    ///
    /// # Errors
    /// [`Error::Request`] for a second tier in a folder that is not there.
    pub fn set_placement(&mut self, placement: Placement) -> Result<()> {
        self.placement = placement.on(&self.device)?;
        Ok(())
    }

    /// Where caches keep keys and values.
    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// An empty cache for this model, in its number format.
    pub fn new_cache(&self, capacity: usize) -> KvCache {
        KvCache::empty(&self.config, capacity, self.dtype, &self.device, self.placement.clone())
    }

    /// What names this model in a profile.
    pub fn fingerprint(&self) -> Model<'_> {
        Model {
            architecture: self.config.model_type,
            layers: self.config.num_hidden_layers as u32,
            query_heads: self.config.num_attention_heads as u32,
            kv_heads: self.config.num_key_value_heads as u32,
            head_dim: self.config.head_dim as u32,
            rotary_dim: self.config.rope.rotary_dim as u32,
            rope_theta: self.config.rope.theta,
            pairing: Pairing::HalfSplit,
            weights: self.weights_hash,
            unrotated_layers: &self.config.unrotated_layers,
        }
    }

    /// Parses a profile and checks that it belongs to this model. `name` is what errors call it.
    ///
    /// # Errors
    /// [`Error::Profile`] if it is damaged or belongs to another model.
    pub fn profile<'p>(&self, bytes: &'p [u8], name: &Path) -> Result<ProfileView<'p>> {
        let wrap = |problem: ProfileError| Error::Profile { path: name.to_owned(), problem };
        let view = ProfileView::parse(bytes).map_err(wrap)?;
        view.model().matches(&self.fingerprint()).map_err(wrap)?;
        Ok(view)
    }

    /// Runs `tokens` behind those in the cache. One token is a decode step and attends by `method`; several are a prefill
    /// and attend densely.
    ///
    /// # Errors
    /// [`Error::Prompt`] for a token outside the vocabulary or beyond the model's positions, [`Error::Core`] if the method
    /// does not fit the model.
    pub fn forward(
        &self,
        tokens: &[u32],
        cache: &mut KvCache,
        method: &Method,
        logits: Logits,
    ) -> Result<Option<Tensor<2>>> {
        self.forward_watched(tokens, cache, method, logits, &mut Watch::default())
    }

    /// [`forward`](Self::forward), observed.
    ///
    /// # Errors
    /// As [`forward`](Self::forward).
    pub fn forward_watched(
        &self,
        tokens: &[u32],
        cache: &mut KvCache,
        method: &Method,
        logits: Logits,
        watch: &mut Watch<'_>,
    ) -> Result<Option<Tensor<2>>> {
        self.check(tokens, cache)?;
        cache.reserve(tokens.len())?;
        cache.expect(cache.len() + tokens.len());
        if is_gpu(&self.device) {
            self.check_device(cache, method)?;
            #[cfg(feature = "cube")]
            if let ([token], Logits::Last, None, None) = (tokens, logits, &watch.observer, &watch.recorder)
                && let Some(logits) = self.step_again(*token, cache, method)?
            {
                return Ok(Some(logits));
            }
            return self.forward_chunks(tokens, cache, method, logits, watch);
        }
        // On a thread of the pool, a kernel that is shared out goes on at once; from any other, each would put the caller
        // to sleep and wake it again, many times per token.
        match tokens.len() <= FEW_TOKENS {
            true => fasa_cpu::awake(|| self.forward_chunks(tokens, cache, method, logits, watch)),
            false => rayon::scope(|_| self.forward_chunks(tokens, cache, method, logits, watch)),
        }
    }

    fn forward_chunks(
        &self,
        tokens: &[u32],
        cache: &mut KvCache,
        method: &Method,
        logits: Logits,
        watch: &mut Watch<'_>,
    ) -> Result<Option<Tensor<2>>> {
        let mut rows = Vec::new();
        let context = cache.expected();
        let chunks = tokens.chunks(PREFILL_CHUNK);
        let last = chunks.len();
        for (i, chunk) in chunks.enumerate() {
            let hidden = self.forward_chunk(chunk, context, cache, method, watch)?;
            let wanted = match logits {
                Logits::None => continue,
                Logits::Last if i + 1 < last => continue,
                Logits::Last => hidden.narrow(0, chunk.len() - 1, 1),
                Logits::All => hidden,
            };
            rows.push(self.logits(wanted));
        }
        Ok((!rows.is_empty()).then(|| Tensor::cat(rows, 0)))
    }

    /// `hidden` `[tokens, hidden]` to `[tokens, vocab]`.
    fn logits(&self, hidden: Tensor<2>) -> Tensor<2> {
        let logits = scaled(self.lm_head.forward(hidden), self.config.logits_multiplier);
        capped(logits, self.config.logits_softcap)
    }

    /// `tokens` of a context that is going to hold `context`.
    fn forward_chunk(
        &self,
        tokens: &[u32],
        context: usize,
        cache: &mut KvCache,
        method: &Method,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor<2>> {
        let (position, new, device) = (cache.len(), tokens.len(), &self.device);
        let ids: Vec<i32> = tokens.iter().map(|t| *t as i32).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [new]), device);
        let usual = self.rope.angles(position, new, context, device);
        let local = self.local_rope.as_ref().map(|rope| rope.angles(position, new, context, device));
        let still = self.still(new);
        let x = self.through_layers(ids, &usual, [local.as_ref(), still.as_ref()], cache, method, watch)?;
        cache.advance(tokens.len());
        Ok(x)
    }

    /// Tokens behind those in the cache; `angles` are the usual ones, and those of layers that have others.
    fn through_layers(
        &self,
        ids: Tensor<1, Int>,
        usual: &Angles,
        [local, still]: [Option<&Angles>; 2],
        cache: &mut KvCache,
        method: &Method,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor<2>> {
        let embedded = self.embed_tokens.clone().select(0, ids).cast(DType::F32);
        let mut x = scaled(embedded, self.config.embedding_multiplier);
        for (index, layer) in self.layers.iter().enumerate() {
            let angles = match layer.turning {
                Turning::Usual => None,
                Turning::Local => local,
                Turning::Still => still,
            };
            x = layer.forward(x, index, angles.unwrap_or(usual), cache, method, watch)?;
        }
        Ok(x)
    }

    /// Angles of layers that do not turn, if there are such.
    fn still(&self, new: usize) -> Option<Angles> {
        let any = self.layers.iter().any(|layer| layer.turning == Turning::Still);
        any.then(|| self.rope.still(new, &self.device))
    }

    /// Whether a GPU can do this.
    fn check_device(&self, cache: &KvCache, method: &Method) -> Result<()> {
        if matches!(method, Method::Policy { .. }) {
            return Err(Error::request(
                "method",
                "is one that decides on the host, head after head, which a GPU would wait for",
                "use the methods fasa and dense, or `--device cpu`",
            ));
        }
        let (weights, rows) = (crate::measure::weight_bytes(&self.config, self.dtype), cache.device_bytes());
        match crate::device::memory(&self.device) {
            Some(memory) if weights + rows > memory => Err(crate::device::failure(&format!(
                "out of device memory: weights take {weights} bytes, a cache of {} tokens {rows}, the device has {memory}",
                cache.capacity()
            ))),
            _ => Ok(()),
        }
    }

    /// Whether a context of `context` tokens turns by other angles than what the cache holds of it: LongRoPE has one set of
    /// angles for short contexts and one for long ones.
    pub(crate) fn outgrows(&self, cache: &KvCache, context: usize) -> bool {
        match self.config.rope.scaling {
            RopeScaling::Long { original, .. } => {
                !cache.is_empty() && cache.expected() <= original && context > original
            }
            _ => false,
        }
    }

    /// Whether `tokens` may follow those in the cache.
    fn check(&self, tokens: &[u32], cache: &KvCache) -> Result<()> {
        let held = cache.len();
        if let Some(token) = tokens.iter().find(|t| **t as usize >= self.config.vocab_size) {
            return Err(Error::Prompt {
                problem: format!("has token {token}, the model knows {}", self.config.vocab_size),
                mend: "use the tokenizer that came with the model".into(),
            });
        }
        let (wanted, positions) = (held + tokens.len(), self.config.max_position_embeddings);
        if wanted > positions {
            return Err(Error::Prompt {
                problem: format!("and what follows it need {wanted} positions, the model has {positions}"),
                mend: "shorten the prompt, ask for fewer new tokens, or use a model with more positions".into(),
            });
        }
        if self.outgrows(cache, wanted) {
            return Err(Error::Prompt {
                problem: format!(
                    "and what follows it need {wanted} positions, beyond those up to which this model turns as the first \
                     {held} tokens were turned"
                ),
                mend: "begin anew, and read the whole text at once or announce its length (`KvCache::expect`)".into(),
            });
        }
        Ok(())
    }
}

/// The numbers of a tensor on the host.
///
/// # Errors
/// [`Error::Device`] if the device fails to deliver them.
pub fn to_host<const D: usize>(tensor: Tensor<D>) -> Result<Vec<f32>> {
    tensor.try_into_vec_as::<f32>().map_err(|e| crate::device::failure(&e.to_string()))
}
