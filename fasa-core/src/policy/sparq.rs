//! SparQ (arXiv 2312.04985): a few components of the query tell where it looks.

use super::Step;
use crate::attend::attend;
use crate::config::{ChunkCount, Scope};
use crate::error::{Result, expect_capacity, expect_length};
use crate::importance::{Importance, combine, dot_by, softmax};
use crate::rope::MAX_HEAD_DIM;
use crate::rows::Rows;

/// Importance by the `r` largest components of each query, `q_r.K_r` (paper, algorithm 1, step 1).
///
/// Scores are scaled so that `softmax(S/√d)` is the paper's estimate of the attention, whose temperature is
/// `√(d Σ|q_r| / Σ|q|)`. A step reads r of d numbers of every key; an engine that wants the saving keeps a second copy of
/// the keys, channel by channel. [`attend`](Self::attend) is the attention that belongs to it, with the mean-value
/// correction. Takes 6 KiB of stack, whatever the
/// head dimension.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sparq {
    components: ChunkCount,
    scope: Scope,
}

impl Default for Sparq {
    /// A quarter of the components (the paper's r = 32 of 128), one set of tokens per query head.
    fn default() -> Self {
        Self { components: ChunkCount::Share(4), scope: Scope::QueryHead }
    }
}

/// The components of one query that are looked at.
struct Largest {
    channels: [u16; MAX_HEAD_DIM],
    query: [f32; MAX_HEAD_DIM],
    count: usize,
    /// `√(Σ|q| / Σ|q_r|)`: brings the paper's temperature to √d.
    scale: f32,
}

impl Sparq {
    /// Another number of components, here a count or share of the `head_dim` components, and another scope: with
    /// [`Scope::KvHead`] the group keeps the tokens with the best mean estimate.
    pub const fn new(components: ChunkCount, scope: Scope) -> Self {
        Self { components, scope }
    }

    /// The components with the largest magnitude, lower ones first in a tie.
    fn largest(&self, query: &[f32]) -> Result<Largest> {
        expect_capacity("head_dim", MAX_HEAD_DIM, query.len())?;
        let count = self.components.of(query.len())?;
        let mut largest = Largest { channels: [0; MAX_HEAD_DIM], query: [0.0; MAX_HEAD_DIM], count, scale: 1.0 };
        let channels = &mut largest.channels[..query.len()];
        channels.iter_mut().zip(0..).for_each(|(slot, channel)| *slot = channel);
        let magnitude = |channel: u16| query[usize::from(channel)].abs();
        channels.select_nth_unstable_by(count - 1, |&a, &b| magnitude(b).total_cmp(&magnitude(a)).then(a.cmp(&b)));
        channels[..count].sort_unstable();
        for (slot, &channel) in largest.query.iter_mut().zip(&channels[..count]) {
            *slot = query[usize::from(channel)];
        }
        let sum = |numbers: &[f32]| numbers.iter().map(|x| x.abs()).sum::<f32>();
        let part = sum(&largest.query[..count]);
        if part > 0.0 {
            largest.scale = libm::sqrtf(sum(query) / part);
        }
        Ok(largest)
    }

    /// Estimated scores of one query, one per key: `softmax(out/√d)` is the paper's ŝ. Time O(n r).
    ///
    /// # Errors
    /// [`Error::Length`](crate::Error::Length) or [`Error::Capacity`](crate::Error::Capacity) if shapes do not fit,
    /// [`Error::Range`](crate::Error::Range) for more components than there are.
    pub fn estimate(&self, query: &[f32], keys: Rows<'_>, out: &mut [f32]) -> Result<()> {
        expect_length("query", query.len(), keys.dim())?;
        expect_length("out", out.len(), keys.len())?;
        let largest = self.largest(query)?;
        let channels = &largest.channels[..largest.count];
        for (score, key) in out.iter_mut().zip(keys.iter()) {
            *score = dot_by(&largest.query[..largest.count], |c| key[usize::from(channels[c])]) * largest.scale;
        }
        Ok(())
    }

    /// Attention over `positions`, corrected by the mean value (paper, algorithm 1, step 3): the tokens not read stand for the share
    /// `1 − alpha` of the attention, and for want of their values get the mean of all values.
    /// `out = alpha * attention + (1 − alpha) * mean_value`, with alpha the estimated attention on `positions`.
    ///
    /// `query` is `[d]`, `keys` `[n, d]`, `values` `[n, d_v]`, `mean_value` and `out` `[d_v]` ([`update_mean`] keeps the
    /// mean), `scratch` at least `[n]`. Returns alpha. Time O(n r + positions (d + d_v)).
    ///
    /// # Errors
    /// As [`estimate`](Self::estimate).
    ///
    /// # Panics
    /// If a position is not a row, like slice indexing.
    #[allow(clippy::too_many_arguments)] // tensors of one attention call
    pub fn attend(
        &self,
        query: &[f32],
        keys: Rows<'_>,
        values: Rows<'_>,
        mean_value: &[f32],
        positions: &[u32],
        scratch: &mut [f32],
        out: &mut [f32],
    ) -> Result<f32> {
        expect_capacity("scratch", scratch.len(), keys.len())?;
        expect_length("mean_value", mean_value.len(), out.len())?;
        let weights = &mut scratch[..keys.len()];
        self.estimate(query, keys, weights)?;
        softmax(weights, 1.0 / libm::sqrtf(query.len() as f32));
        let alpha: f32 = positions.iter().map(|&t| weights[t as usize]).sum();
        attend(query, keys, values, Some(positions), out)?;
        for (out, mean) in out.iter_mut().zip(mean_value) {
            *out = alpha * *out + (1.0 - alpha) * mean;
        }
        Ok(alpha)
    }
}

/// Takes the value of the newest token, `[d_v]`, into the running mean of `seen` values, itself included.
///
/// # Errors
/// [`Error::Length`](crate::Error::Length) unless both have one length.
pub fn update_mean(mean_value: &mut [f32], value: &[f32], seen: usize) -> Result<()> {
    expect_length("value", value.len(), mean_value.len())?;
    let share = 1.0 / seen.max(1) as f32;
    for (mean, value) in mean_value.iter_mut().zip(value) {
        *mean += (value - *mean) * share;
    }
    Ok(())
}

impl Importance for Sparq {
    fn scope(&self) -> Scope {
        self.scope
    }

    fn importance(&mut self, step: &Step<'_>, scratch: &mut [f32], scores: &mut [f32]) -> Result<()> {
        let this = *self;
        combine(step, self.scope, scratch, scores, |g, row| this.estimate(step.queries.row(g), step.keys, row))
    }
}
