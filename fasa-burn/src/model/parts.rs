//! What layers are made of.

use crate::config::Activation;
use crate::ops;
use burn::tensor::{Tensor, activation};

/// A norm over rows.
#[derive(Debug)]
pub(super) struct Norm {
    /// `[1, width]`, f32.
    pub weight: Tensor<2>,
    /// `[1, width]`, f32, of a layer norm; none of a root mean square norm.
    pub layer: Option<Tensor<2>>,
    pub eps: f64,
}

impl Norm {
    /// `x` `[tokens, width]`.
    fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let (weight, eps) = (self.weight.clone(), self.eps);
        match &self.layer {
            None => root_mean_square(x, eps) * weight,
            Some(bias) => centred(x, eps) * weight + bias.clone(),
        }
    }

    /// Whether the fused operations compute it.
    fn is_plain(&self) -> bool {
        self.layer.is_none()
    }
}

/// `x / sqrt(mean(x²) + eps)` along the last dimension.
pub(super) fn root_mean_square<const D: usize>(x: Tensor<D>, eps: f64) -> Tensor<D> {
    let mean_square = (x.clone() * x.clone()).mean_dim(D - 1);
    x * (mean_square + eps).sqrt().recip()
}

/// `(x - mean(x)) / sqrt(var(x) + eps)` along the last dimension.
pub(super) fn centred<const D: usize>(x: Tensor<D>, eps: f64) -> Tensor<D> {
    let x = x.clone() - x.mean_dim(D - 1);
    root_mean_square(x, eps)
}

/// A matrix, and what is added to its products.
#[derive(Debug)]
pub(super) struct Linear {
    /// `[outputs, inputs]`, as checkpoints store it.
    pub weight: Tensor<2>,
    /// `[1, outputs]`, f32.
    pub bias: Option<Tensor<2>>,
}

impl Linear {
    fn biased(&self, products: Tensor<2>) -> Tensor<2> {
        match &self.bias {
            Some(bias) => products + bias.clone(),
            None => products,
        }
    }
}

/// What reads the residual stream: a projection, mostly behind a norm.
#[derive(Debug)]
pub(super) struct Input {
    pub norm: Option<Norm>,
    pub linear: Linear,
}

impl Input {
    /// `x` `[tokens, inputs]` to `[tokens, outputs]`.
    pub fn forward(&self, x: Tensor<2>) -> Tensor<2> {
        let weight = self.linear.weight.clone();
        self.linear.biased(match &self.norm {
            Some(norm) if norm.is_plain() => ops::norm_linear(x, norm.weight.clone(), norm.eps, weight),
            Some(norm) => ops::linear(norm.forward(x), weight),
            None => ops::linear(x, weight),
        })
    }
}

/// What adds to the residual stream: a projection, in some models before a norm.
#[derive(Debug)]
pub(super) struct Output {
    pub linear: Linear,
    pub norm: Option<Norm>,
    /// What the result is multiplied by.
    pub multiplier: f64,
}

impl Output {
    /// `x` `[tokens, inputs]` and the stream `[tokens, outputs]` to the new stream.
    pub fn forward(&self, x: Tensor<2>, stream: Tensor<2>) -> Tensor<2> {
        if self.is_plain() {
            return ops::linear_add(x, self.linear.weight.clone(), stream);
        }
        let mut result = self.linear.biased(ops::linear(x, self.linear.weight.clone()));
        if let Some(norm) = &self.norm {
            result = norm.forward(result);
        }
        stream + scaled(result, self.multiplier)
    }

    fn is_plain(&self) -> bool {
        self.linear.bias.is_none() && self.norm.is_none() && self.multiplier == 1.0
    }
}

/// The feed-forward block: `activation(gate) * up` between two projections.
#[derive(Debug)]
pub(super) struct Mlp {
    /// `[2 * intermediate, hidden]`, the gate's rows first.
    pub gate_up: Input,
    pub activation: Activation,
    /// `[hidden, intermediate]`.
    pub down: Output,
}

impl Mlp {
    /// Reads `x` and adds to `stream`, `[tokens, hidden]` both; `None` if that is `x` itself.
    pub fn forward(&self, x: Tensor<2>, stream: Option<Tensor<2>>) -> Tensor<2> {
        let plain = self.activation == Activation::Silu && self.gate_up.linear.bias.is_none() && self.down.is_plain();
        if let (None, true, Some(norm)) = (&stream, plain, &self.gate_up.norm)
            && norm.is_plain()
        {
            let (gate_up, down) = (self.gate_up.linear.weight.clone(), self.down.linear.weight.clone());
            return ops::mlp(x, norm.weight.clone(), norm.eps, gate_up, down);
        }
        let stream = stream.unwrap_or_else(|| x.clone());
        let gate_up = self.gate_up.forward(x);
        let inner = gate_up.dims()[1] / 2;
        let (gate, up) = (gate_up.clone().narrow(1, 0, inner), gate_up.narrow(1, inner, inner));
        let gate = match self.activation {
            Activation::Silu => activation::silu(gate),
            Activation::Gelu => activation::gelu(gate),
            Activation::GeluTanh => activation::gelu_approximate(gate),
        };
        self.down.forward(gate * up, stream)
    }
}

/// `x * factor`; `x` itself for 1.
pub(super) fn scaled<const D: usize>(x: Tensor<D>, factor: f64) -> Tensor<D> {
    if factor == 1.0 { x } else { x.mul_scalar(factor) }
}

/// `cap * tanh(x / cap)`.
pub(super) fn capped(x: Tensor<2>, cap: Option<f64>) -> Tensor<2> {
    match cap {
        Some(cap) => x.div_scalar(cap).tanh().mul_scalar(cap),
        None => x,
    }
}
