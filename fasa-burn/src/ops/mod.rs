//! The operations that Burn lacks, as a backend extension: one trait, one implementation per backend.
//!
//! A layer is five of them: [`norm_linear`](FasaOps::norm_linear) (queries, keys, values), [`append`](FasaOps::append),
//! an attention, [`linear_add`](FasaOps::linear_add) and [`mlp`](FasaOps::mlp). They are coarse because a decode step of a
//! small model is over in the time that a few dozen small operations take to start. The first ones come with a default,
//! composed of Burn's own operations, which a backend replaces where it has something faster.
//!
//! A cache here is `[kv_heads, capacity, head_dim]`, one sequence; `len` says how many rows of it are in use. Activations
//! are f32; weights and caches are what they were loaded as.
#![cfg_attr(feature = "ndarray", allow(deprecated))] // upstream deprecates NdArray; it stays as a reference

mod calls;
pub mod composed;
// What no backend in this build runs, the second tier of the cache does, or nobody.
#[cfg_attr(not(any(feature = "flex", feature = "ndarray")), allow(dead_code))]
pub(crate) mod cpu;
#[cfg(feature = "cube")]
pub(crate) mod cube;
#[cfg(feature = "flex")]
mod flex;
#[cfg(feature = "ndarray")]
mod ndarray;
mod step;

pub(crate) use calls::*;
pub(crate) use step::note;
pub use step::{AttentionOptions, FasaStep, PolicyStep, Recorder, SketchStep, Status};

use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::backend::{Backend, backend_extension};

/// The operations of a decoder layer on a backend. Failures of attention are reported through the step's [`Status`],
/// because an operation can only return tensors. The other operations trust their shapes, as Burn's do: they follow from
/// weights whose shapes were checked when they were read.
#[backend_extension(Flex: cfg(feature = "flex"), NdArray: cfg(feature = "ndarray"), Cube: cfg(feature = "cube"))]
pub trait FasaOps: Backend {
    /// `x weightᵀ`: `x` `[tokens, inputs]`, `weight` `[outputs, inputs]`.
    fn linear(x: FloatTensor<Self>, weight: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::linear::<Self>(x, weight)
    }

    /// `residual + x weightᵀ`.
    fn linear_add(x: FloatTensor<Self>, weight: FloatTensor<Self>, residual: FloatTensor<Self>) -> FloatTensor<Self> {
        composed::linear_add::<Self>(x, weight, residual)
    }

    /// `norm(x) weightᵀ`, with the root mean square norm of weight `norm` `[1, inputs]`.
    fn norm_linear(
        x: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        eps: f64,
        weight: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::norm_linear::<Self>(x, norm, eps, weight)
    }

    /// The feed-forward block: `x + (silu(y gateᵀ) * (y upᵀ)) downᵀ` of `y = norm(x)`. `gate_up` is `[2 * inner, inputs]`,
    /// the gate's rows first; `down` `[inputs, inner]`.
    fn mlp(
        x: FloatTensor<Self>,
        norm: FloatTensor<Self>,
        eps: f64,
        gate_up: FloatTensor<Self>,
        down: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        composed::mlp::<Self>(x, norm, eps, gate_up, down)
    }

    /// Turns queries and keys of new tokens by their positions and writes keys and values into the cache, in place where
    /// the backend can, from row `position` on. `qkv` is `[new, (Hq + 2 Hkv) * d]`: the query heads, then the key heads,
    /// then the value heads; `cos` and `sin` `[new, 1, r / 2]` for the r dimensions that turn; `k` and `v` `[Hkv, capacity, d]`. Returns the queries,
    /// `[new, Hq, d]`, and the cache.
    fn append(
        qkv: FloatTensor<Self>,
        cos: FloatTensor<Self>,
        sin: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        position: usize,
    ) -> (FloatTensor<Self>, FloatTensor<Self>, FloatTensor<Self>) {
        composed::append::<Self>(qkv, cos, sin, k, v, position)
    }

    /// Causal attention of new tokens, the last of the first `len` rows: `q` `[new, Hq, d]`, `k` and `v`
    /// `[Hkv, capacity, d]`. Returns `[new, Hq, d]`. A backend that lacks what `options` ask for says so in `status`.
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        len: usize,
        options: AttentionOptions,
        status: Status,
    ) -> FloatTensor<Self>;

    /// One token attends to the first `len` rows, or the last of them in its window: `q` `[1, Hq, d]`.
    fn dense_decode(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        len: usize,
        options: AttentionOptions,
        status: Status,
    ) -> FloatTensor<Self>;

    /// Writes sketch rows of a range of keys, in place where the backend can: codes `[heads, capacity, row_bytes]` and row
    /// scales `[heads, capacity, 2]`; `[1, 1, 1]` for the float formats, which have none. Returns both.
    fn write_sketch(
        k: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        step: SketchStep,
    ) -> (IntTensor<Self>, IntTensor<Self>);

    /// One token attends to the tokens that the sketch ranks best.
    fn fasa_decode(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        step: FasaStep,
    ) -> FloatTensor<Self>;

    /// Writes `numbers` over the start of a tensor of 32-bit numbers, whoever else holds it: what a recorded step reads. Only where
    /// steps are recorded.
    fn overwrite(x: FloatTensor<Self>, _numbers: Vec<u32>) -> FloatTensor<Self> {
        x
    }

    /// As [`overwrite`](Self::overwrite).
    fn overwrite_int(x: IntTensor<Self>, _numbers: Vec<u32>) -> IntTensor<Self> {
        x
    }

    /// From now on this thread's decode steps take the number of rows in use, `most` at most, from the first number of `len`
    /// while they run, and not from their arguments. Only where steps are recorded.
    fn take_length(len: IntTensor<Self>, _most: usize) -> IntTensor<Self> {
        len
    }

    /// One token attends to the tokens that a policy chooses.
    fn policy_decode(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: PolicyStep,
    ) -> FloatTensor<Self>;
}

#[cfg(all(test, feature = "flex"))]
mod tests;
