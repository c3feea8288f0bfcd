//! Attention over a cache, wherever its rows lie.

use super::{KvCache, Rows};
use crate::error::{Error, Result};
use crate::ops::{self, AttentionOptions, FasaStep, PolicyStep};
use burn::tensor::Tensor;

impl KvCache {
    /// Causal attention of new tokens, the last of the first `len` rows of `layer`: `[new, query_heads, head_dim]`.
    pub(crate) fn causal_attention(
        &mut self,
        layer: usize,
        queries: Tensor<3>,
        len: usize,
        options: AttentionOptions,
    ) -> Result<Tensor<3>> {
        match &mut self.rows {
            Rows::Tiered(tiered) => tiered.causal_attention(layer, queries, len, options),
            #[cfg(feature = "cube")]
            Rows::Hosted(hosted) => {
                // What steps kept on the device may be others now.
                self.recorded.clear();
                hosted.causal_attention(layer, queries, len, options)
            }
            rows => {
                let (keys, values) = rows.layer(layer);
                ops::causal_attention(queries, keys, values, len, options)
            }
        }
    }

    /// One token, `[1, query_heads, head_dim]`, attends to the first `len` rows of `layer`.
    pub(crate) fn dense_decode(
        &mut self,
        layer: usize,
        queries: Tensor<3>,
        len: usize,
        options: AttentionOptions,
    ) -> Result<Tensor<3>> {
        match &mut self.rows {
            Rows::Tiered(tiered) => tiered.dense_decode(layer, queries, len, options),
            #[cfg(feature = "cube")]
            Rows::Hosted(hosted) => hosted.causal_attention(layer, queries, len, options),
            rows => {
                let (keys, values) = rows.layer(layer);
                ops::dense_decode(queries, keys, values, len, options)
            }
        }
    }

    /// One token attends to the rows that the sketch ranks best. Sketch rows that are missing are made first.
    pub(crate) fn fasa_decode(&mut self, queries: Tensor<3>, step: FasaStep) -> Result<Tensor<3>> {
        match &mut self.rows {
            Rows::Tiered(tiered) => return tiered.fasa_decode(queries, &step),
            #[cfg(feature = "cube")]
            Rows::Hosted(hosted) => return hosted.fasa_decode(queries, &step),
            _ => {}
        }
        let sketch = self.sketch(step.layer, step.len, &step.plan)?;
        let (keys, values) = self.rows.layer(step.layer);
        ops::fasa_decode(queries, keys, values, sketch, step)
    }

    /// One token attends to the rows that a policy chooses.
    pub(crate) fn policy_decode(&self, queries: Tensor<3>, step: PolicyStep) -> Result<Tensor<3>> {
        if let Rows::Tiered(_) = self.rows {
            return Err(Error::request(
                "cache",
                "is tiered, and this method looks at every row to decide",
                "use `--cache device`, or the methods fasa and dense",
            ));
        }
        let (keys, values) = self.rows.layer(step.layer);
        ops::policy_decode(queries, keys, values, step)
    }
}
