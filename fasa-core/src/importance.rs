//! Importance: one number per past token, from which a policy keeps the best.

use crate::config::Scope;
use crate::error::{Error, Result, expect_capacity, expect_length};
use crate::policy::Step;

/// Scores the past tokens of one KV head at one decode step.
pub trait Importance {
    /// Whether the query heads of a group share one row of scores.
    fn scope(&self) -> Scope;

    /// Writes scores, `[1, n]` or `[G, n]` according to [`scope`](Self::scope). Higher is more important; scores only
    /// rank, attention is computed over the chosen rows afterwards. `scratch` has at least n entries.
    ///
    /// # Errors
    /// [`Error::Length`] or [`Error::Capacity`] if a shape does not fit, [`Error::Missing`] if the step lacks a sketch.
    fn importance(&mut self, step: &Step<'_>, scratch: &mut [f32], scores: &mut [f32]) -> Result<()>;

    /// Whether the scores of a group of `group` query heads are estimated attention weights (not negative, their sum at
    /// most 1) rather than estimates of `q.k`. The default fits scorers that end in [`combine`].
    ///
    /// [`TopP`](crate::budget::TopP) needs to know: it adds up weights.
    fn are_weights(&self, group: usize) -> bool {
        self.scope() == Scope::KvHead && group > 1
    }
}

/// `q.k` in one fixed order, the order in which [`sketch::score`](crate::sketch::score) sums: a sketch of all chunks in
/// `f32` then gives exactly these bits. The longer of the two slices is read as far as the shorter one goes.
pub fn dot(query: &[f32], key: &[f32]) -> f32 {
    let shared = query.len().min(key.len());
    dot_blocks::<1, f32>(&query[..shared], &key[..shared], |[k]| k)
}

/// Eight running sums, which compilers turn into vector instructions, and the order in which they are added up.
#[inline(always)]
fn add_lanes(sums: [f32; 8]) -> f32 {
    ((sums[0] + sums[4]) + (sums[1] + sums[5])) + ((sums[2] + sums[6]) + (sums[3] + sums[7]))
}

/// `Σ_i query[i] * decode(stored[W * i..][..W])`: `query.len()` numbers of `W` elements each, decoded on the way.
///
/// Both sides are cut into blocks of constant length first, so that no index needs a check.
#[inline(always)]
pub(crate) fn dot_blocks<const W: usize, T: Copy>(query: &[f32], stored: &[T], decode: impl Fn([T; W]) -> f32) -> f32 {
    let mut sums = [0.0f32; 8];
    let (queries, numbers) = (query.chunks_exact(8), stored.chunks_exact(8 * W));
    let rest = queries.remainder().iter().zip(numbers.remainder().chunks_exact(W));
    for (block, numbers) in queries.zip(numbers) {
        for (lane, (sum, q)) in sums.iter_mut().zip(block).enumerate() {
            *sum += q * numbers[W * lane..].first_chunk().map_or(0.0, |number| decode(*number));
        }
    }
    for (sum, (q, number)) in sums.iter_mut().zip(rest) {
        *sum += q * number.first_chunk().map_or(0.0, |number| decode(*number));
    }
    add_lanes(sums)
}

/// `Σ_i query[i] * other(i)`, for numbers that have to be looked up one by one. Sums in the order of [`dot`].
#[inline(always)]
pub(crate) fn dot_by(query: &[f32], other: impl Fn(usize) -> f32) -> f32 {
    let mut sums = [0.0f32; 8];
    for (i, q) in query.iter().enumerate() {
        sums[i % 8] += q * other(i);
    }
    add_lanes(sums)
}

/// Turns `scores` into `softmax(scores * scale)` in place. Time O(n).
///
/// A NaN gets no weight and an infinity counts as the largest finite number, so that one broken key does not blind a
/// head. Without any number above negative infinity all weights are 0.
pub fn softmax(scores: &mut [f32], scale: f32) {
    let max = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max).min(f32::MAX);
    // Next to one large weight, thousands of small ones would vanish in a plain f32 sum: what an addition loses is kept
    // for the next one (Kahan).
    let (mut total, mut lost) = (0.0f32, 0.0f32);
    for score in scores.iter_mut() {
        let finite = if score.is_nan() { f32::NEG_INFINITY } else { score.min(f32::MAX) };
        *score = if finite == f32::NEG_INFINITY { 0.0 } else { libm::expf((finite - max) * scale) };
        let add = *score - lost;
        let next = total + add;
        (lost, total) = ((next - total) - add, next);
    }
    if total > 0.0 {
        let factor = 1.0 / total;
        scores.iter_mut().for_each(|score| *score *= factor);
    }
}

/// Adds `softmax(scores * scale) * weight` to `sums`, and uses `scores` up. Broken scores as in [`softmax`].
///
/// # Errors
/// [`Error::Length`] unless both have one length.
pub fn add_softmax(scores: &mut [f32], scale: f32, weight: f32, sums: &mut [f32]) -> Result<()> {
    expect_length("sums", sums.len(), scores.len())?;
    softmax(scores, scale);
    for (sum, score) in sums.iter_mut().zip(scores) {
        *sum += *score * weight;
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
    combine_rows([step.queries.len(), step.keys.len(), step.queries.dim()], scope, scratch, scores, &mut score)
}

/// [`combine`] for `[group, n, head_dim]`, whatever the `n` things are that are scored.
pub(crate) fn combine_rows(
    [group, n, head_dim]: [usize; 3],
    scope: Scope,
    scratch: &mut [f32],
    scores: &mut [f32],
    score: &mut dyn FnMut(usize, &mut [f32]) -> Result<()>,
) -> Result<()> {
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
    let scale = 1.0 / libm::sqrtf(head_dim as f32);
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

    #[test]
    fn broken_scores_get_no_weight_and_take_none() {
        let mut scores = [f32::NAN, 1.0, f32::INFINITY, 2.0, f32::NEG_INFINITY];
        softmax(&mut scores, 1.0);
        assert_eq!(scores, [0.0, 0.0, 1.0, 0.0, 0.0]);
        let mut scores = [f32::NAN, 1.0, 1.0];
        softmax(&mut scores, 1.0);
        assert_eq!(scores, [0.0, 0.5, 0.5]);
    }

    #[test]
    fn many_small_weights_count() {
        let mut scores = std::vec![-17.0f32; 1 << 17];
        scores[0] = 0.0;
        softmax(&mut scores, 1.0);
        let total = 1.0 + f64::from((1 << 17) - 1) * (-17.0f64).exp();
        assert!((f64::from(scores[0]) - 1.0 / total).abs() < 1e-6, "{}", scores[0]);
    }

    #[test]
    fn products_sum_in_one_order_whatever_the_length() {
        let numbers: [f32; 61] = core::array::from_fn(|i| ((i * 37 % 23) as f32 - 11.3) / 7.0);
        for n in 0..30 {
            let (q, k) = (&numbers[..n], &numbers[31..31 + n]);
            assert_eq!(dot(q, k), dot_by(q, |i| k[i]));
            assert_eq!(dot(q, k), dot(q, &numbers[31..]));
            let exact: f64 = q.iter().zip(k).map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
            assert!((f64::from(dot(q, k)) - exact).abs() < 1e-5);
        }
    }
}
