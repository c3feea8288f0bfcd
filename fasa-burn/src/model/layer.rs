//! One decoder layer: attention and feed-forward, each added to the residual stream.

use super::Watch;
use super::parts::{Input, Mlp, Output, centred, root_mean_square, scaled};
use crate::cache::KvCache;
use crate::config::QkNorm;
use crate::error::Result;
use crate::method::Method;
use crate::ops::{AttentionOptions, FasaStep, PolicyStep, Status};
use crate::rope::Angles;
use burn::tensor::Tensor;

/// Norms of the queries and keys.
#[derive(Debug)]
pub(super) struct HeadNorms {
    pub kind: QkNorm,
    /// `[1, query heads + kv heads, dim]`, f32: the query's weight, then the key's.
    pub weight: Tensor<3>,
    pub query_heads: usize,
    pub eps: f64,
}

impl HeadNorms {
    /// `qkv` `[new, (query heads + 2 kv heads) * dim]`, of which the values stay.
    fn forward(&self, qkv: Tensor<2>) -> Tensor<2> {
        let ([_, heads, dim], [new, width]) = (self.weight.dims(), qkv.dims());
        let values = qkv.clone().narrow(1, heads * dim, width - heads * dim);
        let x = match self.kind {
            QkNorm::Head => root_mean_square(qkv.narrow(1, 0, heads * dim).reshape([new, heads, dim]), self.eps),
            QkNorm::EachHead => centred(qkv.narrow(1, 0, heads * dim).reshape([new, heads, dim]), self.eps),
            QkNorm::Projection => {
                let queries = self.query_heads * dim;
                let keys = root_mean_square(qkv.clone().narrow(1, queries, heads * dim - queries), self.eps);
                let queries = root_mean_square(qkv.narrow(1, 0, queries), self.eps);
                Tensor::cat(vec![queries, keys], 1).reshape([new, heads, dim])
            }
        };
        let x = x * self.weight.clone();
        Tensor::cat(vec![x.reshape([new, heads * dim]), values], 1)
    }
}

/// Which rotary positions a layer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turning {
    /// The model's.
    Usual,
    /// Those of layers with a sliding window.
    Local,
    /// None.
    Still,
}

/// One layer. Projections that read the same input are stored as one, for one pass over it.
#[derive(Debug)]
pub(super) struct Layer {
    /// `[(query heads + 2 kv heads) * dim, hidden]`.
    pub qkv: Input,
    pub qk_norm: Option<HeadNorms>,
    pub turning: Turning,
    /// What turned queries are multiplied by.
    pub query_multiplier: f64,
    pub attention: AttentionOptions,
    /// `[hidden, query heads * dim]`.
    pub output: Output,
    pub mlp: Mlp,
    /// Whether the feed-forward block reads what attention read.
    pub parallel: bool,
}

impl Layer {
    /// `x` `[new, hidden]`, the residual stream of the new tokens.
    pub fn forward(
        &self,
        x: Tensor<2>,
        index: usize,
        angles: &Angles,
        cache: &mut KvCache,
        method: &Method,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor<2>> {
        let position = cache.len();
        let mut qkv = self.qkv.forward(x.clone());
        if let Some(norms) = &self.qk_norm {
            qkv = norms.forward(qkv);
        }
        let queries = scaled(cache.append(index, qkv, angles)?, self.query_multiplier);
        if let Some(observer) = &mut watch.observer {
            observer.queries(index, position, &queries.clone().swap_dims(0, 1));
        }
        let [new, heads, dim] = queries.dims();
        let attended = match new {
            1 => self.decode(queries, index, position + 1, cache, method, watch)?,
            _ => cache.causal_attention(index, queries, position + new, self.attention)?,
        };
        Ok(self.after_attention(attended.reshape([new, heads * dim]), x))
    }

    /// The next token of each of several texts: `x` `[texts, hidden]`, and per text its angles, cache and method. Row for
    /// row what [`forward`](Self::forward) gives.
    pub fn forward_batch(
        &self,
        x: Tensor<2>,
        index: usize,
        angles: &[&Angles],
        caches: &mut [&mut KvCache],
        methods: &[&Method],
    ) -> Result<Tensor<2>> {
        let mut qkv = self.qkv.forward(x.clone());
        if let Some(norms) = &self.qk_norm {
            qkv = norms.forward(qkv);
        }
        let mut attended = Vec::with_capacity(caches.len());
        for (text, ((cache, angles), method)) in caches.iter_mut().zip(angles).zip(methods).enumerate() {
            let seen = cache.len() + 1;
            let row = qkv.clone().narrow(0, text, 1);
            let queries = scaled(cache.append(index, row, angles)?, self.query_multiplier);
            attended.push(self.decode(queries, index, seen, cache, method, &mut Watch::default())?);
        }
        let attended = Tensor::cat(attended, 0);
        let [texts, heads, dim] = attended.dims();
        Ok(self.after_attention(attended.reshape([texts, heads * dim]), x))
    }

    /// The rest of the layer: `attended` `[new, query heads * dim]` beside `x` `[new, hidden]`.
    fn after_attention(&self, attended: Tensor<2>, x: Tensor<2>) -> Tensor<2> {
        let read = self.parallel.then(|| x.clone());
        let stream = self.output.forward(attended, x);
        match read {
            Some(x) => self.mlp.forward(x, Some(stream)),
            None => self.mlp.forward(stream, None),
        }
    }

    /// One token attends by `method`: `queries` `[1, query heads, dim]`.
    fn decode(
        &self,
        queries: Tensor<3>,
        index: usize,
        seen: usize,
        cache: &mut KvCache,
        method: &Method,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor<3>> {
        let kept = method.kept(seen);
        let dense = kept >= seen || !method.is_sparse(index, self.attention.window);
        match method {
            Method::Fasa { plan, .. } if !dense => {
                let step = FasaStep {
                    layer: index,
                    len: seen,
                    budget: kept,
                    softcap: self.attention.softcap,
                    plan: plan.clone(),
                    recorder: watch.recorder.clone(),
                    status: Status::default(),
                };
                cache.fasa_decode(queries, step)
            }
            Method::Policy { policy, .. } if !dense => {
                let step = PolicyStep {
                    layer: index,
                    len: seen,
                    budget: kept,
                    softcap: self.attention.softcap,
                    policy: policy.clone(),
                    recorder: watch.recorder.clone(),
                    status: Status::default(),
                };
                cache.policy_decode(queries, step)
            }
            _ => cache.dense_decode(index, queries, seen, self.attention),
        }
    }
}
