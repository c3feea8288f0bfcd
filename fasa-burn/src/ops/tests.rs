//! The operations of Flex against the compositions that are their definition.

use super::{FasaOps, composed};
use burn::backend::TensorMetadata;
use burn::backend::ops::FloatTensorOps;
use burn::tensor::{FloatDType, TensorData};
use burn_flex::{Flex, FlexTensor};

const EPS: f64 = 1e-5;

/// Numbers from -1 to 1 that depend on `seed`.
fn noise<const D: usize>(seed: usize, shape: [usize; D]) -> FlexTensor {
    let number = |i: usize| ((i * 7919 + seed * 104_729) % 2003) as f32 / 1001.0 - 1.0;
    let numbers: Vec<f32> = (0..shape.iter().product()).map(number).collect();
    FlexTensor::from_data(TensorData::new(numbers, shape))
}

/// The same as weights: small enough that sums stay near 1, in either number format.
fn weight(seed: usize, shape: [usize; 2], dtype: FloatDType) -> FlexTensor {
    let scaled = Flex::float_mul_scalar(noise(seed, shape), (1.0 / (shape[1] as f32).sqrt()).into());
    Flex::float_cast(scaled, dtype)
}

fn numbers(tensor: FlexTensor) -> Vec<f32> {
    Flex::float_cast(tensor, FloatDType::F32).into_data().try_to_vec().expect("f32")
}

fn same(what: &str, got: FlexTensor, want: FlexTensor) {
    assert_eq!(got.shape(), want.shape(), "{what}");
    for (i, (got, want)) in numbers(got).into_iter().zip(numbers(want)).enumerate() {
        assert!((got - want).abs() < 1e-5, "{what} {i}: {got} {want}");
    }
}

/// One token, few, and more than the kernels are made for; a width that fills no vector, and one that is shared out.
fn cases() -> impl Iterator<Item = (usize, [usize; 2], FloatDType)> {
    let shapes = [[24, 20], [64, 40], [250, 600]];
    let tokens = [1, 3, 8, 9, 33];
    let formats = [FloatDType::F32, FloatDType::F16];
    tokens.into_iter().flat_map(move |t| shapes.into_iter().flat_map(move |s| formats.map(|f| (t, s, f))))
}

#[test]
fn projections() {
    for (tokens, [inputs, outputs], dtype) in cases() {
        let what = format!("{tokens} tokens, {inputs} to {outputs}, {dtype:?}");
        let (x, residual) = (noise(1, [tokens, inputs]), noise(2, [tokens, outputs]));
        let (w, norm) = (weight(3, [outputs, inputs], dtype), noise(4, [1, inputs]));
        same(&what, Flex::linear(x.clone(), w.clone()), composed::linear::<Flex>(x.clone(), w.clone()));
        let added = Flex::linear_add(x.clone(), w.clone(), residual.clone());
        same(&what, added, composed::linear_add::<Flex>(x.clone(), w.clone(), residual));
        let normed = Flex::norm_linear(x.clone(), norm.clone(), EPS, w.clone());
        same(&what, normed, composed::norm_linear::<Flex>(x, norm, EPS, w));
    }
}

#[test]
fn feed_forward() {
    for (tokens, [hidden, inner], dtype) in cases() {
        let what = format!("{tokens} tokens, {hidden} to {inner}, {dtype:?}");
        let (x, norm) = (noise(5, [tokens, hidden]), noise(6, [1, hidden]));
        let (gate_up, down) = (weight(7, [2 * inner, hidden], dtype), weight(8, [hidden, inner], dtype));
        let got = Flex::mlp(x.clone(), norm.clone(), EPS, gate_up.clone(), down.clone());
        same(&what, got, composed::mlp::<Flex>(x, norm, EPS, gate_up, down));
    }
}

#[test]
fn appending() {
    let (query_heads, kv_heads, dim, capacity) = (6, 2, 10, 16);
    for (new, position, dtype) in [(1, 0, FloatDType::F32), (1, 15, FloatDType::F16), (5, 3, FloatDType::F16)] {
        let qkv = noise(9, [new, (query_heads + 2 * kv_heads) * dim]);
        let (cos, sin) = (noise(10, [new, 1, dim / 2]), noise(11, [new, 1, dim / 2]));
        let cache = |seed| Flex::float_cast(noise(seed, [kv_heads, capacity, dim]), dtype);
        let (k, v) = (cache(12), cache(13));
        let want = composed::append::<Flex>(qkv.clone(), cos.clone(), sin.clone(), k.clone(), v.clone(), position);
        // The other handles to the cache must not see the new rows.
        let (k_before, v_before) = (numbers(k.clone()), numbers(v.clone()));
        let got = Flex::append(qkv, cos, sin, k.clone(), v.clone(), position);
        assert_eq!((numbers(k), numbers(v)), (k_before, v_before));
        assert_eq!(got.1.dtype(), want.1.dtype());
        same("queries", got.0, want.0);
        // Keys may round to the neighbouring half, where the rotation's own rounding differs.
        let (keys, wanted) = (numbers(got.1), numbers(want.1));
        assert!(keys.iter().zip(&wanted).all(|(g, w)| (g - w).abs() < 2e-3), "keys");
        same("values", got.2, want.2);
    }
}

/// Activations are never rounded to half precision: what a weight of ones adds up is exact.
#[test]
fn activations_stay_single() {
    let x = FlexTensor::from_data(TensorData::new(vec![1.0f32, 1.0 / 4096.0, -1.0], [1, 3]));
    let ones = Flex::float_cast(FlexTensor::from_data(TensorData::new(vec![1.0f32; 3], [1, 3])), FloatDType::F16);
    assert_eq!(numbers(Flex::linear(x, ones)), [1.0 / 4096.0]);
}
