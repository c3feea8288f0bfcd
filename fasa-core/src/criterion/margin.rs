//! Attention margin, this project's criterion.

use super::{Criterion, CriterionKind, Observation, Workspace, full_score};
use crate::error::{Result, expect_capacity, expect_length};

/// `M_i = Σ_t p_t s_i(t) − mean_t s_i(t)` with `p = softmax(q.K/√d)`: by how much chunk i raises what the head really
/// attends to over the average token.
///
/// Needs no sorting: a chunk's score is linear in the key, so the margin is the chunk's part of
/// `q . (Σ_t p_t k_t − mean_t k_t)`, and the chunks' margins add up to the head's. Costs O(n head_dim) per step.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Margin;

impl Criterion for Margin {
    fn kind(&self) -> CriterionKind {
        CriterionKind::Margin
    }

    fn workspace_len(&self, n: usize) -> (usize, usize, usize) {
        (n, 0, 0)
    }

    fn observe(&self, step: &Observation<'_>, workspace: &mut Workspace<'_>, sums: &mut [f64]) -> Result<()> {
        step.validate()?;
        expect_length("sums", sums.len(), step.chunks.len())?;
        let n = step.keys.len();
        expect_capacity("workspace.scores", workspace.scores.len(), n)?;
        let weights = &mut workspace.scores[..n];
        let mut max = f64::NEG_INFINITY;
        for (weight, key) in weights.iter_mut().zip(step.keys.iter()) {
            *weight = full_score(step.query, key);
            max = max.max(*weight);
        }
        let scale = 1.0 / libm::sqrt(step.chunks.head_dim() as f64);
        let mut total = 0.0;
        for weight in weights.iter_mut() {
            *weight = libm::exp((*weight - max) * scale);
            total += *weight;
        }
        let average = 1.0 / n as f64;
        for (weight, key) in weights.iter().zip(step.keys.iter()) {
            let excess = weight / total - average;
            for (i, sum) in sums.iter_mut().enumerate() {
                let (a, b) = step.chunks.pair(i);
                let score = f64::from(step.query[a]) * f64::from(key[a]) + f64::from(step.query[b]) * f64::from(key[b]);
                *sum += excess * score;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::chunk_score;
    use super::*;
    use crate::rope::{Chunks, Pairing};
    use crate::rows::Rows;
    use proptest::prelude::*;
    use std::vec;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn equals_the_definition(
            half in 1usize..9, rows in 1usize..40, seed in prop::collection::vec(-2.0f32..2.0, 16 * 41),
        ) {
            let dim = 2 * half;
            let chunks = Chunks::new(dim, dim, Pairing::HalfSplit).expect("valid");
            let (query, keys) = (&seed[..dim], Rows::contiguous(&seed[16..16 + rows * dim], dim).expect("divides"));
            let step = Observation { query, keys, chunks: &chunks };
            let (mut scores, mut sums) = (vec![0.0; rows], vec![0.0; half]);
            let mut workspace = Workspace { scores: &mut scores, entries: &mut [], positions: &mut [] };
            Margin.observe(&step, &mut workspace, &mut sums).expect("fits");

            let full: Vec<f64> = keys.iter().map(|k| full_score(query, k) / (dim as f64).sqrt()).collect();
            let total: f64 = full.iter().map(|s| s.exp()).sum();
            for (i, sum) in sums.iter().enumerate() {
                let s: Vec<f64> = keys.iter().map(|k| chunk_score(query, k, chunks.pair(i))).collect();
                let attended: f64 = s.iter().zip(&full).map(|(s, f)| s * f.exp() / total).sum();
                let mean = s.iter().sum::<f64>() / rows as f64;
                prop_assert!((sum - (attended - mean)).abs() < 1e-9, "{} {}", sum, attended - mean);
            }
        }
    }
}
