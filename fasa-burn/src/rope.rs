//! Angles of the rotary position embedding.

use crate::config::RopeConfig;
use burn::tensor::{Device, Tensor, TensorData};
use fasa_core::rope::angles;

/// The rotary embedding of a model's layers. Cosines and sines are computed where they are needed: a table for all positions
/// of a long-context model would be larger than the sketch.
#[derive(Debug, Clone)]
pub struct Rope {
    config: RopeConfig,
}

/// Cosines and sines of `len` positions, `[len, 1, rotary_dim / 2]` each.
#[derive(Debug, Clone)]
pub struct Angles {
    cos: Tensor<3>,
    sin: Tensor<3>,
}

impl Rope {
    /// The rotary embedding of a configuration.
    pub fn new(config: &RopeConfig) -> Self {
        Self { config: config.clone() }
    }

    /// Angles that turn nothing: for layers without rotary positions.
    pub fn still(&self, len: usize, device: &Device) -> Angles {
        let shape = [len, 1, self.config.rotary_dim / 2];
        Angles { cos: Tensor::ones(shape, device), sin: Tensor::zeros(shape, device) }
    }

    /// Angles of the positions `from .. from + len` in a context of `context` tokens.
    pub fn angles(&self, from: usize, len: usize, context: usize, device: &Device) -> Angles {
        let [cos, sin] = self.numbers(from, len, context);
        let pairs = cos.len() / len.max(1);
        let tensor = |data| Tensor::from_data(TensorData::new(data, [len, 1, pairs]), device);
        Angles { cos: tensor(cos), sin: tensor(sin) }
    }

    /// Cosines and sines of [`angles`](Self::angles).
    pub(crate) fn numbers(&self, from: usize, len: usize, context: usize) -> [Vec<f32>; 2] {
        let frequencies = self.config.frequencies(context);
        let (pairs, factor) = (frequencies.len(), self.config.attention_factor as f32);
        let (mut cos, mut sin) = (vec![0.0f32; len * pairs], vec![0.0f32; len * pairs]);
        for (i, (cos, sin)) in cos.chunks_exact_mut(pairs).zip(sin.chunks_exact_mut(pairs)).enumerate() {
            // The lengths fit by construction, which is the only thing that could fail.
            let _ = angles(from + i, &frequencies, cos, sin);
            cos.iter_mut().chain(sin).for_each(|x| *x *= factor);
        }
        [cos, sin]
    }
}

impl Angles {
    /// Those of one position, from its cosines and sines.
    #[cfg(feature = "cube")]
    pub(crate) fn of_one(cos: &[f32], sin: &[f32], device: &Device) -> Self {
        let tensor =
            |numbers: &[f32]| Tensor::from_data(TensorData::new(numbers.to_vec(), [1, 1, numbers.len()]), device);
        Self { cos: tensor(cos), sin: tensor(sin) }
    }

    /// `[len, 1, rotary_dim / 2]`.
    pub(crate) fn cos(&self) -> Tensor<3> {
        self.cos.clone()
    }

    /// `[len, 1, rotary_dim / 2]`.
    pub(crate) fn sin(&self) -> Tensor<3> {
        self.sin.clone()
    }
}
