//! The operations on Flex tensors.

use super::cpu::{self, Cache};
use super::{FasaOps, FasaStep, PolicyStep, SketchStep, Status};
use burn::backend::TensorMetadata;
use burn::backend::ops::{AttentionModuleOptions, ModuleOps};
use burn::tensor::{Shape, TensorData};
use burn_flex::{Flex, FlexTensor};

/// A tensor whose elements follow one another from the start of its buffer, as caches do; others are copied.
fn contiguous(tensor: FlexTensor) -> FlexTensor {
    if tensor.is_contiguous() && tensor.layout().start_offset() == 0 { tensor } else { tensor.to_contiguous() }
}

fn floats(tensor: &FlexTensor) -> &[f32] {
    &tensor.storage::<f32>()[..tensor.layout().shape().num_elements()]
}

fn bytes(tensor: &FlexTensor) -> &[u8] {
    &tensor.storage::<u8>()[..tensor.layout().shape().num_elements()]
}

fn cache<'a>(keys: &'a FlexTensor, values: &'a FlexTensor) -> Cache<'a> {
    Cache { keys: floats(keys), values: floats(values), shape: keys.shape().dims() }
}

fn tensor<E: burn::tensor::Element>(data: Vec<E>, shape: impl Into<Shape>) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(data, shape.into()))
}

impl FasaOps for Flex {
    fn causal_attention(q: FlexTensor, k: FlexTensor, v: FlexTensor) -> FlexTensor {
        let options = AttentionModuleOptions { is_causal: true, ..Default::default() };
        Self::attention(q, k, v, None, None, options)
    }

    fn dense_decode(q: FlexTensor, k: FlexTensor, v: FlexTensor, len: usize, status: Status) -> FlexTensor {
        let [q, k, v] = [q, k, v].map(contiguous);
        tensor(cpu::dense(floats(&q), cache(&k, &v), len, &status), q.shape())
    }

    fn sketch_rows(k: FlexTensor, step: SketchStep) -> (FlexTensor, FlexTensor) {
        let k = contiguous(k);
        let (codes, scales) = cpu::sketch(floats(&k), k.shape().dims(), &step);
        let (code_shape, scale_shape) = cpu::sketch_shapes(&step);
        (tensor(codes, code_shape), tensor(scales, scale_shape))
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
        tensor(cpu::fasa(floats(&q), cache(&k, &v), bytes(&codes), bytes(&scales), &step), q.shape())
    }

    fn policy_decode(q: FlexTensor, k: FlexTensor, v: FlexTensor, step: PolicyStep) -> FlexTensor {
        let [q, k, v] = [q, k, v].map(contiguous);
        tensor(cpu::policy(floats(&q), cache(&k, &v), &step), q.shape())
    }
}
