//! One decoder layer: attention and feed-forward, each behind a norm and added to the residual stream.

use super::Watch;
use crate::cache::KvCache;
use crate::error::Result;
use crate::method::Method;
use crate::ops::{self, FasaStep, PolicyStep, Status};
use crate::rope::Angles;
use burn::tensor::Tensor;

/// A projection behind a root mean square norm.
#[derive(Debug)]
pub(super) struct NormLinear {
    pub norm: RmsNorm,
    /// `[out, in]`, as checkpoints store it.
    pub weight: Tensor<2>,
    /// `[1, out]`, f32.
    pub bias: Option<Tensor<2>>,
}

impl NormLinear {
    /// `x` `[tokens, in]` to `[tokens, out]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let out = ops::norm_linear(x, self.norm.weight.clone(), self.norm.eps, self.weight.clone());
        match &self.bias {
            Some(bias) => out + bias.clone(),
            None => out,
        }
    }
}

/// Root mean square norm.
#[derive(Debug)]
pub(super) struct RmsNorm {
    /// `[1, hidden]`, f32.
    pub weight: Tensor<2>,
    pub eps: f64,
}

/// Norms of the queries and keys of every head.
#[derive(Debug)]
pub(super) struct QkNorm {
    /// `[1, query heads + kv heads, dim]`, f32: the query's weight, then the key's.
    pub weight: Tensor<3>,
    pub eps: f64,
}

impl QkNorm {
    /// `qkv` `[new, (query heads + 2 kv heads) * dim]`, of which the values stay.
    fn forward(&self, qkv: Tensor<2>) -> Tensor<2> {
        let ([_, heads, dim], [new, width]) = (self.weight.dims(), qkv.dims());
        let x = qkv.clone().narrow(1, 0, heads * dim).reshape([new, heads, dim]);
        let mean_square = (x.clone() * x.clone()).mean_dim(2);
        let x = x * (mean_square + self.eps).sqrt().recip() * self.weight.clone();
        Tensor::cat(vec![x.reshape([new, heads * dim]), qkv.narrow(1, heads * dim, width - heads * dim)], 1)
    }
}

/// Weights of one layer. Projections that read the same input are stored as one, for one pass over it.
#[derive(Debug)]
pub(super) struct Layer {
    /// `[(query heads + 2 kv heads) * dim, hidden]`.
    pub qkv_proj: NormLinear,
    pub qk_norm: Option<QkNorm>,
    /// Whether it has rotary positions.
    pub turns: bool,
    /// `[hidden, query heads * dim]`.
    pub o_proj: Tensor<2>,
    /// `[2 * intermediate, hidden]`.
    pub gate_up_proj: NormLinear,
    /// `[hidden, intermediate]`.
    pub down_proj: Tensor<2>,
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
        let mut qkv = self.qkv_proj.forward(x.clone());
        if let Some(norm) = &self.qk_norm {
            qkv = norm.forward(qkv);
        }
        let queries = cache.append(index, qkv, angles);
        if let Some(observer) = &mut watch.observer {
            observer.queries(index, position, &queries.clone().swap_dims(0, 1));
        }
        let [new, heads, dim] = queries.dims();
        let attended = match new {
            1 => decode(queries, index, position + 1, cache, method, watch)?,
            _ => {
                let (keys, values) = cache.layer(index);
                ops::causal_attention(queries, keys, values, position + new)?
            }
        };
        let x = ops::linear_add(attended.reshape([new, heads * dim]), self.o_proj.clone(), x);
        let NormLinear { norm, weight, .. } = &self.gate_up_proj;
        Ok(ops::mlp(x, norm.weight.clone(), norm.eps, weight.clone(), self.down_proj.clone()))
    }
}

/// One token attends by `method`: `queries` `[1, query heads, dim]`.
fn decode(
    queries: Tensor<3>,
    index: usize,
    seen: usize,
    cache: &mut KvCache,
    method: &Method,
    watch: &mut Watch<'_>,
) -> Result<Tensor<3>> {
    let kept = method.kept(seen);
    let dense = kept >= seen || index < method.dense_layers(usize::MAX);
    match method {
        Method::Fasa { plan, .. } if !dense => {
            let sketch = cache.sketch(index, seen, plan)?;
            let (keys, values) = cache.layer(index);
            let step = FasaStep {
                layer: index,
                len: seen,
                budget: kept,
                plan: plan.clone(),
                recorder: watch.recorder.clone(),
                status: Status::default(),
            };
            ops::fasa_decode(queries, keys, values, sketch, step)
        }
        Method::Policy { policy, .. } if !dense => {
            let (keys, values) = cache.layer(index);
            let step = PolicyStep {
                layer: index,
                len: seen,
                budget: kept,
                policy: policy.clone(),
                recorder: watch.recorder.clone(),
                status: Status::default(),
            };
            ops::policy_decode(queries, keys, values, step)
        }
        _ => {
            let (keys, values) = cache.layer(index);
            ops::dense_decode(queries, keys, values, seen)
        }
    }
}
