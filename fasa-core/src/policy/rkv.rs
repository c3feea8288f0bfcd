//! R-KV (arXiv 2505.24133): keep what matters and is not said twice.

use super::evicting::prepare;
use super::snapkv::max_pool;
use super::{EvictingPolicy, Memory, Pass, Phase, Residents};
use crate::budget::Guarantees;
use crate::error::{Error, Result};
use crate::importance::{dot, softmax};
use crate::rows::Rows;

/// Mixes importance with redundancy, for long reasoning that repeats itself: `Z = lambda I − (1 − lambda) R`. The newest
/// rows, the *observation tokens*, and the best others by Z make up the budget.
///
/// The paper leaves details open; where it does, this follows the authors' code, and differs where said:
/// - **Importance** I: attention weights of the observation tokens' queries over the rows before those tokens, scaled to
///   add up to 1 there; of the group's query heads the largest (the code takes the largest logit before the softmax, which
///   is the same for one query head and needs logits for more); mean over the tokens; max-pooled over 7 rows.
/// - **Redundancy** R: cosine similarities of every row's key to every other, but where rows are similar (cosine above
///   1/2) a row does not count against the newest of those similar to it: of many copies the oldest are the most redundant
///   and the newest is not. (The code makes the same exception for row 0 where a row has no similar one; here there is
///   none then.) The mean over the rows, then a softmax over all rows.
/// - Rows pile up in a **buffer** and are evicted when it is full, so a cache head holds up to budget + buffer rows
///   ([`slack`](EvictingPolicy::slack)); a prompt is cut down to the budget at once.
///
/// Time O(n² head_dim) per eviction, which with the buffer is once in `buffer` steps.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RKv {
    lambda: f32,
    observed: usize,
    buffer: usize,
    guarantees: Guarantees,
}

/// Rows that importance is pooled over.
const POOL: usize = 7;
/// Cosine from which two keys are said to be similar.
const SIMILAR: f32 = 0.5;

impl Default for RKv {
    /// The paper's: lambda 0.1, 8 observation tokens, a buffer of 128 rows.
    fn default() -> Self {
        Self { lambda: 0.1, observed: 8, buffer: 128, guarantees: Guarantees::CURRENT }
    }
}

impl RKv {
    /// Another weight of importance, from 0 (redundancy alone) to 1 (importance alone).
    ///
    /// # Errors
    /// [`Error::Range`] for a weight outside 0..=1.
    pub fn with_lambda(self, lambda: f32) -> Result<Self> {
        if !(0.0..=1.0).contains(&lambda) {
            return Err(Error::Range { what: "lambda", problem: "it mixes two scores: from 0 to 1" });
        }
        Ok(Self { lambda, ..self })
    }

    /// Another number of observation tokens, at least one.
    #[must_use]
    pub fn with_observed(self, tokens: usize) -> Self {
        Self { observed: tokens.max(1), ..self }
    }

    /// Another buffer. 0 evicts at every decode step.
    #[must_use]
    pub fn with_buffer(self, rows: usize) -> Self {
        Self { buffer: rows, ..self }
    }

    /// Keeps these tokens whatever their score, within the budget; the observation tokens are kept in any case.
    #[must_use]
    pub fn with_guarantees(self, guarantees: Guarantees) -> Self {
        Self { guarantees, ..self }
    }

    /// Mean over the observation tokens of the largest weight among the query heads, pooled, into `out[..prefix]`.
    fn importance(
        &self,
        pass: &Pass<'_>,
        prefix: usize,
        largest: &mut [f32],
        scratch: &mut [f32],
        out: &mut [f32],
    ) -> Result<()> {
        if pass.window() == 0 {
            return Err(Error::Missing { what: "attention" });
        }
        let tokens = self.observed.min(pass.window());
        out.fill(0.0);
        for j in pass.window() - tokens..pass.window() {
            largest.fill(0.0);
            for g in 0..pass.group() {
                pass.weights(g, j, scratch)?;
                let total: f32 = scratch[..prefix].iter().sum();
                let factor = if total > 0.0 { 1.0 / total } else { 0.0 };
                for (largest, weight) in largest.iter_mut().zip(&scratch[..prefix]) {
                    *largest = largest.max(weight * factor);
                }
            }
            out.iter_mut().zip(&*largest).for_each(|(sum, largest)| *sum += largest / tokens as f32);
        }
        max_pool(&out[..prefix], POOL, &mut scratch[..prefix]);
        out[..prefix].copy_from_slice(&scratch[..prefix]);
        Ok(())
    }
}

/// Redundancy of every row, `[n]`: softmax over the rows of their mean similarity to the others.
fn redundancy(keys: Rows<'_>, inverse_norms: &mut [f32], out: &mut [f32]) {
    for (inverse, key) in inverse_norms.iter_mut().zip(keys.iter()) {
        *inverse = 1.0 / (libm::sqrtf(dot(key, key)) + 1e-8);
    }
    out.fill(0.0);
    for (i, key) in keys.iter().enumerate() {
        let mut newest = None;
        for (j, other) in keys.iter().enumerate().filter(|(j, _)| *j != i) {
            let cosine = dot(key, other) * inverse_norms[i] * inverse_norms[j];
            out[j] += cosine;
            if cosine > SIMILAR {
                newest = Some((j, cosine));
            }
        }
        if let Some((j, cosine)) = newest {
            out[j] -= cosine;
        }
    }
    let n = out.len() as f32;
    out.iter_mut().for_each(|sum| *sum /= n);
    softmax(out, 1.0);
}

impl EvictingPolicy for RKv {
    fn name(&self) -> &'static str {
        "rkv"
    }

    fn window(&self, _phase: Phase) -> usize {
        self.observed
    }

    fn slack(&self) -> usize {
        self.buffer
    }

    fn evict(
        &mut self,
        pass: &Pass<'_>,
        budget: usize,
        residents: &mut Residents<'_>,
        memory: &mut Memory<'_>,
    ) -> Result<usize> {
        let ([score, scratch, other], entries) = prepare(pass, budget, residents, memory)?;
        let n = residents.len();
        let full = budget.saturating_add(if pass.phase() == Phase::Decode { self.buffer } else { 0 });
        if n <= budget || n < full {
            return Ok(residents.keep_all());
        }
        let prefix = n.saturating_sub(self.observed);
        self.importance(pass, prefix, other, scratch, score)?;
        redundancy(pass.keys(), scratch, other);
        for (score, redundancy) in score[..prefix].iter_mut().zip(&*other) {
            *score = self.lambda * *score - (1.0 - self.lambda) * redundancy;
        }
        let recent = self.guarantees.recent.max(u32::try_from(self.observed).unwrap_or(u32::MAX));
        residents.keep_best(score, Guarantees { recent, ..self.guarantees }, budget, entries)
    }
}
