//! The operations on NdArray tensors: the second, independent CPU backend.
#![allow(deprecated)] // upstream deprecates the backend; it stays as a reference

use super::cpu::{self, Cache};
use super::{FasaOps, FasaStep, PolicyStep, SketchStep, Status};
use burn::backend::NdArray;
use burn::backend::TensorMetadata;
use burn::backend::ops::attention::attention_fallback;
use burn::backend::ops::{AttentionModuleOptions, FloatTensorOps};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{Shape, TensorData};
use burn_ndarray::NdArrayTensor;

/// The numbers of a tensor in row-major order, and its shape. Copies: this backend is for comparing, not for speed.
fn floats(tensor: NdArrayTensor) -> (Vec<f32>, Shape) {
    let shape = tensor.shape();
    let NdArrayTensor::F32(storage) = tensor else { unreachable!("the model is loaded in f32 on this backend") };
    (storage.view().iter().copied().collect(), shape)
}

fn bytes(tensor: NdArrayTensor) -> Vec<u8> {
    let NdArrayTensor::U8(storage) = tensor else { unreachable!("sketches are created as u8") };
    storage.view().iter().copied().collect()
}

fn tensor<E: burn::tensor::Element>(data: Vec<E>, shape: impl Into<Shape>) -> NdArrayTensor {
    NdArrayTensor::from_data(TensorData::new(data, shape.into()))
}

/// `[1, Hkv, n, d]` to `[1, Hq, n, d]`: this backend's attention has no grouped queries.
fn repeat_heads(tensor: NdArrayTensor, query_heads: usize) -> NdArrayTensor {
    let [batch, kv_heads, n, d] = tensor.shape().dims();
    let group = query_heads / kv_heads;
    let split = NdArray::float_reshape(tensor, Shape::new([batch, kv_heads, 1, n, d]));
    let wide = NdArray::float_expand(split, Shape::new([batch, kv_heads, group, n, d]));
    NdArray::float_reshape(wide, Shape::new([batch, query_heads, n, d]))
}

impl FasaOps for NdArray {
    fn causal_attention(q: FloatTensor<Self>, k: FloatTensor<Self>, v: FloatTensor<Self>) -> FloatTensor<Self> {
        let heads = q.shape()[1];
        let options = AttentionModuleOptions { is_causal: true, ..Default::default() };
        attention_fallback::<Self>(q, repeat_heads(k, heads), repeat_heads(v, heads), None, None, options)
    }

    fn dense_decode(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        len: usize,
        status: Status,
    ) -> FloatTensor<Self> {
        let ((q, shape), (keys, cache), (values, _)) = (floats(q), floats(k), floats(v));
        let cache = Cache { keys: &keys, values: &values, shape: cache.dims() };
        tensor(cpu::dense(&q, cache, len, &status), shape)
    }

    fn sketch_rows(k: FloatTensor<Self>, step: SketchStep) -> (IntTensor<Self>, IntTensor<Self>) {
        let (keys, shape) = floats(k);
        let (codes, scales) = cpu::sketch(&keys, shape.dims(), &step);
        let (code_shape, scale_shape) = cpu::sketch_shapes(&step);
        (tensor(codes, code_shape), tensor(scales, scale_shape))
    }

    fn fasa_decode(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        step: FasaStep,
    ) -> FloatTensor<Self> {
        let ((q, shape), (keys, cache), (values, _)) = (floats(q), floats(k), floats(v));
        let (codes, scales) = (bytes(codes), bytes(scales));
        let cache = Cache { keys: &keys, values: &values, shape: cache.dims() };
        tensor(cpu::fasa(&q, cache, &codes, &scales, &step), shape)
    }

    fn policy_decode(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: PolicyStep,
    ) -> FloatTensor<Self> {
        let ((q, shape), (keys, cache), (values, _)) = (floats(q), floats(k), floats(v));
        let cache = Cache { keys: &keys, values: &values, shape: cache.dims() };
        tensor(cpu::policy(&q, cache, &step), shape)
    }
}
