//! A decode step of several texts at once: the weights are read once for all of them, each attends over its own cache.

use super::layer::Turning;
use super::parts::{capped, scaled};
use super::{Decoder, FEW_TOKENS};
use crate::cache::KvCache;
use crate::error::Result;
use crate::method::Method;
use burn::tensor::{DType, Int, Tensor, TensorData};

impl Decoder {
    /// Runs the next token of each text behind those in its cache, each by its own method. Returns the logits, `[texts,
    /// vocab]`. Row for row what [`forward`](Self::forward) gives; the weights are read once for eight texts.
    ///
    /// # Errors
    /// As [`forward`](Self::forward). No text has advanced then.
    ///
    /// # Panics
    /// If there are not as many tokens, caches and methods, or none.
    pub fn forward_batch(&self, tokens: &[u32], caches: &mut [&mut KvCache], methods: &[&Method]) -> Result<Tensor<2>> {
        assert!(tokens.len() == caches.len() && tokens.len() == methods.len(), "one of each for every text");
        for (token, cache) in tokens.iter().zip(caches.iter_mut()) {
            self.check(&[*token], cache)?;
            cache.reserve(1)?;
            cache.expect(cache.len() + 1);
        }
        let rows = fasa_cpu::awake(|| {
            let groups = tokens.chunks(FEW_TOKENS).zip(caches.chunks_mut(FEW_TOKENS)).zip(methods.chunks(FEW_TOKENS));
            groups.map(|((tokens, caches), methods)| self.step(tokens, caches, methods)).collect::<Result<Vec<_>>>()
        })?;
        for cache in caches.iter_mut() {
            cache.advance(1);
        }
        Ok(Tensor::cat(rows, 0))
    }

    /// No more texts than a projection serves in one pass over its weights.
    fn step(&self, tokens: &[u32], caches: &mut [&mut KvCache], methods: &[&Method]) -> Result<Tensor<2>> {
        let device = &self.device;
        let ids: Vec<i32> = tokens.iter().map(|token| *token as i32).collect();
        let ids = Tensor::<1, Int>::from_data(TensorData::new(ids, [tokens.len()]), device);
        let embedded = self.embed_tokens.clone().select(0, ids).cast(DType::F32);
        let mut x = scaled(embedded, self.config.embedding_multiplier);
        let places: Vec<[usize; 2]> = caches.iter().map(|cache| [cache.len(), cache.expected()]).collect();
        let of = |rope: &crate::rope::Rope| -> Vec<_> {
            places.iter().map(|[position, context]| rope.angles(*position, 1, *context, device)).collect()
        };
        let usual = of(&self.rope);
        let local = self.local_rope.as_ref().map(of);
        let still = self.still(1);
        for (index, layer) in self.layers.iter().enumerate() {
            let angles: Vec<_> = match layer.turning {
                Turning::Usual => usual.iter().collect(),
                Turning::Local => local.as_ref().unwrap_or(&usual).iter().collect(),
                Turning::Still => still.iter().cycle().take(tokens.len()).collect(),
            };
            x = layer.forward_batch(x, index, &angles, caches, methods)?;
        }
        let logits = scaled(self.lm_head.forward(x), self.config.logits_multiplier);
        Ok(capped(logits, self.config.logits_softcap))
    }
}
