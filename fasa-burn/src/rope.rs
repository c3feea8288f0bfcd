//! Rotary position embedding on tensors.

use burn::tensor::{Device, Tensor, TensorData};
use fasa_core::rope::{angles, inverse_frequency};

/// Cosines and sines for a run of positions, computed where they are needed: a table for all positions of a long-context
/// model would be larger than the sketch.
#[derive(Debug, Clone)]
pub struct Rope {
    inverse_frequencies: Vec<f64>,
}

/// Cosines and sines of `len` positions, `[len, 1, rotary_dim / 2]` each.
#[derive(Debug, Clone)]
pub struct Angles {
    cos: Tensor<3>,
    sin: Tensor<3>,
}

impl Rope {
    /// Default rotary embedding: frequencies `theta^(-2i/head_dim)`.
    pub fn new(theta: f64, head_dim: usize) -> Self {
        Self { inverse_frequencies: (0..head_dim / 2).map(|i| inverse_frequency(theta, head_dim, i)).collect() }
    }

    /// Angles of the positions `from .. from + len`.
    pub fn angles(&self, from: usize, len: usize, device: &Device) -> Angles {
        let pairs = self.inverse_frequencies.len();
        let (mut cos, mut sin) = (vec![0.0f32; len * pairs], vec![0.0f32; len * pairs]);
        for (i, (cos, sin)) in cos.chunks_exact_mut(pairs).zip(sin.chunks_exact_mut(pairs)).enumerate() {
            // The lengths fit by construction, which is the only thing that could fail.
            let _ = angles(from + i, &self.inverse_frequencies, cos, sin);
        }
        let tensor = |data| Tensor::from_data(TensorData::new(data, [len, 1, pairs]), device);
        Angles { cos: tensor(cos), sin: tensor(sin) }
    }
}

impl Angles {
    /// Turns `x`, `[len, heads, head_dim]`, in the half-split layout of Hugging Face checkpoints: dimension i turns with
    /// i + head_dim / 2.
    pub fn rotate(&self, x: Tensor<3>) -> Tensor<3> {
        let half = x.dims()[2] / 2;
        let (first, second) = (x.clone().narrow(2, 0, half), x.narrow(2, half, half));
        let turned_first = first.clone() * self.cos.clone() - second.clone() * self.sin.clone();
        let turned_second = second * self.cos.clone() + first * self.sin.clone();
        Tensor::cat(vec![turned_first, turned_second], 2)
    }
}

#[cfg(all(test, feature = "flex"))]
mod tests {
    use super::*;
    use fasa_core::{Chunks, Pairing};

    #[test]
    fn equals_the_rotation_of_the_core() {
        let device = Device::flex();
        let (len, heads, dim, from) = (3, 2, 8, 1000);
        let numbers: Vec<f32> = (0..len * heads * dim).map(|i| (i as f32 * 0.7).sin()).collect();
        let x = Tensor::from_data(TensorData::new(numbers.clone(), [len, heads, dim]), &device);
        let rope = Rope::new(1e4, dim);
        let got = rope.angles(from, len, &device).rotate(x).into_data().try_to_vec::<f32>().expect("f32");
        let chunks = Chunks::new(dim, dim, Pairing::HalfSplit).expect("valid");
        let mut want = numbers;
        for (row, values) in want.chunks_exact_mut(dim).enumerate() {
            let (mut cos, mut sin) = ([0.0; 4], [0.0; 4]);
            angles(from + row / heads, &rope.inverse_frequencies, &mut cos, &mut sin).expect("lengths");
            chunks.rotate(values, &cos, &sin).expect("lengths");
        }
        for (g, w) in got.iter().zip(&want) {
            assert!((g - w).abs() < 1e-6, "{g} {w}");
        }
    }
}
