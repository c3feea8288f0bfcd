//! [`FasaOps`] for tensors, with failures as errors.

use super::{AttentionOptions, FasaOps, FasaStep, PolicyStep, SketchStep, Status};
use crate::cache::SketchTensors;
use crate::error::Result;
use crate::rope::Angles;
use burn::backend::Dispatch;
#[cfg(feature = "cube")]
use burn::tensor::Int;
use burn::tensor::Tensor;

/// See [`FasaOps::linear`].
pub(crate) fn linear(x: Tensor<2>, weight: Tensor<2>) -> Tensor<2> {
    Tensor::from_dispatch(Dispatch::linear(x.into_dispatch(), weight.into_dispatch()))
}

/// See [`FasaOps::linear_add`].
pub(crate) fn linear_add(x: Tensor<2>, weight: Tensor<2>, residual: Tensor<2>) -> Tensor<2> {
    let out = Dispatch::linear_add(x.into_dispatch(), weight.into_dispatch(), residual.into_dispatch());
    Tensor::from_dispatch(out)
}

/// See [`FasaOps::norm_linear`].
pub(crate) fn norm_linear(x: Tensor<2>, norm: Tensor<2>, eps: f64, weight: Tensor<2>) -> Tensor<2> {
    let out = Dispatch::norm_linear(x.into_dispatch(), norm.into_dispatch(), eps, weight.into_dispatch());
    Tensor::from_dispatch(out)
}

/// See [`FasaOps::mlp`].
pub(crate) fn mlp(x: Tensor<2>, norm: Tensor<2>, eps: f64, gate_up: Tensor<2>, down: Tensor<2>) -> Tensor<2> {
    let (x, norm) = (x.into_dispatch(), norm.into_dispatch());
    Tensor::from_dispatch(Dispatch::mlp(x, norm, eps, gate_up.into_dispatch(), down.into_dispatch()))
}

/// See [`FasaOps::append`]; queries, keys and values.
pub(crate) fn append(
    qkv: Tensor<2>,
    angles: &Angles,
    keys: Tensor<3>,
    values: Tensor<3>,
    position: usize,
) -> (Tensor<3>, Tensor<3>, Tensor<3>) {
    let (cos, sin) = (angles.cos().into_dispatch(), angles.sin().into_dispatch());
    let (keys, values) = (keys.into_dispatch(), values.into_dispatch());
    let (queries, keys, values) = Dispatch::append(qkv.into_dispatch(), cos, sin, keys, values, position);
    (Tensor::from_dispatch(queries), Tensor::from_dispatch(keys), Tensor::from_dispatch(values))
}

/// See [`FasaOps::causal_attention`].
pub(crate) fn causal_attention(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    len: usize,
    options: AttentionOptions,
) -> Result<Tensor<3>> {
    let status = Status::default();
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    let out = Dispatch::causal_attention(q, k, v, len, options, status.clone());
    status.into_result()?;
    Ok(Tensor::from_dispatch(out))
}

/// See [`FasaOps::dense_decode`].
pub(crate) fn dense_decode(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    len: usize,
    options: AttentionOptions,
) -> Result<Tensor<3>> {
    let status = Status::default();
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    let out = Dispatch::dense_decode(q, k, v, len, options, status.clone());
    status.into_result()?;
    Ok(Tensor::from_dispatch(out))
}

/// See [`FasaOps::write_sketch`].
pub(crate) fn write_sketch(keys: Tensor<3>, sketch: SketchTensors, step: SketchStep) -> (SketchTensors, Result<()>) {
    let status = step.status.clone();
    let (codes, scales) = (sketch.codes.into_dispatch(), sketch.scales.into_dispatch());
    let (codes, scales) = Dispatch::write_sketch(keys.into_dispatch(), codes, scales, step);
    let sketch = SketchTensors { codes: Tensor::from_dispatch(codes), scales: Tensor::from_dispatch(scales) };
    (sketch, status.into_result())
}

/// See [`FasaOps::fasa_decode`].
pub(crate) fn fasa_decode(
    q: Tensor<3>,
    k: Tensor<3>,
    v: Tensor<3>,
    sketch: SketchTensors,
    step: FasaStep,
) -> Result<Tensor<3>> {
    let status = step.status.clone();
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    let (codes, scales) = (sketch.codes.into_dispatch(), sketch.scales.into_dispatch());
    let out = Dispatch::fasa_decode(q, k, v, codes, scales, step);
    status.into_result()?;
    Ok(Tensor::from_dispatch(out))
}

/// See [`FasaOps::policy_decode`].
pub(crate) fn policy_decode(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>, step: PolicyStep) -> Result<Tensor<3>> {
    let status = step.status.clone();
    let out = Dispatch::policy_decode(q.into_dispatch(), k.into_dispatch(), v.into_dispatch(), step);
    status.into_result()?;
    Ok(Tensor::from_dispatch(out))
}

/// See [`FasaOps::overwrite`].
#[cfg(feature = "cube")]
pub(crate) fn overwrite<const D: usize>(x: &Tensor<D>, numbers: &[f32]) {
    let numbers = numbers.iter().map(|x| x.to_bits()).collect();
    drop(Dispatch::overwrite(x.clone().into_dispatch(), numbers));
}

/// See [`FasaOps::overwrite_int`].
#[cfg(feature = "cube")]
pub(crate) fn overwrite_int(x: &Tensor<1, Int>, number: u32) {
    drop(Dispatch::overwrite_int(x.clone().into_dispatch(), vec![number]));
}

/// Runs `steps` with the number of rows in use taken from the device: see [`FasaOps::take_length`].
#[cfg(feature = "cube")]
pub(crate) fn with_length<R>(len: &Tensor<1, Int>, most: usize, steps: impl FnOnce() -> R) -> R {
    /// Also after a panic.
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            super::cube::forget_length();
        }
    }
    drop(Dispatch::take_length(len.clone().into_dispatch(), most));
    let forget = Forget;
    let result = steps();
    drop(forget);
    result
}
