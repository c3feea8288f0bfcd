//! Importance: one number per past token, from which a policy keeps the best.

use crate::config::Scope;
use crate::error::{Error, Result, expect_capacity, expect_length};
use crate::policy::Step;

/// Scores the past tokens of one KV head at one decode step.
pub trait Importance {
    /// Whether the query heads of a group share one row of scores.
    fn scope(&self) -> Scope;

    /// Writes scores, `[1, n]` or `[G, n]` according to [`scope`](Self::scope). Higher is more important; scores only
    /// rank and are never attention weights. `scratch` has at least n entries.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Capacity`] if a shape does not fit, [`Error::Missing`] if the step lacks a sketch.
    fn importance(&mut self, step: &Step<'_>, scratch: &mut [f32], scores: &mut [f32]) -> Result<()>;
}

/// `q.k` in one fixed order, the order in which [`sketch::score`](crate::sketch::score) sums: a sketch of all chunks in
/// `f32` then gives exactly these bits.
pub fn dot(query: &[f32], key: &[f32]) -> f32 {
    let key = &key[..query.len().min(key.len())];
    dot_by(&query[..key.len()], |i| key[i])
}

/// `Σ_i query[i] * other(i)` in eight running sums, which compilers turn into vector instructions.
#[inline(always)]
pub(crate) fn dot_by(query: &[f32], other: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0f32; 8];
    let (blocks, rest) = query.as_chunks::<8>();
    for (b, block) in blocks.iter().enumerate() {
        for (lane, (sum, q)) in sums.iter_mut().zip(block).enumerate() {
            *sum += q * other(8 * b + lane);
        }
    }
    for (lane, (sum, q)) in sums.iter_mut().zip(rest).enumerate() {
        *sum += q * other(8 * blocks.len() + lane);
    }
    ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]))
}

/// Adds `softmax(scores * scale) * weight` to `sums`, and uses `scores` up.
///
/// # Errors
/// [`Error::Length`] unless both have one length.
pub fn add_softmax(scores: &mut [f32], scale: f32, weight: f32, sums: &mut [f32]) -> Result<()> {
    expect_length("sums", sums.len(), scores.len())?;
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if max == f32::NEG_INFINITY {
        return Ok(()); // no score, or none above negative infinity: nothing is important
    }
    let mut total = 0.0f32;
    for score in scores.iter_mut() {
        *score = libm::expf((*score - max) * scale);
        total += *score;
    }
    let factor = weight / total;
    for (sum, score) in sums.iter_mut().zip(scores) {
        *sum += *score * factor;
    }
    Ok(())
}

/// Fills `scores` from one score row per query head, `score(head, row)`: as they are (per query head), or combined to
/// the mean over the group of `softmax(S/√d)` (per KV head; measured best among mean, maximum and sum).
///
/// # Errors
/// [`Error::Length`] or [`Error::Capacity`] if a buffer does not fit; whatever `score` returns.
pub fn combine(
    step: &Step<'_>,
    scope: Scope,
    scratch: &mut [f32],
    scores: &mut [f32],
    mut score: impl FnMut(usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
    let (group, n) = (step.queries.len(), step.keys.len());
    if group == 0 {
        return Err(Error::Range { what: "queries", problem: "a step has at least one query head" });
    }
    if scope == Scope::QueryHead || group == 1 {
        expect_length("scores", scores.len(), group * n)?;
        return scores.chunks_exact_mut(n.max(1)).enumerate().try_for_each(|(head, row)| score(head, row));
    }
    expect_length("scores", scores.len(), n)?;
    expect_capacity("scratch", scratch.len(), n)?;
    scores.fill(0.0);
    let scale = 1.0 / libm::sqrtf(step.queries.dim() as f32);
    for head in 0..group {
        let row = &mut scratch[..n];
        score(head, row)?;
        add_softmax(row, scale, 1.0 / group as f32, scores)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn softmax_sums_to_its_weight() {
        let (mut scores, mut sums) = ([1000.0, 999.0, -1000.0, f32::NEG_INFINITY], [0.0; 4]);
        add_softmax(&mut scores, 0.5, 0.25, &mut sums).expect("lengths");
        assert!((sums.iter().sum::<f32>() - 0.25).abs() < 1e-6);
        assert!((sums[1] / sums[0] - (-0.5f32).exp()).abs() < 1e-6);
        let before = sums;
        add_softmax(&mut [f32::NEG_INFINITY; 4], 1.0, 1.0, &mut sums).expect("lengths");
        assert_eq!(sums, before);
    }
}
