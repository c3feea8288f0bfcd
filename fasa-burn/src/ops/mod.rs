//! The operations that Burn lacks, as a backend extension: one trait, one implementation per backend.
//!
//! A cache here is `[kv_heads, capacity, head_dim]`, one sequence; `len` says how many rows of it are in use.
#![cfg_attr(feature = "ndarray", allow(deprecated))] // upstream deprecates NdArray; it stays as a reference

#[cfg(any(feature = "flex", feature = "ndarray"))]
mod cpu;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "ndarray")]
mod ndarray;
mod step;

pub use step::{FasaStep, PolicyStep, Recorder, SketchStep, Status};

use crate::cache::SketchTensors;
use crate::error::Result;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, Dispatch, backend_extension};
use burn::tensor::Tensor;
use fasa_core::policy::OwnedPlan;
use std::ops::Range;
use std::sync::Arc;

/// Attention operations of a backend. Failures are reported through the step's [`Status`], because an operation can only
/// return tensors; the functions of this module turn them into errors.
#[backend_extension(Flex: cfg(feature = "flex"), NdArray: cfg(feature = "ndarray"))]
pub trait FasaOps: Backend {
    /// Causal attention of new tokens: `q` `[1, Hq, new, d]`, `k` and `v` `[1, Hkv, seen, d]`, the new tokens last.
    fn causal_attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>) -> FloatTensor<Self>;

    /// One token attends to the first `len` rows: `q` `[Hq, d]`, `k` and `v` `[Hkv, capacity, d]`.
    fn dense_decode(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        len: usize,
        status: Status,
    ) -> FloatTensor<Self>;

    /// Sketch rows of a range of keys: codes `[heads, rows, row_bytes]`, and row scales `[heads, rows, 2]`; `[1, 1, 1]` for
    /// the float formats, which have none.
    fn sketch_rows(k: FloatTensor<Self>, step: SketchStep) -> (IntTensor<Self>, IntTensor<Self>);

    /// One token attends to the tokens that the sketch ranks best.
    fn fasa_decode(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        step: FasaStep,
    ) -> FloatTensor<Self>;

    /// One token attends to the tokens that a policy chooses.
    fn policy_decode(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: PolicyStep,
    ) -> FloatTensor<Self>;
}

/// See [`FasaOps::causal_attention`]; without the batch dimension: `q` `[Hq, new, d]`, `k` and `v` `[Hkv, seen, d]`.
pub(crate) fn causal_attention(q: Tensor<3>, k: Tensor<3>, v: Tensor<3>) -> Tensor<3> {
    let [q, k, v] = [q, k, v].map(|t| t.unsqueeze::<4>().into_dispatch());
    Tensor::<4>::from_dispatch(Dispatch::causal_attention(q, k, v)).squeeze_dim(0)
}

/// See [`FasaOps::dense_decode`].
pub(crate) fn dense_decode(q: Tensor<2>, k: Tensor<3>, v: Tensor<3>, len: usize) -> Result<Tensor<2>> {
    let status = Status::default();
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    let out = Dispatch::dense_decode(q, k, v, len, status.clone());
    status.into_result()?;
    Ok(Tensor::from_dispatch(out))
}

/// See [`FasaOps::sketch_rows`].
pub(crate) fn sketch_rows(
    keys: Tensor<3>,
    layer: usize,
    rows: Range<usize>,
    plan: &Arc<OwnedPlan>,
) -> Result<SketchTensors> {
    let status = Status::default();
    let step = SketchStep { layer, rows, plan: plan.clone(), status: status.clone() };
    let (codes, scales) = Dispatch::sketch_rows(keys.into_dispatch(), step);
    status.into_result()?;
    Ok(SketchTensors { codes: Tensor::from_dispatch(codes), scales: Tensor::from_dispatch(scales) })
}

/// See [`FasaOps::fasa_decode`].
pub(crate) fn fasa_decode(
    q: Tensor<2>,
    k: Tensor<3>,
    v: Tensor<3>,
    sketch: SketchTensors,
    step: FasaStep,
) -> Result<Tensor<2>> {
    let status = step.status.clone();
    let (q, k, v) = (q.into_dispatch(), k.into_dispatch(), v.into_dispatch());
    let (codes, scales) = (sketch.codes.into_dispatch(), sketch.scales.into_dispatch());
    let out = Dispatch::fasa_decode(q, k, v, codes, scales, step);
    status.into_result()?;
    Ok(Tensor::from_dispatch(out))
}

/// See [`FasaOps::policy_decode`].
pub(crate) fn policy_decode(q: Tensor<2>, k: Tensor<3>, v: Tensor<3>, step: PolicyStep) -> Result<Tensor<2>> {
    let status = step.status.clone();
    let out = Dispatch::policy_decode(q.into_dispatch(), k.into_dispatch(), v.into_dispatch(), step);
    status.into_result()?;
    Ok(Tensor::from_dispatch(out))
}
