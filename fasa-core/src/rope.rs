//! Rotary position embedding: which two dimensions turn together, and by how much.
//!
//! RoPE (arXiv 2104.09864) rotates the pair number i of a head by the angle `m * base^(-2i/d)` at position m. Such a
//! pair is a **frequency chunk**: the smallest part of a query-key product that depends on relative position alone.
//! *Which* two dimensions form a pair depends on how the checkpoint lays them out.

use crate::error::{Error, Result, expect_length};

/// How dimensions are grouped into chunks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "kebab-case"))]
#[non_exhaustive]
pub enum Pairing {
    /// Dimensions i and i + r/2 of the r rotary ones: Hugging Face's `rotate_half`.
    HalfSplit,
    /// Dimensions 2i and 2i + 1: the RoPE paper, GPT-J, GGUF llama.
    Interleaved,
    /// Dimensions 2i and 2i + 1 of a model that is laid out half-split: what the FASA authors' code indexes. Such a pair
    /// is no rotary pair; this exists to compare with published numbers, never as a default.
    Neighbours,
}

/// The chunks of one head: `head_dim / 2` pairs of dimensions.
///
/// With partial rotary embedding (`rotary_dim < head_dim`) the dimensions that do not turn are paired consecutively
/// after the rotary ones and take part like any other chunk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunks {
    head_dim: usize,
    rotary_dim: usize,
    pairing: Pairing,
}

/// Largest head dimension this crate accepts; bounds the stack space used for checks on profiles.
pub const MAX_HEAD_DIM: usize = 1024;

impl Chunks {
    /// Chunks of a head of `head_dim` dimensions, the first `rotary_dim` of which turn.
    ///
    /// # Errors
    /// [`Error::Range`] unless both are even, `rotary_dim <= head_dim` and `2 <= head_dim <= `[`MAX_HEAD_DIM`].
    pub fn new(head_dim: usize, rotary_dim: usize, pairing: Pairing) -> Result<Self> {
        if head_dim == 0 || !head_dim.is_multiple_of(2) || head_dim > MAX_HEAD_DIM {
            return Err(Error::Range { what: "head_dim", problem: "must be even, from 2 to 1024" });
        }
        if !rotary_dim.is_multiple_of(2) || rotary_dim > head_dim {
            return Err(Error::Range { what: "rotary_dim", problem: "must be even and at most head_dim" });
        }
        Ok(Self { head_dim, rotary_dim, pairing })
    }

    /// Number of chunks, `head_dim / 2`.
    #[allow(clippy::len_without_is_empty)] // never empty: head_dim >= 2
    pub fn len(&self) -> usize {
        self.head_dim / 2
    }

    /// Dimensions per head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Dimensions that turn.
    pub fn rotary_dim(&self) -> usize {
        self.rotary_dim
    }

    /// How dimensions are paired.
    pub fn pairing(&self) -> Pairing {
        self.pairing
    }

    /// The two dimensions of chunk `i`, first the one that RoPE multiplies by the cosine.
    ///
    /// # Panics
    /// If `i >= self.len()`.
    pub fn pair(&self, i: usize) -> (usize, usize) {
        assert!(i < self.len(), "chunk {i} of {}", self.len());
        let half = self.rotary_dim / 2;
        match self.pairing {
            Pairing::HalfSplit if i < half => (i, i + half),
            // Neighbours, and the dimensions after the rotary ones: 2i, 2i + 1 continues both counts.
            _ => (2 * i, 2 * i + 1),
        }
    }

    /// Writes the dimensions of the chunks `chosen` in sketch order: all first dimensions, then all second ones.
    ///
    /// # Errors
    /// [`Error::Length`] unless `out` has `2 * chosen.len()` places, [`Error::Range`] for a chunk that does not exist.
    pub fn channels(&self, chosen: &[u16], out: &mut [u16]) -> Result<()> {
        expect_length("out", out.len(), 2 * chosen.len())?;
        let (firsts, seconds) = out.split_at_mut(chosen.len());
        for ((&chunk, first), second) in chosen.iter().zip(firsts).zip(seconds) {
            if chunk as usize >= self.len() {
                return Err(Error::Range { what: "chunk", problem: "a head has head_dim / 2 chunks" });
            }
            let (a, b) = self.pair(chunk as usize);
            (*first, *second) = (a as u16, b as u16);
        }
        Ok(())
    }

    /// Turns one row in place for position `m`: `cos[i]` and `sin[i]` belong to rotary pair i (see [`angles`]).
    ///
    /// # Errors
    /// [`Error::Length`] unless `row` has `head_dim` numbers and `cos`, `sin` have `rotary_dim / 2`;
    /// [`Error::Range`] for [`Pairing::Neighbours`], which is no rotation.
    pub fn rotate(&self, row: &mut [f32], cos: &[f32], sin: &[f32]) -> Result<()> {
        expect_length("row", row.len(), self.head_dim)?;
        expect_length("cos", cos.len(), self.rotary_dim / 2)?;
        expect_length("sin", sin.len(), self.rotary_dim / 2)?;
        if self.pairing == Pairing::Neighbours {
            return Err(Error::Range { what: "pairing", problem: "neighbouring dimensions do not turn together" });
        }
        for (i, (c, s)) in cos.iter().zip(sin).enumerate() {
            let (a, b) = self.pair(i);
            let (x, y) = (row[a], row[b]);
            row[a] = x * c - y * s;
            row[b] = y * c + x * s;
        }
        Ok(())
    }
}

/// Angular frequency of rotary pair `i`: `base^(-2i / rotary_dim)`, in radians per token.
pub fn inverse_frequency(base: f64, rotary_dim: usize, i: usize) -> f64 {
    libm::pow(base, -2.0 * i as f64 / rotary_dim as f64)
}

/// Cosines and sines of every pair at `position` (RoPE paper, equation 15), from frequencies in radians per token.
///
/// Angles are reduced in `f64`: at position 131072 an `f32` angle would be off by 0.008.
///
/// # Errors
/// [`Error::Length`] unless the three slices have one length.
pub fn angles(position: usize, inverse_frequencies: &[f64], cos: &mut [f32], sin: &mut [f32]) -> Result<()> {
    expect_length("cos", cos.len(), inverse_frequencies.len())?;
    expect_length("sin", sin.len(), inverse_frequencies.len())?;
    for ((f, c), s) in inverse_frequencies.iter().zip(cos).zip(sin) {
        let (sine, cosine) = libm::sincos(position as f64 * f);
        (*c, *s) = (cosine as f32, sine as f32);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_dimension_is_in_one_chunk() {
        for (head_dim, rotary_dim) in [(2, 2), (8, 8), (64, 64), (64, 16), (80, 20), (6, 0)] {
            for pairing in [Pairing::HalfSplit, Pairing::Interleaved, Pairing::Neighbours] {
                let chunks = Chunks::new(head_dim, rotary_dim, pairing).expect("valid");
                let mut seen = [false; 80];
                for i in 0..chunks.len() {
                    let (a, b) = chunks.pair(i);
                    for dim in [a, b] {
                        assert!(!core::mem::replace(&mut seen[dim], true), "{head_dim} {rotary_dim} {pairing:?}");
                    }
                }
                assert!(seen[..head_dim].iter().all(|s| *s));
            }
        }
    }

    #[test]
    fn pairs_by_layout() {
        let half = Chunks::new(8, 4, Pairing::HalfSplit).expect("valid");
        assert_eq!([0, 1, 2, 3].map(|i| half.pair(i)), [(0, 2), (1, 3), (4, 5), (6, 7)]);
        let mut channels = [0; 4];
        half.channels(&[1, 3], &mut channels).expect("fits");
        assert_eq!(channels, [1, 6, 3, 7]);
        assert!(half.channels(&[4], &mut channels[..2]).is_err());
    }

    #[test]
    fn a_rotated_pair_scores_by_relative_position_alone() {
        for pairing in [Pairing::HalfSplit, Pairing::Interleaved] {
            let chunks = Chunks::new(8, 8, pairing).expect("valid");
            let frequencies: [f64; 4] = core::array::from_fn(|i| inverse_frequency(10_000.0, 8, i));
            let (q, k) = ([0.3, -1.0, 0.5, 2.0, 0.1, 0.7, -0.2, 1.1], [1.0, 0.4, -0.3, 0.2, 0.9, -1.0, 0.6, 0.5]);
            let turned = |row: [f32; 8], position| {
                let (mut row, mut cos, mut sin) = (row, [0.0; 4], [0.0; 4]);
                angles(position, &frequencies, &mut cos, &mut sin).expect("lengths");
                chunks.rotate(&mut row, &cos, &sin).expect("lengths");
                row
            };
            let score = |i: usize, m: usize, n: usize| {
                let (q, k, (a, b)) = (turned(q, m), turned(k, n), chunks.pair(i));
                q[a] * k[a] + q[b] * k[b]
            };
            for i in 0..4 {
                assert!((score(i, 7, 3) - score(i, 104, 100)).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn refuses_odd_shapes() {
        for (head_dim, rotary_dim) in [(0, 0), (7, 2), (8, 3), (8, 10), (2048, 2)] {
            assert!(Chunks::new(head_dim, rotary_dim, Pairing::HalfSplit).is_err(), "{head_dim} {rotary_dim}");
        }
    }
}
