//! Operations of [`FasaOps`](super::FasaOps) out of a backend's own ones: the defaults, and what faster versions are
//! tested against.

use burn::backend::tensor::FloatTensor;
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, Shape, Slice};

/// See [`FasaOps::linear`](super::FasaOps::linear). The transpose is a view; a weight in half precision is converted at
/// every call.
pub fn linear<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>) -> FloatTensor<B> {
    B::float_matmul(x, B::float_transpose(B::float_cast(weight, FloatDType::F32)))
}

/// See [`FasaOps::linear_add`](super::FasaOps::linear_add).
pub fn linear_add<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, residual: FloatTensor<B>) -> FloatTensor<B> {
    B::float_add(residual, linear::<B>(x, weight))
}

/// `x / sqrt(mean(x²) + eps) * weight` of every row: `x` `[tokens, width]`, `weight` `[1, width]`.
pub fn rms_norm<B: Backend>(x: FloatTensor<B>, weight: FloatTensor<B>, eps: f64) -> FloatTensor<B> {
    let mean_square = B::float_mean_dim(B::float_mul(x.clone(), x.clone()), 1);
    let factor = B::float_recip(B::float_sqrt(B::float_add_scalar(mean_square, eps.into())));
    B::float_mul(B::float_mul(x, factor), weight)
}

/// See [`FasaOps::norm_linear`](super::FasaOps::norm_linear).
pub fn norm_linear<B: Backend>(
    x: FloatTensor<B>,
    norm: FloatTensor<B>,
    eps: f64,
    weight: FloatTensor<B>,
) -> FloatTensor<B> {
    linear::<B>(rms_norm::<B>(x, norm, eps), weight)
}

/// See [`FasaOps::mlp`](super::FasaOps::mlp).
pub fn mlp<B: Backend>(
    x: FloatTensor<B>,
    norm: FloatTensor<B>,
    eps: f64,
    gate_up: FloatTensor<B>,
    down: FloatTensor<B>,
) -> FloatTensor<B> {
    let gate_up = norm_linear::<B>(x.clone(), norm, eps, gate_up);
    linear_add::<B>(swiglu::<B>(gate_up), down, x)
}

/// `silu(gate) * up` of `[tokens, 2 * inner]`, the gates first.
pub fn swiglu<B: Backend>(gate_up: FloatTensor<B>) -> FloatTensor<B> {
    let inner = gate_up.shape()[1] / 2;
    let (gate, up) = (narrow::<B>(gate_up.clone(), 1, 0, inner), narrow::<B>(gate_up, 1, inner, inner));
    B::float_mul(B::float_mul(gate.clone(), B::sigmoid(gate)), up)
}

/// See [`FasaOps::append`](super::FasaOps::append).
pub fn append<B: Backend>(
    qkv: FloatTensor<B>,
    cos: FloatTensor<B>,
    sin: FloatTensor<B>,
    k: FloatTensor<B>,
    v: FloatTensor<B>,
    position: usize,
) -> (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>) {
    let (new, [kv_heads, _, dim]) = (qkv.shape()[0], k.shape().dims());
    let heads = qkv.shape()[1] / dim;
    let query_heads = heads - 2 * kv_heads;
    let qkv = B::float_reshape(qkv, Shape::new([new, heads, dim]));
    let rotated = rotate::<B>(narrow::<B>(qkv.clone(), 1, 0, query_heads + kv_heads), cos, sin);
    let write = |cache: FloatTensor<B>, rows: FloatTensor<B>| {
        let rows = B::float_cast(B::float_swap_dims(rows, 0, 1), cache.dtype().into());
        let at = [0..kv_heads, position..position + new, 0..dim].map(Slice::from);
        B::float_slice_assign(cache, &at, rows)
    };
    let k = write(k, narrow::<B>(rotated.clone(), 1, query_heads, kv_heads));
    let v = write(v, narrow::<B>(qkv, 1, query_heads + kv_heads, kv_heads));
    (narrow::<B>(rotated, 1, 0, query_heads), k, v)
}

/// Turns `x` `[new, heads, d]` in the half-split layout of Hugging Face checkpoints: dimension i turns with i + r / 2 for
/// the first r of them, which `cos` and `sin` `[new, 1, r / 2]` are for; the others stay.
fn rotate<B: Backend>(x: FloatTensor<B>, cos: FloatTensor<B>, sin: FloatTensor<B>) -> FloatTensor<B> {
    let (dim, half) = (x.shape()[2], cos.shape()[2]);
    let (first, second) = (narrow::<B>(x.clone(), 2, 0, half), narrow::<B>(x.clone(), 2, half, half));
    let product = |x: &FloatTensor<B>, y: &FloatTensor<B>| B::float_mul(x.clone(), y.clone());
    let turned_first = B::float_sub(product(&first, &cos), product(&second, &sin));
    let turned_second = B::float_add(product(&second, &cos), product(&first, &sin));
    let mut parts = vec![turned_first, turned_second];
    if dim > 2 * half {
        parts.push(narrow::<B>(x, 2, 2 * half, dim - 2 * half));
    }
    B::float_cat(parts, 2)
}

/// `len` indices of a dimension from `from` on.
pub fn narrow<B: Backend>(x: FloatTensor<B>, dim: usize, from: usize, len: usize) -> FloatTensor<B> {
    let shape = x.shape();
    let slices: Vec<Slice> =
        (0..shape.num_dims()).map(|d| if d == dim { from..from + len } else { 0..shape[d] }.into()).collect();
    B::float_slice(x, &slices)
}
