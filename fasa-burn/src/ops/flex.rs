//! The operations on Flex tensors: kernels over the memory behind them.

use super::cpu::{self, Cache, KeyRows, SketchTables};
use super::{AttentionOptions, FasaOps, FasaStep, PolicyStep, SketchStep, Status};
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{DType, Element, Shape, TensorData};
use burn_flex::{Flex, FlexTensor};
use fasa_cpu::Numbers;
use fasa_cpu::linear::{self, FEW_TOKENS};
use half::f16;

/// A tensor whose elements follow one another from the start of its buffer, as weights and caches do; others are copied.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() && tensor.layout().start_offset() == 0 { tensor } else { tensor.to_contiguous() }
}

fn slice<E: Element + bytemuck::Pod>(tensor: &FlexTensor) -> &[E] {
    &tensor.storage::<E>()[..tensor.layout().shape().num_elements()]
}

/// The tensor's memory to write to; copied first if another handle reads it.
fn slice_mut<E: Element + bytemuck::Pod>(tensor: &mut FlexTensor) -> &mut [E] {
    let len = tensor.layout().shape().num_elements();
    &mut tensor.storage_mut::<E>()[..len]
}

fn numbers(tensor: &FlexTensor) -> Numbers<'_> {
    match tensor.dtype() {
        DType::F16 => Numbers::F16(slice::<f16>(tensor)),
        _ => Numbers::F32(slice::<f32>(tensor)),
    }
}

fn cache<'a>(keys: &'a FlexTensor, values: &'a FlexTensor) -> Cache<'a> {
    Cache { keys: numbers(keys), values: numbers(values), shape: keys.shape().dims() }
}

fn tensor<E: Element>(data: Vec<E>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(data, shape.into()))
}

/// Whether `x` `[tokens, inputs]` is better served by reading weights once than by a matrix product.
fn few(x: &FlexTensor) -> bool {
    x.shape()[0] <= FEW_TOKENS
}

/// A kernel's result. The kernels refuse sizes that disagree.
fn sized<T>(result: fasa_core::Result<T>) -> T {
    match result {
        Ok(value) => value,
        Err(error) => unreachable!("weights have the shapes that were checked when they were read: {error}"),
    }
}

/// `x weightᵀ` of few tokens: `x` `[tokens, inputs]` in memory.
fn project(x: &[f32], weight: &FlexTensor) -> FlexTensor {
    let [outputs, inputs] = weight.shape().dims();
    let tokens = x.len() / inputs;
    let mut out = vec![0.0; tokens * outputs];
    sized(linear::linear(x, numbers(weight), inputs, &mut out));
    tensor(out, [tokens, outputs])
}

fn normed(x: &FlexTensor, norm: &FlexTensor, eps: f64) -> Vec<f32> {
    let mut out = vec![0.0; x.shape().num_elements()];
    sized(linear::rms_norm(slice(x), slice(norm), eps as f32, &mut out));
    out
}

impl FasaOps for Flex {
    fn linear(x: FlexTensor, weight: FlexTensor) -> FlexTensor {
        let [x, weight] = [x, weight].map(contiguous);
        if few(&x) {
            return project(slice(&x), &weight);
        }
        // A chunk of a prompt uses a weight so often that converting it first is cheap.
        let weight = match numbers(&weight) {
            Numbers::F16(half) => {
                let mut wide = vec![0.0; half.len()];
                sized(linear::widen(half, &mut wide));
                tensor(wide, weight.shape())
            }
            _ => weight,
        };
        Self::float_matmul(x, Self::float_transpose(weight))
    }

    fn linear_add(x: FlexTensor, weight: FlexTensor, residual: FlexTensor) -> FlexTensor {
        if !few(&x) {
            return Self::float_add(residual, Self::linear(x, weight));
        }
        let [x, weight, mut residual] = [x, weight, residual].map(contiguous);
        let inputs = weight.shape()[1];
        sized(linear::linear_add(slice(&x), numbers(&weight), inputs, slice_mut(&mut residual)));
        residual
    }

    fn norm_linear(x: FlexTensor, norm: FlexTensor, eps: f64, weight: FlexTensor) -> FlexTensor {
        let [x, norm, weight] = [x, norm, weight].map(contiguous);
        let normed = normed(&x, &norm, eps);
        if few(&x) { project(&normed, &weight) } else { Self::linear(tensor(normed, x.shape()), weight) }
    }

    fn mlp(x: FlexTensor, norm: FlexTensor, eps: f64, gate_up: FlexTensor, down: FlexTensor) -> FlexTensor {
        if !few(&x) {
            let (tokens, inner) = (x.shape()[0], down.shape()[1]);
            let gate_up = contiguous(Self::norm_linear(x.clone(), norm, eps, gate_up));
            let mut between = vec![0.0; tokens * inner];
            sized(linear::gate(slice(&gate_up), inner, &mut between));
            return Self::linear_add(tensor(between, [tokens, inner]), down, x);
        }
        let [mut x, norm, gate_up, down] = [x, norm, gate_up, down].map(contiguous);
        let [inputs, inner] = down.shape().dims();
        let mut between = vec![0.0; x.shape()[0] * inner];
        sized(linear::swiglu(&normed(&x, &norm, eps), numbers(&gate_up), inputs, &mut between));
        sized(linear::linear_add(&between, numbers(&down), inner, slice_mut(&mut x)));
        x
    }

    fn append(
        qkv: FlexTensor,
        cos: FlexTensor,
        sin: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        position: usize,
    ) -> (FlexTensor, FlexTensor, FlexTensor) {
        let [qkv, cos, sin, mut k, mut v] = [qkv, cos, sin, k, v].map(contiguous);
        let (new, shape) = (qkv.shape()[0], k.shape().dims());
        let (numbers, angles) = (slice(&qkv), [slice(&cos), slice(&sin)]);
        let queries = match k.dtype() {
            DType::F16 => {
                let rows: [&mut [f16]; 2] = [slice_mut(&mut k), slice_mut(&mut v)];
                cpu::append(numbers, angles, rows, shape, [new, position])
            }
            _ => {
                let rows: [&mut [f32]; 2] = [slice_mut(&mut k), slice_mut(&mut v)];
                cpu::append(numbers, angles, rows, shape, [new, position])
            }
        };
        let heads = queries.len() / new / shape[2];
        (tensor(queries, [new, heads, shape[2]]), k, v)
    }

    fn causal_attention(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        len: usize,
        options: AttentionOptions,
        status: Status,
    ) -> FlexTensor {
        let [q, k, v] = [q, k, v].map(contiguous);
        tensor(cpu::causal(slice(&q), q.shape()[1], cache(&k, &v), len, options, &status), q.shape())
    }

    fn dense_decode(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        len: usize,
        options: AttentionOptions,
        status: Status,
    ) -> FlexTensor {
        let [q, k, v] = [q, k, v].map(contiguous);
        tensor(cpu::dense(slice(&q), cache(&k, &v), len, options, &status), q.shape())
    }

    fn write_sketch(
        k: FlexTensor,
        codes: FlexTensor,
        scales: FlexTensor,
        step: SketchStep,
    ) -> (FlexTensor, FlexTensor) {
        let [k, mut codes, mut scales] = [k, codes, scales].map(contiguous);
        let shape: [usize; 3] = k.shape().dims();
        let keys = KeyRows { numbers: numbers(&k), shape, first: 0 };
        let (codes_mut, scales_mut) = (slice_mut(&mut codes), slice_mut(&mut scales));
        let tables = SketchTables { codes: codes_mut, scales: scales_mut, capacity: shape[1] };
        cpu::write_sketch(keys, tables, &step);
        (codes, scales)
    }

    fn fasa_decode(
        q: FlexTensor,
        k: FlexTensor,
        v: FlexTensor,
        codes: FlexTensor,
        scales: FlexTensor,
        step: FasaStep,
    ) -> FlexTensor {
        let [q, k, v, codes, scales] = [q, k, v, codes, scales].map(contiguous);
        tensor(cpu::fasa(slice(&q), cache(&k, &v), slice(&codes), slice(&scales), &step), q.shape())
    }

    fn policy_decode(q: FlexTensor, k: FlexTensor, v: FlexTensor, step: PolicyStep) -> FlexTensor {
        let [q, k, v] = [q, k, v].map(contiguous);
        tensor(cpu::policy(slice(&q), cache(&k, &v), &step), q.shape())
    }
}
