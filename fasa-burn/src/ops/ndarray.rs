//! The operations on NdArray tensors: the second, independent CPU backend. Everything but sparse attention is composed of
//! the backend's own operations.
#![allow(deprecated)] // upstream deprecates the backend; it stays as a reference

use super::cpu::{self, Cache, KeyRows, SketchTables};
use super::{AttentionOptions, FasaOps, FasaStep, PolicyStep, SketchStep, Status, composed};
use burn::backend::NdArray;
use burn::backend::TensorMetadata;
use burn::backend::ops::attention::attention_fallback;
use burn::backend::ops::{AttentionModuleOptions, FloatTensorOps};
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{Shape, TensorData};
use burn_ndarray::NdArrayTensor;
use fasa_cpu::Numbers;

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

fn rows<'a>(keys: &'a [f32], values: &'a [f32], shape: Shape) -> Cache<'a> {
    Cache { keys: Numbers::F32(keys), values: Numbers::F32(values), shape: shape.dims() }
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
    fn causal_attention(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        len: usize,
        options: AttentionOptions,
        status: Status,
    ) -> FloatTensor<Self> {
        if options.window.is_some_and(|window| window < len) {
            let ((q, shape), (keys, cache), (values, _)) = (floats(q), floats(k), floats(v));
            let heads = shape[1];
            return tensor(cpu::causal(&q, heads, rows(&keys, &values, cache), len, options, &status), shape);
        }
        let ([new, heads, dim], kv_heads) = (q.shape().dims(), k.shape()[0]);
        let rows = |cache| {
            let rows = composed::narrow::<Self>(cache, 1, 0, len);
            repeat_heads(Self::float_reshape(rows, Shape::new([1, kv_heads, len, dim])), heads)
        };
        let q = Self::float_reshape(Self::float_swap_dims(q, 0, 1), Shape::new([1, heads, new, dim]));
        let options =
            AttentionModuleOptions { is_causal: true, softcap: options.softcap.map(f64::from), ..Default::default() };
        let out = attention_fallback::<Self>(q, rows(k), rows(v), None, None, options);
        Self::float_swap_dims(Self::float_reshape(out, Shape::new([heads, new, dim])), 0, 1)
    }

    fn dense_decode(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        len: usize,
        options: AttentionOptions,
        status: Status,
    ) -> FloatTensor<Self> {
        let ((q, shape), (keys, cache), (values, _)) = (floats(q), floats(k), floats(v));
        tensor(cpu::dense(&q, rows(&keys, &values, cache), len, options, &status), shape)
    }

    fn write_sketch(
        k: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: IntTensor<Self>,
        step: SketchStep,
    ) -> (IntTensor<Self>, IntTensor<Self>) {
        let ((keys, shape), code_shape, scale_shape) = (floats(k), codes.shape(), scales.shape());
        let (mut codes, mut scales) = (bytes(codes), bytes(scales));
        let shape: [usize; 3] = shape.dims();
        let keys = KeyRows { numbers: Numbers::F32(&keys), shape, first: 0 };
        let tables = SketchTables { codes: &mut codes, scales: &mut scales, capacity: shape[1] };
        cpu::write_sketch(keys, tables, &step);
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
        tensor(cpu::fasa(&q, rows(&keys, &values, cache), &codes, &scales, &step), shape)
    }

    fn policy_decode(
        q: FloatTensor<Self>,
        k: FloatTensor<Self>,
        v: FloatTensor<Self>,
        step: PolicyStep,
    ) -> FloatTensor<Self> {
        let ((q, shape), (keys, cache), (values, _)) = (floats(q), floats(k), floats(v));
        tensor(cpu::policy(&q, rows(&keys, &values, cache), &step), shape)
    }
}
