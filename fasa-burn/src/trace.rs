//! Queries and keys of a text that was read, on the host: what calibration, evicting methods and studies look at.

use crate::cache::KvCache;
use crate::error::Result;
use crate::model::{Observer, to_host};
use burn::tensor::Tensor;
use fasa_core::Rows;

/// Keeps the rotated queries of all tokens from a position on while a text is read.
#[derive(Debug)]
pub struct Queries {
    from: usize,
    /// Per layer, pieces of `[query_heads, tokens, head_dim]` on the device.
    layers: Vec<Vec<Tensor<3>>>,
}

impl Queries {
    /// Keeps the queries from position `from` on, for a model of `layers` layers.
    pub fn new(layers: usize, from: usize) -> Self {
        Self { from, layers: vec![Vec::new(); layers] }
    }

    /// Brings the queries, and the keys that `cache` holds by now, to the host.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the device fails to deliver them.
    pub fn finish(self, cache: &KvCache) -> Result<Trace> {
        let from = self.from;
        let layers = self.layers.into_iter().enumerate().map(|(layer, pieces)| {
            let keys = cache.rows(layer)?.0;
            let [_, tokens, dim] = keys.dims();
            let queries = if pieces.is_empty() { Vec::new() } else { to_host(Tensor::cat(pieces, 1))? };
            Ok(LayerTrace { queries, keys: to_host(keys)?, kept: tokens.saturating_sub(from), tokens, dim })
        });
        Ok(Trace { from, layers: layers.collect::<Result<_>>()? })
    }
}

impl Observer for Queries {
    fn queries(&mut self, layer: usize, position: usize, queries: &Tensor<3>) {
        let new = queries.dims()[1];
        let skip = self.from.saturating_sub(position).min(new);
        if skip < new {
            self.layers[layer].push(queries.clone().narrow(1, skip, new - skip));
        }
    }
}

/// What a text left behind in every layer.
#[derive(Debug, Clone)]
pub struct Trace {
    from: usize,
    layers: Vec<LayerTrace>,
}

impl Trace {
    /// The first position whose queries were kept.
    pub fn from(&self) -> usize {
        self.from
    }

    /// All layers.
    pub fn layers(&self) -> &[LayerTrace] {
        &self.layers
    }
}

/// One layer of a [`Trace`].
#[derive(Debug, Clone)]
pub struct LayerTrace {
    /// `[query_heads, kept, head_dim]`.
    queries: Vec<f32>,
    /// `[kv_heads, tokens, head_dim]`.
    keys: Vec<f32>,
    kept: usize,
    tokens: usize,
    dim: usize,
}

impl LayerTrace {
    /// Tokens read.
    pub fn tokens(&self) -> usize {
        self.tokens
    }

    /// Numbers of all keys, `[kv_heads, tokens, head_dim]`.
    pub(crate) fn key_numbers(&self) -> &[f32] {
        &self.keys
    }

    /// Rotated queries of a query head, `[kept, head_dim]`, of which the last belongs to the last token.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if there is no such head.
    pub fn queries(&self, head: usize) -> Result<Rows<'_>> {
        rows(&self.queries, head, self.kept, self.dim)
    }

    /// The last `tokens` of [`queries`](Self::queries); all that were kept, if fewer.
    ///
    /// # Errors
    /// As [`queries`](Self::queries).
    pub fn last_queries(&self, head: usize, tokens: usize) -> Result<Rows<'_>> {
        self.queries(head)?;
        let (end, kept) = ((head + 1) * self.kept, tokens.min(self.kept));
        Ok(Rows::contiguous(&self.queries[(end - kept) * self.dim..end * self.dim], self.dim)?)
    }

    /// Rotated keys of a KV head that a token at `position` attends to, `[seen, head_dim]`: up to its own, and the last
    /// `window` of them.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if there is no such head or token.
    pub fn keys_at(&self, kv_head: usize, position: usize, window: Option<usize>) -> Result<Rows<'_>> {
        let end = position + 1;
        let from = end.saturating_sub(window.unwrap_or(end));
        let start = kv_head * self.tokens;
        let missing = fasa_core::Error::Range { what: "position", problem: "the trace has fewer heads or tokens" };
        let within = position < self.tokens;
        let numbers = self.keys.get((start + from) * self.dim..(start + end) * self.dim).filter(|_| within);
        Ok(Rows::contiguous(numbers.ok_or(missing)?, self.dim)?)
    }

    /// Rotated keys of a KV head, `[tokens, head_dim]`.
    ///
    /// # Errors
    /// [`crate::Error::Core`] if there is no such head.
    pub fn keys(&self, kv_head: usize) -> Result<Rows<'_>> {
        rows(&self.keys, kv_head, self.tokens, self.dim)
    }
}

fn rows(numbers: &[f32], head: usize, tokens: usize, dim: usize) -> Result<Rows<'_>> {
    let numbers = numbers.get(head * tokens * dim..(head + 1) * tokens * dim);
    let missing = fasa_core::Error::Range { what: "head", problem: "the trace has fewer heads" };
    Ok(Rows::contiguous(numbers.ok_or(missing)?, dim)?)
}
