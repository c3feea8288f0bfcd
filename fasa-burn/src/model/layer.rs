//! One decoder layer: attention and feed-forward, each behind a norm and added to the residual stream.

use super::Watch;
use crate::cache::KvCache;
use crate::error::Result;
use crate::method::Method;
use crate::ops::{self, FasaStep, PolicyStep, Status};
use crate::rope::Angles;
use burn::tensor::Tensor;
use burn::tensor::activation::silu;

/// A projection, weight `[out, in]` as checkpoints store it.
#[derive(Debug)]
pub(super) struct Linear {
    weight: Tensor<2>,
}

impl Linear {
    pub fn new(weight: Tensor<2>) -> Self {
        Self { weight }
    }

    /// `x` `[tokens, in]` to `[tokens, out]`. The transpose is a view: the weight is read where it lies.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        x.matmul(self.weight.clone().transpose())
    }
}

/// Root mean square norm.
#[derive(Debug)]
pub(super) struct RmsNorm {
    weight: Tensor<2>,
    eps: f64,
}

impl RmsNorm {
    /// `weight` is `[1, hidden]`.
    pub fn new(weight: Tensor<2>, eps: f64) -> Self {
        Self { weight, eps }
    }

    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let mean_square = (x.clone() * x.clone()).mean_dim(1);
        x * mean_square.add_scalar(self.eps).sqrt().recip() * self.weight.clone()
    }
}

/// Heads of the attention.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub query: usize,
    pub kv: usize,
    pub dim: usize,
}

/// Weights of one layer. Projections that read the same input are stored as one, for one pass over it.
#[derive(Debug)]
pub(super) struct Layer {
    pub input_layernorm: RmsNorm,
    /// `[(query + 2 kv) * dim, hidden]`.
    pub qkv_proj: Linear,
    pub o_proj: Linear,
    pub post_attention_layernorm: RmsNorm,
    /// `[2 * intermediate, hidden]`.
    pub gate_up_proj: Linear,
    pub down_proj: Linear,
    pub heads: Heads,
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
        let attended = self.attend(self.input_layernorm.forward(x.clone()), index, angles, cache, method, watch)?;
        let x = x + self.o_proj.forward(attended);
        let gate_up = self.gate_up_proj.forward(self.post_attention_layernorm.forward(x.clone()));
        let intermediate = gate_up.dims()[1] / 2;
        let gate = gate_up.clone().narrow(1, 0, intermediate);
        let up = gate_up.narrow(1, intermediate, intermediate);
        Ok(x + self.down_proj.forward(silu(gate) * up))
    }

    fn attend(
        &self,
        x: Tensor<2>,
        index: usize,
        angles: &Angles,
        cache: &mut KvCache,
        method: &Method,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor<2>> {
        let new = x.dims()[0];
        let Heads { query, kv, dim } = self.heads;
        let qkv = self.qkv_proj.forward(x).reshape([new, query + 2 * kv, dim]);
        let rotated = angles.rotate(qkv.clone().narrow(1, 0, query + kv)).swap_dims(0, 1);
        let queries = rotated.clone().narrow(0, 0, query);
        let keys = rotated.narrow(0, query, kv);
        let values = qkv.narrow(1, query + kv, kv).swap_dims(0, 1);
        let position = cache.len();
        cache.write(index, keys, values);
        if let Some(observer) = &mut watch.observer {
            observer.queries(index, position, &queries);
        }
        let seen = position + new;
        if new > 1 {
            let (keys, values) = cache.layer(index);
            let attended = ops::causal_attention(queries, keys.narrow(1, 0, seen), values.narrow(1, 0, seen));
            return Ok(attended.swap_dims(0, 1).reshape([new, query * dim]));
        }
        let attended = self.decode(queries.reshape([query, dim]), index, seen, cache, method, watch)?;
        Ok(attended.reshape([1, query * dim]))
    }

    /// One token attends: `queries` `[query heads, dim]`.
    fn decode(
        &self,
        queries: Tensor<2>,
        index: usize,
        seen: usize,
        cache: &mut KvCache,
        method: &Method,
        watch: &mut Watch<'_>,
    ) -> Result<Tensor<2>> {
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
}
